"""`jaxroute profiles`."""

from __future__ import annotations

import dataclasses

from rich.table import Table

from jaxroute.commands.console import table_console
from jaxroute.profiles import available_profiles, load_profile


@dataclasses.dataclass(frozen=True)
class Profiles:
    """List the shipped step-time profiles: whose they are, what they hold, and how well they are known."""

    def run(self) -> None:
        """Runs it."""
        table = Table(title="shipped profiles (`--profile NAME`, or a JSON file of the same form)")
        for heading in ("name", "hardware", "model", "status"):
            table.add_column(heading, no_wrap=heading == "name")
        for heading in ("KV tokens", "decode step ms", "1,000-token prefill ms"):
            table.add_column(heading, justify="right")
        table.add_column("error")
        for name in available_profiles():
            profile = load_profile(name)
            table.add_row(
                name,
                profile.hardware,
                profile.model,
                profile.provenance["status"],
                f"{profile.kv_tokens:,}",
                f"{profile.step_ms([], [512]):.1f}",
                f"{profile.step_ms([(1000, 0)], []):.0f}",
                profile.provenance.get("error", ""),
            )
        table_console().print(table)
