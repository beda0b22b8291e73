"""Names of fleets: `4xPROFILE`, `2xPROFILE+2xPROFILE`."""

from __future__ import annotations

import re

from jaxroute.errors import InputError

PART = re.compile(r"(\d+)x(.+)", re.DOTALL)
BORDER = re.compile(r"\+(?=\d+x)")


def profiles_of(fleet: str) -> list[str]:
    """The profile of each server, by name or file.

    Raises:
      InputError: a part that is not NUMBERxPROFILE, or a number of 0.
    """
    names: list[str] = []
    for part in BORDER.split(fleet):
        match = PART.fullmatch(part.strip())
        if match is None or int(match[1]) == 0:
            raise InputError(
                f"--fleets: {part!r} in {fleet!r} is not NUMBERxPROFILE; give 4xa100-80gb-llama31-8b, or parts joined "
                "by + for a mixed fleet"
            )
        names += [match[2].strip()] * int(match[1])
    return names
