"""The parts, in the order of the report."""

from __future__ import annotations

from jaxroute.errors import InputError
from jaxroute.paper import a100, batching, guidance, hardware, impact_fit, instances, latency, prediction, tbt, waiting
from jaxroute.paper.part import Part

MODULES = (batching, prediction, latency, tbt, waiting, a100, instances, hardware, impact_fit, guidance)

PARTS: tuple[Part, ...] = tuple(sorted((module.PART for module in MODULES), key=lambda part: part.letter))
"""Every part, by letter."""


def parts_of(text: str) -> tuple[Part, ...]:
    """The parts that `--parts` asks for by letter or name, with commas, in the report's order; all without any.

    Raises:
      InputError: an unknown part, or none where some were asked for.
    """
    asked = [name.strip() for name in text.split(",")] if text else [part.letter for part in PARTS]
    known = {name for part in PARTS for name in (part.letter, part.name)}
    if unknown := [name for name in asked if name not in known]:
        listed = ", ".join(f"{part.letter} ({part.name})" for part in PARTS)
        raise InputError(f"--parts: there is no part {unknown[0]!r}; known: {listed}")
    return tuple(part for part in PARTS if part.letter in asked or part.name in asked)
