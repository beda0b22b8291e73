"""`jaxroute export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.table import Table

from jaxroute.commands.console import table_console
from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.policies.policy_file import PolicyFile


@dataclasses.dataclass(frozen=True)
class Export:
    """Copy the current policy of a training run to a policy folder, and say what is in it.

    The folder, `policy.json` and `policy.safetensors`, is all that `simulate`, `evaluate` and `serve` need.
    """

    source: Annotated[Path, tyro.conf.arg(metavar="RUN"), tyro.conf.Positional]
    """Training run (or policy folder)."""
    out: Annotated[Path, tyro.conf.arg(metavar="POLICY")]
    """Policy folder to write; a policy that is there is replaced."""
    stablehlo: bool = False
    """Write POLICY.stablehlo as well, beside the folder: the policy as one program of `jax.export` for CPU and CUDA and
    fleets of any size, and POLICY.stablehlo.json, which names its inputs and outputs."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.export import export

        if self.stablehlo:
            from jaxroute import stablehlo

            stablehlo.check_replaceable(self.out)
        try:
            policy = export(self.source, self.out)
            program = stablehlo.write_stablehlo(policy, self.out) if self.stablehlo else None
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot be written ({error}); choose another folder") from error
        size = sum(path.stat().st_size for path in self.out.iterdir())
        console = table_console()
        console.print(_facts(policy, size))
        console.print(f"written to {self.out}")
        if program is not None:
            console.print(f"StableHLO for CPU and CUDA written to {program}")


def _facts(policy: PolicyFile, size: int) -> Table:
    """What a user has to know of a policy of `size` bytes."""
    network = policy.network
    order = policy.router_order
    classes = f" in classes from {' and '.join(map(str, policy.spf_edges))} tokens on" if policy.spf_edges else ""
    table = Table(title=f"policy {policy.name}", title_justify="left", show_header=False)
    for fact, value in {
        "observation": policy.observation,
        "features": f"{len(policy.router_features)} of the router, {len(policy.instance_features)} of each instance",
        "network": f"{network.form}, hidden {' x '.join(map(str, network.hidden)) or 'none'}, {network.activation}",
        **({"fleets": f"of {network.instances} instances"} if network.instances else {}),
        "may hold": "yes" if network.holds else "only while nothing can be sent",
        "parameters": f"{policy.parameters:,}",
        "size": f"{size / 1024:.1f} KiB",
        "router queue": order if order == "fcfs" else f"{order}{classes}, ageing {policy.ageing:g} tokens/s",
        "dt": f"{policy.dt:g} s",
        "profiles": ", ".join(policy.profiles),
        **{f"training: {fact}": str(value) for fact, value in policy.training.items()},
    }.items():
        table.add_row(fact, value)
    return table
