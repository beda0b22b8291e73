"""What a policy sees: `RouterView` -> numbers of order one, written once for NumPy and jax.numpy.

Two encodings. The *rich* one has one row of features for each instance and a few for the head of the queue, without any
instance index, so that a policy that scores rows serves fleets of any size. The *paper* one is the state of Jain et al.
(section 5.3): queue length, the head's prompt tokens and bucket, and for each instance the counts by bucket, the
capacity and the estimated completion of the earliest request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from jaxroute.estimate import added_latency_s, decode_step_s, float32, joined_step_s, slowdown
from jaxroute.impact import head_mixing_rewards
from jaxroute.others_load import with_others

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
    "signed log of 1 + mixing reward of the head",
    "log of 1 + seconds that the head adds to all latencies",
    "crowding with the head",
    "share of the KV cache filled with the head's prompt beyond 90 %",
    "scraped running / max_num_seqs",
    "log of 1 + scraped waiting, / 4",
    "scraped KV usage",
    "full",
)
"""Names of the columns of the rich encoding's instance rows; F of them.

Crowding is the share of the KV cache that is filled, or the slowdown of decoding over `CROWDED` if that is larger.
"""

CROWDED = 3.5
"""Slowdown of decoding that crowds an instance as much as a full KV cache does."""

FULL_CACHE = 0.9
"""Share of the KV cache beyond which another prompt costs preemptions."""

GLOBAL_FEATURES = (
    "log of 1 + queue length, / 4",
    "queue is not empty",
    "head's prompt tokens / 1,000",
    "head's predicted output tokens / 500",
    "log of 1 + seconds that the head has waited",
    "age of the scrape, seconds",
)
"""Names of the rich encoding's features of the router; G of them."""

PAPER_GLOBAL_FEATURES = ("queue length / 512", "head's prompt tokens / 1,000", "head's predicted bucket / B")
"""Names of the paper encoding's features of the router."""

LONGEST_QUEUE = 512
"""The paper caps the queue length at four times the largest batch (appendix A.9)."""

Encoding = Literal["rich", "paper"]


class Observed(NamedTuple):
    """An observation in its parts; leading axes may stand in front of all of them.

    Attributes:
      router: [..., G] float32, features of the router and of the head of its queue.
      instances: [..., I, F] float32, one row of features for each instance.
      mask: [..., I + 1] bool, the allowed actions, the last one hold.
    """

    router: Array
    instances: Array
    mask: Array


def instance_features(view: RouterView, xp: Any) -> Array:
    """[I, F] float32, one row for each instance, the columns `INSTANCE_FEATURES`.

    Where there are several routers, what is in flight is that of all of them, see `with_others`.

    Args:
      view: of jax arrays, or any object with the same fields in NumPy arrays.
      xp: `jax.numpy` or `numpy`.
    """
    view = with_others(view, xp)
    profile = view.profile
    capacity, most_seqs = float32(view.kv_tokens, xp), float32(profile.max_num_seqs, xp)
    in_flight, tokens = float32(view.in_flight, xp), float32(view.in_flight_tokens, xp)
    left, prompt = float32(view.predicted_tokens_left, xp), float32(view.head_prompt_tokens, xp)
    output = float32(view.head_predicted_tokens, xp)
    step = profile.step
    with_head, joined_s = (tokens + prompt) / capacity, joined_step_s(view, xp)
    columns = (
        in_flight / most_seqs,
        tokens / capacity,
        with_head,
        left / capacity,
        (tokens + left + prompt + output) / capacity,
        xp.log1p(float32(view.awaiting_first, xp)),
        step.g * float32(view.awaiting_prompt_tokens, xp),
        10 * decode_step_s(step, in_flight, tokens, xp),
        _signed_log(head_mixing_rewards(view, xp), xp),
        xp.log1p(added_latency_s(view, joined_s, xp)),
        xp.maximum(with_head, slowdown(step, joined_s, xp) / CROWDED),
        xp.maximum(with_head - FULL_CACHE, 0),
        float32(view.scraped_running, xp) / most_seqs,
        xp.log1p(float32(view.scraped_waiting, xp)) / 4,
        float32(view.scraped_kv_usage, xp),
        float32(view.full, xp),
    )
    # In NumPy a third of the time of `stack`.
    return xp.array(columns).T


def global_features(view: RouterView, xp: Any) -> Array:
    """[G] float32, the columns `GLOBAL_FEATURES`; arguments as in `instance_features`."""
    length = float32(view.queue_length, xp)
    values = (
        xp.log1p(length) / 4,
        float32(length > 0, xp),
        float32(view.head_prompt_tokens, xp) / 1000,
        float32(view.head_predicted_tokens, xp) / 500,
        xp.log1p(xp.maximum(float32(view.head_wait, xp), 0)),
        float32(view.scraped_age, xp),
    )
    return xp.array(values)


