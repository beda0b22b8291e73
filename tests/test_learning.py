"""Training runs side by side."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxroute.errors import InputError
from jaxroute.learning import learned

HEADER = "update,env_steps,seed,seconds,hold_share,valid_e2e_mean,valid_e2e_p99,valid_ttft_p99,valid_makespan"


def run(folder: Path, *rows: str) -> Path:
    path = folder / "metrics.csv"
    path.write_text("\n".join((HEADER, *rows)) + "\n", encoding="utf-8")
    return path


def test_a_run_is_told_by_the_last_third_of_its_validations(tmp_path: Path) -> None:
    rows = [f"{u},{100 * u},{s},{u}.5,0.{u},{-0.1 * u - 0.01 * s},0.02,0,-0.04" for u in (1, 2, 3) for s in (0, 1)]
    path = run(tmp_path, "1,100,0,0.5,0.3,,,,", *rows)
    found = learned("mine", path)
    assert (found.label, found.seeds, found.env_steps, found.seconds) == ("mine", 2, 300, 3.5)
    assert found.e2e_mean == pytest.approx((-30, -31))
    assert (found.e2e_p99, found.ttft_p99, found.makespan) == pytest.approx((2, 0, -4))
    assert found.hold_share == pytest.approx(0.3)


def test_a_run_without_a_validation_and_a_file_that_is_not_ours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no validation yet"):
        learned("mine", run(tmp_path, "1,100,0,0.5,0.3,,,,"))
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"is not the metrics\.csv of a training run"):
        learned("mine", tmp_path / "metrics.csv")
    with pytest.raises(InputError, match="cannot be read"):
        learned("mine", tmp_path / "none.csv")
