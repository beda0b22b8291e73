"""`jaxroute calibrate`: known coefficients come back, wrong profiles get right, and bad logs end with one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import request_logs as logs
from jaxroute.calibrate.log import read_request_log
from jaxroute.calibrate.result import grid
from jaxroute.cli import main
from jaxroute.profiles import StepProfile, load_profile
from jaxroute.serve.decision_log import LogRow, encode


def calibrate(tmp_path: Path, log: Path, start: StepProfile, *options: str) -> tuple[StepProfile, dict]:
    profile = tmp_path / "start.json"
    profile.write_text(json.dumps(dataclasses.asdict(start)))
    out = tmp_path / "fit"
    main(["calibrate", str(log), "--profile", str(profile), "--out", str(out), *options])
    assert sorted(path.name for path in out.iterdir()) == ["fit.json", "fit.png", "profile.json"]
    return load_profile(str(out / "profile.json")), json.loads((out / "fit.json").read_text())


def step_errors(fitted: StepProfile, true: StepProfile, *, kinds: tuple[str, ...]) -> np.ndarray:
    steps = [step for step in grid(true) if step[0].startswith(kinds)]
    return np.asarray([fitted.step_ms(p, c) / true.step_ms(p, c) - 1 for _, p, c in steps])


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, log: Path, *options: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["calibrate", str(log), "--profile", "v100-32gb-llama2-7b", "--out", str(tmp_path / "fit"), *options])
    assert stop.value.code == 2
    assert not (tmp_path / "fit").exists()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert len(lines) == 1, lines
    return lines[0]


def test_step_times_come_back_within_two_per_cent_from_500_requests(tmp_path: Path) -> None:
    log = logs.write_log(logs.simulated(500, 8.0), tmp_path / "log.csv")
    fitted, fit = calibrate(tmp_path, log, logs.wrong(logs.TRUE), "--starts", "2")
    assert fitted.provenance["status"] == "fitted"
    before = step_errors(logs.wrong(logs.TRUE), logs.TRUE, kinds=("decode", "prefill"))
    assert np.abs(before).max() > 0.1
    assert np.abs(step_errors(fitted, logs.TRUE, kinds=("decode", "prefill 128 +", "prefill 512 +"))).max() < 0.02
    assert fit["error_percent"]["fitted"]["e2e"]["each"] < 1
    assert fit["error_percent"]["start"]["e2e"]["each"] > 5


def test_a_noisy_log_is_met_within_five_per_cent_and_its_step_times_lie_in_their_intervals(tmp_path: Path) -> None:
    log = logs.write_log(logs.simulated(500, 8.0), tmp_path / "log.csv", noise=0.05)
    start = dataclasses.replace(
        logs.TRUE, coefficients_ms={name: 1.2 * value for name, value in logs.TRUE.coefficients_ms.items()}
    )
    fitted, fit = calibrate(tmp_path, log, start, "--starts", "2")
    errors = fit["error_percent"]
    assert abs(errors["start"]["e2e"]["mean"]) > 15
    assert errors["fitted"]["e2e"]["each"] < 5
    assert abs(errors["fitted"]["e2e"]["mean"]) < 1
    assert np.abs(step_errors(fitted, logs.TRUE, kinds=("decode",))).max() < 0.03
    true = {label: logs.TRUE.step_ms(p, c) for label, p, c in grid(logs.TRUE)}
    inside = [s["fitted_ms"]["low"] <= true[s["label"]] <= s["fitted_ms"]["high"] for s in fit["step_times"]]
    assert np.mean(inside) >= 0.7


def test_adam_gets_there_as_well(tmp_path: Path) -> None:
    log = logs.write_log(logs.simulated(120, 6.0), tmp_path / "log.csv")
    _, fit = calibrate(tmp_path, log, logs.wrong(logs.TRUE), "--method", "adam", "--iterations", "60", "--starts", "1")
    assert fit["error_percent"]["fitted"]["e2e"]["each"] < 0.3 * fit["error_percent"]["start"]["e2e"]["each"]


def test_what_the_log_says_nothing_about_stays_as_it_was(tmp_path: Path) -> None:
    log = logs.write_log(logs.simulated(120, 6.0), tmp_path / "log.csv")
    start = logs.wrong(logs.TRUE)
    fitted, fit = calibrate(tmp_path, log, start, "--starts", "1")
    # No prompt is cut into chunks here.
    assert fitted.coefficients_ms["x"] == pytest.approx(start.coefficients_ms["x"], rel=1e-4)
    known = {each["name"]: each["from_log"] for each in fit["coefficients"]}
    assert known["x"] < 0.05
    assert known["W"] > 0.9


def test_a_vllm_benchmark_is_read(tmp_path: Path) -> None:
    result = logs.simulated(120, 6.0)
    own = np.flatnonzero(result.records.instance == 0)
    records, table = result.records, result.table
    ttft = records.first_token_s[own] - records.dispatch_s[own]
    gaps = np.maximum(table.output_tokens[own] - 1, 1)
    step = (records.finish_s[own] - records.first_token_s[own]) / gaps
    data = {
        "input_lens": table.prompt_tokens[own].tolist(),
        "output_lens": table.output_tokens[own].tolist(),
        "start_times": (1e5 + records.dispatch_s[own]).tolist(),
        "ttfts": ttft.tolist(),
        "itls": [[gap] * (tokens - 1) for gap, tokens in zip(step, table.output_tokens[own].tolist(), strict=True)],
        "errors": [""] * len(own),
    }
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(data))
    log = read_request_log(path)
    np.testing.assert_allclose(log.ttft_s, ttft[np.argsort(records.dispatch_s[own], kind="stable")], atol=1e-9)
    assert len(log) == len(own)
    assert log.servers == ("0",)


def test_bad_logs_end_with_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("arrival_s,prompt_tokens\n0,1\n")
    assert "no column 'output_tokens'" in refused(capsys, tmp_path, log)
    good = logs.write_log(logs.simulated(120, 6.0), tmp_path / "good.csv").read_text().splitlines()
    log.write_text("\n".join(good[:5]))
    assert "a fit needs 20" in refused(capsys, tmp_path, log)
    log.write_text("\n".join(good).replace(good[7].split(",")[1], "soon"))
    assert "must be a number" in refused(capsys, tmp_path, log)
    log.write_text('{"input_lens": []}')
    assert "--save-detailed" in refused(capsys, tmp_path, log)
    log.write_text("\n".join(good))
    assert "has no server 7" in refused(capsys, tmp_path, log, "--servers", "7")
    assert "can never run" in refused(capsys, tmp_path, log, "--kv-tokens", "64")


def test_a_decision_log_is_read_run_by_run(tmp_path: Path) -> None:
    result = logs.simulated(120, 6.0)
    records, table = result.records, result.table
    rows = [
        row_of_log(
            run="second" if number >= 5 else "first",
            arrival_s=7e3 + table.arrival_s[number],
            dispatch_s=7e3 + records.dispatch_s[number],
            prompt_tokens=int(table.prompt_tokens[number]),
            output_tokens=int(table.output_tokens[number]),
            backend=f"server-{records.instance[number]}",
            ttft_s=records.first_token_s[number] - table.arrival_s[number],
            e2e_s=records.finish_s[number] - table.arrival_s[number],
            outcome="aborted" if number == 50 else "finished",
        )
        for number in range(len(table))
    ]
    path = tmp_path / "decisions.jsonl"
    path.write_text("".join(encode(row) + "\n" for row in rows))
    log = read_request_log(path)
    assert len(log) == 115
    assert log.servers == ("server-0", "server-1")
    assert int((~log.counted).sum()) == 1
    assert len(log.notes) == 2
    np.testing.assert_allclose(log.dispatch_s, records.dispatch_s[5:] - records.dispatch_s[5], atol=1e-9)
    np.testing.assert_allclose(log.waited_s, (records.dispatch_s - table.arrival_s)[5:], atol=1e-9)


def row_of_log(**known: Any) -> LogRow:
    """A row of which only what a fit reads is given."""
    fields: dict[str, Any] = {field.name: None for field in dataclasses.fields(LogRow)}
    fields |= {"id": "x", "names": [], "streamed": True, "decided_by": "policy", "decision_s": 1e-3}
    fields |= dict.fromkeys(("predicted_tokens", "predicted_bucket", "predicted_upper"), 1)
    return LogRow(**fields | known)
