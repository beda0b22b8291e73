"""Training of a length predictor: it learns, resumes exactly, never sees a test row, and says what is wrong."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import special

from jaxroute.errors import InputError
from jaxroute.predictor.folder import read_predictor
from jaxroute.predictor.languages import RATIOS
from jaxroute.predictor.predictor import Predictor
from jaxroute.predictor.prompts import read_prompts
from jaxroute.predictor.runtime import Network
from jaxroute.train.predictor.config import PredictorTrainConfig
from jaxroute.train.predictor.data import encoded_rows
from jaxroute.train.predictor.load import load_predictor_config
from jaxroute.train.predictor.training import Place, PredictorTraining
from jaxroute.train.predictor.translations import TASK, made_translations
from tiny_predictor import BUCKETS
from tiny_prompts import prompt_rows, tiny_encoder, write_rows

SMALL = (
    "encoder.layers=1",
    "encoder.dim=8",
    "encoder.heads=2",
    "encoder.hidden=16",
    "encoder.max_tokens=32",
    "encoder.head_hidden=16",
    "buckets.count=3",
    "fit.batch=16",
    "fit.epochs=2",
    "fit.dropout=0.1",
    "fit.word_dropout=0.05",
    "fit.average=0.8",
)


class Silent:
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.texts: list[str] = []

    def moved(self, epoch: int, done: int, total: int, loss: float) -> None:
        self.losses.append(loss)

    def said(self, text: str) -> None:
        self.texts.append(text)


def config(folder: Path, *overrides: str) -> PredictorTrainConfig:
    encoder = folder / "encoder"
    if not encoder.exists():
        tiny_encoder(encoder)
    (folder / "empty.toml").write_text("")
    return load_predictor_config(str(folder / "empty.toml"), [f"encoder.pretrained={encoder}", *SMALL, *overrides])


def training(folder: Path, out: str, *overrides: str, rows: list[dict[str, Any]] | None = None) -> PredictorTraining:
    table = read_prompts([write_rows(folder / "rows.jsonl", prompt_rows() if rows is None else rows)])
    return PredictorTraining(config(folder, *overrides), table, folder / out, Silent())


def curve_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return dict(read_predictor(folder / "predictor").weights)


def test_a_tiny_network_learns_which_word_means_how_long(tmp_path: Path) -> None:
    rows = prompt_rows(240)
    fit = ("fit.epochs=30", "fit.learning_rate=0.03", "fit.patience=0", "fit.word_dropout=0", "fit.dropout=0")
    learned = training(tmp_path, "run", *fit, rows=rows)
    assert learned.run()
    assert learned.best[1] is not None
    assert learned.best[1].top1 >= 0.9
    file = read_predictor(tmp_path / "run" / "predictor")
    assert len(file.buckets) == 3
    assert file.confusion.accuracy() >= 0.9
    assert file.confusion.overall.sum() == 40
    short, long = Predictor(file).predict([("me who me", None), ("the story the", "chat")])
    assert short.tokens < 10 < 300 < long.tokens


def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path: Path) -> None:
    assert training(tmp_path, "whole").run()
    asked = iter([False, True])
    assert not training(tmp_path, "cut").run(lambda: next(asked))
    assert not (tmp_path / "cut" / "predictor").exists()
    assert training(tmp_path, "cut").run()
    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert whole.keys() == cut.keys()
    for name in whole:
        np.testing.assert_array_equal(whole[name], cut[name])
    curves = [curve_of(tmp_path / run) for run in ("whole", "cut")]
    for one, other in zip(*curves, strict=True):
        assert {**one, "seconds": ""} == {**other, "seconds": ""}


def test_a_run_does_not_go_on_with_other_rows(tmp_path: Path) -> None:
    assert not training(tmp_path, "run").run(lambda: True)
    others = prompt_rows()
    others[0] |= {"output_tokens": 9}
    with pytest.raises(InputError, match="the rows are not those that the run began with"):
        training(tmp_path, "run", rows=others).run()


def test_test_rows_change_nothing_but_what_is_measured(tmp_path: Path) -> None:
    rows = prompt_rows()
    assert training(tmp_path, "with", rows=rows).run()
    others = [row if row["split"] != "test" else row | {"prompt": "qa", "output_tokens": 7} for row in rows]
    assert training(tmp_path, "other", rows=others).run()
    without = [row for row in rows if row["split"] != "test"]
    assert training(tmp_path, "without", rows=without).run()
    first = weights_of(tmp_path / "with")
    for run in ("other", "without"):
        for name, array in weights_of(tmp_path / run).items():
            np.testing.assert_array_equal(array, first[name])
    files = [read_predictor(tmp_path / run / "predictor") for run in ("with", "other", "without")]
    assert len({file.buckets for file in files}) == 1
    assert files[2].confusion.overall.sum() == 0


def test_rows_of_the_test_split_cannot_be_encoded_for_training(tmp_path: Path) -> None:
    run = training(tmp_path, "run")
    table = read_prompts([tmp_path / "rows.jsonl"])
    tokenizer = run._start.tokenizer
    with pytest.raises(ValueError, match="no place in a training"):
        encoded_rows(table, tokenizer, BUCKETS, table.tasks(), hint="never")


def test_excluded_sources_are_in_neither_training_nor_selection(tmp_path: Path) -> None:
    run = training(tmp_path, "run", 'rows.exclude_sources=["bound"]')
    assert set(run._rows.table.source) == set(run._val.table.source) == {"free"}
    assert run.run()
    facts = read_predictor(tmp_path / "run" / "predictor").training
    assert facts["sources"] == "free"


def test_a_frozen_encoder_stays_as_it_was(tmp_path: Path) -> None:
    frozen = ("encoder.frozen=true", 'encoder.start="layers"', "fit.word_dropout=0", "float16=false")
    run = training(tmp_path, "run", *frozen)
    assert run.run()
    before = run._start.encoder
    after = weights_of(tmp_path / "run")
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[f"distilbert.{name}"])


@pytest.mark.parametrize("hint", ["never", "always"])
def test_it_is_trained_for_one_way_of_hinting_too(tmp_path: Path, hint: str) -> None:
    run = training(tmp_path, "run", f"fit.hint={hint}", "fit.ordinal=0.5", "fit.class_weight=0.5", "fit.epochs=1")
    assert run.run()
    assert run.best[1] is not None
    assert np.isnan(run.best[1].top1_hint) == (hint == "never")
    assert read_predictor(tmp_path / "run" / "predictor").hint == {"never": "never", "always": "required"}[hint]


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_written_says_the_same_as_what_was_trained(tmp_path: Path, frozen: bool) -> None:
    still = ("encoder.frozen=true", "encoder.start=layers", "fit.word_dropout=0") if frozen else ()
    run = training(tmp_path, "run", "float16=false", "fit.epochs=1", *still)
    kept: list[Any] = []
    run._write = lambda best, place: kept.append(best)  # type: ignore[method-assign]
    run.run()
    trained, tasks = run._predicted(kept[0], False)
    del run._write
    run._write(kept[0], Place())
    file = read_predictor(tmp_path / "run" / "predictor")
    table = read_prompts([tmp_path / "rows.jsonl"]).where(split="val")
    found = Network(file.config, file.weights)(file.tokens_of().encode_all(table.prompt, [None] * len(table)))
    np.testing.assert_allclose(special.softmax(found.buckets, axis=1), trained, atol=1e-5)
    np.testing.assert_allclose(special.softmax(found.tasks, axis=1), tasks, atol=1e-5)


def test_made_translations_stay_in_the_split_of_their_text_and_are_as_long_as_the_language_says(
    tmp_path: Path,
) -> None:
    table = read_prompts([write_rows(tmp_path / "rows.jsonl", prompt_rows())]).where(split="val")
    made = made_translations(table, 3000, lambda text: 10, seed=1)
    assert set(made.split) == {"val"}
    assert set(made.group) <= set(table.group)
    assert set(made.task) == {TASK}
    for language, ratio in RATIOS.items():
        lengths = made.output_tokens[[language in prompt for prompt in made.prompt]]
        assert np.median(lengths) == pytest.approx(10 * ratio, rel=0.08)
    again = made_translations(table, 3000, lambda text: 10, seed=1)
    assert made.prompt == again.prompt
    run = training(tmp_path, "run", "rows.made_translations=20", 'rows.exclude_sources=["bound"]')
    assert run._tasks == ("chat", "qa_open", "translation")
    assert len(run._train_table) == len(run._train_table.where(source=["free"])) + 20


def test_it_ends_early_when_validation_does_not_improve(tmp_path: Path) -> None:
    run = training(tmp_path, "run", "fit.epochs=9", "fit.learning_rate=1e-20", "fit.patience=2", "fit.average=0")
    assert run.run()
    assert [row["epoch"] for row in curve_of(tmp_path / "run")] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit.epochs=0", "--set fit.epochs is 0, must be at least 1"),
        ("fit.dropout=1.0", "--set fit.dropout is 1.0, must be at least 0 and below 1"),
        ("fit.hint=maybe", "--set fit.hint is 'maybe'; known: never, optional, always"),
        ("fit.epoch=3", "fit.epoch is an unknown key"),
        ("encoder.heads=3", "--set encoder.heads is 3, must be a divisor of encoder.dim = 8"),
        ("encoder.tail_tokens=20", "--set encoder.tail_tokens is 20, must be at most half of encoder.max_tokens"),
        ("encoder.frozen=true", "must be layers, since encoder.frozen keeps the encoder as it starts"),
    ],
)
def test_a_configuration_that_cannot_be_run_is_one_line(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        config(tmp_path, override)
    assert message in str(error.value)


def test_too_few_rows_layers_or_positions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row of the split val is left"):
        training(tmp_path, "run", rows=[row for row in prompt_rows() if row["split"] != "val"])
    with pytest.raises(InputError, match=r"encoder\.layers is 2, but .* has 1"):
        training(tmp_path, "run", "encoder.start=layers", "encoder.layers=2")
    with pytest.raises(InputError, match=r"encoder\.max_tokens is 64, but .* has 32"):
        training(tmp_path, "run", "encoder.start=layers", "encoder.max_tokens=64")
