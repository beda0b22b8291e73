"""What a Ray Serve router is told by `request_router_kwargs`: frozen, checked, of types that Ray can send around."""

from __future__ import annotations

import dataclasses
import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxroute.errors import InputError
from jaxroute.policies.folder import DEFAULT
from jaxroute.profiles import load_profile
from jaxroute.serve.brain_settings import BrainSettings
from jaxroute.serve.policy_choice import RANGE_LIMIT, STALE_AFTER_S
from jaxroute.serve.ray_request import Read, read_arguments

ROUTER = "{router}"
"""In the name of a decision log: what tells the routers of one application apart."""


@dataclasses.dataclass(frozen=True)
class RayOptions:
    """How a deployment's requests are routed.

    Attributes:
      policy, shadow, ageing, spf_edges, stale_after_s, range_limit, shared: as in `BrainSettings`.
      profile: step-time profile of replicas that report none: a name or a file.
      predictor: `default`, a predictor's folder, or `none`.
      read: `module:function` that reads a call's arguments in the place of `ray_request.read_arguments`; what it names
        `predicted_tokens` stands for the predictor.
      decision_log: file of decisions, JSON lines; `{router}` in its name becomes the process and the router in it.
      answer_s: seconds after which a request whose end Ray has not told counts as over.
    """

    policy: str = DEFAULT
    shadow: str | None = None
    ageing: float | None = None
    spf_edges: tuple[int, ...] | None = None
    profile: str = "a100-80gb-llama31-8b"
    predictor: str = "default"
    read: str | None = None
    decision_log: str | None = None
    stale_after_s: float = STALE_AFTER_S
    range_limit: float = RANGE_LIMIT
    answer_s: float = 3600.0
    shared: bool = False

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> RayOptions:
        """The options of `request_router_kwargs`.

        Raises:
          InputError: one that is unknown, or a value that is wrong.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in given if name not in known]:
            raise InputError(f"request_router_kwargs: {unknown[0]}: no such option; there are {', '.join(known)}")
        values = dict(given)
        if values.get("spf_edges") is not None:
            values["spf_edges"] = tuple(values["spf_edges"])
        options = cls(**values)
        if not options.answer_s > 0:
            raise InputError(f"request_router_kwargs: answer_s is {options.answer_s}, must be a number above 0")
        load_profile(options.profile)
        options.settings()
        return options

    def settings(self) -> BrainSettings:
        """Those of the brain; how many requests wait, and how long, is Ray's own matter.

        Raises:
          InputError: a value that is wrong.
        """
        return BrainSettings(
            policy=self.policy,
            shadow=self.shadow,
            ageing=self.ageing,
            spf_edges=self.spf_edges,
            max_queue=sys.maxsize,
            max_wait_s=math.inf,
            stale_after_s=self.stale_after_s,
            range_limit=self.range_limit,
            shared=self.shared,
        )

    def reader(self) -> Read:
        """What reads a call's arguments.

        Raises:
          InputError: there is no such function.
        """
        if self.read is None:
            return read_arguments
        module, _, name = self.read.partition(":")
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"request_router_kwargs: read {self.read!r}: {error}; give module:function") from error
        return found

    def log_path(self, router: object) -> Path | None:
        """The decision log of one router."""
        name = f"{os.getpid()}-{id(router):x}"
        return None if self.decision_log is None else Path(self.decision_log.replace(ROUTER, name))
