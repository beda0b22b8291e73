"""From trained parameters to a policy folder, and `jaxroute export`."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.observation import INSTANCE_FEATURES
from jaxroute.policies.folder import digest, read_policy, write_policy
from jaxroute.workload.prediction import DEFAULT_EDGES
from trained import random_params, random_policy, random_scales


def test_parameters_and_scales_go_into_the_file_as_they_are() -> None:
    params, scales = random_params("paper", (8,), 0), random_scales("paper", 0)
    policy = random_policy("paper", (8,), training={"load": float("nan"), "run": Path("runs/x"), "loss": np.float32(2)})
    np.testing.assert_array_equal(policy.weights["score_0/kernel"], params["params"]["score_0"]["kernel"])
    np.testing.assert_array_equal(policy.scales.instance_std, scales.instance_std)
    assert policy.scales.router_mean.dtype == np.float32
    assert policy.bucket_edges == DEFAULT_EDGES
    assert policy.training == {"load": None, "run": "runs/x", "loss": 2.0}
    assert random_policy().bucket_edges == ()


def test_parameters_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="policy made-up: hold_1/bias is no weight of this network"):
        random_policy(params=random_params("rich", (32, 32), 0), hidden=(32,))
    with pytest.raises(InputError, match=r"scales.instance_std holds a number that is not above 0"):
        random_policy(scales=random_scales("rich", 0).replace(instance_std=jnp.zeros(len(INSTANCE_FEATURES))))
    with pytest.raises(ValueError, match="buckets is 5, but requests are predicted in 7"):
        random_policy("paper", buckets=5)


def test_the_policy_of_a_run_is_copied_and_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_policy(random_policy(), tmp_path / "run" / "policy")
    out = tmp_path / "exported"
    main(["export", str(tmp_path / "run"), "--out", str(out)])
    assert digest(read_policy(out)) == digest(random_policy())
    for name in ("policy.json", "policy.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "run" / "policy" / name).read_bytes()
    said = capsys.readouterr().out
    assert f"6 of the router, {len(INSTANCE_FEATURES)} of each instance" in said
    assert f"{random_policy().parameters:,}" in said
    assert "training: steps" in said
    assert "1000" in said
    write_policy(random_policy(seed=1), tmp_path / "run" / "policy")
    main(["export", str(tmp_path / "run"), "--out", str(out)])
    assert digest(read_policy(out)) == digest(random_policy(seed=1))


@pytest.mark.parametrize(
    ("run", "out", "message"),
    [
        ("nowhere", "new", "no such folder; give a policy folder or a training run"),
        ("empty", "new", "holds neither policy.json nor a folder policy"),
        ("run", "file", "file: is a file; give a folder"),
        ("run", "empty/../run", "is no policy folder, it holds policy; give a new folder"),
        ("run", "file/below", "cannot be written"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, out: str, message: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    write_policy(random_policy(), tmp_path / "run" / "policy")
    with pytest.raises(SystemExit) as stop:
        main(["export", str(tmp_path / run), "--out", str(tmp_path / out)])
    assert stop.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("jaxroute: ")
    assert message in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "run"]
    assert digest(read_policy(tmp_path / "run" / "policy")) == digest(random_policy())


def test_help_names_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "RUN --out POLICY" in capsys.readouterr().out
