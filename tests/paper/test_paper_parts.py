"""The parts that compare routers: the paper's numbers as printed, tables from measured columns, and tiny real runs."""

from __future__ import annotations

import dataclasses
import json
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from jaxroute.candidates import candidate
from jaxroute.cli import main
from jaxroute.leaderboard.store import Store
from jaxroute.paper import a100, batching, compare, hardware, instances, latency, measure
from jaxroute.paper.facts import covered_s, facts_of, shift
from jaxroute.paper.measure import Setting, fleet
from jaxroute.paper.part import QUICK, Context, Findings
from jaxroute.results import RequestRecords, RunResult
from jaxroute.workload.table import RequestTable

FACTS = Path(__file__).parents[3] / "shared" / "docs" / "facts" / "paper.md"
PARTS = (batching, latency, a100, instances, hardware)
SEEDS = (1_000_000, 1_000_001, 1_000_002)

COLUMNS = {
    "makespan_s": 190.0,
    "e2e_mean_s": 40.0,
    "e2e_p99_s": 90.0,
    "ttft_mean_s": 35.0,
    "tbt_mean_s": 0.05,
    "throughput_tokens_per_s": 1900.0,
    "router_wait_mean_s": 0.1,
    "instance_wait_mean_s": 30.0,
    "service_mean_s": 9.9,
    "preemptions": 2000.0,
    "recomputed_share": 0.3,
    "idle_share": 0.1,
    "drain_idle_share": 0.08,
    "busy_s": 680.0,
    "recomputing_s": 42.0,
    "in_flight_mean": 90.0,
    "most_share": 1.05,
    "least_share": 0.95,
    "count": 2000.0,
}
"""A run like those of the paper's setting."""


def context_of(folder: Path, **effort: object) -> Context:
    effort = {"seeds": len(SEEDS), "requests": 30, "train_steps": 1000, **effort}
    return Context(folder, dataclasses.replace(QUICK, **effort), SEEDS[0], Store(folder / "cache"))


