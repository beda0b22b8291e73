"""`jaxroute surface`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from jaxroute.commands.console import table_console
from jaxroute.commands.options import names_of
from jaxroute.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurfaceCommand:
    """Draw what policies decide: to which instance a request goes, or that it is held, over load and prompt length.

    One instance's KV cache is filled from empty to full, all others alike to a fixed degree; every request in flight
    decodes. A row of panels for each policy, a column for each degree.
    """

    out: Path
    """Picture to write (PNG)."""
    policies: str = "default,gated-central-queue,least-kv"
    """Policies, with commas; see `jaxroute simulate --policy`."""
    profile: str = "v100-32gb-llama2-7b"
    """Profile of all servers, by name or JSON file."""
    instances: int = 4
    """I, servers in the fleet."""
    scheduler: str = "chunked"
    """prefill-first, chunked or whole-prompt."""
    kv_tokens: int | None = None
    """KV cache size of every server, tokens; by default the profile's."""
    others: str = "0.3,0.6,0.9"
    """Share of the KV cache that is filled at the other instances, with commas: a column for each."""
    output_tokens: int = 150
    """Predicted output of the request."""
    context_tokens: int = 200
    """Prompt and output tokens so far of each request in flight."""
    queue: int = 1
    """Requests at the router."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.candidates import candidates
        from jaxroute.plots import save
        from jaxroute.plots_surface import surface_picture
        from jaxroute.policy_surface import Scene, policy_surface
        from jaxroute.profiles import load_profile
        from jaxroute.simulate import Fleet

        for name in ("instances", "output_tokens", "context_tokens", "queue"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}, must be at least 1")
        profile = load_profile(self.profile)
        if self.kv_tokens is not None:
            profile = profile.with_kv_tokens(self.kv_tokens)
        fleet = Fleet((profile,) * self.instances, (self.scheduler,) * self.instances)
        fleet.params()
        scenes = [Scene(share, self.output_tokens, self.context_tokens, self.queue) for share in self._others()]
        console = table_console()
        with console.status("asking the policies"):
            found = [
                [policy_surface(policy, fleet, scene) for scene in scenes]
                for policy in candidates(names_of(self.policies))
            ]
        try:
            save(surface_picture(found), self.out)
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot be written ({error}); choose another place") from error
        console.print(f"written to {self.out}", soft_wrap=True)

    def _others(self) -> list[float]:
        try:
            shares = [float(text) for text in names_of(self.others)]
        except ValueError:
            shares = []
        if not shares or not all(0 <= share <= 1 for share in shares):
            raise InputError(f"--others {self.others}: give shares from 0 to 1 with commas, such as 0.3,0.6,0.9")
        return shares
