"""`jaxroute evaluate`: what it writes, that its runs are those of `simulate`, and one line for what is wrong."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from rich.text import Text

from jaxroute import plots
from jaxroute.candidates import candidate, candidates
from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.evaluate import Cell, Row, evaluate
from jaxroute.evaluation import CellResult, cell_result, cell_table
from jaxroute.policies import HEURISTICS
from jaxroute.policies.protocol import Stateless
from jaxroute.profiles import load_profile
from jaxroute.progress import VoidRunError, interval_limit
from jaxroute.simulate import Fleet
from jaxroute.workload import five_task
from jaxroute.workload.draws import Draws, window
from jaxroute.workload.table import RequestTable

V100 = "v100-32gb-llama2-7b"
HEADER = (
    "policy,workload,profile,scheduler,instances,load,seed,e2e_mean_s,e2e_p99_s,ttft_mean_s,ttft_p99_s,tbt_mean_s,"
    "makespan_s,router_wait_mean_s,preemptions,rate_per_s,recomputed_tokens,tbt_p99_s,routers"
)
SMALL = ("--requests", "60", "--max-num-seqs", "16", "--instances", "2")


@dataclasses.dataclass(frozen=True)
class Last(Stateless):
    """Sends everything to the last instance; a user's own policy."""

    name: str = "last"

    def choose(self, view, key):
        del key
        return jnp.int32(view.full.shape[0] - 1)


@dataclasses.dataclass(frozen=True)
class Never(Stateless):
    name: str = "never"

    def choose(self, view, key):
        del key
        return jnp.int32(view.full.shape[0])


class Fractional(Stateless):
    name = "fractional"

    def choose(self, view, key):
        del view, key
        return jnp.float32(0.5)


LAST = Last()
NO_POLICY = object()


def run(tmp_path: Path, *options: str, workloads: str = "five-task", profile: str = V100) -> Path:
    out = tmp_path / "out"
    main(["evaluate", "--profile", profile, "--workloads", workloads, "--out", str(out), *options])
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(count: int, seed: int = 0, rate: float = 20.0) -> RequestTable:
    return five_task(count, rate, seed)


def cell(count: int = 40, seeds: tuple[int, ...] = (5, 6), **fleet: object) -> Cell:
    profile = dataclasses.replace(load_profile(V100), max_num_seqs=16)
    servers = Fleet((profile,) * 2, ("chunked",) * 2, **fleet)
    return Cell("five-task", servers, 1.0, 20.0, seeds, tuple(table(count, seed) for seed in seeds))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ("--policies", "random,round-robin,random+spf", "--loads", "0.5,1.0", "--seeds", "2", *SMALL)
    return run(tmp_path_factory.mktemp("evaluation"), *options)


def test_there_is_one_row_for_each_policy_load_and_seed(evaluation: Path) -> None:
    assert sorted(path.name for path in evaluation.iterdir()) == [
        "evaluation.csv",
        "evaluation.json",
        "evaluation.png",
    ]
    text = (evaluation / "evaluation.csv").read_text()
    assert text.splitlines()[0] == HEADER
    rows = rows_of(evaluation / "evaluation.csv")
    assert [(row["load"], row["policy"], row["seed"]) for row in rows] == [
        (load, policy, seed)
        for load in ("0.5", "1.0")
        for policy in ("random", "round-robin", "random+spf")
        for seed in ("1000000", "1000001")
    ]
    assert {(row["workload"], row["profile"], row["scheduler"], row["instances"]) for row in rows} == {
        ("five-task", V100, "chunked", "2")
    }


def test_load_is_a_multiple_of_the_capacity_that_is_written_out(evaluation: Path) -> None:
    content = json.loads((evaluation / "evaluation.json").read_text())
    [capacity] = content["capacities"]
    assert capacity["requests"] == 20 * 2 * 16
    for row in rows_of(evaluation / "evaluation.csv"):
        assert float(row["rate_per_s"]) == pytest.approx(float(row["load"]) * capacity["requests_per_s"], rel=1e-6)


