"""The configuration of a training run from TOML, with overrides from the command line, and back."""

from __future__ import annotations

import dataclasses
import importlib.resources
import tomllib
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import tomli_w

from jaxroute.errors import InputError
from jaxroute.train.check_config import check_config
from jaxroute.train.config import TrainConfig
from jaxroute.train.parse_config import Place, parse_table

Raw = dict[str, Any]


def load_config(path: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """Loads a configuration; what the file leaves out has its default.

    Args:
      path: a TOML file, or the name of a shipped configuration (see `shipped_configs`).
      overrides: `key=value`, with dots in the key (`ppo.learning_rate=3e-4`, `fleets.0.lanes=64`). The value is TOML
        (`workloads.loads=[0.5, 1.0]`); what is none is a string.

    Raises:
      InputError: no such file, not TOML, an unknown key, a wrong type, or a value out of its range; the message names
        the file (or `--set`), table and key.
    """
    raw, place = read_config(path, overrides, shipped_configs())
    config = parse_table(TrainConfig, raw, place, "")
    check_config(config, place)
    return config


def read_config(path: str, overrides: Sequence[str], shipped: Mapping[str, Traversable]) -> tuple[Raw, Place]:
    """What a file and the overrides hold, and where it comes from.

    Args:
      path: a TOML file, or a name among `shipped`.
      overrides: see `load_config`.
      shipped: files by name.

    Raises:
      InputError: no such file, not TOML, or an override that has no place in it.
    """
    raw = _read(path, shipped)
    place = Place(path)
    for override in overrides:
        place.override(_override(raw, override))
    return raw, place


def to_toml(config: Any) -> str:
    """TOML text that loads back equal, every key written out."""
    return tomli_w.dumps(dataclasses.asdict(config))


def shipped_configs(package: str = "jaxroute.train.configs") -> dict[str, Traversable]:
    """The configurations that come with jaxroute in a package, by name."""
    files = importlib.resources.files(package).iterdir()
    return {file.name.removesuffix(".toml"): file for file in files if file.name.endswith(".toml")}


def _read(path: str, shipped: Mapping[str, Traversable]) -> Raw:
    file: Traversable = Path(path)
    if not file.is_file():
        name = path.removesuffix(".toml")
        if name not in shipped:
            known = ", ".join(sorted(shipped)) or "none"
            raise InputError(
                f"configuration {path!r}: no such file and no such shipped configuration; shipped: {known}"
            )
        file = shipped[name]
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a readable TOML file") from error
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not TOML ({error})") from error


def _override(raw: Raw, text: str) -> str:
    """Puts an override in its place among what was read; returns its key."""
    key, separator, value = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not separator or not all(parts):
        raise InputError(f"--set {text!r}: must be key=value, such as ppo.learning_rate=3e-4")
    # The one table that is repeated starts with one entry, as it does without a file.
    if parts[0] == "fleets":
        raw.setdefault("fleets", [{}])
    node: Any = raw
    for depth, part in enumerate(parts[:-1]):
        node = _entry(node, part, f"--set {'.'.join(parts[: depth + 1])}")
    if not isinstance(node, dict):
        raise InputError(f"--set {key}: {'.'.join(parts[:-1])} is no table; it has no key {parts[-1]!r}")
    node[parts[-1]] = _value(value.strip())
    return ".".join(parts)


def _entry(node: Any, part: str, place: str) -> Any:
    """The table of that name, or the entry of that number."""
    if isinstance(node, dict):
        return node.setdefault(part, {})
    if isinstance(node, list):
        if part.isdecimal() and int(part) < len(node):
            return node[int(part)]
        raise InputError(f"{place}: {part!r} must be a number from 0 to {len(node) - 1}, of an entry of the file")
    raise InputError(f"{place}: is inside of something that is no table")


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if set(parsed) == {"value"} else text
