"""The output length that a request is placed by: stated, predicted, or what is usual, within its limit."""

from __future__ import annotations

import dataclasses
import logging
import re
from typing import TYPE_CHECKING

from jaxroute.serve.openai_body import Asked

if TYPE_CHECKING:
    from jaxroute.predictor.service import PredictionService
    from jaxroute.serve.telemetry import Telemetry

LOG = logging.getLogger(__name__)

STATED = re.compile(r"([1-9][0-9]{0,8})(?:,([1-9][0-9]{0,8}))?")
"""Predicted output tokens, and the most that they may become."""

TASK = re.compile(r"[A-Za-z0-9 ._:-]{1,64}")
"""What a task may be called: a client writes it, and the decision log keeps it, which must hold no text of a prompt."""

FIRST_GUESS = 256
"""Output tokens before any answer has been seen."""


@dataclasses.dataclass(frozen=True)
class Length:
    """Fields of `Incoming`."""

    predicted_tokens: int
    predicted_bucket: int
    predicted_upper: int
    task: str | None


class Lengths:
    """Predicts, never late and never failing."""

    def __init__(self, service: PredictionService | None, telemetry: Telemetry) -> None:
        self._service, self._telemetry = service, telemetry
        self._mean, self._most = float(FIRST_GUESS), 4 * FIRST_GUESS

    async def predict(self, asked: Asked, task: str | None, stated: str | None = None) -> Length:
        """The output length of a request, of all its answers together, within the most that it asks for.

        Args:
          asked: the request.
          task: what the client calls it; one that is no name counts as none.
          stated: what a trusted gateway says of all answers together, `TOKENS` or `TOKENS,MOST`; taken as it is.
        """
        if task is not None and TASK.fullmatch(task) is None:
            task = None
        if stated is not None:
            if (found := STATED.fullmatch(stated.strip())) is not None:
                tokens, most = int(found[1]), int(found[2] or found[1])
                return Length(tokens, 0, max(tokens, most), task)
            self._telemetry.fallback.labels("stated-length").inc()
        tokens, bucket, upper = round(self._mean), 0, self._most
        if self._service is not None:
            try:
                estimate = await self._service.predict_async(asked.text, task)
            except Exception as error:  # A router must go on; the prompt is in no message.
                LOG.warning("prediction failed", extra={"reason": type(error).__name__})
                self._telemetry.fallback.labels("predictor-error").inc()
            else:
                tokens, bucket, upper, task = estimate.tokens, estimate.bucket, estimate.upper, estimate.task
                if estimate.fallback is not None:
                    self._telemetry.fallback.labels(f"predictor-{estimate.fallback}").inc()
        if asked.most_output is not None:
            tokens, upper = min(tokens, asked.most_output), min(upper, asked.most_output)
        return Length(max(1, tokens * asked.answers), bucket, max(1, upper * asked.answers), task)

    def learn(self, output_tokens: int) -> None:
        """A request had so many."""
        self._mean += 0.02 * (output_tokens - self._mean)
        self._most = max(self._most, output_tokens)
