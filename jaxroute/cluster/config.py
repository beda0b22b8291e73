"""What of a fleet is fixed when its program is compiled: sizes, and which rules are in it at all."""

from __future__ import annotations

import dataclasses
import enum


class Scheduler(enum.IntEnum):
    """The engine's scheduling rule; a traced value, so one program runs a fleet of all three."""

    PREFILL_FIRST = 0
    CHUNKED = 1
    WHOLE_PROMPT = 2


class Batching(enum.Enum):
    """Order in which an instance's waiting queue is admitted."""

    FCFS = "fcfs"
    LEAST_WORK_LEFT = "least-work-left"
    BIN_PACKING = "bin-packing"


class RouterOrder(enum.Enum):
    """Order of the router queue: whose turn it is to be sent."""

    FCFS = "fcfs"
    SHORTEST_PREDICTED = "shortest-predicted"


SCHEDULERS = {
    "prefill-first": Scheduler.PREFILL_FIRST,
    "chunked": Scheduler.CHUNKED,
    "whole-prompt": Scheduler.WHOLE_PROMPT,
}
"""Schedulers by the names of the command line."""


@dataclasses.dataclass(frozen=True)
class ClusterConfig:
    """Static sizes and switches (hashable: a jit argument).

    Attributes:
      slots: S, request slots of an instance; at least the largest `max_num_seqs`.
      queue_capacity: Q, places of an instance's waiting queue.
      phases: P, at least the largest `block_size`.
      max_steps_per_interval: K, engine steps that one instance can start in one router interval at the most.
      batching: order of the waiting queues.
      router_order: order of the router queue.
      buckets: B, output-length buckets by which an instance's requests are counted; 0 for no such counts.
      records: whether per-request records and the log of engine steps are kept.
      routers: R, router replicas that share no state and take turns: in interval k it is router k mod R that acts, and
        request n came to router n mod R.
      fixed_steps: whether every interval runs all K engine steps (a scan, which reverse-mode gradients go through)
        instead of only those that some lane needs (a while loop, which is faster). The results are the same.
    """

    slots: int
    queue_capacity: int
    phases: int
    max_steps_per_interval: int
    batching: Batching = Batching.FCFS
    router_order: RouterOrder = RouterOrder.FCFS
    buckets: int = 0
    records: bool = False
    routers: int = 1
    fixed_steps: bool = False

    @property
    def slot_bits(self) -> int:
        """Low bits of `Slots.order` that hold the slot index."""
        return max(1, (self.slots - 1).bit_length())
