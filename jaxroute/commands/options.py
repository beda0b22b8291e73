"""What the subcommands that simulate a fleet have in common."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxroute.errors import InputError

if TYPE_CHECKING:
    from jaxroute.profiles import StepProfile
    from jaxroute.simulate import Fleet


@dataclasses.dataclass(frozen=True, kw_only=True)
class FleetOptions:
    """Options that describe the servers and what the router is told."""

    profile: str
    """Profile of the servers, by name (see `jaxroute profiles`) or JSON file; several with commas for a mixed fleet."""
    scheduler: str = "chunked"
    """prefill-first, chunked or whole-prompt; several with commas for a mixed fleet."""
    batching: str = "fcfs"
    """Order of the servers' waiting queues: fcfs, least-work-left or bin-packing."""
    kv_tokens: int | None = None
    """KV cache size of every server, tokens; by default the profile's."""
    max_num_seqs: int | None = None
    """Most sequences that a server runs at once; by default the profile's."""
    max_num_batched_tokens: int | None = None
    """Token budget of an engine step; by default the profile's."""
    dt: float = 0.02
    """Router interval, seconds."""
    prediction: str = "oracle"
    """What the router is told of output lengths: oracle (the true bucket), none, a probability such as 0.8 of the true
    bucket, or confusion: the mistakes that the shipped length predictor was measured to make (confusion:FOLDER: another
    one's)."""
    overlong: Literal["error", "clip", "drop"] = "error"
    """What to do with requests that a server cannot hold: stop, cut the prompt, or leave them out."""
    ageing: float = 5.0
    """Predicted tokens that a second of waiting is worth under +spf."""
    spf_edges: str = ""
    """Predicted tokens, ascending with commas, to which those of a request are rounded down (below the first, to 0)
    under +spf, such as 256 for two classes; by default they count as they are."""
    scrape_s: float = 0.1
    """Time between two scrapes of the servers' metrics, seconds."""

    def fleet_of(self, instances: int, routers: int = 1) -> Fleet:
        """The fleet, checked, behind so many routers that share no state and each act every `dt`.

        Raises:
          InputError: a bad option, or a profile that cannot be read.
        """
        from jaxroute.profiles import load_profile
        from jaxroute.simulate import Fleet

        if instances < 1:
            raise InputError(f"--instances is {instances}, must be at least 1")
        if routers < 1:
            raise InputError(f"--routers is {routers}, must be at least 1")
        profiles = [load_profile(name) for name in _spread(self.profile, instances, "--profile")]
        if self.max_num_seqs is not None:
            profiles = [dataclasses.replace(profile, max_num_seqs=self.max_num_seqs) for profile in profiles]
        if self.max_num_batched_tokens is not None:
            budget = self.max_num_batched_tokens
            profiles = [dataclasses.replace(profile, max_num_batched_tokens=budget) for profile in profiles]
        if self.kv_tokens is not None:
            profiles = [profile.with_kv_tokens(self.kv_tokens) for profile in profiles]
        fleet = Fleet(
            profiles=tuple(profiles),
            schedulers=tuple(_spread(self.scheduler, instances, "--scheduler")),
            dt=self.dt / routers,
            batching=self.batching,
            ageing=self.ageing,
            spf_edges=self._edges(),
            scrape_s=self.scrape_s,
            routers=routers,
        )
        fleet.params()
        fleet.config(1, records=False)
        return fleet

    def _edges(self) -> tuple[int, ...]:
        from jaxroute.length_edges import are_edges

        try:
            edges = tuple(map(int, names_of(self.spf_edges)))
        except ValueError:
            edges = (0,)
        if not are_edges(edges):
            raise InputError(f"--spf-edges {self.spf_edges}: give ascending whole numbers above 0, such as 64,256")
        return edges

    def limits(self, fleet: Fleet) -> tuple[int, ...]:
        """Most prompt + output tokens that `--overlong` deals with, in the order in which it does."""
        context = min(profile.max_model_len for profile in fleet.profiles)
        return (context,) if self.overlong == "error" else (context, fleet.longest_request)

    def settings(self) -> dict[str, object]:
        """All options as they were given, for a JSON file."""
        return {key: str(value) if isinstance(value, Path) else value for key, value in vars(self).items()}


def smallest_profile(fleet: Fleet) -> StepProfile:
    """The profile that says what is heavy in a synthetic set: that of the server that holds the least."""
    return min(fleet.profiles, key=lambda profile: min(profile.max_model_len, profile.kv_tokens))


def check_folder(out: Path) -> None:
    """Raises InputError where `--out` is a file."""
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")


def names_of(text: str) -> list[str]:
    """The parts of a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def rate_warning(name: str, rate: float, dt: float) -> str | None:
    """A warning where requests come faster than the router sends them on, one per `dt`."""
    if rate <= 1 / dt:
        return None
    return (
        f"{name} brings {rate:.0f} requests/s, but a router that acts every {dt} s sends at most {1 / dt:.0f}; "
        "the difference queues at the router: lower --dt"
    )


def _spread(text: str, instances: int, option: str) -> list[str]:
    values = names_of(text)
    if len(values) == 1:
        return values * instances
    if len(values) != instances:
        raise InputError(f"{option}: {len(values)} values for {instances} instances; give one, or one for each")
    return values
