"""`jaxroute profile` as a user meets it, against a fake vLLM over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from profiled_vllm import ProfiledVllm

from jaxroute.cli import main
from jaxroute.profiles import StepProfile, load_profile

Captured = pytest.CaptureFixture[str]

SMALL = dataclasses.replace(
    load_profile("h100-80gb-llama31-8b"),
    kv_blocks=400,
    max_num_seqs=16,
    max_num_batched_tokens=512,
    max_model_len=1200,
)
"""A server of which there is little to measure."""

LIMITS = ("--max-num-seqs", "16", "--max-num-batched-tokens", "512", "--budget", "quick")


@contextmanager
def served(profile: StepProfile = SMALL, **options: Any) -> Iterator[ProfiledVllm]:
    """A server in a thread of its own."""
    server = ProfiledVllm(profile, **options)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
        yield server
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def refusal(capsys: Captured, *arguments: str) -> str:
    """The one line of a call that is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["profile", *arguments])
    assert stop.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    return line


def test_a_server_is_measured_and_simulate_takes_the_profile(capsys: Captured, tmp_path: Path) -> None:
    out, again = tmp_path / "mine.json", tmp_path / "again.json"
    with served() as server:
        main(["profile", server.url, *LIMITS, "--hardware", "none at all", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "error of step times that the fit did not see" in printed
    assert "others used the server" not in printed
    profile = load_profile(str(out))
    assert (profile.name, profile.model, profile.hardware) == ("mine", "fake-model", "none at all")
    assert (profile.kv_blocks, profile.block_size) == (SMALL.kv_blocks, SMALL.block_size)
    assert (profile.max_num_seqs, profile.max_num_batched_tokens, profile.max_model_len) == (16, 512, 4096)
    assert profile.grad2 == pytest.approx(1 / SMALL.kv_tokens, rel=1e-3)
    assert profile.provenance["status"] == "measured"
    assert all(regime in profile.provenance["error"] for regime in ("prefill", "decode", "mixed"))
    # A busy machine may make a single figure wrong, but not the size of things.
    assert profile.step_ms([(400, 0)], [200] * 8) == pytest.approx(SMALL.step_ms([(400, 0)], [200] * 8), rel=0.3)

    main(["profile", "--refit", str(out.with_suffix(".raw.csv")), "--name", "mine", "--out", str(again)])
    assert load_profile(str(again)).coefficients_ms == profile.coefficients_ms

    simulated = tmp_path / "simulated"
    main(
        [
            *("simulate", "--profile", str(out), "--workload", "five-task", "--requests", "20", "--rate", "2"),
            *("--policy", "round-robin", "--overlong", "clip", "--no-pictures", "--out", str(simulated)),
        ]
    )
    assert (simulated / "summary.json").exists()


def test_what_was_measured_is_kept_when_the_server_fails(capsys: Captured, tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    with served() as server:
        # The first requests, those of the warm-up and some more, are answered.
        ask, asked = server._fault, []

        def fault() -> str | None:
            asked.append(1)
            return "500" if len(asked) > 60 else ask()

        server._fault = fault  # type: ignore[method-assign]
        line = refusal(capsys, server.url, *LIMITS, "--out", str(out))
    assert "answers 500" in line
    assert f"are in {out.with_suffix('.raw.csv')}" in line
    assert not out.exists()
    assert len(out.with_suffix(".raw.csv").read_text().splitlines()) > 3
    assert list(tmp_path.iterdir()) == [out.with_suffix(".raw.csv")]


def test_a_server_that_cannot_be_measured_is_named_in_one_line(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ("--out", str(tmp_path / "mine.json"))
    assert "cannot be reached" in refusal(capsys, "http://127.0.0.1:9", *LIMITS, *out)
    assert "is no address" in refusal(capsys, "127.0.0.1:8000", *LIMITS, *out)
    with served(key="secret") as server:
        line = refusal(capsys, server.url, *LIMITS, *out)
        assert "the key is wrong or missing" in line
        assert "--api-key-env" in line
        assert "--model nobody: " in refusal(capsys, server.url, *LIMITS, *out, "--model", "nobody")
        line = refusal(capsys, server.url, *out)
        assert "--max-num-seqs and --max-num-batched-tokens" in line
        assert "no such variable" in refusal(capsys, server.url, *LIMITS, *out, "--api-key-env", "NO_SUCH_KEY")
        monkeypatch.setenv("A_WRONG_KEY", "wrong")
        assert "answers 401" in refusal(capsys, server.url, *LIMITS, *out, "--api-key-env", "A_WRONG_KEY")
        tiny = ("--max-num-seqs", "2", "--max-num-batched-tokens", "512")
        monkeypatch.setenv("THE_KEY", "secret")
        assert "too little to tell" in refusal(capsys, server.url, *tiny, *out, "--api-key-env", "THE_KEY")
        server.break_with("garbage-metrics")
        assert "/metrics: " in refusal(capsys, server.url, *LIMITS, *out)
    assert not any(tmp_path.iterdir())


def test_bad_options_are_refused_before_anything_is_asked(capsys: Captured, tmp_path: Path) -> None:
    assert "--out is missing" in refusal(capsys, "http://127.0.0.1:9")
    assert "must end with .json" in refusal(capsys, "http://127.0.0.1:9", "--out", str(tmp_path / "mine.txt"))
    assert "a folder that exists" in refusal(capsys, "http://127.0.0.1:9", "--out", str(tmp_path / "no" / "a.json"))
    raw = tmp_path / "mine.raw.csv"
    assert "not both" in refusal(capsys, "http://127.0.0.1:9", "--refit", str(raw), "--out", "a.json")
    out = ("--out", str(tmp_path / "mine.json"))
    assert "no such file" in refusal(capsys, "--refit", str(raw), *out)
    raw.write_text("a,b\n1,2\n")
    assert "no file of measured steps" in refusal(capsys, "--refit", str(raw), *out)
    facts = dict.fromkeys(("model", "engine", "scheduler", "date"), "x") | dict.fromkeys(
        ("kv_blocks", "block_size", "max_num_seqs", "max_num_batched_tokens", "max_model_len"), 600
    )
    head = f"# {json.dumps(facts)}\npart,scene,kind,new_tokens,cached_tokens,decoding,context_tokens,at,end_ms\n"
    raw.write_text(f"{head}fit,a,decode,,,3,100,7,inf\n")
    assert "line 3: inf ms is no time" in refusal(capsys, "--refit", str(raw), *out)
    raw.write_text(f"{head}fit,a,decode,,,3,100,7,10.5\n")
    assert "no prefill and no decode and no mixed step" in refusal(capsys, "--refit", str(raw), *out)
    raw.write_text(f"{head}fit,a,decode,5,0,3,100,7,10.5\n")
    assert "line 3: says decode" in refusal(capsys, "--refit", str(raw), *out)
