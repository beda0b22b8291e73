"""The configuration of Envoy that the picker writes, and its command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from epp.gateway import ENVOY, needs_envoy
from jaxroute.cli import main
from jaxroute.commands.epp import Epp
from jaxroute.epp.envoy_config import envoy_config
from jaxroute.errors import InputError
from jaxroute.serve.config import BackendConfig, Listener, ServeConfig

HERE = Listener("127.0.0.1", 8080)


def config(*urls: str) -> ServeConfig:
    return ServeConfig(tuple(map(BackendConfig, urls)), listen=Listener("127.0.0.1", 9002))


@needs_envoy
@pytest.mark.parametrize(
    "options",
    [{}, {"fail_open": False}, {"fail_open": False, "full_duplex": True}, {"token_events": False}],
    ids=["open", "closed", "full-duplex", "no-token-events"],
)
@pytest.mark.parametrize("host", ["10.0.0.1", "vllm-0.vllm", "[2001:db8::1]"])
def test_envoy_accepts_it(tmp_path: Path, host: str, options: dict[str, Any]) -> None:
    file = tmp_path / "envoy.json"
    file.write_text(json.dumps(envoy_config(config(f"http://{host}:8000"), HERE, **options)))
    command = [str(ENVOY), "--mode", "validate", "--config-path", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("https://a:1", {}, "backend a:1: is reached by TLS"),
        ("http://a:1", {"full_duplex": True}, "fail closed"),
        ("http://a:1", {"full_duplex": True, "fail_open": False, "token_events": False}, "leave out --no-token-events"),
    ],
)
def test_what_cannot_be_written_is_refused(url: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        envoy_config(config(url), HERE, **options)


def test_the_command_prints_it_with_the_ports_of_the_picker(capsys: pytest.CaptureFixture[str]) -> None:
    main(["epp", "--backend", "http://10.0.0.1:8000", "--print-envoy-config", "--envoy-port", "8123"])
    told = yaml.safe_load(capsys.readouterr().out)["static_resources"]
    assert told["listeners"][0]["address"]["socket_address"]["port_value"] == 8123
    groups = [cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] for cluster in told["clusters"]]
    servers, picker = ([each["endpoint"]["address"]["socket_address"] for each in group] for group in groups)
    assert servers == [{"address": "10.0.0.1", "port_value": 8000}]
    assert picker == [{"address": "127.0.0.1", "port_value": 9002}]


def test_ports_that_are_given_stay(tmp_path: Path) -> None:
    file = tmp_path / "epp.yaml"
    file.write_text("backends: [http://10.0.0.1:8000]\nlisten: {host: 0.0.0.0, port: 7000}\n")
    read = Epp(config=file, admin_port=8081).read()
    assert (read.listen, read.admin.port) == (Listener("0.0.0.0", 7000), 8081)
