"""Measures a server from beginning to end: facts, warm-up, the planned requests, the raw file as it grows."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxroute.errors import InputError
from jaxroute.json_fields import Fields
from jaxroute.live.client import open_session
from jaxroute.profiling.client import Server
from jaxroute.profiling.design import Budget, Limits, Prompts, make_plan
from jaxroute.profiling.facts import (
    GENERATED,
    PREEMPTIONS,
    PREFIX_HITS,
    PROMPT,
    Metrics,
    read_metrics,
    read_model,
    read_version,
)
from jaxroute.profiling.reconstruct import Reconstruction, prompt_steps, scene_steps
from jaxroute.profiling.scene import Pace, Scene, inject, play, warm_up
from jaxroute.profiling.steps import Step, header_lines, step_lines

IDLE_S = 5.0
"""For how long a server is waited for that still has requests."""

SETTLE_S = 0.3
"""After the last answer, until the server's counters hold it."""

LONGEST_WARM_UP = 2048
"""Tokens of the prompts that the pace is found with."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What is measured, and how.

    Attributes:
      url: the server's root, with or without `/v1`.
      model: which of its models; None: the only one.
      key: its API key.
      scheduler: `chunked` or `whole-prompt`.
      max_num_seqs, max_num_batched_tokens: as the server was started with; it does not tell.
      num_gpu_blocks, block_size: the same, where it does not tell.
      budget: how much is measured.
    """

    url: str
    model: str | None
    key: str | None
    scheduler: str
    max_num_seqs: int
    max_num_batched_tokens: int
    num_gpu_blocks: int | None
    block_size: int | None
    budget: Budget


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a profile says beside the times.

    Attributes:
      model, engine: names.
      kv_blocks, block_size, max_num_seqs, max_num_batched_tokens, max_model_len: as in a profile.
      scheduler, date: of the measurement.
    """

    model: str
    engine: str
    kv_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    scheduler: str
    date: str


Report = Callable[[int, int], None]
"""Called with what is done so far and all of it."""


def measure(target: Target, raw: Path, date: str, report: Report) -> tuple[str, ...]:
    """Measures a server; what was measured is in the file `raw` at any time.

    Returns:
      Warnings; facts and steps are in the file.

    Raises:
      InputError: the server cannot be reached, refuses, fails, or cannot be measured.
    """
    return asyncio.run(measure_server(target, raw, date, report))


async def measure_server(target: Target, raw: Path, date: str, report: Report) -> tuple[str, ...]:
    """`measure`, within an event loop."""
    url = target.url.rstrip("/").removesuffix("/v1")
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{target.url}: is no address; give one such as http://127.0.0.1:8000")
    async with open_session() as session:
        server = Server(session, url, target.key)
        server.model, max_model_len = await read_model(server, target.model)
        before = await _idle(server)
        facts = _facts(target, server, before, max_model_len, await read_version(server), date)
        warnings = [] if not before.in_flight else [f"{before.in_flight} foreign requests were there at the beginning"]
        limits = Limits(
            kv_tokens=facts.kv_blocks * facts.block_size,
            max_num_seqs=facts.max_num_seqs,
            max_num_batched_tokens=facts.max_num_batched_tokens,
            max_model_len=max_model_len,
            chunked=target.scheduler == "chunked",
        )
        found = await measure_steps(server, limits, target.budget, _keeper(raw, facts), report)
        await asyncio.sleep(SETTLE_S)
        warnings += use_warnings(server, before, await read_metrics(server)) + _cut_warnings(found, limits)
    return tuple(warnings)


def _keeper(raw: Path, facts: Facts) -> Callable[[Sequence[Step]], None]:
    """Writes steps to a raw file, which takes the place of another one when the first of them come."""
    begun = False

    def keep(steps: Sequence[Step]) -> None:
        nonlocal begun
        with raw.open("a" if begun else "w", encoding="utf-8") as file:
            file.write(("" if begun else header_lines(dataclasses.asdict(facts))) + step_lines(steps))
        begun = True

    return keep


async def measure_steps(
    server: Server, limits: Limits, budget: Budget, keep: Callable[[Sequence[Step]], None], report: Report
) -> Reconstruction:
    """Sends what is planned for a server.

    Args:
      server: idle.
      limits: what it can hold.
      budget: how much is sent.
      keep: called with steps as soon as they are measured.
      report: called with the progress.

    Returns:
      All steps.

    Raises:
      InputError: the server fails, or holds too little.
    """
    longest = max(16, min(limits.whole, LONGEST_WARM_UP))
    pace = await warm_up(server, longest, limits.most_batch)
    plan = make_plan(limits, pace, budget)
    found: list[Reconstruction] = []
    for done, item in enumerate(plan.items):
        report(done, len(plan.items))
        found.append(await _measured(server, item, pace, limits.max_num_batched_tokens))
        keep(found[-1].steps)
    report(len(plan.items), len(plan.items))
    return Reconstruction(
        steps=tuple(step for each in found for step in each.steps),
        cut_as_expected=sum(each.cut_as_expected for each in found),
        cut_otherwise=sum(each.cut_otherwise for each in found),
    )


async def _measured(server: Server, item: Scene | Prompts, pace: Pace, token_budget: int) -> Reconstruction:
    if isinstance(item, Scene):
        played = await play(server, item, pace)
        return scene_steps(played, part=item.part, name=item.name, token_budget=token_budget)
    injected = await inject(server, item.injection, pace)
    return prompt_steps(injected, part=item.part, name=item.name, token_budget=token_budget)


async def _idle(server: Server) -> Metrics:
    """The server's metrics when it has nothing to do, or after a while of waiting for it."""
    metrics = await read_metrics(server)
    for _ in range(int(IDLE_S)):
        if not metrics.in_flight:
            break
        await asyncio.sleep(1.0)
        metrics = await read_metrics(server)
    if metrics.engines > 1:
        raise InputError(
            f"{server.url}: {metrics.engines} data-parallel engines share this address; a profile is of one: start "
            "one alone to measure it"
        )
    return metrics


