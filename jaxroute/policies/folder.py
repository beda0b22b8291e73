"""A policy folder on disk: `policy.json`, the facts, and `policy.safetensors`, the weights; read without jax."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from jaxroute import whole_folder
from jaxroute.errors import InputError, first_line
from jaxroute.json_fields import Fields, parse_object
from jaxroute.observation import Encoding
from jaxroute.policies.policy_file import (
    FORMAT_VERSION,
    RETRAIN,
    SCORER,
    NetworkShape,
    PolicyFile,
    Scales,
    check_policy,
)
from jaxroute.whole_folder import read_file, write_folder

FACTS, WEIGHTS = "policy.json", "policy.safetensors"

DEFAULT = "default"
"""Name of the trained policy that is shipped."""

DEFAULT_FOLDER = Path(__file__).parent / "default"

RUN_POLICY = "policy"
"""Folder of a training run that holds its current policy."""

SAME_EXPORT = "take both files of a policy from one export"


def find_policy(path: str | Path) -> Path:
    """The policy folder that a path stands for: itself, or the current one of a training run.

    Raises:
      InputError: neither.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"policy {path}: no such folder; give a policy folder or a training run")
    for folder in (path, path / RUN_POLICY):
        if (folder / FACTS).exists() or (folder / WEIGHTS).exists():
            return folder
    raise InputError(
        f"policy {path}: holds neither {FACTS} nor a folder {RUN_POLICY}; give a policy folder, or a training run that "
        "has come to its first policy"
    )


def read_policy(path: str | Path) -> PolicyFile:
    """Reads a policy folder and checks all of it.

    Raises:
      InputError: names the file and the remedy: missing, damaged, of another version, or one that cannot be run.
    """
    facts, weights = Path(path) / FACTS, Path(path) / WEIGHTS
    data = _json(facts)
    content = _bytes(weights)
    if hashlib.sha256(content).hexdigest() != data.get("weights_sha256"):
        raise InputError(f"{weights}: is not the file that {FACTS} was written with; {SAME_EXPORT}")
    try:
        arrays = load(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{weights}: is no safetensors file that NumPy reads ({first_line(error)}); {RETRAIN}"
        ) from error
    policy = _policy(Fields(data, str(facts), SAME_EXPORT), arrays)
    check_policy(policy, str(facts), str(weights))
    return policy


def write_policy(policy: PolicyFile, path: str | Path) -> None:
    """Writes a policy folder, in place of the policy that may be there; it is there whole or not at all.

    Raises:
      InputError: something else is in the way, or the policy is one that `read_policy` would refuse.
      OSError: the folder above cannot be made or written.
    """
    target = Path(path).resolve()
    check_policy(policy, f"policy {policy.name}", f"policy {policy.name}")
    text, content = _encoded(policy)
    check_replaceable(target)
    write_folder({WEIGHTS: content, FACTS: text.encode()}, target)


def check_replaceable(path: Path) -> None:
    """Raises InputError where something other than a policy folder would be lost by writing one to `path`."""
    whole_folder.check_replaceable(path, (FACTS, WEIGHTS), "policy")


def digest(policy: PolicyFile) -> str:
    """SHA-256 of the policy's content, the same for what `write_policy` wrote and `read_policy` read."""
    return hashlib.sha256(_encoded(policy)[0].encode()).hexdigest()


def _encoded(policy: PolicyFile) -> tuple[str, bytes]:
    """The contents of the two files; the facts hold a digest of the weights."""
    content = save({name: np.ascontiguousarray(array) for name, array in policy.weights.items()})
    fields = {field.name: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    del fields["weights"]
    data = {
        "format_version": fields.pop("format_version"),
        **fields,
        "scales": {name: values.tolist() for name, values in vars(policy.scales).items()},
        "network": _network_data(policy.network),
        "weights_sha256": hashlib.sha256(content).hexdigest(),
    }
    return json.dumps(data, indent=2, allow_nan=False) + "\n", content


def _policy(fields: Fields, weights: dict[str, np.ndarray]) -> PolicyFile:
    scales, network = fields.within("scales"), fields.within("network")
    return PolicyFile(
        name=fields.text("name"),
        observation=cast(Encoding, fields.text("observation")),
        bucket_edges=fields.integers("bucket_edges"),
        router_features=fields.texts("router_features"),
        instance_features=fields.texts("instance_features"),
        scales=Scales(**{field.name: scales.float32(field.name) for field in dataclasses.fields(Scales)}),
        network=_network(network),
        router_order=fields.text("router_order"),
        ageing=fields.number("ageing"),
        dt=fields.number("dt"),
        profiles=fields.texts("profiles"),
        training=fields.within("training").data,
        weights=weights,
        # Older files have none.
        spf_edges=fields.integers("spf_edges") if "spf_edges" in fields.data else (),
        actions=fields.text("actions"),
    )


def _network_data(network: NetworkShape) -> dict[str, object]:
    """A scorer's is as it was before there were other forms."""
    data = dict(vars(network))
    if network.form == SCORER:
        del data["form"], data["instances"]
    return data


def _network(fields: Fields) -> NetworkShape:
    has_form = "form" in fields.data
    return NetworkShape(
        hidden=fields.integers("hidden"),
        holds=fields.flag("holds"),
        activation=fields.text("activation"),
        form=fields.text("form") if has_form else SCORER,
        instances=fields.integer("instances") if has_form else 0,
    )


def _json(path: Path) -> dict[str, object]:
    data = parse_object(_bytes(path), path, SAME_EXPORT)
    # Before anything else is asked of it: another version may have other fields.
    if (version := data.get("format_version")) != FORMAT_VERSION:
        raise InputError(f"{path}: format_version is {version!r}, but this version reads {FORMAT_VERSION}; {RETRAIN}")
    return data


def _bytes(path: Path) -> bytes:
    return read_file(path, f"a policy folder holds {FACTS} and {WEIGHTS}")
