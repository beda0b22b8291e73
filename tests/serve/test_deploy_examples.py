"""The examples of deployment in the README are what the router takes."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import tyro
import yaml

from jaxroute.commands.serve import Serve
from jaxroute.profiles import available_profiles
from jaxroute.serve.config import ServeConfig
from serve.harness import service

README = (Path(__file__).parents[2] / "README.md").read_text()


def block(start: str) -> str:
    """The example whose first line begins so."""
    [text] = re.findall(rf"```[a-z]+\n(# {re.escape(start)}.*?)```", README, re.DOTALL)
    return text


def told(command: list[str]) -> ServeConfig:
    """What a command line tells the router; an unknown flag ends the test."""
    assert Path(command[0]).name == "jaxroute"
    assert command[1] == "serve"
    return tyro.cli(Serve, args=command[2:]).read()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(block("/etc/jaxroute/serve.yaml"))
    return path


def kubernetes() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Deployment, its container, and Service."""
    deployment, front = yaml.safe_load_all(block("kubernetes.yaml"))
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return deployment, container, front


def test_the_unit_file_starts_the_router_with_the_configuration_file(file: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(block("/etc/systemd/system/jaxroute.service"))
    start = unit["Service"]["ExecStart"]
    assert "/etc/jaxroute/serve.yaml" in start
    config = told(shlex.split(start.replace("/etc/jaxroute/serve.yaml", str(file))))
    assert [each.name for each in config.backends] == ["10.0.0.1:8000", "gpu-2"]
    assert {config.profile, config.backends[1].profile} <= set(available_profiles())
    assert config.listen.host == "0.0.0.0"
    assert config.admin.host == "127.0.0.1"
    assert unit["Service"]["ExecReload"] == "/bin/kill -HUP $MAINPID"
    # systemd must not kill what still drains, and the log's folder is the one that it makes.
    assert int(unit["Service"]["TimeoutStopSec"]) > config.timeouts.drain_s
    assert config.decision_log is not None
    assert config.decision_log.parent == Path("/var/lib") / unit["Service"]["StateDirectory"]


def test_the_compose_file_starts_the_router() -> None:
    router = yaml.safe_load(block("compose.yaml"))["services"]["router"]
    config = told(router["command"])
    assert [each.url for each in config.backends] == ["http://vllm-0:8000", "http://vllm-1:8000"]
    [ports] = router["ports"]
    assert ports == f"{config.listen.port}:{config.listen.port}"
    assert config.listen.host == "0.0.0.0"
    assert int(router["stop_grace_period"].removesuffix("s")) > config.timeouts.drain_s
    assert "[serve]" in router["build"]["dockerfile_inline"]


def test_the_kubernetes_objects_fit_each_other_and_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    deployment, container, front = kubernetes()
    config = told([*container["command"], *container["args"]])
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert ports == {"http": config.listen.port, "admin": config.admin.port}
    assert config.listen.host == config.admin.host == "0.0.0.0"
    [variable] = container["env"]
    assert variable["name"] == config.keys_env
    pod = deployment["spec"]["template"]
    labels = pod["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == front["spec"]["selector"] == labels
    assert front["spec"]["ports"][0]["targetPort"] in ports
    waits = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > config.timeouts.drain_s + waits


async def test_the_probes_ask_for_what_is_there() -> None:
    _, container, _ = kubernetes()
    async with service(1) as s:
        for probe in ("livenessProbe", "readinessProbe"):
            assert (await s.get(container[probe]["httpGet"]["path"])).status == 200