def test_the_json_aggregates_the_rows(evaluation: Path) -> None:
    content = json.loads((evaluation / "evaluation.json").read_text())
    assert content["settings"]["first_seed"] == 1_000_000
    assert [cell["load"] for cell in content["cells"]] == [0.5, 1.0]
    rows = rows_of(evaluation / "evaluation.csv")
    means = {
        policy: np.mean([float(row["e2e_mean_s"]) for row in rows if (row["policy"], row["load"]) == (policy, "1.0")])
        for policy in ("random", "round-robin", "random+spf")
    }
    full = content["cells"][1]
    assert full["best_heuristic"] == min(means, key=means.get)
    policy = full["policies"]["random"]
    assert policy["means"]["e2e_mean_s"]["value"] == pytest.approx(means["random"], rel=1e-6)
    change = policy["against_reference_percent"]["e2e_mean_s"]
    assert change["value"] == pytest.approx(100 * (means["random"] / means["round-robin"] - 1), abs=1e-4)
    assert not change["significant"]
    assert full["policies"]["round-robin"]["against_reference_percent"]["makespan_s"]["value"] == 0


def test_a_run_is_that_of_simulate_with_its_seed_and_rate(evaluation: Path, tmp_path: Path) -> None:
    row = next(
        row
        for row in rows_of(evaluation / "evaluation.csv")
        if (row["policy"], row["load"], row["seed"]) == ("random+spf", "1.0", "1000001")
    )
    capacity = json.loads((evaluation / "evaluation.json").read_text())["capacities"][0]["requests_per_s"]
    names = ("--profile", V100, "--workload", "five-task", "--policy", "random+spf", "--out", str(tmp_path))
    main(["simulate", *names, *SMALL, "--seed", "1000001", "--rate", repr(capacity), "--no-pictures"])
    summary = json.loads((tmp_path / "summary.json").read_text())["policies"]["random+spf"]
    for column in ("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "tbt_mean_s", "makespan_s", "router_wait_mean_s"):
        assert float(row[column]) == pytest.approx(summary[column], rel=1e-5), column


def test_every_policy_sees_the_same_requests_of_a_seed_and_tables_of_any_length_run_side_by_side() -> None:
    whole = cell(seeds=(5, 6))
    short = dataclasses.replace(whole, tables=(whole.tables[0], whole.tables[1].take(np.arange(25))))
    [rows] = evaluate([short], [candidate("round-robin"), dataclasses.replace(candidate("round-robin"), name="twin")])
    assert [(row.policy, row.seed) for row in rows] == [
        ("round-robin", 5),
        ("round-robin", 6),
        ("twin", 5),
        ("twin", 6),
    ]
    first, second, *twin = (row.e2e_mean_s for row in rows)
    assert [first, second] == twin
    assert first != second
    alone = dataclasses.replace(whole, seeds=(6,), tables=(short.tables[1],))
    [[row]] = evaluate([alone], [candidate("round-robin")])
    assert rows[1] == row


def test_a_policy_that_never_dispatches_is_named() -> None:
    with pytest.raises(VoidRunError, match=r"policy mine on five-task.*never dispatches them"):
        evaluate([cell()], [dataclasses.replace(candidate("round-robin"), name="mine", policy=Never())])


def test_a_queue_that_overflows_is_an_error_and_no_row() -> None:
    with pytest.raises(VoidRunError, match=r"policy round-robin on five-task.*raise queue_capacity"):
        evaluate([cell(queue_capacity=3)], [dataclasses.replace(candidate("round-robin"), policy=LAST)])


def test_a_policy_that_breaks_the_protocol_is_named() -> None:
    with pytest.raises(InputError, match=r"policy bad: act must return one int32 as its action, not .*float32"):
        evaluate([cell()], [dataclasses.replace(candidate("round-robin"), name="bad", policy=Fractional())])


def test_the_interval_limit_is_above_a_run_one_request_at_a_time() -> None:
    profile = load_profile(V100)
    requests = table(30)
    serial_s = sum(
        profile.step_ms([(int(prompt), 0)], []) / 1e3
        + sum(profile.step_ms([], [int(prompt) + k]) for k in range(1, int(output))) / 1e3
        for prompt, output in zip(requests.prompt_tokens, requests.output_tokens, strict=True)
    )
    limit = interval_limit([requests], [profile], 0.02)
    assert (serial_s + 3600) / 0.02 < limit <= 2**20
    assert limit & (limit - 1) == 0


def test_policies_are_heuristics_or_importable_objects() -> None:
    names = [each.name for each in candidates(["least-kv", "all", "least-kv", "least-kv+spf"])]
    assert names == ["least-kv", *(name for name in HEURISTICS if name != "least-kv"), "least-kv+spf"]
    for name in ("test_evaluate:LAST", "test_evaluate:Last", "test_evaluate:Last+spf"):
        found = candidate(name)
        assert (found.name, found.policy, found.is_heuristic) == (name, LAST, False)
        assert found.router_order == ("shortest-predicted" if name.endswith("+spf") else "fcfs")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("best", "unknown policy 'best'; known: random"),
        ("assigned:decisions.csv", "replay them with jaxroute simulate"),
        ("no_such_module:x", "module no_such_module cannot be imported (ModuleNotFoundError"),
        ("test_evaluate:Nobody", "module test_evaluate has no Nobody"),
        ("test_evaluate:NO_POLICY", "is no policy: it needs name, initial_state and act"),
        ("test_evaluate:cell", "is no policy"),
        ("test_evaluate:rows_of", "rows_of() fails (TypeError"),
        (":x", "give module:object"),
    ],
)
def test_a_name_that_stands_for_no_policy_is_refused(name: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        candidate(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_windows_of_a_trace_wrap_around_with_its_mean_gap() -> None:
    trace = RequestTable.create(np.array([0.0, 1, 3, 9]), np.arange(1, 5), np.ones(4), name="trace")
    cut = window(trace, 2, 4)
    assert cut.request_id.tolist() == [2, 3, 0, 1]
    # From 3 s on; the trace starts again 3 s, its mean gap, after its end at 9 s.
    assert cut.arrival_s.tolist() == [0, 6, 9, 10]


def test_draws_of_a_trace_are_windows_at_the_rate_and_samples_are_of_the_whole(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    rows = "".join(f"{second**1.1},{second + 1},{second % 7 + 1}\n" for second in range(50))
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    draws = Draws.create(str(path), profile=load_profile(V100), requests=20, limits=(4096,), overlong="error")
    starts = set()
    for seed in range(1_000_000, 1_000_010):
        cut, _ = draws.table(seed, 3.0)
        assert cut.mean_rate == pytest.approx(3.0)
        assert ((cut.request_id[1:] - cut.request_id[:-1]) % 50 == 1).all()
        starts.add(int(cut.request_id[0]))
    assert len(starts) > 5
    sample = draws.sample(150, seed=1)
    assert np.bincount(sample.request_id).tolist() == [3] * 50
    whole = Draws.create(str(path), profile=load_profile(V100), requests=None, limits=(4096,), overlong="error")
    assert len(whole.table(0, 1.0)[0]) == 50


def made_up(seeds: int, **factors: float) -> CellResult:
    """A cell in which each policy's times are those of round robin times a factor, give or take 1 %."""
    rng = np.random.default_rng(0)
    hardness = rng.gamma(4.0, 1.0, seeds)
    names = {"round-robin": 1.0} | {name.replace("_", "-"): factor for name, factor in factors.items()}
    times = [column for column in Row.__annotations__ if column.endswith("_s") and column != "rate_per_s"]
    rows = [
        Row(
            policy=name,
            workload="five-task",
            profile=V100,
            scheduler="chunked",
            instances=4,
            load=0.9,
            seed=seed,
            rate_per_s=20.0,
            **dict.fromkeys(times, factor * hardness[seed] * rng.normal(1, 0.01)),
            preemptions=3,
            recomputed_tokens=100,
        )
        for name, factor in names.items()
        for seed in range(seeds)
    ]
    return cell_result(rows, candidates(list(names)))


def shown(cell: CellResult) -> dict[str, str]:
    """The table's rows by policy, with the codes of their colours."""
    console = Console(width=130, file=io.StringIO(), force_terminal=True, color_system="standard")
    console.print(cell_table(cell))
    lines = console.file.getvalue().splitlines()
    assert max(len(Text.from_ansi(line)) for line in lines) <= 130
    return {Text.from_ansi(line).plain.split()[0]: line for line in lines if Text.from_ansi(line).plain.strip()}


def test_differences_that_leave_out_zero_are_coloured() -> None:
    green, red = "\x1b[1;32m", "\x1b[31m"
    rows = shown(made_up(8, random=1.2, least_kv=0.8, power_of_two=1.0))
    assert f"{red}+19" in rows["random"] or f"{red}+20" in rows["random"]
    assert f"{green}-2" in rows["least-kv"] or f"{green}-19" in rows["least-kv"]
    assert "best" in rows["least-kv"]
    # No difference to round robin, but one of 25 % to the best.
    assert green not in rows["power-of-two"]
    assert rows["power-of-two"].count(red) == 1
    assert "\x1b[" not in shown(made_up(4, random=1.2))["random"].replace("\x1b[0m", "")


def test_the_picture_has_a_panel_a_workload_and_size_and_a_line_a_policy() -> None:
    cell = made_up(6, random=1.5, least_kv=0.8)
    cells = [
        dataclasses.replace(cell, workload=workload, instances=instances, load=load)
        for workload in ("five-task", "all-random")
        for instances in (2, 4)
        for load in (0.7, 1.0)
    ]
    figure = plots.relative_latency(cells)
    assert [axes.get_title() for axes in figure.axes] == [
        "five-task, 2 instances",
        "five-task, 4 instances",
        "all-random, 2 instances",
        "all-random, 4 instances",
    ]
    lines = {line.get_label(): line for line in figure.axes[3].get_lines()}
    assert set(lines) >= {"random", "least-kv"}
    change = cell.policies["random"].against_reference["e2e_mean_s"].value
    assert lines["random"].get_ydata() == pytest.approx([change, change])
    assert "+50 %" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(plots.relative_latency([made_up(1)]).axes) == 1


def test_round_robin_is_added_and_a_policy_of_ones_own_is_named_as_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = run(
        tmp_path, "--policies", "test_evaluate:LAST", "--loads", "60", "--seeds", "1", "--first-seed", "3", *SMALL
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "round-robin is added: the others are compared with it" in said
    assert "seeds below 1,000,000 are for training" in said
    assert "sends at most 50" in said
    assert "no difference is significant" in said
    rows = rows_of(out / "evaluation.csv")
    assert [row["policy"] for row in rows] == ["round-robin", "test_evaluate:LAST"]
    # One of two servers does all the work.
    assert float(rows[1]["makespan_s"]) > 1.2 * float(rows[0]["makespan_s"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policies", "best"), "unknown policy 'best'"),
        (("--policies", ","), "no policy given"),
        (("--loads", "0"), "--loads 0: give finite numbers above 0"),
        (("--loads", "1,fast"), "--loads: 'fast' is not a number"),
        (("--loads", "inf"), "--loads inf: give finite"),
        (("--instances", "2,0"), "--instances 2,0: give whole numbers"),
        (("--instances", "2.5"), "--instances: '2.5' is not a whole number"),
        (("--seeds", "0"), "--seeds is 0"),
        (("--first-seed", "-1"), "--first-seed is -1"),
        (("--first-seed", "2147483647"), "--first-seed is 2147483647"),
        (("--requests", "1"), "--requests is 1, must be at least 2"),
        (("--prediction", "perfect"), "prediction 'perfect'"),
        (("--scheduler", "fifo"), "unknown scheduler 'fifo'"),
        (("--kv-tokens", "160"), "can never run on v100-32gb-llama2-7b"),
        (("--workloads", "six-task"), "no such workload and no such file"),
        (("--workloads", ","), "no workload given"),
    ],
)
def test_a_bad_option_is_one_line_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(tmp_path, "--policies", "random", *options)
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists()
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("jaxroute: ")
    assert message in line


def test_an_output_that_is_a_file_is_refused_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(SystemExit):
        run(tmp_path, "--policies", "random")
    assert "is a file; give a folder" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"