def _facts(target: Target, server: Server, metrics: Metrics, max_model_len: int, version: str, date: str) -> Facts:
    blocks = target.num_gpu_blocks or metrics.num_gpu_blocks
    size = target.block_size or metrics.block_size
    if blocks is None or size is None or blocks < 2:
        raise InputError(
            f"{server.url}/metrics: vllm:cache_config_info does not state the KV cache; give --num-gpu-blocks and "
            "--block-size as the server's log does"
        )
    return Facts(
        model=server.model,
        engine=f"vLLM {version}",
        kv_blocks=blocks - 1,
        block_size=size,
        max_num_seqs=target.max_num_seqs,
        max_num_batched_tokens=target.max_num_batched_tokens,
        max_model_len=max_model_len,
        scheduler=target.scheduler,
        date=date,
    )


def use_warnings(server: Server, before: Metrics, after: Metrics) -> list[str]:
    """What the server's counters say against the measurement: others used it, it preempted, it found cached prompts."""
    grown = {name: after.sums[name] - before.sums[name] for name in before.sums}
    warnings = []
    foreign = grown[PROMPT] + grown[GENERATED] - server.asked_prompt_tokens - server.asked_output_tokens
    if after.in_flight or foreign > 0:
        warnings.append(
            f"others used the server meanwhile ({max(0, round(foreign)):,} of their tokens): measure an idle one"
        )
    if grown[PREEMPTIONS] > 0:
        warnings.append(f"{grown[PREEMPTIONS]:.0f} requests were preempted: the steps are not what they are taken for")
    if grown[PREFIX_HITS] > 0:
        warnings.append(f"{grown[PREFIX_HITS]:,.0f} prompt tokens were in the prefix cache already")
    return warnings


def _cut_warnings(found: Reconstruction, limits: Limits) -> list[str]:
    expected, otherwise = found.cut_as_expected, found.cut_otherwise
    if otherwise <= expected or not otherwise:
        return []
    return [
        f"{otherwise} of {expected + otherwise} long prompts were not cut as a budget of "
        f"{limits.max_num_batched_tokens:,} tokens a step has it: check --max-num-batched-tokens and --scheduler"
    ]


def facts_of(data: dict[str, object], path: Path) -> Facts:
    """The facts that a raw file begins with.

    Raises:
      InputError: they are not all there.
    """
    fields = Fields(data, f"{path}: line 1", "give the raw file that `jaxroute profile` wrote")
    return Facts(
        model=fields.text("model"),
        engine=fields.text("engine"),
        kv_blocks=fields.integer("kv_blocks"),
        block_size=fields.integer("block_size"),
        max_num_seqs=fields.integer("max_num_seqs"),
        max_num_batched_tokens=fields.integer("max_num_batched_tokens"),
        max_model_len=fields.integer("max_model_len"),
        scheduler=fields.text("scheduler"),
        date=fields.text("date"),
    )
