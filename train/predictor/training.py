"""The host side of a predictor's training: passes over the rows, validation, checkpoints, files."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from jaxroute.errors import InputError
from jaxroute.predictor.folder import write_predictor
from jaxroute.predictor.pretrained import load_pretrained
from jaxroute.predictor.prompts import PromptTable, joined
from jaxroute.predictor.tokenizer import PromptTokenizer
from jaxroute.train import run_folder
from jaxroute.train.checkpoint import Checkpoints
from jaxroute.train.predictor.config import PredictorTrainConfig
from jaxroute.train.predictor.curve import Curve
from jaxroute.train.predictor.data import Batch, Rows, chosen, encoded_rows, fitted_buckets
from jaxroute.train.predictor.network import Params, Scales, plain_weights, start_of
from jaxroute.train.predictor.result import predictor_file
from jaxroute.train.predictor.step import FitState, Fitter, Inputs, bucket_weights, inputs_of
from jaxroute.train.predictor.translations import made_translations

PREDICTOR = "predictor"
"""Folder of the predictor within the run's."""

PREDICTED_AT_ONCE = 256

WHOLE_TOKENS = 2048
"""More than a text has that is to be translated."""


class Watcher(Protocol):
    """Shows a training to whoever started it."""

    def moved(self, epoch: int, done: int, total: int, loss: float) -> None:
        """After every update."""

    def said(self, text: str) -> None:
        """A line, at every validation."""


class Validation(NamedTuple):
    """Figures on validation rows.

    Attributes:
      loss: cross-entropy of the true buckets, mean over the rows, and over with and without hint where both are served.
      top1: share of right buckets, likewise.
      top1_llm: of the rows that a real LLM answered.
      top1_hint, top1_plain: with and without hint; nan where it is not served.
      task_top1: share of the rows whose task the network tells without hint; nan without such a head.
    """

    loss: float
    top1: float
    top1_llm: float
    top1_hint: float
    top1_plain: float
    task_top1: float


class Place(NamedTuple):
    """Where a training is, as JSON holds it: passes that are over, batches of the current one, sums of its metrics,
    seconds so far, the best pass and its score, and the passes since."""

    epoch: int = 0
    batch: int = 0
    loss_sum: float = 0.0
    top1_sum: float = 0.0
    seconds: float = 0.0
    best_epoch: int = 0
    best_score: float = float("-inf")


