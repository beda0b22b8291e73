"""The configuration of a predictor's training from TOML, with overrides, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxroute.errors import InputError
from jaxroute.predictor.tokenizer import FEWEST_TOKENS
from jaxroute.train.check_config import Rule, above_zero, at_least, not_empty, share
from jaxroute.train.load_config import read_config, shipped_configs
from jaxroute.train.parse_config import Place, parse_table
from jaxroute.train.predictor.config import (
    BucketsConfig,
    EncoderConfig,
    FitConfig,
    PredictorTrainConfig,
    RowsConfig,
)

CONFIGS = "jaxroute.train.predictor.configs"
"""The package of those that are shipped."""


def load_predictor_config(path: str, overrides: Sequence[str] = ()) -> PredictorTrainConfig:
    """Loads a configuration; what the file leaves out has its default.

    Args:
      path: a TOML file, or the name of a shipped configuration.
      overrides: `key=value` with dots in the key, such as `fit.learning_rate=3e-4`.

    Raises:
      InputError: names the file (or `--set`), the key, and what is wrong.
    """
    raw, place = read_config(path, overrides, shipped_configs(CONFIGS))
    config = parse_table(PredictorTrainConfig, raw, place, "")
    _check(config, place)
    return config


def _check(config: PredictorTrainConfig, place: Place) -> None:
    tables = {"": config, "rows.": config.rows, "buckets.": config.buckets}
    tables |= {"encoder.": config.encoder, "fit.": config.fit}
    for prefix, table in tables.items():
        for name, rule in RULES[type(table)].items():
            if complaint := rule(getattr(table, name)):
                raise InputError(f"{place.of(prefix + name)} is {getattr(table, name)!r}, {complaint}")
    encoder = config.encoder
    if encoder.tail_tokens > encoder.max_tokens // 2:
        _refuse(place, "encoder.tail_tokens", encoder.tail_tokens, "at most half of encoder.max_tokens")
    if encoder.start != "layers" and encoder.dim % encoder.heads:
        _refuse(place, "encoder.heads", encoder.heads, f"a divisor of encoder.dim = {encoder.dim}")
    if encoder.frozen and encoder.start != "layers":
        _refuse(place, "encoder.start", encoder.start, "layers, since encoder.frozen keeps the encoder as it starts")
    if encoder.frozen and config.fit.word_dropout:
        _refuse(place, "fit.word_dropout", config.fit.word_dropout, "0, since encoder.frozen caches whole prompts")


def _refuse(place: Place, key: str, value: object, must: str) -> None:
    raise InputError(f"{place.of(key)} is {value!r}, must be {must}")


def _rate(value: float) -> str | None:
    return None if 0 <= value < 1 else "must be at least 0 and below 1"


RULES: Mapping[type, Mapping[str, Rule]] = {
    PredictorTrainConfig: {"name": not_empty, "seed": at_least(0)},
    RowsConfig: {"made_translations": at_least(0)},
    BucketsConfig: {"count": at_least(2), "width": at_least(2), "most": at_least(0)},
    EncoderConfig: {
        "pretrained": not_empty,
        "layers": at_least(0),
        "dim": at_least(1),
        "heads": at_least(1),
        "hidden": at_least(1),
        "vocabulary": at_least(0),
        "max_tokens": at_least(FEWEST_TOKENS),
        "tail_tokens": at_least(0),
        "head_hidden": at_least(0),
    },
    FitConfig: {
        "epochs": at_least(1),
        "batch": at_least(1),
        "learning_rate": above_zero,
        "warmup": share,
        "weight_decay": at_least(0),
        "dropout": _rate,
        "word_dropout": _rate,
        "hint_share": share,
        "task_weight": at_least(0),
        "ordinal": at_least(0),
        "class_weight": at_least(0),
        "average": _rate,
        "feature_scale": above_zero,
        "max_grad_norm": above_zero,
        "patience": at_least(0),
    },
}
"""Of each table; a key that is not here may have any value of its type."""
