"""`jaxroute sensitivity`: what a fleet's latency depends on, by difference and by derivative."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxroute.calibrate.sensitivity import GROUPS
from jaxroute.cli import main
from jaxroute.profiles import COEFFICIENTS


def test_elasticities_by_difference_and_by_derivative_agree_where_nothing_waits(tmp_path: Path) -> None:
    fleet = ("--profile", "v100-32gb-llama2-7b", "--max-num-seqs", "32", "--instances", "2", "--policy", "least-kv")
    size = ("--workload", "five-task", "--requests", "150", "--load", "0.4", "--seeds", "3")
    main(["sensitivity", *fleet, *size, "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sensitivity.json", "sensitivity.png"]
    content = json.loads((tmp_path / "sensitivity.json").read_text())
    found = {each["parameter"]: each for each in content["elasticities"]}
    assert set(found) == {*GROUPS, *COEFFICIENTS, "KV size", "max_num_seqs", "arrival rate"}
    bandwidth = found["memory bandwidth"]
    # A V100 reads its weights in nearly all of a step: a faster memory is what helps.
    assert -1.6 < bandwidth["difference"]["e2e_mean"]["value"] < -0.7
    assert bandwidth["anchored"]["e2e_mean"]["value"] == pytest.approx(
        bandwidth["difference"]["e2e_mean"]["value"], abs=0.3
    )
    # The latency is made of step times: slower by 1 % in all of them is slower by 1 % with the order of events held.
    assert sum(found[name]["anchored"]["e2e_mean"]["value"] for name in COEFFICIENTS) == pytest.approx(1, abs=0.03)
    assert found["W"]["pathwise"]["e2e_mean"]["value"] > 2 * found["W"]["anchored"]["e2e_mean"]["value"]
    assert found["arrival rate"]["difference"]["e2e_mean"]["value"] > 0
    assert found["KV size"]["anchored"] is None


def test_bad_options_end_with_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for options, said in (
        (("--load", "0"), "--load is 0"),
        (("--step-percent", "60"), "--step-percent is 60"),
        (("--seeds", "0"), "--seeds is 0"),
    ):
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as stop:
            main(
                [
                    "sensitivity",
                    "--profile",
                    "v100-32gb-llama2-7b",
                    "--workload",
                    "five-task",
                    "--out",
                    str(out),
                    *options,
                ]
            )
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
        assert not out.exists()
