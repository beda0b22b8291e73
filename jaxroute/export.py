"""Trained parameters -> policy file, and a training run's policy -> a folder of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from flax.traverse_util import flatten_dict

from jaxroute.observation import Encoding, feature_names
from jaxroute.output import plain_json
from jaxroute.policies.folder import find_policy, read_policy, write_policy
from jaxroute.policies.policy_file import ACTIVATIONS, SCORER, NetworkShape, PolicyFile, Scales, check_policy
from jaxroute.workload.prediction import DEFAULT_EDGES

if TYPE_CHECKING:
    from jaxroute.policies.network import FeatureScales


def policy_file_of(
    *,
    name: str,
    params: Mapping[str, Any],
    scales: FeatureScales,
    encoding: Encoding,
    buckets: int,
    hidden: tuple[int, ...],
    holds: bool,
    router_order: str,
    ageing: float,
    dt: float,
    profiles: tuple[str, ...],
    training: Mapping[str, object],
    spf_edges: tuple[int, ...] = (),
    form: str = SCORER,
    instances: int = 0,
) -> PolicyFile:
    """A trained `Scorer` or `StateScorer` as a policy file.

    Args:
      name: of the policy.
      params: variables of the network: the tree of its weights under `params`.
      scales: that it was trained with.
      encoding: of its observation.
      buckets: B, of the paper's observation; ignored with the rich one.
      hidden: units of the hidden layers.
      holds: whether it may hold while a request can be sent.
      router_order: order of the router queue, as `Fleet` names it.
      ageing: predicted tokens per second of waiting in the shortest-predicted order.
      dt: router interval, seconds.
      profiles: names of the profiles that it was trained on.
      training: facts about the training; what JSON cannot hold becomes text or null.
      spf_edges: to which the shortest-predicted order rounds predicted tokens down.
      form: of the network, `scorer` or `state`.
      instances: I, of a `state`.

    Raises:
      ValueError: `buckets` is not the number of buckets that requests are predicted in.
      InputError: weights or scales that do not fit the features or the network, or are not finite.
    """
    edges = _edges(encoding, buckets)
    router_features, instance_features = feature_names(encoding, len(edges))
    policy = PolicyFile(
        name=name,
        observation=encoding,
        bucket_edges=edges,
        router_features=router_features,
        instance_features=instance_features,
        scales=_in_numpy(scales),
        network=NetworkShape(tuple(hidden), holds, ACTIVATIONS[form], form, instances),
        router_order=router_order,
        ageing=float(ageing),
        dt=float(dt),
        profiles=tuple(profiles),
        spf_edges=tuple(spf_edges),
        training=cast("dict[str, object]", plain_json(training)),
        weights={path: np.asarray(array) for path, array in flatten_dict(params["params"], sep="/").items()},
    )
    check_policy(policy, f"policy {name}", f"policy {name}")
    return policy


def _edges(encoding: Encoding, buckets: int) -> tuple[int, ...]:
    if encoding != "paper":
        return ()
    if buckets != len(DEFAULT_EDGES):
        raise ValueError(f"buckets is {buckets}, but requests are predicted in {len(DEFAULT_EDGES)}")
    return DEFAULT_EDGES


def _in_numpy(scales: FeatureScales) -> Scales:
    return Scales(
        router_mean=np.asarray(scales.global_mean),
        router_std=np.asarray(scales.global_std),
        instance_mean=np.asarray(scales.instance_mean),
        instance_std=np.asarray(scales.instance_std),
    )


def export(run: str | Path, out: str | Path) -> PolicyFile:
    """Copies the current policy of a training run, or the policy of a folder, to a policy folder.

    Raises:
      InputError: no such policy, one that cannot be run, or something other than a policy folder at `out`.
      OSError: `out` cannot be written.
    """
    policy = read_policy(find_policy(run))
    write_policy(policy, out)
    return policy
