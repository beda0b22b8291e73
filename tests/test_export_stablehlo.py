"""`jaxroute export --stablehlo`: the program that comes out is the policy, on whatever platform, for any fleet."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxroute.cli import main
from jaxroute.observation import Encoding, Observed, feature_names
from jaxroute.policies.folder import DEFAULT_FOLDER, write_policy
from jaxroute.policies.learned import LearnedPolicy
from jaxroute.policies.runner import Runner
from jaxroute.stablehlo import PLATFORMS, exported
from recorded import recorded_observations
from trained import BUCKETS, random_observed, random_policy


def called(program: export.Exported, observed: Observed) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in program.call(observed._asdict()).items()}


def each(observed: Observed) -> list[Observed]:
    """The observations one by one."""
    return [Observed(*parts) for parts in zip(*observed, strict=True)]


def side_by_side(observations: list[Observed]) -> Observed:
    return Observed(*(np.stack(parts) for parts in zip(*observations, strict=True)))


def read(path: Path) -> export.Exported:
    return export.deserialize(bytearray(path.read_bytes()))


@pytest.mark.parametrize("encoding", ["rich", "paper"])
@pytest.mark.parametrize("holds", [True, False])
def test_the_program_gives_the_logits_of_numpy_and_flax(tmp_path: Path, encoding: Encoding, holds: bool) -> None:
    policy = random_policy(encoding, holds=holds)
    write_policy(policy, tmp_path / "run" / "policy")
    main(["export", str(tmp_path / "run"), "--out", str(tmp_path / "mine"), "--stablehlo"])
    program, runner, flax = read(tmp_path / "mine.stablehlo"), Runner(policy), LearnedPolicy.of(policy)
    random = [
        side_by_side([random_observed(encoding, instances, seed, allowed=seed / 4) for seed in range(5)])
        for instances in (1, 4, 16)
    ]
    recorded = recorded_observations(encoding)
    # All sorts of moments: nothing to send, full servers, all free.
    assert {0, recorded.mask.shape[1] - 1} <= set(recorded.mask[:, :-1].sum(axis=1))
    for observed in (*random, recorded):
        answer = called(program, observed)
        expected = np.asarray([runner.logits(one) for one in each(observed)])
        assert answer["logits"].dtype == np.float32
        np.testing.assert_allclose(answer["logits"], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(expected, flax.logits(jax.tree.map(jnp.asarray, observed)), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(answer["action"], answer["logits"].argmax(axis=-1))


def test_one_file_holds_both_platforms_and_is_described(tmp_path: Path) -> None:
    main(["export", str(DEFAULT_FOLDER), "--out", str(tmp_path / "mine"), "--stablehlo"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "mine.stablehlo", "mine.stablehlo.json"]
    program = read(tmp_path / "mine.stablehlo")
    assert program.platforms == PLATFORMS == ("cpu", "cuda")
    router, instance = feature_names("rich")
    facts = json.loads((tmp_path / "mine.stablehlo.json").read_text())
    assert facts["platforms"] == ["cpu", "cuda"]
    assert facts["calling_convention_version"] == program.calling_convention_version
    assert facts["inputs"] == {
        "router": {"shape": ["observations", len(router)], "dtype": "float32"},
        "instances": {"shape": ["observations", "instances", len(instance)], "dtype": "float32"},
        "mask": {"shape": ["observations", "instances + 1"], "dtype": "bool"},
    }
    assert facts["outputs"] == {
        "logits": {"shape": ["observations", "instances + 1"], "dtype": "float32"},
        "action": {"shape": ["observations"], "dtype": "int32"},
    }
    assert (facts["router_features"], facts["instance_features"]) == (list(router), list(instance))
    assert facts["policy"] == json.loads((tmp_path / "mine" / "policy.json").read_text())["name"]


def test_the_paper_encoding_names_its_buckets(tmp_path: Path) -> None:
    write_policy(random_policy("paper"), tmp_path / "policy")
    main(["export", str(tmp_path / "policy"), "--out", str(tmp_path / "mine"), "--stablehlo"])
    facts = json.loads((tmp_path / "mine.stablehlo.json").read_text())
    assert len(facts["bucket_edges"]) == BUCKETS
    assert facts["inputs"]["instances"]["shape"][-1] == 2 * BUCKETS + 2


def test_products_are_in_full_float32_on_every_platform() -> None:
    text = exported(random_policy()).mlir_module()
    assert text.count("stablehlo.dot_general") == text.count("precision = [HIGHEST, HIGHEST]") > 5


def test_it_runs_where_there_is_no_jaxroute(tmp_path: Path) -> None:
    main(["export", str(DEFAULT_FOLDER), "--out", str(tmp_path / "mine"), "--stablehlo"])
    code = """if True:
        import sys
        from pathlib import Path
        import numpy as np
        from jax import export
        program = export.deserialize(bytearray(Path(sys.argv[1]).read_bytes()))
        given = {"router": np.zeros((1, 6), "f"), "instances": np.zeros((1, 2, 16), "f"), "mask": np.ones((1, 3), bool)}
        print(program.call(given)["action"], "jaxroute" in sys.modules)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "mine.stablehlo")], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["[0]", "False"]


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.stablehlo").mkdir()
    with pytest.raises(SystemExit) as stop:
        main(["export", str(DEFAULT_FOLDER), "--out", str(tmp_path / "mine"), "--stablehlo"])
    assert stop.value.code == 2
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("jaxroute: ")
    assert "mine.stablehlo: is a folder" in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.stablehlo"]
