"""Policies by the names of the command line, with the order of the router queue that goes with each."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
from collections.abc import Sequence

from jaxroute.errors import InputError
from jaxroute.policies import ASSIGNED, HEURISTICS, Policy, expand_names, heuristic, split_order


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A policy that is evaluated.

    Attributes:
      name: as it was asked for; what tables and files call it.
      policy: what decides.
      router_order: order of the router queue, as `Fleet` names it.
      is_heuristic: whether it is one of ours, in either order.
    """

    name: str
    policy: Policy
    router_order: str = "fcfs"
    is_heuristic: bool = False


def candidates(names: Sequence[str]) -> list[Candidate]:
    """The policies that a list asks for, each once; `all` (or `all+spf`) stands for every heuristic.

    Raises:
      InputError: the list is empty, or a name stands for no policy.
    """
    if not names:
        raise InputError(f"no policy given; known: {', '.join(HEURISTICS)}, all, or module:object")
    groups = [expand_names([name]) if split_order(name)[0] == "all" else [name] for name in names]
    return [candidate(name) for name in dict.fromkeys(each for group in groups for each in group)]


def candidate(name: str) -> Candidate:
    """One policy: a heuristic's name or `module:object`, then `+spf` for a router queue in shortest-predicted order.

    The object is a policy, or a class or function without arguments that makes one. Modules are looked for in the
    current folder as well.

    Raises:
      InputError: no such heuristic, module or object, or one that is no policy.
    """
    base, order = split_order(name)
    if base in HEURISTICS:
        return Candidate(name, heuristic(name), order, is_heuristic=True)
    if base.startswith(ASSIGNED):
        raise InputError(f"policy {name}: decisions belong to one run; replay them with jaxroute simulate")
    if ":" not in base:
        raise InputError(f"unknown policy {base!r}; known: {', '.join(HEURISTICS)}, all, or module:object")
    return Candidate(name, _imported(base), order)


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
