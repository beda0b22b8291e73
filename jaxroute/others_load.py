"""What other routers have sent to the same servers, estimated from the servers' metrics, for NumPy and jax.numpy alike.

A router that shares no state with others knows its own requests one by one, and of the others' only what servers
report: how many requests run and wait, and how full the KV cache is. What is there beyond its own is theirs, and is
taken to be like its own: as long, and as far from done.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from jaxroute.estimate import float32

if TYPE_CHECKING:
    from jaxroute.types import RouterView

Array = Any
"""An array of NumPy or of jax."""


def with_others(view: RouterView, xp: Any) -> RouterView:
    """The view with the load of all routers in place of the router's own, in float32; itself where there is one router.

    Changed are `in_flight`, `in_flight_tokens`, `awaiting_first`, `awaiting_prompt_tokens` and `predicted_tokens_left`.
    What a server had at the scrape is compared with what the router has there now, so the estimate is off by the
    requests that have come or gone since.

    Args:
      view: of jax arrays, or any object with the same fields in NumPy arrays; `router` tells whether there are others.
      xp: `jax.numpy` or `numpy`.
    """
    if view.router is None:
        return view
    in_flight, awaiting = float32(view.in_flight, xp), float32(view.awaiting_first, xp)
    prompts, left = float32(view.awaiting_prompt_tokens, xp), float32(view.predicted_tokens_left, xp)
    running, waiting = float32(view.scraped_running, xp), float32(view.scraped_waiting, xp)
    others = xp.maximum(running + waiting - in_flight, 0)
    others_waiting = xp.minimum(xp.maximum(waiting - awaiting, 0), others)
    cached = float32(view.scraped_kv_usage, xp) * float32(view.kv_tokens, xp)
    prompt = _mean_or(prompts, awaiting, float32(view.head_prompt_tokens, xp), xp)
    # A request that is met at some moment is half done on average.
    each_left = _mean_or(left, in_flight, float32(view.head_predicted_tokens, xp) / 2, xp)
    return dataclasses.replace(
        view,
        in_flight=in_flight + others,
        in_flight_tokens=xp.maximum(float32(view.in_flight_tokens, xp), cached + waiting * prompt),
        awaiting_first=awaiting + others_waiting,
        awaiting_prompt_tokens=prompts + others_waiting * prompt,
        predicted_tokens_left=left + others * each_left,
    )


def _mean_or(sums: Array, counts: Array, otherwise: Array, xp: Any) -> Array:
    """[] the mean over all servers of what is summed in `sums` ([I]), or `otherwise` where nothing is counted."""
    count = xp.sum(counts)
    return xp.where(count > 0, xp.sum(sums) / xp.maximum(count, 1), otherwise)
