"""Requests that are longer than a server's context: refuse, clip or drop them, and say so."""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxroute.errors import InputError
from jaxroute.workload.table import RequestTable

MODES = ("error", "clip", "drop")
SHORTEST_LIMIT = 2
"""One prompt token and one output token."""


@dataclasses.dataclass(frozen=True)
class LimitReport:
    """What became of the requests of a table.

    Attributes:
      total: requests before.
      clipped: requests that were shortened.
      dropped: requests that were left out.
      max_model_len: the limit, prompt + output tokens.
    """

    total: int
    clipped: int
    dropped: int
    max_model_len: int

    @property
    def changed(self) -> bool:
        """Whether anything was clipped or dropped."""
        return self.clipped + self.dropped > 0

    @property
    def text(self) -> str:
        """The report in one line."""
        over = f"prompt + output over {self.max_model_len} tokens"
        if not self.changed:
            return f"all {self.total} requests fit: none has {over}"
        number, verb = (self.clipped, "clipped") if self.clipped else (self.dropped, "dropped")
        return f"{verb} {number} of {self.total} requests ({number / self.total:.1%}) with {over}"


def fit_to_context(table: RequestTable, max_model_len: int, mode: str) -> tuple[RequestTable, LimitReport]:
    """Deals with requests whose prompt and output are together longer than `max_model_len`.

    Args:
      table: the requests.
      max_model_len: longest prompt + output, tokens.
      mode: `error`; `clip`: cut the prompt so that the request just fits, down to one token, and the output to
        max_model_len - 1 if even that is not enough; `drop`: leave the request out (arrivals stay as they are).

    Raises:
      InputError: an unknown mode, a limit that no request can meet, or, by mode, a request that is too long, or no
        request that is not.
    """
    if mode not in MODES:
        raise InputError(f"unknown way {mode!r} to treat overlong requests; known: {', '.join(MODES)}")
    if max_model_len < SHORTEST_LIMIT:
        raise InputError(f"max_model_len is {max_model_len}, must be at least {SHORTEST_LIMIT} tokens")
    overlong = table.prompt_tokens + table.output_tokens > max_model_len
    number = int(overlong.sum())
    if number and mode == "error":
        raise InputError(_complaint(table, overlong, max_model_len))
    clipped, dropped = (number, 0) if mode == "clip" else (0, number)
    report = LimitReport(total=len(table), clipped=clipped, dropped=dropped, max_model_len=max_model_len)
    if dropped == len(table):
        raise InputError(
            f"{table.name}: all {dropped} requests have prompt + output over {max_model_len} tokens, so dropping them "
            "leaves none; use --overlong clip or a server that takes longer ones"
        )
    if not report.changed:
        return table, report
    return (_clip(table, overlong, max_model_len) if clipped else table.take(~overlong)), report


def _clip(table: RequestTable, overlong: np.ndarray, max_model_len: int) -> RequestTable:
    output = np.where(overlong, np.minimum(table.output_tokens, max_model_len - 1), table.output_tokens)
    prompt = np.where(overlong, max_model_len - output, table.prompt_tokens)
    return table.replace(prompt_tokens=prompt, output_tokens=output)


def _complaint(table: RequestTable, overlong: np.ndarray, max_model_len: int) -> str:
    row = int(np.argmax(overlong))
    others = f" ({int(overlong.sum())} requests do)" if overlong.sum() > 1 else ""
    return (
        f"{table.name}: row {table.request_id[row]} (from 0): {table.prompt_tokens[row]} prompt + "
        f"{table.output_tokens[row]} output tokens exceed max_model_len = {max_model_len}{others}; "
        "use --overlong clip to cut prompts or --overlong drop to leave such requests out"
    )
