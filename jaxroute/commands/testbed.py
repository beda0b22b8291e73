"""`jaxroute testbed`."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from jaxroute.commands.console import table_console

if TYPE_CHECKING:
    from jaxroute.testbed import StepTrace, Testbed, TestbedConfig

CHECK_S = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TestbedCommand:
    """Start real vLLM engines on this machine, at the speed of a profile; Ctrl-C stops them.

    The engines compute a tiny model on the CPU, and their steps are held to the profile's times: scheduling, KV cache,
    preemptions, API and metrics are vLLM's own, random are only the words. It needs `make setup-vllm`, 1 GiB of memory
    for each engine, and is valid while fewer than 3 % of the steps take longer than they should: a table says so at the
    end. Engines die with this process, however it ends.
    """

    __test__ = False

    instances: int = 4
    """I, engines."""
    profile: str = "v100-32gb-llama2-7b"
    """Profile that every engine emulates, by name (see `jaxroute profiles`) or JSON file."""
    scheduler: str = "chunked"
    """chunked, or whole-prompt: vLLM without chunked prefill."""
    kv_tokens: int | None = None
    """KV cache size of every engine, tokens; by default the profile's."""
    slow_down: float = 1.0
    """Factor on all step times: steps of 12 ms and more leave two cores the time for four engines."""
    base_port: int = 8101
    """The engines listen on this port of the loopback address and those after it."""
    out: Path | None = None
    """Folder that keeps logs, step traces and profile.json; by default they are gone at the end."""
    start_timeout_s: float = 300.0
    """How long the engines may take to start, seconds."""

    def run(self) -> None:
        """Runs it."""
        from jaxroute.testbed import Testbed
        from jaxroute.testbed.config import load_warning

        config, console = self.config(), table_console()
        testbed = Testbed(config)
        if warning := load_warning(testbed.profile, self.instances, len(os.sched_getaffinity(0))):
            console.print(f"[yellow]{warning}[/]")
        # Asked to end, it says how the engines did and stops them in order.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            with ExitStack() as running:
                with console.status(f"starting {self.instances} vLLM engines"):
                    running.enter_context(testbed)
                with suppress(KeyboardInterrupt):
                    console.print(_greeting(testbed), soft_wrap=True, highlight=False, markup=False)
                    _watch(testbed)
                console.print(steps_table(testbed.urls, testbed.steps()))
        finally:
            signal.signal(signal.SIGTERM, before)

    def config(self) -> TestbedConfig:
        """The testbed that is asked for.

        Raises:
          InputError: a bad option, or a profile that cannot be read.
        """
        from jaxroute.profiles import load_profile
        from jaxroute.testbed import TestbedConfig

        return TestbedConfig(
            profile=load_profile(self.profile),
            instances=self.instances,
            scheduler=self.scheduler,
            kv_tokens=self.kv_tokens,
            slow_down=self.slow_down,
            base_port=self.base_port,
            folder=self.out,
            start_timeout_s=self.start_timeout_s,
        )


def steps_table(urls: Sequence[str], traces: Sequence[StepTrace]) -> Table:
    """How well each of the I engines kept to its profile, and whether what was measured on them is valid."""
    from jaxroute.testbed.trace import MOST_OVERRUN_SHARE

    valid = all(trace.overrun_share < MOST_OVERRUN_SHARE for trace in traces)
    verdict = (
        "valid" if valid else f"not valid: {MOST_OVERRUN_SHARE:.0%} or more overran; give --slow-down or less load"
    )
    table = Table(title="engine steps against the profile", caption=verdict)
    table.add_column("engine", no_wrap=True)
    for heading in ("steps", "overran", "target ms", "real work ms", "ended late ms, p99", "preemptions"):
        table.add_column(heading, justify="right")
    for url, trace in zip(urls, traces, strict=True):
        if not len(trace):
            table.add_row(url, "0", *["-"] * 5)
            continue
        table.add_row(
            url,
            f"{len(trace):,}",
            f"{trace.overrun_share:.2%}",
            f"{np.median(trace.target_ms):.1f}",
            f"{np.median(trace.work_ms):.1f}",
            f"{np.percentile(trace.lag_ms, 99):.2f}",
            f"{trace.preempted.sum():,}",
        )
    return table


def _watch(testbed: Testbed) -> None:
    """Goes on until it is interrupted; an engine that dies ends it with an InputError."""
    while True:
        testbed.check()
        time.sleep(CHECK_S)


def _greeting(testbed: Testbed) -> str:
    """Where the engines are, and what to do with them."""
    body = json.dumps({"model": testbed.model, "prompt": "def main():", "max_tokens": 32})
    backends = " ".join(f"--backend {url}" for url in testbed.urls)
    lines = [
        *(f"{url}  {trace.with_suffix('.log')}" for url, trace in zip(testbed.urls, testbed.traces, strict=True)),
        "",
        f"curl {testbed.urls[0]}/v1/completions -H 'Content-Type: application/json' -d '{body}'",
        f"jaxroute serve --profile {testbed.folder / 'profile.json'} {backends}",
        "",
        "Ctrl-C stops them.",
    ]
    return "\n".join(lines)
