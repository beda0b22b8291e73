"""What a policy sees: `RouterView` -> numbers of order one, written once for NumPy and jax.numpy.

Two encodings. The *rich* one has one row of features for each instance and a few for the head of the queue, without any
instance index, so that a policy that scores rows serves fleets of any size. The *paper* one is the state of Jain et al.
(section 5.3): queue length, the head's prompt tokens and bucket, and for each instance the counts by bucket, the
capacity and the estimated completion of the earliest request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxroute.estimate import decode_step_s
from jaxroute.impact import head_mixing_rewards

if TYPE_CHECKING:
    from jaxroute.types import RouterView

Array = Any
"""An array of NumPy or of jax."""

INSTANCE_FEATURES = (
    "requests in flight / max_num_seqs",
    "tokens in flight / KV tokens",
    "tokens in flight with the head's prompt / KV tokens",
    "predicted tokens left / KV tokens",
    "tokens in flight, the head and all predicted output / KV tokens",
    "log of 1 + requests without a first token",
    "seconds of prefill ahead of the head",
    "seconds of a decode step with all in flight, times 10",
    "mixing reward of the head",
    "scraped running / max_num_seqs",
    "log of 1 + scraped waiting, / 4",
    "scraped KV usage",
    "full",
)
"""Names of the columns of the rich encoding's instance rows; F of them."""

GLOBAL_FEATURES = (
    "log of 1 + queue length, / 4",
    "queue is not empty",
    "head's prompt tokens / 1,000",
    "head's predicted output tokens / 500",
    "log of 1 + seconds that the head has waited",
    "age of the scrape, seconds",
)
"""Names of the rich encoding's features of the router; G of them."""

LONGEST_QUEUE = 512
"""The paper caps the queue length at four times the largest batch (appendix A.9)."""


def instance_features(view: RouterView, xp: Any) -> Array:
    """[I, F] float32, one row for each instance, the columns `INSTANCE_FEATURES`.

    Args:
      view: of jax arrays, or any object with the same fields in NumPy arrays.
      xp: `jax.numpy` or `numpy`.
    """
    profile = view.profile
    capacity, most_seqs = _float(view.kv_tokens, xp), _float(profile.max_num_seqs, xp)
    in_flight, tokens = _float(view.in_flight, xp), _float(view.in_flight_tokens, xp)
    left, prompt = _float(view.predicted_tokens_left, xp), _float(view.head_prompt_tokens, xp)
    output = _float(view.head_predicted_tokens, xp)
    step = profile.step
    columns = (
        in_flight / most_seqs,
        tokens / capacity,
        (tokens + prompt) / capacity,
        left / capacity,
        (tokens + left + prompt + output) / capacity,
        xp.log1p(_float(view.awaiting_first, xp)),
        step.g * _float(view.awaiting_prompt_tokens, xp),
        10 * decode_step_s(step, in_flight, tokens, xp),
        head_mixing_rewards(view, xp),
        _float(view.scraped_running, xp) / most_seqs,
        xp.log1p(_float(view.scraped_waiting, xp)) / 4,
        _float(view.scraped_kv_usage, xp),
        _float(view.full, xp),
    )
    return xp.stack(columns, axis=-1)


def global_features(view: RouterView, xp: Any) -> Array:
    """[G] float32, the columns `GLOBAL_FEATURES`; arguments as in `instance_features`."""
    length = _float(view.queue_length, xp)
    values = (
        xp.log1p(length) / 4,
        _float(length > 0, xp),
        _float(view.head_prompt_tokens, xp) / 1000,
        _float(view.head_predicted_tokens, xp) / 500,
        xp.log1p(xp.maximum(_float(view.head_wait, xp), 0)),
        _float(view.scraped_age, xp),
    )
    return xp.stack(values)


def action_mask(view: RouterView, xp: Any) -> Array:
    """[I + 1] bool, the allowed actions: instances that are not full, if there is a request to send; always hold."""
    sends = ~view.full & (view.queue_length > 0)
    return xp.concatenate([sends, xp.ones_like(sends[:1])])


def rich_observation(view: RouterView, xp: Any) -> Array:
    """[G + I * F + I + 1] float32: global features, instance rows, action mask."""
    rows = instance_features(view, xp).reshape(-1)
    return xp.concatenate([global_features(view, xp), rows, _float(action_mask(view, xp), xp)])


def paper_observation(view: RouterView, xp: Any) -> Array:
    """[3 + I * (2 * B + 2) + I + 1] float32: w_q, p_t, d_t; P_t, D_t, C_t, T_ct of each instance; action mask.

    C_t is the share of the KV cache that is free, T_ct seconds at the present decode step, both rounded to two decimals
    as in the paper. The paper's own layout has 27 numbers for four instances and cannot be recovered.

    Raises:
      ValueError: the view carries no counts by bucket.
    """
    if view.awaiting_by_bucket is None or view.streaming_by_bucket is None:
        raise ValueError("the paper's state needs counts by bucket: set ClusterConfig.buckets")
    buckets = view.awaiting_by_bucket.shape[-1]
    head = xp.stack(
        [
            xp.minimum(_float(view.queue_length, xp), LONGEST_QUEUE) / LONGEST_QUEUE,
            _float(view.head_prompt_tokens, xp) / 1000,
            _float(view.head_predicted_bucket, xp) / buckets,
        ]
    )
    tokens = _float(view.in_flight_tokens, xp)
    decode_s = decode_step_s(view.profile.step, _float(view.in_flight, xp), tokens, xp)
    free = xp.round(1 - tokens / _float(view.kv_tokens, xp), 2)
    earliest = xp.round(_float(view.least_predicted_left, xp) * decode_s, 2)
    seqs = _float(view.profile.max_num_seqs, xp)[:, None]
    rows = xp.concatenate(
        [
            _float(view.awaiting_by_bucket, xp) / seqs,
            _float(view.streaming_by_bucket, xp) / seqs,
            free[:, None],
            earliest[:, None],
        ],
        axis=-1,
    )
    return xp.concatenate([head, rows.reshape(-1), _float(action_mask(view, xp), xp)])


def _float(values: Array, xp: Any) -> Array:
    return xp.asarray(values, xp.float32)
