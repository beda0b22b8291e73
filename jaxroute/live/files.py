"""Files that the commands on live servers write."""

from __future__ import annotations

import json
from pathlib import Path

from jaxroute.output import atomic_path, plain_json


def write_json(content: object, path: Path) -> None:
    """Writes JSON, whole or not at all; a number that JSON cannot hold is null.

    Raises:
      OSError: the folder cannot be written.
    """
    text = json.dumps(plain_json(content), indent=2, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
