"""The command line as a user meets it: results, one line for bad input, exit code 2, nothing half-written."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxroute.cli import main
from jaxroute.commands.simulate import Simulate
from jaxroute.profiles import load_profile

V100 = "v100-32gb-llama2-7b"


def simulate(tmp_path: Path, *options: str, profile: str = V100, workload: str = "five-task") -> Path:
    out = tmp_path / "out"
    main(["simulate", "--profile", profile, "--workload", workload, "--out", str(out), "--no-pictures", *options])
    return out


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *options: str, **names: str) -> str:
    """The one line that a refused call prints; checks the exit code and that nothing was written."""
    with pytest.raises(SystemExit) as stop:
        simulate(tmp_path, *options, **names)
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert lines[0].startswith("jaxroute: ")
    return lines[0]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def profile_file(tmp_path: Path, **changes: object) -> str:
    data = {**vars(load_profile(V100)), **changes}
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(data))
    return str(path)


def trace_file(tmp_path: Path, text: str) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return str(path)


def test_simulate_writes_one_file_a_policy_and_a_summary_that_agree(tmp_path: Path) -> None:
    out = simulate(tmp_path, "--policy", "round-robin,least-kv", "--requests", "200", "--seed", "3")
    assert sorted(path.name for path in out.iterdir()) == [
        "least-kv.requests.csv",
        "round-robin.requests.csv",
        "summary.json",
    ]
    rows = rows_of(out / "round-robin.requests.csv")
    assert list(rows[0])[:12] == [
        "request_id",
        "arrival_s",
        "prompt_tokens",
        "output_tokens",
        "instance",
        "dispatch_s",
        "ttft_s",
        "e2e_s",
        "tbt_mean_s",
        "tbt_max_s",
        "router_wait_s",
        "preemptions",
    ]
    assert [row["instance"] for row in rows[:5]] == ["0", "1", "2", "3", "0"]
    summary = json.loads((out / "summary.json").read_text())
    mean = sum(float(row["e2e_s"]) for row in rows) / len(rows)
    assert summary["policies"]["round-robin"]["e2e_mean_s"] == pytest.approx(mean, abs=1e-5)
    assert summary["settings"]["seed"] == 3
    for row in rows:
        assert float(row["dispatch_s"]) - float(row["arrival_s"]) == pytest.approx(
            float(row["router_wait_s"]), abs=2e-7
        )
        if int(row["output_tokens"]) > 1:
            decode_s = (int(row["output_tokens"]) - 1) * float(row["tbt_mean_s"])
            assert float(row["ttft_s"]) + decode_s == pytest.approx(float(row["e2e_s"]), abs=1e-4)


def test_the_same_seed_gives_the_same_files(tmp_path: Path) -> None:
    options = ("--policy", "random", "--requests", "60")
    first = (simulate(tmp_path / "a", *options) / "random.requests.csv").read_bytes()
    assert (simulate(tmp_path / "b", *options) / "random.requests.csv").read_bytes() == first
    assert (simulate(tmp_path / "c", *options, "--seed", "1") / "random.requests.csv").read_bytes() != first


def test_frontend_time_is_added_to_ttft_and_e2e(tmp_path: Path) -> None:
    trace = trace_file(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,100,5\n")
    options = {"workload": trace}
    bare = rows_of(simulate(tmp_path / "a", "--policy", "random", **options) / "random.requests.csv")[0]
    profile = profile_file(tmp_path, frontend_ms=12.0)
    seen = rows_of(simulate(tmp_path / "b", "--policy", "random", profile=profile, **options) / "random.requests.csv")[
        0
    ]
    for column in ("ttft_s", "e2e_s"):
        assert float(seen[column]) - float(bare[column]) == pytest.approx(0.012, abs=1e-6)


def test_a_single_request_takes_what_the_profile_says(tmp_path: Path) -> None:
    trace = trace_file(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,100,5\n")
    row = rows_of(simulate(tmp_path, "--policy", "round-robin", workload=trace) / "round-robin.requests.csv")[0]
    profile = load_profile(V100)
    prefill = profile.step_ms([(100, 0)], []) / 1e3
    decodes = sum(profile.step_ms([], [context]) for context in range(101, 105)) / 1e3
    assert float(row["ttft_s"]) == pytest.approx(prefill, abs=1e-6)
    assert float(row["e2e_s"]) == pytest.approx(prefill + decodes, abs=1e-6)


def test_mixed_fleets_take_one_profile_and_scheduler_for_each_instance(tmp_path: Path) -> None:
    out = simulate(
        tmp_path,
        *("--instances", "2", "--policy", "round-robin", "--requests", "40", "--rate", "1"),
        *("--scheduler", "chunked,prefill-first"),
        profile=f"{V100},h100-80gb-llama2-7b",
    )
    rows = rows_of(out / "round-robin.requests.csv")
    by_instance = [[float(r["tbt_mean_s"]) for r in rows if r["instance"] == i and r["tbt_mean_s"]] for i in "01"]
    slow, fast = (sum(gaps) / len(gaps) for gaps in by_instance)
    assert slow > 2.5 * fast


def test_assigned_decisions_are_replayed(tmp_path: Path) -> None:
    decisions = tmp_path / "decisions.csv"
    decisions.write_text("request_id,instance\n" + "".join(f"{i},{(i * 7) % 3}\n" for i in range(30)))
    out = simulate(tmp_path, "--policy", f"assigned:{decisions}", "--instances", "3", "--requests", "30")
    rows = rows_of(out / "assigned.requests.csv")
    assert [int(row["instance"]) for row in rows] == [(i * 7) % 3 for i in range(30)]


def test_overlong_requests_are_clipped_or_dropped_and_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = trace_file(tmp_path, "arrival_s,prompt_tokens,output_tokens\n0,5000,50\n1,100,5\n")
    out = simulate(tmp_path / "a", "--policy", "random", "--overlong", "clip", workload=trace)
    assert "clipped 1 of 2 requests" in capsys.readouterr().out
    assert [row["prompt_tokens"] for row in rows_of(out / "random.requests.csv")] == ["4046", "100"]
    out = simulate(tmp_path / "b", "--policy", "random", "--overlong", "drop", workload=trace)
    assert "dropped 1 of 2 requests" in capsys.readouterr().out
    assert [row["request_id"] for row in rows_of(out / "random.requests.csv")] == ["1"]


def test_edges_put_short_requests_before_long_ones_in_order_of_arrival(tmp_path: Path) -> None:
    # All at once to one server that takes one at a time; predicted as the means of their buckets.
    lengths = [300, 20, 300, 70, 40]
    rows = "".join(f"0,10,{length}\n" for length in lengths)
    trace = trace_file(tmp_path, "arrival_s,prompt_tokens,output_tokens\n" + rows)
    options = ("--policy", "gated-central-queue+spf", "--instances", "1", "--kv-tokens", "320", "--max-num-seqs", "1")

    def order(*more: str) -> list[int]:
        out = simulate(tmp_path, *options, *more, workload=trace)
        sent = [float(row["dispatch_s"]) for row in rows_of(out / "gated-central-queue+spf.requests.csv")]
        return sorted(range(5), key=sent.__getitem__)

    assert order() == [1, 4, 3, 0, 2]
    assert order("--spf-edges", "256") == [1, 3, 4, 0, 2]
    assert order("--spf-edges", "32,256") == [1, 3, 4, 0, 2]


def test_a_rate_above_one_action_per_dt_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    simulate(tmp_path, "--policy", "random", "--rate", "80", "--requests", "50")
    assert "sends at most 50" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "trace.csv: is empty"),
        ("a,b,c\n1,2,3\n", "trace.csv: line 1"),
        ("arrival_s,prompt_tokens,output_tokens\n", "no requests"),
        ("arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,-3,5\n", "trace.csv: line 3"),
        ("arrival_s,prompt_tokens,output_tokens\n0,10,5\n1,nan,5\n", "trace.csv: line 3"),
        ("arrival_s,prompt_tokens,output_tokens\ninf,10,5\n", "trace.csv: line 2"),
        ("arrival_s,prompt_tokens,output_tokens\n0,5000,5\n", "row 0"),
    ],
)
def test_a_bad_trace_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    assert message in refused(capsys, tmp_path, workload=trace_file(tmp_path, text))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coefficients_ms": {"W": 1}}, "lacks h, g, d, e, f, x, u, v"),
        ({"coefficients_ms": {**load_profile(V100).coefficients_ms, "g": -1}}, "coefficients_ms.g is -1"),
        ({"coefficients_ms": {**load_profile(V100).coefficients_ms, "g": float("nan")}}, "coefficients_ms.g is nan"),
        ({"coefficients_ms": {**load_profile(V100).coefficients_ms, "g": "x"}}, "coefficients_ms.g is 'x'"),
        ({"coefficients_ms": dict.fromkeys("Whgdefxuv", 0)}, "allows an engine step of no duration"),
        ({"coefficients_ms": {**dict.fromkeys("Whgdefxuv", 0), "W": 0.01}}, "lower dt to 0.0026 s or less"),
        ({"kv_blocks": 0}, "kv_blocks is 0"),
        ({"max_num_seqs": 8192}, "which vLLM refuses"),
        ({"provenance": {}}, "provenance.status is None"),
        ({"extra": 1}, "unknown field extra"),
    ],
)
def test_a_bad_profile_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, message: str
) -> None:
    assert message in refused(capsys, tmp_path, profile=profile_file(tmp_path, **changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policy", "best"), "unknown policy 'best'; known: random"),
        (("--policy", ","), "no policy given"),
        (("--scheduler", "fifo"), "unknown scheduler 'fifo'; known: prefill-first, chunked, whole-prompt"),
        (("--scheduler", "chunked,chunked"), "--scheduler: 2 values for 4 instances"),
        (("--batching", "lifo"), "unknown batching order 'lifo'"),
        (("--dt", "0"), "dt is 0.0"),
        (("--dt", "nan"), "dt is nan"),
        (("--dt", "9"), "lower dt to"),
        (("--rate", "-1"), "rate is -1"),
        (("--rate", "inf"), "rate is inf"),
        (("--requests", "0"), "--requests is 0"),
        (("--instances", "0"), "--instances is 0"),
        (("--kv-tokens", "3"), "less than one block"),
        (("--kv-tokens", "160"), "can never run on v100-32gb-llama2-7b: it exceeds the KV cache"),
        (("--seed", "-1"), "seed"),
        (("--prediction", "perfect"), "prediction 'perfect'"),
        (("--max-num-batched-tokens", "300", "--scheduler", "whole-prompt"), "exceeds one step of max_num_batched"),
        (("--scrape-s", "0"), "scrape_s is 0.0"),
        (("--spf-edges", "256,64"), "--spf-edges 256,64: give ascending whole numbers above 0, such as 64,256"),
        (("--spf-edges", "0,64"), "--spf-edges 0,64: give ascending"),
        (("--spf-edges", "6.5"), "--spf-edges 6.5: give ascending"),
    ],
)
def test_a_bad_option_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, tmp_path, *options)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"profile": "v100"}, "no such shipped profile and no such file; shipped: a100-80gb-llama2-7b"),
        ({"workload": "six-task"}, "no such workload and no such file; generated: five-task"),
        ({"workload": "."}, "folder"),
        ({"workload": "all-random", "profile": "v100-16gb-llama2-7b"}, "exceeds the KV cache (2320 tokens)"),
    ],
)
def test_a_bad_name_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: dict[str, str], message: str
) -> None:
    assert message in refused(capsys, tmp_path, **names)


def test_an_output_that_is_a_file_is_refused_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        simulate(tmp_path)
    assert stop.value.code == 2
    assert "is a file; give a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


def test_profiles_and_data_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["profiles"])
    main(["data"])
    shown = capsys.readouterr().out
    assert V100 in shown
    assert "five-task" in shown


def test_importing_the_package_stays_light() -> None:
    heavy = ["jax", "gymnax", "matplotlib", "transformers", "distrax", "flax", "scipy"]
    code = f"import sys, jaxroute; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [[], ["simulate"], ["evaluate"], ["bench"], ["data"], ["profiles"]])
def test_help_names_every_command(command: list[str]) -> None:
    script = [sys.executable, "-m", "jaxroute.cli", *command, "--help"]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    assert "usage: jaxroute" in done.stdout


@pytest.mark.parametrize("wrote", [False, True])
def test_an_interruption_says_truly_whether_something_was_written(
    wrote: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "earlier").write_text("of another run")
    os.utime(out / "earlier", (1.0, 1.0))

    def interrupted(_: Simulate) -> None:
        if wrote:
            (out / "some").write_text("of this run")
        raise KeyboardInterrupt

    monkeypatch.setattr(Simulate, "run", interrupted)
    with pytest.raises(SystemExit) as stop:
        simulate(tmp_path)
    assert stop.value.code == 130
    said = f"{out} holds what was done until then" if wrote else "nothing was written"
    assert capsys.readouterr().err == f"jaxroute: interrupted; {said}\n"
