"""One of several processes that agree on things, or learn `uneven` together, or go on until one is asked to stop.

`python together.py agree|learn|wait HOST:PORT PROCESSES PROCESS FOLDER`: writes what it was told to `PROCESS.json`, or
the weights to `weights.npz`; while it waits there is a file `PROCESS`, and it ends with 130.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxroute.devices import lane_mesh, lane_sharding, on_host, placed
from jaxroute.errors import InputError
from jaxroute.train.distributed import Join, agreed, by_first, check_same, is_first, joined
from jaxroute.train.interrupt import stop_requests


def told(process: int) -> dict[str, Any]:
    """What this process learns from the others."""

    def refuse() -> None:
        raise InputError("the first one says nö")

    found: dict[str, Any] = {"devices": len(jax.devices()), "first": is_first()}
    found["none"], found["one"] = agreed(False), agreed(process == 1)
    by_first(lambda: None)
    for name, action in (
        ("refused", lambda: by_first(refuse)),
        ("differs", lambda: check_same("their numbers", np.asarray([process]))),
    ):
        try:
            action()
        except InputError as error:
            found[name] = str(error)
    check_same("the key", jax.random.key(3))
    values = placed(np.arange(16), lane_sharding(lane_mesh(len(jax.devices()))))
    found["here"] = [shard.data.tolist() for shard in values.addressable_shards]
    found["whole"] = on_host(values).tolist()
    return found


def learned() -> np.ndarray:
    """Flat weights after the updates of `uneven` on the devices of all processes."""
    # Imported late: they make arrays, which nobody may before all are together.
    import uneven
    from tiny import states_of

    from jaxroute.train.ppo import make_learner

    env, params = uneven.problem()
    learner = make_learner(uneven.config(), (env,))
    after = uneven.trained(learner, params, states_of(learner, params, uneven.SEED), len(jax.devices()))
    return uneven.weights_of(after, 0)


def main(what: str, coordinator: str, processes: int, process: int, folder: Path) -> None:
    """See the module's docstring."""
    with joined(Join(coordinator, processes, process, 60), "together"):
        if what == "agree":
            (folder / f"{process}.json").write_text(json.dumps(told(process)))
            return
        if what == "learn":
            weights = learned()
            if is_first():
                np.savez(folder / "weights.npz", weights=weights)
            return
        with stop_requests() as stop:
            while not agreed(stop()):
                (folder / str(process)).touch()
                time.sleep(0.1)
        sys.exit(130)


if __name__ == "__main__":
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
