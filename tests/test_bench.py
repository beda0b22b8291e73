from __future__ import annotations

import dataclasses
import json

import pytest

from jaxroute import bench
from jaxroute.cli import main

SMALL = bench.Setting(envs=2, requests=100)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the command, cut down to a second."""
    import jax

    settings = (SMALL, dataclasses.replace(SMALL, records=True, scheduler="prefill-first"))
    monkeypatch.setattr(bench, "QUICK", settings)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def test_bench_json_has_the_rows_and_the_ratio_to_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "--quick", "--json", "--repeats", "1"])
    report = json.loads(capsys.readouterr().out)
    assert [row["scheduler"] for row in report["rows"]] == ["chunked", "prefill-first"]
    for row in report["rows"]:
        assert row["instances"] == 4
        assert row["slots"] == 128
        assert row["envs"] == 2
        # 100 requests at 20/s take at least 5 s: 250 intervals each.
        assert row["env_steps_per_s"] > 2.5 * row["requests_per_s"] > 0
        assert row["compile_s"] > 0.2
        assert row["bytes_per_env_step"] > 1000
    expected = report["rows"][0]["requests_per_cpu_s"] / report["reference_requests_per_cpu_s"]
    assert report["ratio"] == pytest.approx(expected)
    assert report["memory_bytes_per_s"] > 1e8


def test_bench_shows_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "--quick", "--repeats", "1"])
    shown = capsys.readouterr().out
    assert "env-steps/s" in shown
    assert "plain-Python reference" in shown


def test_bad_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for options in (["--envs", "0"], ["--instances", "-1"], ["--repeats", "0"]):
        with pytest.raises(SystemExit) as stop:
            main(["bench", *options])
        assert stop.value.code == 2
        assert "must be at least 1" in capsys.readouterr().err
