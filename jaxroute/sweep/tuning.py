"""A sweep under Ray Tune: trials from the space, several at once, bad ones stopped early, all of it resumable."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from jaxroute.errors import InputError, first_line
from jaxroute.sweep.plan import BASE, Plan, read_plan, write_plan
from jaxroute.sweep.space import Axis, Range
from jaxroute.sweep.standings import LOG, RUNS, Standing, Status, last_words, name_of, progress_of
from jaxroute.sweep.trial import TrainingTrial

STATE = "ray"
"""Ray's own state in the folder of a sweep."""

RAY = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Environment of Ray, unless the user has set it: no telemetry, and no files beside those of the runs."""

MOST_VALIDATIONS = 10_000
"""Of a run; ASHA wants a number."""

OBJECT_STORE_BYTES = 100 * 2**20
"""Nothing of size goes through Ray."""

logger = logging.getLogger(__name__)


class Told(tune.Callback):
    """Logs what becomes of the trials."""

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **_: Any
    ) -> None:
        """A validation, or the end."""
        if result["validations"]:
            what = "finished" if result["finished"] else f"validation {result['validations']}"
            logger.info("%s: %s, best score %+.1f %%", _name_of(trial), what, 100 * result["score"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **_: Any) -> None:
        """A failure."""
        run = Path(trial.config["runs"]) / _name_of(trial)
        logger.error("%s failed: %s", _name_of(trial), last_words(run) or f"see {run / LOG}")


def start(axes: Sequence[Axis], plan: Plan, folder: Path) -> list[Standing]:
    """Runs a sweep, whose folder holds `BASE`; returns what came of it, interrupted or not.

    Raises:
      InputError: Ray cannot be started.
    """
    write_plan(axes, plan, folder)
    scheduler = None
    if plan.asha is not None:
        scheduler = ASHAScheduler(
            time_attr="validations",
            max_t=MOST_VALIDATIONS,
            grace_period=plan.asha.grace,
            reduction_factor=plan.asha.reduction,
        )
    with _ray(plan):
        tuner = tune.Tuner(
            _trainable(plan),
            param_space=parameters(axes, plan, folder),
            tune_config=tune.TuneConfig(
                metric="score",
                mode="min",
                scheduler=scheduler,
                search_alg=BasicVariantGenerator(
                    max_concurrent=plan.parallel, random_state=plan.random_state, constant_grid_search=True
                ),
                num_samples=plan.samples,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(name=STATE, storage_path=str(folder.resolve()), callbacks=[Told()], verbose=0),
        )
        return _fitted(tuner, folder)


def resume(folder: Path, *, retry_failed: bool) -> list[Standing]:
    """Goes on with a sweep.

    Args:
      folder: of the sweep.
      retry_failed: whether trials that failed go on from their last checkpoints.

    Raises:
      InputError: no sweep is there, it was moved, or Ray cannot be started.
    """
    plan, where = read_plan(folder)
    if where != folder.resolve():
        raise InputError(f"--resume {folder}: the sweep began in {where} and can only go on there; move it back")
    state = str(folder.resolve() / STATE)
    with _ray(plan):
        if not tune.Tuner.can_restore(state):
            raise InputError(f"--resume {folder}: Ray kept no state of it, it ended too early; start it anew")
        tuner = tune.Tuner.restore(
            state, trainable=_trainable(plan), resume_unfinished=True, restart_errored=retry_failed
        )
        return _fitted(tuner, folder)


def parameters(axes: Sequence[Axis], plan: Plan, folder: Path) -> dict[str, Any]:
    """What Ray hands to every trial: the values that it chose under `over`, and what all have in common."""
    return {
        "over": {axis.key: _domain(axis, plan) for axis in axes},
        "config": str(folder.resolve() / BASE),
        "runs": str(folder.resolve() / RUNS),
        "cwd": str(Path.cwd()),
        "command": list(plan.command),
        "devices": plan.cpus,
        "on_cpu": plan.gpus == 0,
    }


def _domain(axis: Axis, plan: Plan) -> Any:
    if isinstance(axis, Range):
        if axis.kind == "int":
            return tune.randint(int(axis.low), int(axis.high) + 1)
        return tune.loguniform(axis.low, axis.high) if axis.kind == "log" else tune.uniform(axis.low, axis.high)
    return tune.grid_search(list(axis.values)) if plan.search == "grid" else tune.choice(list(axis.values))


def _trainable(plan: Plan) -> Any:
    return tune.with_resources(TrainingTrial, {"CPU": plan.cpus, "GPU": plan.gpus})


@contextlib.contextmanager
def _ray(plan: Plan) -> Iterator[None]:
    """Ray, for as long as the sweep goes on."""
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    own: dict[str, Any] = {
        "num_cpus": plan.parallel * plan.cpus,
        "object_store_memory": OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }
    try:
        ray.init(
            address=plan.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if plan.address else own),
        )
    except Exception as error:
        raise InputError(f"Ray could not be started ({first_line(error)}); check --address and the machine") from error
    tune_logger = logging.getLogger("ray.tune")
    level = tune_logger.level
    # It repeats at length what `Told` says.
    tune_logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        tune_logger.setLevel(level)
        ray.shutdown()


def _fitted(tuner: tune.Tuner, folder: Path) -> list[Standing]:
    found = []
    results = tuner.fit()
    # A result has no values where its trial was interrupted before it reported anything.
    trials = {_number(_trial_id(each)): each for each in tune.ExperimentAnalysis(str(folder.resolve() / STATE)).trials}
    for result in (results[number] for number in range(len(results))):
        number = _number(Path(result.path).name)
        over = _over(trials[number])
        name = name_of(number, over)
        run = folder / RUNS / name
        status = _status(result)
        problem = (last_words(run) or str(result.error)) if status == "failed" else ""
        found.append(Standing(name, over, status, progress_of(run), problem))
    return sorted(found, key=lambda each: each.name)


def _status(result: tune.Result) -> Status:
    metrics = result.metrics or {}
    if result.error is not None:
        return "failed"
    if metrics.get("finished"):
        return "finished"
    return "stopped early" if metrics.get("done") else "unfinished"


def _trial_id(trial: Trial) -> str:
    return str(trial.trial_id)


def _number(trial_id: str) -> int:
    return int(trial_id.rsplit("_", 1)[-1])


def _over(trial: Trial) -> dict[str, str]:
    return {key: str(value) for key, value in trial.config["over"].items()}


def _name_of(trial: Trial) -> str:
    return name_of(_number(_trial_id(trial)), _over(trial))
