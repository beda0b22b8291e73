"""When a backend is left alone: a circuit breaker and the outcome of health checks, as plain state."""

from __future__ import annotations

import dataclasses
from typing import Literal

State = Literal["closed", "open", "half-open"]


@dataclasses.dataclass
class Breaker:
    """Opens after failures in a row; after a time one request tries the backend, and its outcome decides.

    Attributes:
      most_failures: in a row, beyond which it opens.
      rest_s: seconds that it stays open.
      failures: in a row by now.
      state: closed (requests pass), open (none does), half-open (one does).
      until_s: when it is half open, by the caller's clock.
    """

    most_failures: int
    rest_s: float
    failures: int = 0
    state: State = "closed"
    until_s: float = 0.0
    _trying: bool = False

    def may_try(self, now_s: float) -> bool:
        """Whether a request may go there."""
        if self.state == "open" and now_s >= self.until_s:
            self.state, self._trying = "half-open", False
        return self.state == "closed" or (self.state == "half-open" and not self._trying)

    def started(self) -> None:
        """A request went there."""
        self._trying = self.state == "half-open"

    def succeeded(self) -> None:
        """A request was answered; one that began before the breaker opened says nothing of what came later."""
        if self.state != "open":
            self.failures, self.state, self._trying = 0, "closed", False

    def failed(self, now_s: float) -> None:
        """A request failed by the backend's fault."""
        self.failures += 1
        if self.state == "half-open" or (self.state == "closed" and self.failures >= self.most_failures):
            self.state, self.until_s, self._trying = "open", now_s + self.rest_s, False

    def undecided(self) -> None:
        """A request ended without a word on the backend: the client left."""
        self._trying = False

    def recovered(self) -> None:
        """The backend was down, and is back: it may be tried at once."""
        if self.state == "open":
            self.state, self._trying = "half-open", False


@dataclasses.dataclass
class Health:
    """Whether a backend is up, by its health checks.

    Attributes:
      most_failures: failed checks in a row by which it is down.
      failures: in a row by now.
      up: whether it is up; before the first check it is not.
    """

    most_failures: int
    failures: int = 0
    up: bool = False

    def passed(self) -> bool:
        """A check passed; whether the backend is back by that."""
        back, self.up, self.failures = not self.up, True, 0
        return back

    def failed(self, *, refused: bool = False) -> bool:
        """A check failed, `refused` if nobody listens there; whether the backend is down by that."""
        self.failures += 1
        down = self.up and (refused or self.failures >= self.most_failures)
        self.up = self.up and not down
        return down