def columns_of(setting: str, policy: str, seeds: int) -> dict[str, np.ndarray]:
    """Columns that differ from policy to policy and seed to seed by a few per cent."""
    rng = np.random.default_rng(zlib.crc32(f"{setting} {policy}".encode()))
    return {name: value * rng.uniform(0.95, 1.05, seeds) for name, value in COLUMNS.items()}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is simulated or trained."""

    def entrants(context: Context, names: Sequence[str]):
        return [dataclasses.replace(candidate("random"), name=name) for name in names], ()

    def fake(context: Context, settings: Sequence[Setting], policies, seeds=None):
        count = len(context.seeds if seeds is None else seeds)
        return [{each.name: columns_of(setting.name, each.name, count) for each in policies} for setting in settings]

    for module in PARTS:
        monkeypatch.setattr(module, "entrants", entrants)
        monkeypatch.setattr(module, "measure", fake)


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("module", PARTS, ids=lambda module: module.PART.name)
@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
def test_a_part_finds_numbers_with_intervals_commands_and_pictures(
    module: ModuleType, quick: bool, tmp_path: Path
) -> None:
    context = context_of(tmp_path, quick=quick, requests=None)
    findings = module.PART.run(context)
    cells = [cell for table in findings.tables for row in table.rows for cell in row.cells]
    values = [cell.value for cell in cells if cell.value is not None]
    assert len(values) >= 20
    for value in values:
        assert value.seeds == len(SEEDS)
        assert value.low <= value.value <= value.high
    assert sum(cell.differs is not None for cell in cells) >= 6
    letter = module.PART.letter
    for table in findings.tables:
        assert table.command == f"jaxroute paper --out DIR --parts {letter}"
        assert table.seeds.startswith("3 seeds from 1,000,000")
    assert len(findings.pictures) >= 1
    for picture in findings.pictures:
        assert picture.name.startswith(f"{letter}-")
        assert "3 seeds" in picture.caption
    assert findings.setting
    assert bool(findings.cuts) is quick
    assert findings.tables == module.PART.run(context).tables


def row_of(findings: Findings, table: int, name: str):
    return next(row for row in findings.tables[table].rows if row.name == name)


@pytest.mark.usefixtures("measured")
def test_the_main_table_has_the_paired_improvement_over_round_robin(tmp_path: Path) -> None:
    findings = latency.PART.run(context_of(tmp_path))
    name = latency.setting(30).name
    own, reference = columns_of(name, "guided", 3), columns_of(name, "round-robin", 3)
    cells = row_of(findings, 0, compare.NAMES["guided"]).cells
    expected = 100 * (1 - own["makespan_s"].mean() / reference["makespan_s"].mean())
    assert cells[0].value.value == pytest.approx(expected, rel=1e-12)
    assert cells[0].printed == 11.43
    assert cells[1].value.value == pytest.approx((reference["makespan_s"] - own["makespan_s"]).mean(), rel=1e-12)
    assert (cells[1].printed, cells[3].printed) == (19.18, 2.05)
    assert row_of(findings, 0, compare.NAMES["fewest-outstanding-tokens"]).cells[0].printed == 0.46


@pytest.mark.usefixtures("measured")
def test_what_differs_has_its_reason_from_the_records(tmp_path: Path) -> None:
    findings = latency.PART.run(context_of(tmp_path))
    differing = [
        row.name for row in findings.tables[0].rows if row.cells[0].differs and row.cells[0].printed is not None
    ]
    assert differing
    for name in differing:
        [remark] = [text for text in findings.remarks if text.startswith(f"{name}: makespan")]
        assert "time spent computing tokens again" in remark
        assert "Preemptions" in remark


@pytest.mark.usefixtures("measured")
def test_printed_seconds_are_compared_with_whole_runs_only(tmp_path: Path) -> None:
    whole = batching.PART.run(context_of(tmp_path, quick=False, requests=None))
    cut = batching.PART.run(context_of(tmp_path))
    assert row_of(whole, 0, "FCFS, round robin").cells[0].printed == 607.45
    assert row_of(cut, 0, "FCFS, round robin").cells[0].printed is None
    assert row_of(cut, 1, "bin packing, round robin").cells[0].printed == pytest.approx(-4.27)
    assert row_of(cut, 1, "FCFS, dedicated small-large").cells[3].printed == pytest.approx(33.42)


def facts_text() -> str:
    if not FACTS.is_file():
        pytest.skip("the notes on the paper are not shipped with the repository")
    return FACTS.read_text(encoding="utf-8").replace("**", "")


def section_lines(text: str, heading: str) -> list[list[str]]:
    body = text[text.index(heading) :]
    lines = body[: body.index("\n### ", 5)].splitlines()
    return [[field.strip() for field in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_table_2_is_as_printed() -> None:
    rows = section_lines(facts_text(), "### 5.2 Table 2")[2:]
    orders = {"Bin packing": "bin-packing", "Least work left": "least-work-left", "FCFS": "fcfs"}
    routings = {
        "Dedicated small-large": "dedicated-small-large",
        "Round robin": "round-robin",
        "Decode balancer": "decode-balancer",
    }
    found, order = {}, ""
    for row in rows:
        order = orders[row[0]] if row[0] else order
        found[order, routings[row[1]]] = tuple(map(float, row[2:]))
    assert found == dict(batching.PRINTED)


def test_the_main_experiment_is_as_printed() -> None:
    rows = dict(line[:2] for line in section_lines(facts_text(), "### 5.1 Main")[2:])
    names = {"Join": "fewest-outstanding-tokens", "Min-Min": "min-min", "Maximum": "max-capacity"}
    names |= {"Baseline": "baseline", "Workload-aware": "aware", "Workload-guided": "guided"}
    found = {names[key.split()[0]]: float(re.findall(r"([\d.]+)%", text)[0]) for key, text in rows.items()}
    assert found == {name: value for name, value in latency.IMPROVEMENTS.items() if name != "dqn"}
    seconds = {names[key.split()[0]]: text.split(" s")[0] for key, text in rows.items() if " s" in text}
    assert {name: float(text) for name, text in seconds.items()} == {
        name: value for name, value in latency.SAVED_S.items() if name != "dqn"
    }
    waits = re.search(r"baseline RL ([\d.]+) s .*?aware ([\d.]+) s, guided ([\d.]+) s", facts_text())
    assert waits is not None
    assert tuple(map(float, waits.groups())) == tuple(latency.ROUTER_WAIT_S[name] for name in compare.LEARNED)


def test_table_3_is_as_printed() -> None:
    names = {"Round robin": "round-robin", "Baseline RL": "baseline", "Workload-aware": "aware"}
    names["Workload-guided"] = "guided"
    seconds, gains = {}, {}
    for router, chunked, e2e, gain in section_lines(facts_text(), "### 5.3 Table 3")[2:]:
        key = "chunked" if chunked == "yes" else "prefill-first", names[router]
        seconds[key] = float(e2e)
        if gain != "-":
            gains[key] = float(gain.split("%")[0])
    assert seconds == a100.E2E_S
    assert gains == a100.IMPROVEMENTS


def test_the_printed_numbers_of_eight_instances_are_those_of_the_appendix() -> None:
    found = re.search(r"Baseline ([\d.]+)%, workload-aware ([\d.]+)%, guided ([\d.]+)% over RR", facts_text())
    assert found is not None
    assert tuple(map(float, found.groups())) == tuple(instances.IMPROVEMENTS[8].values())


def test_other_hardware_is_as_fast_as_its_decode_steps() -> None:
    rates = {kind.name: kind.rate_per_s for kind in hardware.KINDS}
    assert rates["4 x V100, Llama-2-7B"] == 20.0
    assert rates["4 x A100, Llama-3.1-8B"] == pytest.approx(20 * hardware.step_ms(hardware.V100) / 13.15, rel=0.2)
    mixed = (20.0 + rates["4 x A100, Llama-2-7B"]) / 2
    assert rates["2 x V100 + 2 x A100, Llama-2-7B"] == pytest.approx(mixed)


def test_a_span_counts_once_however_many_requests_cover_it() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = rng.integers(0, 8)
        start = rng.integers(0, 30, count).astype(float)
        end = start + rng.integers(0, 10, count)
        ticks = np.arange(5, 25)
        covered = sum(any(a <= tick and tick + 1 <= b for a, b in zip(start, end, strict=True)) for tick in ticks)
        assert covered_s(start, end, 5.0, 25.0) == covered


def a_run() -> RunResult:
    table = RequestTable.create(np.asarray([0.0, 1.0, 4.0]), [10, 20, 30], [1, 2, 3], name="three")
    records = RequestRecords(
        instance=np.asarray([0, 0, 1]),
        dispatch_s=np.asarray([0.5, 1.0, 4.0]),
        start_s=np.asarray([0.5, 2.0, 4.0]),
        first_token_s=np.asarray([2.0, 3.0, 5.0]),
        finish_s=np.asarray([2.0, 4.0, 9.0]),
        max_gap_s=np.zeros(3),
        preemptions=np.asarray([0, 1, 0]),
        recomputed_tokens=np.asarray([0, 34, 0]),
    )
    return RunResult("policy", table, records, np.zeros(2), 0.02)


def test_facts_of_a_run_by_hand() -> None:
    facts = facts_of(a_run())
    assert facts["makespan_s"] == 9.0
    # Server 0 holds requests from 0.5 to 4, server 1 from 4 to 9.
    assert facts["busy_s"] == 8.5
    assert facts["idle_share"] == pytest.approx(1 - 8.5 / 18)
    assert facts["drain_idle_share"] == pytest.approx(5 / 18)
    assert facts["recomputed_share"] == pytest.approx(0.34)
    assert facts["in_flight_mean"] == pytest.approx((1.5 + 3 + 5) / 8.5)
    assert facts["service_mean_s"] == pytest.approx((1.5 + 2 + 5) / 3)
    assert facts["most_share"] == pytest.approx(4 / 3)
    waits = facts["router_wait_mean_s"] + facts["instance_wait_mean_s"] + facts["service_mean_s"]
    assert waits == pytest.approx(facts["e2e_mean_s"])
    assert all(isinstance(value, float) for value in facts.values())


def test_the_factors_multiply_to_the_change_of_the_makespan() -> None:
    own, other = columns_of("a", "x", 5), columns_of("a", "y", 5)
    change = shift(own, other)
    factors = (change.recomputation, change.batching, change.idleness)
    assert np.prod([1 + each / 100 for each in factors]) == pytest.approx(1 + change.makespan / 100)
    same = shift(own, own)
    assert (same.makespan, same.recomputation, same.batching, same.idleness) == (0, 0, 0, 0)


@pytest.mark.slow
def test_measured_numbers_are_those_of_simulate_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(tmp_path, seeds=2)
    small = Setting("small", fleet(instances=2, kv_tokens=1100), 30, 40.0)
    policies, missing = measure.entrants(context, ["round-robin", "min-min"])
    assert missing == ()
    [found] = measure.measure(context, [small], policies)
    arguments = ["--profile", measure.V100, "--instances", "2", "--kv-tokens", "1100", "--scheduler", "prefill-first"]
    arguments += ["--workload", "five-task", "--requests", "30", "--rate", "40", "--prediction", "0.8"]
    arguments += ["--seed", "1000001", "--policy", "round-robin,min-min", "--no-pictures"]
    main(["simulate", *arguments, "--out", str(tmp_path / "one")])
    summary = json.loads((tmp_path / "one" / "summary.json").read_text())["policies"]
    for policy in ("round-robin", "min-min"):
        for column in ("makespan_s", "e2e_mean_s", "preemptions", "recomputed_tokens", "router_wait_mean_s"):
            assert found[policy][column][1] == pytest.approx(summary[policy][column], rel=1e-6)
    assert found["round-robin"]["preemptions"].sum() > 0

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("was run again")

    monkeypatch.setattr(measure, "run_cell", refuse)
    [again] = measure.measure(context_of(tmp_path, seeds=2), [small], policies)
    for policy, columns in found.items():
        for column, values in columns.items():
            np.testing.assert_array_equal(again[policy][column], values)
    with pytest.raises(AssertionError, match="run again"):
        measure.measure(context, [dataclasses.replace(small, rate_per_s=41.0)], policies)


@pytest.mark.slow
@pytest.mark.parametrize("module", PARTS, ids=lambda module: module.PART.name)
def test_a_tiny_part_is_the_same_twice(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("baseline", "aware", "guided", "dqn")

    def entrants(context: Context, asked: Sequence[str]):
        return [dataclasses.replace(candidate("least-kv" if name in names else name), name=name) for name in asked], ()

    monkeypatch.setattr(module, "entrants", entrants)
    first = module.PART.run(context_of(tmp_path / "one", seeds=2)).tables
    second = module.PART.run(context_of(tmp_path / "two", seeds=2)).tables
    assert first == second
    for table in first:
        for row in table.rows:
            for cell in row.cells:
                if cell.value is not None:
                    assert cell.value.low <= cell.value.value <= cell.value.high


@pytest.mark.slow
def test_a_trained_variant_routes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxroute.paper import variants

    monkeypatch.setitem(variants.VARIANTS, "guided", variants.Variant("smoke"))
    context = context_of(tmp_path, seeds=2, train_steps=768)
    policies, _ = measure.entrants(context, ["round-robin", "guided"])
    assert [each.name for each in policies] == ["round-robin", "guided"]
    [found] = measure.measure(context, [Setting("small", fleet(instances=2), 30, 10.0)], policies)
    assert found["guided"]["count"].tolist() == [30, 30]
