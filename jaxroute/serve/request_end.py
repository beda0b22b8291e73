"""How a request that was placed has ended."""

from __future__ import annotations

import dataclasses

from jaxroute.serve.types import Placement


@dataclasses.dataclass(frozen=True, eq=False)
class RequestEnd:
    """A request that is no longer in flight; times are seconds by the dispatcher's clock.

    Attributes:
      placement: where it went, and why.
      outcome: `finished`, `aborted` (by the client), or what else went wrong.
      first_token_s: when its first token was seen; None if none was, as of a request that did not stream.
      end_s: when it ended.
      output_tokens: that it has had; None if nobody knows.
    """

    placement: Placement
    outcome: str
    first_token_s: float | None
    end_s: float
    output_tokens: int | None
