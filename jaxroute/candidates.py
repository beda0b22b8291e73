"""Policies by the names of the command line, with the order of the router queue that goes with each."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from jaxroute.errors import InputError
from jaxroute.policies import ASSIGNED, HEURISTICS, Policy, expand_names, heuristic, split_order
from jaxroute.policies.folder import DEFAULT, DEFAULT_FOLDER, find_policy, read_policy
from jaxroute.simulate import Fleet
from jaxroute.workload.prediction import DEFAULT_EDGES

KNOWN = f"{', '.join(HEURISTICS)}, all, {DEFAULT}, a policy folder, a training run, or module:object"
"""What a name may be, for errors."""


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A policy that is evaluated.

    Attributes:
      name: what tables and files call it: as it was asked for, of a path the end.
      policy: what decides.
      router_order: order of the router queue, as `Fleet` names it.
      is_heuristic: whether it is one of ours, in either order.
      ageing: of the router queue, where the policy was trained with one; None for the fleet's own.
      spf_edges: likewise.
      buckets: B, the length buckets by which its view must count requests; 0 for none.
      instances: I of the only fleets that it can route for; 0 for fleets of any size.
    """

    name: str
    policy: Policy
    router_order: str = "fcfs"
    is_heuristic: bool = False
    ageing: float | None = None
    spf_edges: tuple[int, ...] | None = None
    buckets: int = 0
    instances: int = 0

    def fleet(self, fleet: Fleet) -> Fleet:
        """The fleet as this policy routes for it.

        Raises:
          InputError: it cannot.
        """
        if self.instances not in (0, size := len(fleet.profiles)):
            raise InputError(
                f"policy {self.name}: was trained for {self.instances} instances and cannot route for {size}; "
                f"give a fleet of {self.instances}, or train it for {size}"
            )
        ageing = fleet.ageing if self.ageing is None else self.ageing
        edges = fleet.spf_edges if self.spf_edges is None else self.spf_edges
        order = self.router_order
        return dataclasses.replace(fleet, router_order=order, ageing=ageing, spf_edges=edges, buckets=self.buckets)


def by_program(fleet: Fleet, candidates: Sequence[Candidate]) -> Iterator[tuple[Fleet, list[Candidate]]]:
    """The candidates in groups that can share a compiled program, each with the fleet that they route for."""
    groups: dict[tuple[object, ...], tuple[Fleet, list[Candidate]]] = {}
    for candidate in candidates:
        own = candidate.fleet(fleet)
        key = (own.router_order, own.ageing, own.spf_edges, own.buckets)
        groups.setdefault(key, (own, []))[1].append(candidate)
    yield from groups.values()


def candidates(names: Sequence[str]) -> list[Candidate]:
    """The policies that a list asks for, each once; `all` (or `all+spf`) stands for every heuristic.

    Paths that end alike are told apart by more of their parts, joined by `-`.

    Raises:
      InputError: the list is empty, a name stands for no policy, or two stand for one.
    """
    if not names:
        raise InputError(f"no policy given; known: {KNOWN}")
    groups = [expand_names([name]) if split_order(name)[0] == "all" else [name] for name in names]
    asked = list(dict.fromkeys(each for group in groups for each in group))
    return [_candidate(name, shown) for name, shown in zip(asked, _shown(asked), strict=True)]


def candidate(name: str) -> Candidate:
    """One policy, then `+spf` for a router queue in shortest-predicted order.

    It is a heuristic's name, `default`, the path of a policy folder or of a training run (whose policy of the moment
    is taken), or `module:object`: a policy, or a class or function without arguments that makes one. Modules are looked
    for in the current folder as well. A trained policy brings its own order of the queue.

    Raises:
      InputError: no such heuristic, folder, module or object, or one that is no policy.
    """
    return _candidate(name, *_shown([name]))


