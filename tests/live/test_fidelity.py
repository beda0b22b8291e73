import csv
import json
from pathlib import Path

import numpy as np
import pytest

from jaxroute.cli import main

PROFILE = "h100-80gb-llama31-8b"


def fidelity(servers, out: Path, *options: str) -> None:
    urls = [text for server in servers for text in ("--url", server.url)]
    main(["fidelity", "--profile", PROFILE, "--out", str(out), "--workload", "five-task", *urls, *options])


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["fidelity", *arguments])
    assert ended.value.code == 2
    return capsys.readouterr().err


def rows_of(path: Path) -> dict[str, np.ndarray]:
    rows = list(csv.DictReader(path.read_text().splitlines()))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


@pytest.fixture(scope="module")
def measured(serving, tmp_path_factory):
    out = tmp_path_factory.mktemp("measured")
    servers = serving(2, profile=PROFILE, speed=1.0)
    fidelity(servers, out, "--policy", "round-robin,fewest-outstanding-tokens", "--requests", "12", "--rate", "20",
             "--repeats", "2")  # fmt: skip
    return servers, out


def test_live_runs_repeat_the_simulated_decisions(measured):
    servers, out = measured
    folder = out / "chunked-five-task-rate-20"
    for policy in ("round-robin", "fewest-outstanding-tokens"):
        simulated = rows_of(folder / f"{policy}.simulated.requests.csv")
        for number in (1, 2):
            live = rows_of(folder / f"{policy}.live-{number}.requests.csv")
            for column in ("request_id", "instance", "prompt_tokens", "output_tokens", "arrival_s", "task"):
                assert (live[column] == simulated[column]).all(), column
            late = live["dispatch_s"].astype(float) - simulated["dispatch_s"].astype(float)
            assert late.min() > -1e-6
            assert (live["e2e_s"].astype(float) > live["ttft_s"].astype(float)).all()
    prompts = [json.loads(body)["prompt"] for server in servers for body in server.bodies]
    assert len({tuple(prompt) for prompt in prompts}) == len(prompts)


def test_the_comparison_is_written_as_json_and_pictures(measured):
    _, out = measured
    content = json.loads((out / "fidelity.json").read_text())
    [servers] = content["servers"]
    assert servers["profile"]["frontend_ms"] >= 0 and servers["frontend"]["frontend_ms"] >= 0
    assert content["targets"]["e2e_mean_percent"] == 0.5 and content["targets"]["most_overrun_share"] == 0.03
    assert [(run["policy"], run["run"]) for run in content["runs"]] == [
        ("round-robin", 1),
        ("round-robin", 2),
        ("fewest-outstanding-tokens", 1),
        ("fewest-outstanding-tokens", 2),
    ]
    for run in content["runs"]:
        for quantity in ("e2e", "ttft", "tbt"):
            made = run[quantity]
            error = 100 * (made["simulated_s"]["mean"] / made["live_s"]["mean"] - 1)
            assert made["error_percent"]["mean"] == pytest.approx(error)
            assert made["scatter_p50_percent"] <= made["scatter_p95_percent"]
        # Such servers keep no trace and never preempt.
        assert run["overrun_share"] is run["longest_stall_ms"] is None and run["preemptions"]["error_percent"] == 0
        assert run["preemptions"]["live"] == run["preemptions"]["simulated"] == [0, 0]
    assert len(content["noise"]) == 2 and content["noise"][0]["percent"]["e2e"]["mean"] >= 0
    for policy in ("round-robin", "fewest-outstanding-tokens"):
        picture = out / "chunked-five-task-rate-20" / f"{policy}.png"
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_servers_that_are_not_as_the_profile_says_are_refused(serving, tmp_path, capsys):
    [server] = serving(1, profile="a100-80gb-llama2-7b")
    with pytest.raises(SystemExit):
        fidelity([server], tmp_path / "out", "--rate", "5", "--requests", "4")
    assert f"{server.url}: has 7463 KV blocks of 16 tokens, profile {PROFILE}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_servers_that_are_at_work_are_refused(serving, tmp_path, capsys):
    [server] = serving(1, profile=PROFILE)
    server.engine.waiting = [object()]  # type: ignore[list-item]
    server.engine.kv_tokens = lambda: 0  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        fidelity([server], tmp_path / "out", "--rate", "5", "--requests", "4")
    assert "has 1 requests of somebody else" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--url", "http://127.0.0.1:9/v1"), "give the server's root"),
        (("--url", "http://127.0.0.1:9", "--rate", "5", "--requests", "4"), "http://127.0.0.1:9/v1/models"),
        (("--url", "http://127.0.0.1:9", "--slow-down", "2"), "--slow-down: is for the testbed"),
        (("--url", "http://127.0.0.1:9", "--scheduler", "chunked,whole-prompt"), "have one; name it"),
        (("--rate", "fast"), "--rate fast: give finite numbers above 0"),
        (("--load", "0"), "--load 0: give finite numbers above 0"),
        (("--load", ""), "--load: give at least one"),
        (("--repeats", "0"), "--repeats is 0"),
        (("--scheduler", "prefill-first"), "prefill-first"),
        (("--policy", "nobody"), "unknown policy 'nobody'"),
        (("--workload", "nowhere.csv", "--rate", "4"), "no such workload and no such file"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, options, said):
    message = refused(capsys, "--out", str(tmp_path / "out"), *options)
    assert said in message and message.startswith("jaxroute: ") and message.count("\n") == 1
    assert not (tmp_path / "out").exists()
