"""The policies that enter: by the names of the command line, and what tells one version of a policy from another."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import re
from collections.abc import Sequence

from jaxroute.candidates import Candidate, candidates
from jaxroute.errors import InputError
from jaxroute.metrics import REFERENCE_POLICY
from jaxroute.policies.folder import DEFAULT

BY_ARRIVAL = "+fcfs"
"""Suffix of a trained policy whose router queue is by arrival, not in its own order."""


def entrants(names: Sequence[str]) -> list[Candidate]:
    """The policies that a list asks for, see `candidates`; `default+fcfs` is the shipped one by arrival.

    Round robin is added if missing.

    Raises:
      InputError: see `candidates`, or no heuristic among them.
    """
    names = list(names)
    if REFERENCE_POLICY not in names and "all" not in names:
        names.insert(0, REFERENCE_POLICY)
    found = candidates([name for name in names if not name.endswith(BY_ARRIVAL)])
    for name in dict.fromkeys(name for name in names if name.endswith(BY_ARRIVAL)):
        if name != DEFAULT + BY_ARRIVAL:
            raise InputError(f"policy {name}: {BY_ARRIVAL} goes with {DEFAULT} only")
        found.append(_by_arrival(name))
    return found


def fingerprint(candidate: Candidate) -> str:
    """Changes where the policy does: with its own fields, its weights, or the module that its class comes from."""
    own = {field: value for field, value in vars(candidate).items() if field != "policy"}
    # Where a class has no representation of its own, Python's holds an address, which is another one in each run.
    parts = [repr(own), re.sub(r" at 0x[0-9a-f]+", "", repr(candidate.policy))]
    if ":" in candidate.name:
        module = inspect.getmodule(type(candidate.policy))
        source = None if module is None else inspect.getsourcefile(module)
        if source is not None:
            with open(source, "rb") as file:
                parts.append(hashlib.sha256(file.read()).hexdigest())
    return "|".join(parts)


def _by_arrival(name: str) -> Candidate:
    [own] = candidates([DEFAULT])
    policy = dataclasses.replace(own.policy, name=name)  # type: ignore[type-var]
    return dataclasses.replace(own, name=name, policy=policy, router_order="fcfs", ageing=None, spf_edges=None)