def _candidate(name: str, shown: str) -> Candidate:
    base, order = split_order(name)
    if base in HEURISTICS:
        return Candidate(name, heuristic(name), order, is_heuristic=True)
    if base.startswith(ASSIGNED):
        raise InputError(f"policy {name}: decisions belong to one run; replay them with jaxroute simulate")
    if base == DEFAULT:
        if not DEFAULT_FOLDER.is_dir():
            raise InputError(f"policy {DEFAULT}: this version ships no trained policy; train one with jaxroute train")
        return _trained(name, shown, DEFAULT_FOLDER)
    if _is_path(base):
        return _trained(name, shown, find_policy(base))
    if ":" not in base:
        raise InputError(f"unknown policy {base!r}; known: {KNOWN}")
    return Candidate(name, _imported(base), order)


def _trained(name: str, shown: str, folder: Path) -> Candidate:
    # Imported here, since Flax takes long and only this needs it.
    from jaxroute.policies.learned import LearnedPolicy

    file = read_policy(folder)
    if file.bucket_edges not in ((), DEFAULT_EDGES):
        raise InputError(
            f"policy {name}: was trained on length buckets from {list(file.bucket_edges)} tokens on, but requests are "
            f"predicted in buckets from {list(DEFAULT_EDGES)} on; train it again"
        )
    is_forced = split_order(name)[1] != "fcfs"
    return Candidate(
        name=shown,
        policy=LearnedPolicy.of(file, shown),
        router_order="shortest-predicted" if is_forced else file.router_order,
        # Of a policy that was trained on another order, they say nothing.
        ageing=None if file.router_order == "fcfs" else file.ageing,
        spf_edges=None if file.router_order == "fcfs" else file.spf_edges,
        buckets=len(file.bucket_edges),
        instances=file.network.instances,
    )


def _shown(asked: Sequence[str]) -> list[str]:
    """What the policies are called, no two alike: as they are asked for; a path by as few of its last parts as do.

    Raises:
      InputError: two names stand for one path.
    """
    shown = [_ending(name, 1) for name in asked]
    for parts in range(2, 1 + max(len(Path(name).resolve().parts) for name in asked)):
        count = Counter(shown)
        shown = [
            _ending(name, parts) if count[own] > 1 or _is_taken(own) else own
            for name, own in zip(asked, shown, strict=True)
        ]
    if repeated := [name for name, count in Counter(shown).items() if count > 1]:
        raise InputError(f"policy {repeated[0]}: is given twice; give each policy once")
    return shown


def _ending(name: str, parts: int) -> str:
    """The last parts of a path as one name, fit for a file, with the suffix; any other name as it is."""
    base, _ = split_order(name)
    if not _is_path(base):
        return name
    return "-".join(Path(base).resolve().parts[1:][-parts:]) + name.removeprefix(base)


def _is_path(base: str) -> bool:
    return not _is_taken(base) and ("/" in base or Path(base).exists())


def _is_taken(name: str) -> bool:
    """Whether we have a policy of that name."""
    base, _ = split_order(name)
    return base in HEURISTICS or base == DEFAULT


def _imported(name: str) -> Policy:
    module_name, _, path = name.partition(":")
    if not module_name or not path:
        raise InputError(f"policy {name!r}: give module:object, for example my_router:MyPolicy")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    # Whatever the user's own code raises is bad input here.
    try:
        found = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(f"policy {name}: module {module_name} cannot be imported ({_one_line(error)})") from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise InputError(f"policy {name}: module {module_name} has no {path}; check its spelling")
        found = getattr(found, attribute)
    if isinstance(found, type) or (callable(found) and not isinstance(found, Policy)):
        try:
            found = found()
        except Exception as error:
            raise InputError(
                f"policy {name}: {path}() fails ({_one_line(error)}); give a policy, or what makes one"
            ) from error
    if not isinstance(found, Policy):
        raise InputError(f"policy {name}: is no policy: it needs name, initial_state and act")
    try:
        hash(found)
    except TypeError as error:
        raise InputError(f"policy {name}: must be hashable, such as a frozen dataclass ({error})") from error
    return found


def _one_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
