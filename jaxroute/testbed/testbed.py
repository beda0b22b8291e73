"""I real vLLM engines on this machine, at the speed of a profile."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import ClassVar

from jaxroute.errors import InputError, first_line
from jaxroute.output import atomic_path
from jaxroute.testbed.config import TestbedConfig, emulated_profile
from jaxroute.testbed.model import NAME, model_folder
from jaxroute.testbed.priority import favoured, hurry_server
from jaxroute.testbed.processes import STOP_S, Engine, take_ports
from jaxroute.testbed.trace import StepTrace, read_trace
from jaxroute.testbed.vllm_command import engine_command, engine_environment, find_venv

POLL_S = 0.2
WARM_UP_TOKENS = (256, 16)
"""Prompt and output tokens of the two requests that every engine serves before it counts as started: the first steps of
a process take long."""


class Testbed:
    """Starts engines on entry and stops them on exit, also after an error; with this process they die in any case.

        with Testbed(TestbedConfig(profile=load_profile("v100-32gb-llama2-7b"))) as testbed:
            client(testbed.urls, testbed.model)
            print([trace.overrun_share for trace in testbed.steps()])

    Where the system permits it, the engines and this process, which is taken for their client, run at a higher priority
    than others, and the engines' step loops in a real-time class: held steps need a punctual awakening. Enter it in a
    thread that lives as long as the testbed does.

    Attributes:
      config: what it was asked to be.
      profile: what the engines emulate (see `emulated_profile`); `profile.json` in the folder has it too.
      model: the model's name in the API.
      folder: where logs, traces and the profile lie.
      urls: of the I engines, http://127.0.0.1:PORT.
      traces: the I engines' trace files, one row a step.
      started_s: `time.monotonic()` when all were ready.
    """

    __test__: ClassVar[bool] = False

    def __init__(self, config: TestbedConfig) -> None:
        self.config = config
        self.profile = emulated_profile(config)
        self.model = NAME
        self.folder = Path()
        self.urls: tuple[str, ...] = ()
        self.traces: tuple[Path, ...] = ()
        self.started_s = 0.0
        self._engines: list[Engine] = []
        self._resources = ExitStack()

    def __enter__(self) -> Testbed:
        """Starts the engines.

        Raises:
          InputError: vLLM is not installed, a port is taken, the folder cannot be written, an engine dies or is late.
        """
        venv = find_venv(self.config.venv)
        ports = take_ports(self.config.instances, self.config.base_port)
        model = model_folder()
        with self._resources:
            self.folder = self._make_folder()
            self._resources.enter_context(favoured())
            self._start(venv, model, ports)
            self._wait_until_healthy()
            self._warm_up()
            for pid in self.pids:
                hurry_server(pid)
            self.started_s = time.monotonic()
            self._resources = self._resources.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops the engines."""
        self._resources.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the engines' API servers while they run; each leads a session of its own."""
        return tuple(engine.pid for engine in self._engines)

    def check(self) -> None:
        """Raises InputError where an engine has died."""
        for engine in self._engines:
            engine.check()

    def steps(self) -> tuple[StepTrace, ...]:
        """The I engines' steps since all were ready."""
        return tuple(read_trace(trace).between(self.started_s) for trace in self.traces)

    def _make_folder(self) -> Path:
        if self.config.folder is None:
            return Path(self._resources.enter_context(tempfile.TemporaryDirectory(prefix="jaxroute-testbed-")))
        folder = self.config.folder.absolute()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({first_line(error)}); give another folder") from error
        return folder

    def _start(self, venv: Path, model: Path, ports: list[int]) -> None:
        self._resources.callback(self._stop)
        self.traces = tuple(self.folder / f"engine-{index}.csv" for index in range(len(ports)))
        with atomic_path(self.folder / "profile.json") as path:
            path.write_text(json.dumps(dataclasses.asdict(self.profile), indent=2) + "\n")
        for index, (port, trace) in enumerate(zip(ports, self.traces, strict=True)):
            command = engine_command(venv, model, self.profile, self.config.scheduler, port)
            environment = engine_environment(self.profile, trace)
            self._engines.append(Engine(command, environment, port, self.folder / f"engine-{index}.log"))
        self.urls = tuple(engine.url for engine in self._engines)

    def _wait_until_healthy(self) -> None:
        deadline = time.monotonic() + self.config.start_timeout_s
        left = list(self._engines)
        while left:
            self.check()
            left = [engine for engine in left if not engine.is_healthy()]
            if left and time.monotonic() > deadline:
                raise InputError(
                    f"the engine at {left[0].url} was not ready within {self.config.start_timeout_s:g} s; see its log "
                    f"in {self.folder}, and give it more time or the machine less to do"
                )
            time.sleep(POLL_S if left else 0)

    def _warm_up(self) -> None:
        prompt, output = WARM_UP_TOKENS
        prompt = min(prompt, self.profile.max_model_len // 2)
        output = min(output, self.profile.max_model_len - prompt)
        for engine in self._engines * 2:
            body = {"model": NAME, "prompt": [2] * prompt, "max_tokens": output, "ignore_eos": True, "temperature": 0}
            request = urllib.request.Request(
                f"{engine.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request, timeout=self.config.start_timeout_s) as answer:
                    answer.read()
            except OSError as error:
                engine.check()
                raise InputError(f"the engine at {engine.url} does not serve ({error}); see {self.folder}") from error

    def _stop(self) -> None:
        deadline = time.monotonic() + STOP_S
        for engine in self._engines:
            engine.ask_to_stop()
        for engine in self._engines:
            engine.kill(deadline)
        self._engines = []
