"""Trained policies by name: what they are called, what they bring along, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from jaxroute import candidates as candidates_module
from jaxroute.candidates import by_program, candidate, candidates
from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.policies.folder import write_policy
from jaxroute.policies.learned import LearnedPolicy
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet
from trained import random_policy

V100 = "v100-32gb-llama2-7b"
FLEET = Fleet((load_profile(V100),) * 2, ("chunked",) * 2)


def simulate(out: Path, policy: str, *options: str) -> None:
    names = ("--profile", V100, "--workload", "five-task", "--policy", policy, "--out", str(out), "--no-pictures")
    main(["simulate", *names, *options])


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    write_policy(random_policy(holds=False), tmp_path / "mine")
    return tmp_path / "mine"


def test_a_folder_and_a_run_are_called_by_the_end_of_their_path(tmp_path: Path, policy: Path) -> None:
    write_policy(random_policy(holds=False), tmp_path / "run" / "policy")
    for path in (policy, tmp_path / "run"):
        found = candidate(str(path))
        assert found.name == path.name
        assert not found.is_heuristic
        assert found.policy == LearnedPolicy.of(random_policy(holds=False), path.name)
        assert (found.router_order, found.ageing, found.buckets) == ("fcfs", None, 0)


def test_a_folder_of_the_current_folder_needs_no_slash(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(policy.parent)
    assert candidate("mine+spf").name == "mine+spf"
    assert candidate(".//mine").name == "mine"


def test_a_trained_policy_brings_its_order_ageing_and_buckets_and_spf_forces_the_order(tmp_path: Path) -> None:
    path = tmp_path / "spf"
    write_policy(random_policy("paper", router_order="shortest-predicted", ageing=2.5), path)
    found = candidate(str(path))
    assert (found.name, found.router_order, found.ageing, found.buckets) == ("spf", "shortest-predicted", 2.5, 7)
    # It was trained without edges, so that those of the fleet are not for it.
    assert found.spf_edges == ()
    edged = random_policy("paper", router_order="shortest-predicted", spf_edges=(64, 256))
    write_policy(edged, path)
    assert candidate(str(path)).spf_edges == (64, 256)
    write_policy(random_policy("paper", router_order="fcfs", ageing=2.5, spf_edges=(256,)), path)
    first = candidate(str(path))
    assert (first.router_order, first.ageing, first.spf_edges) == ("fcfs", None, None)
    forced = candidate(f"{path}+spf")
    assert (forced.name, forced.router_order, forced.ageing) == ("spf+spf", "shortest-predicted", None)
    assert forced.spf_edges is None


def test_candidates_that_can_share_a_program_do(policy: Path) -> None:
    learned = candidate(str(policy))
    aged = dataclasses.replace(learned, name="aged", ageing=1.0)
    paper = dataclasses.replace(learned, name="paper", buckets=7)
    groups = list(by_program(FLEET, [learned, aged, candidate("random"), paper, candidate("random+spf")]))
    assert [[each.name for each in group] for _, group in groups] == [
        ["mine", "random"],
        ["aged"],
        ["paper"],
        ["random+spf"],
    ]
    assert [(fleet.router_order, fleet.ageing, fleet.buckets) for fleet, _ in groups] == [
        ("fcfs", 5.0, 0),
        ("fcfs", 1.0, 0),
        ("fcfs", 5.0, 7),
        ("shortest-predicted", 5.0, 0),
    ]
    assert groups[2][0].config(1, records=False).buckets == 7


def test_other_edges_are_another_program_and_none_are_the_fleets() -> None:
    fleet = dataclasses.replace(FLEET, spf_edges=(256,))
    own = candidate("random+spf")
    candidates = [
        own,
        dataclasses.replace(own, name="plain", spf_edges=()),
        dataclasses.replace(own, name="same", spf_edges=(256,)),
        dataclasses.replace(own, name="three", spf_edges=(64, 256)),
    ]
    groups = [(own.spf_edges, [each.name for each in group]) for own, group in by_program(fleet, candidates)]
    assert groups == [((256,), ["random+spf", "same"]), ((), ["plain"]), ((64, 256), ["three"])]


def test_paths_that_end_alike_are_told_apart(tmp_path: Path) -> None:
    for name in ("a/policy", "b/policy", "b/random"):
        write_policy(random_policy(), tmp_path / name)
    asked = [f"{tmp_path}/a/policy", f"{tmp_path}/b/policy", f"{tmp_path}/b/policy+spf", f"{tmp_path}/b/random"]
    shown = [each.name for each in candidates([*asked, "random"])]
    assert shown == ["a-policy", "b-policy", "policy+spf", "b-random", "random"]
    with pytest.raises(InputError, match=r"policy .*b-policy: is given twice; give each policy once"):
        candidates([f"{tmp_path}/b/policy", f"{tmp_path}/b/../b/policy"])


def test_the_shipped_policy_is_default(policy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates_module, "DEFAULT_FOLDER", policy)
    assert [each.name for each in candidates(["default", "default+spf"])] == ["default", "default+spf"]
    monkeypatch.setattr(candidates_module, "DEFAULT_FOLDER", policy / "nowhere")
    with pytest.raises(InputError, match="policy default: this version ships no trained policy; train one with"):
        candidate("default")


def test_a_path_that_holds_no_policy_is_refused(tmp_path: Path, policy: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such folder; give a policy folder or a training run"):
        candidate(f"{tmp_path}/nowhere")
    (policy / "policy.safetensors").unlink()
    with pytest.raises(InputError, match=r"policy.safetensors: no such file"):
        candidate(str(policy))
    edges = (1, 32, 64, 128, 256, 512, 2048)
    write_policy(dataclasses.replace(random_policy("paper"), bucket_edges=edges), policy)
    with pytest.raises(InputError, match=r"mine: was trained on length buckets from \[1, 32, .*2048\] tokens on"):
        candidate(str(policy))


def test_simulate_runs_a_trained_policy_beside_the_others_under_safe_file_names(tmp_path: Path, policy: Path) -> None:
    out = tmp_path / "out"
    simulate(out, f"{policy},round-robin,{policy}+spf,test_evaluate:LAST", "--requests", "40", "--max-num-seqs", "16")
    names = ["mine", "round-robin", "mine+spf", "test_evaluate:LAST"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"{name}.requests.csv" for name in names), "summary.json"]
    )
    summaries = json.loads((out / "summary.json").read_text())["policies"]
    assert list(summaries) == names
    assert all(summary["e2e_mean_s"] > 0 for summary in summaries.values())


def test_two_policies_of_one_shown_name_are_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_policy(random_policy(), tmp_path / "assigned")
    (tmp_path / "x.csv").write_text("request_id,instance\n")
    with pytest.raises(SystemExit) as stop:
        simulate(tmp_path / "out", f"{tmp_path}/assigned,assigned:{tmp_path}/x.csv")
    assert stop.value.code == 2
    assert "two policies would be called assigned; rename" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
