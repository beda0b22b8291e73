"""A policy as a compiled program's source: StableHLO by `jax.export`, for CPU and CUDA in one file.

Whoever has jax and not jaxroute runs it:

    from jax import export
    program = export.deserialize(bytearray(Path("my-router.stablehlo").read_bytes()))
    answer = program.call({"router": router, "instances": instances, "mask": mask})
    answer["logits"], answer["action"]

Axis letters: N observations side by side, I instances, F features of an instance, G features of the router. N is left
open, and so is I where the network serves fleets of any size.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import jax
import jax.numpy as jnp
from jax import export

from jaxroute.errors import InputError
from jaxroute.observation import Observed
from jaxroute.output import atomic_path
from jaxroute.policies.learned import LearnedPolicy
from jaxroute.policies.policy_file import PolicyFile

PLATFORMS = ("cpu", "cuda")
"""On which the program runs."""

SUFFIX = ".stablehlo"
"""What the program's file is called behind the name of the policy folder; `.json` more is its description."""

FORMAT_VERSION = 1
"""Of the description."""


def paths_beside(folder: str | Path) -> tuple[Path, Path]:
    """Where the program of a policy folder stands, and its description: beside the folder."""
    folder = Path(folder).resolve()
    return folder.with_name(folder.name + SUFFIX), folder.with_name(f"{folder.name}{SUFFIX}.json")


def check_replaceable(folder: str | Path) -> None:
    """Raises InputError where the files beside a policy folder cannot be written since folders are in their way."""
    for path in paths_beside(folder):
        if path.is_dir():
            raise InputError(f"{path}: is a folder; move it away, or choose another --out")


def exported(policy: PolicyFile) -> export.Exported:
    """The policy as a program of one argument and one result, both dictionaries.

    The argument: `router` [N, G] float32, `instances` [N, I, F] float32, `mask` [N, I + 1] bool, the parts of
    `observation.Observed`. The result: `logits` [N, I + 1] float32, those of masked actions the least finite float32,
    and `action` [N] int32, the first of the highest.
    """
    learned = LearnedPolicy.of(policy)

    def decide(observed: dict[str, jax.Array]) -> dict[str, jax.Array]:
        # A GPU would round to ten bits of mantissa otherwise, and choose otherwise where it is close.
        with jax.default_matmul_precision("highest"):
            logits = learned.logits(Observed(observed["router"], observed["instances"], observed["mask"]))
        return {"logits": logits, "action": jnp.argmax(logits, axis=-1).astype(jnp.int32)}

    observations, any_size = export.symbolic_shape("observations, instances")
    instances = policy.network.instances or any_size
    shapes = {
        "router": jax.ShapeDtypeStruct((observations, len(policy.router_features)), jnp.float32),
        "instances": jax.ShapeDtypeStruct((observations, instances, len(policy.instance_features)), jnp.float32),
        "mask": jax.ShapeDtypeStruct((observations, instances + 1), jnp.bool_),
    }
    return export.export(jax.jit(decide), platforms=PLATFORMS)(shapes)


def described(policy: PolicyFile, program: export.Exported) -> dict[str, object]:
    """What a user has to know of a program, in JSON's types; open sizes go by their names."""
    inputs = jax.tree.unflatten(program.in_tree, program.in_avals)[0][0]
    outputs = jax.tree.unflatten(program.out_tree, program.out_avals)
    return {
        "format_version": FORMAT_VERSION,
        "policy": policy.name,
        "platforms": list(program.platforms),
        "calling_convention_version": program.calling_convention_version,
        "jax": jax.__version__,
        "inputs": {name: _shape(inputs[name]) for name in ("router", "instances", "mask")},
        "outputs": {name: _shape(outputs[name]) for name in ("logits", "action")},
        "observation": policy.observation,
        "bucket_edges": list(policy.bucket_edges),
        "router_features": list(policy.router_features),
        "instance_features": list(policy.instance_features),
        "actions": policy.actions,
    }


def write_stablehlo(policy: PolicyFile, folder: str | Path) -> Path:
    """Writes program and description beside a policy folder, in place of those that may be there.

    Returns:
      The program's file.

    Raises:
      OSError: they cannot be written.
    """
    program = exported(policy)
    place, facts = paths_beside(folder)
    with atomic_path(facts) as text, atomic_path(place) as content:
        content.write_bytes(program.serialize())
        text.write_text(json.dumps(described(policy, program), indent=2) + "\n", encoding="utf-8")
    return place


def _shape(aval: object) -> dict[str, object]:
    array = cast(jax.ShapeDtypeStruct, aval)
    return {"shape": [size if isinstance(size, int) else str(size) for size in array.shape], "dtype": str(array.dtype)}
