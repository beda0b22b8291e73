"""Results that are kept, one JSON file each, so that an interrupted leaderboard goes on where it stopped."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import jax

from jaxroute.output import atomic_path, plain_json

FORMAT = 1

DECIDES = (
    "bounds",
    "cluster",
    "policies",
    "workload",
    "predictor",
    "candidates.py",
    "capacity.py",
    "estimate.py",
    "evaluate.py",
    "impact.py",
    "length_edges.py",
    "metrics.py",
    "observation.py",
    "profiles.py",
    "progress.py",
    "rollout.py",
    "router_order.py",
    "simulate.py",
    "slo.py",
    "types.py",
    "leaderboard/measure.py",
    "leaderboard/slo_capacity.py",
    "leaderboard/small_case.py",
)
"""The sources that results depend on."""


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder of results by key: everything that a result depends on, versions and sources of the program included.

    Attributes:
      folder: made when the first result is kept.
    """

    folder: Path

    def result(self, key: Mapping[str, object], compute: Callable[[], object]) -> object:
        """What is kept under a key (in JSON's own types); what `compute` returns is kept where there is nothing."""
        found = self.find(key)
        return self.keep(key, compute()) if found is None else found

    def find(self, key: Mapping[str, object]) -> object | None:
        """What is kept under a key, in JSON's own types; None where there is nothing, or a file that is broken."""
        try:
            content = json.loads(self._path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return content.get("result") if isinstance(content, dict) else None

    def keep(self, key: Mapping[str, object], result: object) -> object:
        """Keeps a result, not None; returns it in JSON's own types.

        Raises:
          OSError: the folder cannot be made or written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"key": plain_json(key), "result": result}, indent=1)
        with atomic_path(self._path(key)) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        return json.loads(text)["result"]

    def _path(self, key: Mapping[str, object]) -> Path:
        text = json.dumps(plain_json({"made_by": made_by(), **key}), sort_keys=True)
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


@functools.cache
def made_by() -> dict[str, object]:
    """Versions and sources of the program that makes results, and the kind of device."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "numpy", "flax")}
    return {"format": FORMAT, "sources": _sources(), "backend": jax.default_backend(), **versions}


def _sources() -> str:
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for name in DECIDES:
        path = root / name
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