class PredictorTraining:
    """A training that can be stopped after any update and goes on from there as if nothing had been.

    Attributes:
      best: epoch of the weights that are kept, and their figures; None before the first validation.
    """

    def __init__(self, config: PredictorTrainConfig, table: PromptTable, out: Path, watcher: Watcher) -> None:
        """Makes rows and network; nothing is written yet.

        Args:
          config: the configuration.
          table: rows of all splits; those of the test split are only used to measure what is written at the end.
          out: folder of the run.
          watcher: is told how it goes.

        Raises:
          InputError: rows or a configuration that cannot be trained on.
        """
        self._config, self._out, self._watcher = config, out, watcher
        fit = config.fit
        self._train_table, val = _fitted_and_validated(config, table)
        self._tasks = self._train_table.tasks()
        # Of any source: to be measured on a row is not to be made of it.
        self._held_out = table.where(split="test", task=self._tasks)
        self._buckets = fitted_buckets(config.buckets, self._train_table)
        self._start = start_of(config, self._train_table, self._tasks, len(self._buckets))
        tokenizer = self._start.tokenizer
        self._rows = encoded_rows(self._train_table, tokenizer, self._buckets, self._tasks, hint=fit.hint)
        self._val = encoded_rows(val, tokenizer, self._buckets, self._tasks, hint=fit.hint)
        self._scales = Scales.of(np.stack([row.features for row in self._rows.plain]), fit.feature_scale)
        self._digest = _digest(self._train_table, val)
        self._size = min(fit.batch, len(self._rows))
        self._per_epoch = len(self._epoch(0))
        self._weights = self._start.weights(config.seed)
        self._fitter = Fitter(
            self._start.config,
            fit,
            fit.epochs * self._per_epoch,
            unknown=tokenizer.unknown,
            weight=bucket_weights(self._rows.bucket, len(self._buckets), fit.class_weight),
            frozen=config.encoder.frozen,
        )
        self._vector_scales: Scales | None = None
        self._pooled: list[np.ndarray | None] = [None, None]
        if config.encoder.frozen:
            cached = [self._vectors(rows) for rows in (self._rows, self._val)]
            self._vector_scales = Scales.of(
                cached[0][[int(hinted) for hinted in _served(fit.hint)]].reshape(-1, cached[0].shape[-1]), 1.0
            )
            self._pooled = [self._vector_scales(vectors) for vectors in cached]
        self.best: tuple[int, Validation | None] = (0, None)

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Goes on from the last checkpoint, or from the start without one.

        Args:
          stop: asked after every update; if so, the training is saved and ends.

        Returns:
          Whether the training is finished and its predictor written.

        Raises:
          InputError: a checkpoint of something else.
        """
        checkpoints = Checkpoints(self._out / run_folder.CHECKPOINTS)
        facts = checkpoints.facts()
        state = self._fitter.initial(self._trained(self._weights), self._config.seed)
        best, place = jax.tree.map(np.asarray, state.average), Place()
        if facts is not None:
            if facts["rows"] != self._digest:
                raise InputError(f"{self._out}: the rows are not those that the run began with; give it back its files")
            saved = checkpoints.restore(jax.eval_shape(lambda: {"state": state, "best": best}))
            state, best, place = saved["state"], saved["best"], _place_of(facts)
            self.best = (place.best_epoch, Validation(**facts["figures"]) if facts["figures"] else None)
        began = time.monotonic() - place.seconds
        curve = Curve(self._out, epochs=place.epoch)
        try:
            while place.epoch < self._config.fit.epochs and not self._patience_is_over(place):
                state, place, stopped = self._pass(state, place, curve, stop)
                place = place._replace(seconds=time.monotonic() - began)
                if not stopped:
                    best, place = self._validated(state, best, place, curve)
                self._save(checkpoints, state, best, place)
                if stopped:
                    return False
        finally:
            curve.close()
            checkpoints.close()
        self._write(best, place)
        return True

    def _pass(
        self, state: FitState, place: Place, curve: Curve, stop: Callable[[], bool]
    ) -> tuple[FitState, Place, bool]:
        """The rest of a pass; whether it was stopped before its end."""
        batches = self._epoch(place.epoch)
        for number in range(place.batch, len(batches)):
            batch = self._rows.batch(*batches[number], size=self._size)
            state, losses = self._fitter.update(state, self._inputs(self._rows, batch), batch.bucket, batch.task)
            loss = float(losses.bucket)
            place = place._replace(
                batch=number + 1, loss_sum=place.loss_sum + loss, top1_sum=place.top1_sum + float(losses.top1)
            )
            done = place.epoch * len(batches) + number + 1
            curve.batch(done, loss)
            self._watcher.moved(place.epoch + 1, done, self._config.fit.epochs * len(batches), loss)
            if stop() and number + 1 < len(batches):
                return state, place, True
        return state, place, False

    def _validated(self, state: FitState, best: Params, place: Place, curve: Curve) -> tuple[Params, Place]:
        """The best weights so far and where the training is after a pass."""
        figures = self._validate(state.average)
        epoch = place.epoch + 1
        score = figures.top1 if self._config.fit.select == "top1" else -figures.loss
        better = score > place.best_score
        if better:
            best = jax.tree.map(np.asarray, state.average)
            self.best = (epoch, figures)
            place = place._replace(best_epoch=epoch, best_score=score)
        curve.write(
            {
                "epoch": epoch,
                "update": epoch * self._per_epoch,
                "seconds": round(place.seconds, 3),
                "train_loss": place.loss_sum / max(1, place.batch),
                "train_top1": place.top1_sum / max(1, place.batch),
                **{f"val_{name}": value for name, value in figures._asdict().items()},
            }
        )
        self._watcher.said(
            f"epoch {epoch}: loss {place.loss_sum / max(1, place.batch):.3f}; validation loss {figures.loss:.3f}, "
            f"top-1 {figures.top1:.3f} (with hint {figures.top1_hint:.3f}, without {figures.top1_plain:.3f}, LLM rows "
            f"{figures.top1_llm:.3f}){', the best so far' if better else ''}"
        )
        return best, place._replace(epoch=epoch, batch=0, loss_sum=0.0, top1_sum=0.0)

    def _validate(self, params: Params) -> Validation:
        hint = self._config.fit.hint
        found = {each: self._predicted(params, each) for each in _served(hint)}
        bucket, is_llm = self._val.bucket, self._val.table.is_llm
        losses = [-np.log(np.maximum(p[np.arange(len(bucket)), bucket], 1e-12)).mean() for p, _ in found.values()]
        right = {each: p.argmax(axis=1) == bucket for each, (p, _) in found.items()}
        llm = [ok[is_llm].mean() if is_llm.any() else np.nan for ok in right.values()]
        tasks = found[min(found)][1]
        return Validation(
            loss=float(np.mean(losses)),
            top1=float(np.mean([ok.mean() for ok in right.values()])),
            top1_llm=float(np.mean(llm)),
            top1_hint=float(right[True].mean()) if True in right else float("nan"),
            top1_plain=float(right[False].mean()) if False in right else float("nan"),
            task_top1=float((tasks.argmax(axis=1) == self._val.task).mean()) if tasks.shape[1] else float("nan"),
        )

    def _predicted(self, params: Params, hinted: bool) -> tuple[np.ndarray, np.ndarray]:
        """[N, B] and [N, K] float32 of the validation rows."""
        size = min(PREDICTED_AT_ONCE, len(self._val))
        sizes = (self._start.config.buckets, self._start.config.tasks)
        found = tuple(np.zeros((len(self._val), count), np.float32) for count in sizes)
        for rows, batch in self._val.in_order(size, hinted=hinted):
            output = self._fitter.probabilities(params, self._inputs(self._val, batch))
            for array, values in zip(found, output, strict=True):
                array[rows] = np.asarray(values)[: len(rows)]
        return found[0], found[1]

    def _inputs(self, rows: Rows, batch: Batch) -> Inputs:
        pooled = self._pooled[rows is self._val]
        vectors = None if pooled is None else pooled[batch.hinted.astype(np.int64), batch.row]
        return inputs_of(batch, self._scales(batch.features), vectors)

    def _vectors(self, rows: Rows) -> np.ndarray:
        """[2, N, D] of a frozen encoder, without and with hint; 0 where that is not served."""
        served = _served(self._config.fit.hint)
        cached = np.zeros((2, len(rows), self._start.config.encoder.dim), np.float32)
        for hinted in served:
            for numbers, batch in rows.in_order(min(PREDICTED_AT_ONCE, len(rows)), hinted=hinted):
                vectors = np.asarray(self._fitter.pool(self._weights, batch.tokens, batch.mask))
                cached[int(hinted), numbers] = vectors[: len(numbers)]
        return cached

    def _epoch(self, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        fit = self._config.fit
        share = {"never": 0.0, "optional": fit.hint_share, "always": 1.0}[fit.hint]
        return self._rows.epoch(self._size, share, (self._config.seed, number))

    def _trained(self, params: Params) -> Params:
        """The part of the weights that is trained."""
        if not self._config.encoder.frozen:
            return params
        return {name: value for name, value in params.items() if name != "distilbert"}

    def _patience_is_over(self, place: Place) -> bool:
        patience = self._config.fit.patience
        return bool(patience) and place.batch == 0 and place.epoch - place.best_epoch >= patience

    def _save(self, checkpoints: Checkpoints, state: FitState, best: Params, place: Place) -> None:
        figures = self.best[1]
        facts: dict[str, Any] = place._asdict() | {"rows": self._digest}
        facts["figures"] = None if figures is None else figures._asdict()
        checkpoints.save(int(state.update), {"state": state, "best": best}, facts)

    def _write(self, best: Params, place: Place) -> None:
        epoch, figures = self.best
        measured = {} if figures is None else {f"val_{name}": value for name, value in figures._asdict().items()}
        facts = {
            "config": self._config.name,
            "seed": self._config.seed,
            "epoch": epoch,
            "updates": epoch * self._per_epoch,
            "seconds": round(place.seconds),
            "sources": ", ".join(sorted({str(source) for source in self._train_table.source if source})),
            "pretrained": f"{self._config.encoder.pretrained} ({self._config.encoder.start})",
            "held_out_rows": len(self._held_out),
            **{name: round(value, 4) for name, value in measured.items() if np.isfinite(value)},
        }
        file = predictor_file(
            self._config,
            self._start,
            plain_weights({**self._weights, **best}, self._start.config, self._scales, self._vector_scales),
            train=self._train_table,
            held_out=self._held_out,
            buckets=self._buckets,
            tasks=self._tasks,
            facts=facts,
        )
        write_predictor(file, self._out / PREDICTOR)


def _fitted_and_validated(config: PredictorTrainConfig, table: PromptTable) -> tuple[PromptTable, PromptTable]:
    """Training and validation rows, with those that are made of them."""
    train, val = (chosen(table, config.rows, split) for split in ("train", "val"))
    if not (count := config.rows.made_translations):
        return train, val
    content = load_pretrained(config.encoder.pretrained).tokenizer
    tokenizer = PromptTokenizer(content, max_tokens=WHOLE_TOKENS)
    counts = (count, max(1, round(count * len(val) / len(train))))
    made = [
        made_translations(rows, number, lambda text: len(tokenizer.encode(text).tokens) - 2, config.seed)
        for rows, number in zip((train, val), counts, strict=True)
    ]
    return joined(train, made[0]), joined(val, made[1])


def _digest(*tables: PromptTable) -> str:
    """Of all that is trained and validated on."""
    content = [(table.prompt, table.output_tokens.tolist(), table.task.tolist()) for table in tables]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _served(hint: str) -> tuple[bool, ...]:
    """Whether prompts come with the hint: each way that is served."""
    return {"never": (False,), "optional": (False, True), "always": (True,)}[hint]


def _place_of(facts: dict[str, Any]) -> Place:
    """JSON has no infinity: it comes back as null."""
    known = {name: facts[name] for name in Place._fields}
    return Place(**(known | {"best_score": float("-inf") if known["best_score"] is None else known["best_score"]}))
