"""A fleet that can be routed with weights: every instance holds every request, to the degree that it was sent there.

`fleet.step` is one router interval, as `cluster.fleet.step` is: the head of the router queue goes to all instances with
weights that add up to 1, tokens, KV blocks and shares of step times count by weight, and a request's latency is the
weighted mean of those of its copies. What comes out is differentiable by the weights.

**The definition.** A copy is whole in its own question (does my prompt fit, how long do I take) and the others count by
their weights: the latency of a copy is, approximately, what the request would take at that instance if the others were
sent there at random with their weights. So the total latency is near the multilinear function that has the exact
simulator's values at the corners, whose partial derivatives there are the effects of single moves. In particular

- admission: a waiting copy is admitted if it fits as a whole on top of the weighted running copies and the weighted
  waiting ones before it. In fcfs order the latter keep out whatever is behind the first that does not fit;
- preemption: a running copy stays if it fits as a whole on top of the weighted running ones before it;
- time: one clock an instance, moved by the weighted sums of the step-time formula. What a copy's own steps would have
  taken longer with it whole is added to its own latency;
- a step of which less than a whole copy is part gives way to a request that arrives in it, to that degree; and a
  prefill-only step of less than a whole copy costs those that decode that share of it.

**Exact** where all weights are 0 or 1, as they are under a policy that decides: the copies of weight 1 run as in
`cluster`, to the float32 of the step times, in all three schedulers, with preemption (tested request by request); those
of weight 0 disturb nobody and live through what the request would have met elsewhere. The view of the router
(`view.relaxed_view`) is that of `cluster.view` then.

**Approximate**: everything between the corners (nothing is whole there, so nothing is exact either),
and the latencies of copies of weight 0, whose clock is that of the others: up to a step each at the start and at a
step that gave way.

**The derivative** (`work.Derivative`). `PATHWISE` is the true one where no event changes its place; it equals finite
differences between the corners (tested). It misses two things that matter to routing, which jump as functions of the
weights: a step time that is flat up to a limit and steep beyond it, and the wait for a place in a full KV cache.
`MOVES`, the default, takes instead

- for a step time the difference that the whole copy makes (equal to the derivative where the formula is linear),
- for an admission that had to wait for blocks or sequences, what is asked for ahead over the rate at which it is
  released; and the lateness of those who release it.

It is no derivative of the values between the corners. What it says of moving single requests, against the change of
the total latency in the exact simulation (`tests/relaxed/moves.py`: two V100 with 3,800 KV tokens, five-task at 5
requests/s sent at random, 96 moves): correlation 0.95 (chunked) and 0.88 (prefill-first), slope 1.30 and 1.12, the same
sign in 76 and 77 % of all moves and in 92 and 88 % of the larger half. `PATHWISE`: correlation 0.62 and 0.63. What it
leaves out: fewer or more preemptions, and the order in which others are served.

**Limits**: order of arrival at the router and at the instances, no holding (a request that is held is not relaxed; the
router may still hold), the rich observation.

**Cost**: memory of reverse mode is one carry (some 40 bytes an instance and row) an interval where `fleet.step` is
wrapped in `jax.checkpoint`; every engine step touches all rows, so keep M small (`state.compacted`).
"""
