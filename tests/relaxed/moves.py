"""What the derivative of the relaxed fleet says of a move, and what the move does: `python tests/relaxed/moves.py`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxroute.profiles import load_profile
from jaxroute.relaxed import fleet
from jaxroute.relaxed.state import RelaxedState, all_finished, initial_state
from jaxroute.relaxed.work import MOVES, PATHWISE, Derivative, Marginal
from jaxroute.simulate import Fleet
from jaxroute.types import ClusterParams, Workload
from jaxroute.workload.device import to_device
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import predict

DERIVATIVES = {
    "whole step times and waits": MOVES,
    "whole step times": Derivative(Marginal.SECANT, waits=False),
    "pathwise": PATHWISE,
    "own latency only": None,
}
"""What is compared; the last is how much later the request itself would finish."""


@partial(jax.jit, static_argnames=("rows", "length", "steps", "derivative"))
def latency(
    params: ClusterParams,
    workload: Workload,
    weights: jax.Array,
    *,
    rows: int,
    length: int,
    steps: int,
    derivative: Derivative = MOVES,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Total latency of requests that are sent as they come, seconds; that of each copy, and whether all finished."""

    @jax.checkpoint
    def body(state: RelaxedState, _: None) -> tuple[RelaxedState, jax.Array]:
        own = weights[jnp.minimum(state.dispatched, weights.shape[0] - 1)]
        return fleet.step(params, workload, state, own, steps=steps, derivative=derivative)

    state, spent = jax.lax.scan(body, initial_state(params, workload, rows, records=True), None, length=length)
    each = fleet.total_latency(state, params.dt)[1]
    return jnp.sum(spent), (each, all_finished(workload, state))


def compare(
    servers: Fleet,
    *,
    rate: float,
    requests: int,
    moved: int,
    seed: int,
    length: int,
    derivatives: Mapping[str, Derivative | None] = DERIVATIVES,
) -> dict[str, np.ndarray]:
    """[moved] predicted changes by derivative, and the `true` ones: of sending a request elsewhere, seconds."""
    instances = len(servers.profiles)
    table = five_task(requests, rate, seed)
    workload = to_device(table, predict(table, "oracle", seed=0), dt=servers.dt)
    params, steps = servers.params(), servers.config(requests, records=False).max_steps_per_interval
    rng = np.random.default_rng(seed)
    sent = np.eye(instances, dtype=np.float32)[rng.integers(0, instances, requests)]
    run = partial(latency, params, workload, rows=requests, length=length, steps=steps)
    before, (each, done) = run(jnp.asarray(sent))
    assert bool(done)
    chosen = rng.choice(requests, moved, replace=False)
    after = np.repeat(sent[None], moved, axis=0)
    for lane, request in enumerate(chosen):
        elsewhere = (sent[request].argmax() + rng.integers(1, instances)) % instances
        after[lane, request] = np.eye(instances)[elsewhere]
    totals, (_, finished) = jax.lax.map(run, jnp.asarray(after), batch_size=8)
    assert bool(jnp.all(finished))
    found = {"true": np.asarray(totals) - float(before)}
    change = after - sent
    for name, derivative in derivatives.items():
        slope = np.asarray(each).T
        if derivative is not None:
            own = partial(run, derivative=derivative)
            slope = np.asarray(jax.grad(lambda weights, own=own: own(weights)[0])(jnp.asarray(sent)))
        found[name] = (change * slope[None]).sum(axis=(1, 2))
    return found


def main() -> None:
    """Prints correlation and share of equal signs, over several draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="v100-32gb-llama2-7b")
    parser.add_argument("--scheduler", default="chunked")
    parser.add_argument("--kv-tokens", type=int, default=3800)
    parser.add_argument("--instances", type=int, default=2)
    parser.add_argument("--rate", type=float, default=5.0)
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--moved", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--length", type=int, default=2600)
    given = parser.parse_args()
    profile = load_profile(given.profile).with_kv_tokens(given.kv_tokens)
    servers = Fleet((profile,) * given.instances, (given.scheduler,) * given.instances)
    sizes = {"requests": given.requests, "moved": given.moved, "length": given.length}
    rows = [compare(servers, rate=given.rate, seed=seed, **sizes) for seed in range(given.seeds)]
    found = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    true = found.pop("true")
    print(f"{given}\n{len(true)} moves, mean |change| {np.abs(true).mean():.2f} s")
    for name, values in found.items():
        large = np.abs(true) >= np.median(np.abs(true))
        same = np.sign(values) == np.sign(true)
        slope = (values * true).sum() / (values**2).sum()
        print(
            f"{name:28s} correlation {np.corrcoef(values, true)[0, 1]:.2f}, same sign {same.mean():.2f} "
            f"(larger half {same[large].mean():.2f}), slope {slope:.2f}"
        )


if __name__ == "__main__":
    main()