def action_mask(view: RouterView, xp: Any) -> Array:
    """[I + 1] bool, the allowed actions: instances that are not full, if there is a request to send; always hold."""
    sends = ~view.full & (view.queue_length > 0)
    return xp.concatenate([sends, xp.ones_like(sends[:1])])


def observe(view: RouterView, encoding: Encoding, xp: Any) -> Observed:
    """What a policy sees of a view.

    Args:
      view: of jax arrays, or any object with the same fields in NumPy arrays.
      encoding: `rich` or `paper`.
      xp: `jax.numpy` or `numpy`.

    Raises:
      ValueError: the paper's encoding of a view that carries no counts by bucket.
    """
    if encoding == "paper":
        return Observed(paper_global_features(view, xp), paper_instance_features(view, xp), action_mask(view, xp))
    return Observed(global_features(view, xp), instance_features(view, xp), action_mask(view, xp))


def feature_names(encoding: Encoding, buckets: int = 0) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the router's G and of an instance's F features; `buckets` counts for the paper's encoding only."""
    if encoding == "rich":
        return GLOBAL_FEATURES, INSTANCE_FEATURES
    awaiting = tuple(f"awaiting in bucket {bucket} / max_num_seqs" for bucket in range(buckets))
    streaming = tuple(f"streaming in bucket {bucket} / max_num_seqs" for bucket in range(buckets))
    return PAPER_GLOBAL_FEATURES, (*awaiting, *streaming, "free share of the KV cache", "earliest completion, seconds")


def count_columns(encoding: Encoding, buckets: int = 0) -> int:
    """Leading instance features that count requests in flight: all 0 where, and only where, an instance is idle."""
    return 1 if encoding == "rich" else 2 * buckets


def flat(observed: Observed, xp: Any) -> Array:
    """[G + I * F + I + 1] float32: router features, instance rows, action mask."""
    rows = observed.instances.reshape(-1)
    return xp.concatenate([observed.router, rows, float32(observed.mask, xp)])


def unflatten(observation: Array, encoding: Encoding, instances: int) -> Observed:
    """The parts of flat observations, [..., G + I * F + I + 1]."""
    router = len(feature_names(encoding)[0])
    rows = observation[..., router : -(instances + 1)]
    return Observed(
        router=observation[..., :router],
        instances=rows.reshape(*rows.shape[:-1], instances, -1),
        mask=observation[..., -(instances + 1) :] > 0.5,
    )


def rich_observation(view: RouterView, xp: Any) -> Array:
    """[G + I * F + I + 1] float32: global features, instance rows, action mask."""
    return flat(observe(view, "rich", xp), xp)


def paper_observation(view: RouterView, xp: Any) -> Array:
    """[3 + I * (2 * B + 2) + I + 1] float32: w_q, p_t, d_t; P_t, D_t, C_t, T_ct of each instance; action mask.

    The paper's own layout has 27 numbers for four instances and cannot be recovered.

    Raises:
      ValueError: the view carries no counts by bucket.
    """
    return flat(observe(view, "paper", xp), xp)


def paper_global_features(view: RouterView, xp: Any) -> Array:
    """[3] float32, the columns `PAPER_GLOBAL_FEATURES`: w_q, p_t, d_t."""
    return xp.stack(
        [
            xp.minimum(float32(view.queue_length, xp), LONGEST_QUEUE) / LONGEST_QUEUE,
            float32(view.head_prompt_tokens, xp) / 1000,
            float32(view.head_predicted_bucket, xp) / _buckets(view),
        ]
    )


def paper_instance_features(view: RouterView, xp: Any) -> Array:
    """[I, 2 * B + 2] float32: P_t, D_t, C_t, T_ct.

    C_t is the share of the KV cache that is free, T_ct seconds at the present decode step, both rounded to two decimals
    as in the paper.
    """
    _buckets(view)
    tokens = float32(view.in_flight_tokens, xp)
    decode_s = decode_step_s(view.profile.step, float32(view.in_flight, xp), tokens, xp)
    free = xp.round(1 - tokens / float32(view.kv_tokens, xp), 2)
    earliest = xp.round(float32(view.least_predicted_left, xp) * decode_s, 2)
    seqs = float32(view.profile.max_num_seqs, xp)[:, None]
    return xp.concatenate(
        [
            float32(view.awaiting_by_bucket, xp) / seqs,
            float32(view.streaming_by_bucket, xp) / seqs,
            free[:, None],
            earliest[:, None],
        ],
        axis=-1,
    )


def _signed_log(values: Array, xp: Any) -> Array:
    """A reward that falls with the square of the prompt, made of order one."""
    return xp.sign(values) * xp.log1p(xp.abs(values))


def _buckets(view: RouterView) -> int:
    if view.awaiting_by_bucket is None or view.streaming_by_bucket is None:
        raise ValueError("the paper's state needs counts by bucket: set ClusterConfig.buckets")
    return int(view.awaiting_by_bucket.shape[-1])
