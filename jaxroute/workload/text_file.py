"""Lines of a text file, gzip or not, with every way to fail said in one line."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from jaxroute.errors import InputError

GZIP_MAGIC = b"\x1f\x8b"


def read_lines(path: Path) -> list[str]:
    r"""The lines of a UTF-8 file without their ends (`\n`, `\r\n` or `\r`); a byte order mark is dropped.

    Raises:
      InputError: no such file, a folder, unreadable, broken gzip, or not UTF-8.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: is a folder; give a file in it") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if data.startswith(GZIP_MAGIC):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: broken gzip file ({error}); fetch it again") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}: line {line}: not UTF-8 text; convert it to UTF-8") from error
    # str.splitlines would also split at form feeds and the like, and so miscount the lines.
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
