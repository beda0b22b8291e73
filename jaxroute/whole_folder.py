"""Folders of some files that belong together: written whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Collection, Mapping
from pathlib import Path

from jaxroute.errors import InputError, first_line


def read_file(path: Path, holds: str) -> bytes:
    """The content of one of the files; `holds` is the sentence for one that is not there.

    Raises:
      InputError: it is not there, or cannot be read.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {holds}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({first_line(error)}); check the path and its permissions") from error


def check_replaceable(path: Path, names: Collection[str], kind: str) -> None:
    """Raises InputError where something other than a folder of files with these names would be lost at `path`."""
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: is a file; give a folder")
    if others := sorted({entry.name for entry in path.iterdir()} - set(names)):
        raise InputError(f"{path}: is no {kind} folder, it holds {others[0]}; give a new folder")


def write_folder(files: Mapping[str, bytes], target: Path) -> None:
    """Writes a folder of files in place of what is there; after an error, that is as it was.

    Raises:
      OSError: the folder above cannot be made or written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex
    new, old = target.with_name(f".{unique}.tmp"), target.with_name(f".{unique}.old")
    try:
        new.mkdir()
        for name, content in files.items():
            (new / name).write_bytes(content)
        _swap(new, target, old)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _swap(new: Path, target: Path, old: Path) -> None:
    """Puts `new` in the place of `target`, which moves to `old`; after an error, `target` is as it was."""
    if not target.exists():
        os.replace(new, target)
        return
    os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:
        os.replace(old, target)
        raise
