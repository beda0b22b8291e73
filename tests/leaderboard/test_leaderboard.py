"""`jaxroute leaderboard`: what it writes, that it goes on where it stopped, and one line for what is wrong."""

from __future__ import annotations

import csv
import dataclasses
import json
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from jaxroute.cli import main
from jaxroute.commands.leaderboard import router_interval
from jaxroute.errors import InputError
from jaxroute.leaderboard import measure, slo_capacity
from jaxroute.leaderboard.entrants import entrants, fingerprint
from jaxroute.leaderboard.fleet_name import profiles_of
from jaxroute.leaderboard.grid import Block, Settings
from jaxroute.leaderboard.slo_capacity import levels, slo_capacities
from jaxroute.policies.protocol import Stateless
from jaxroute.profiles import load_profile
from jaxroute.results import RequestRecords, RunResult
from jaxroute.simulate import Fleet
from jaxroute.slo import Slo
from jaxroute.workload.draws import Draws
from jaxroute.workload.table import RequestTable

V100 = "v100-32gb-llama2-7b"
SMALL = (
    *("--workloads", "five-task", "--fleets", f"1x{V100}+1xh100-80gb-llama2-7b", "--schedulers", "chunked"),
    *("--max-num-seqs", "8", "--requests", "40", "--seeds", "2", "--bisections", "2", "--search-rounds", "1"),
)
MINE = "test_leaderboard:LAST"


@dataclasses.dataclass(frozen=True)
class Last(Stateless):
    """Sends everything to the last instance; a user's own policy."""

    name: str = "last"

    def choose(self, view, key):
        del key
        return jnp.int32(view.full.shape[0] - 1)


LAST = Last()


def run(out: Path, *options: str, loads: str = "0.7,1.3", policies: str = "random,round-robin") -> Path:
    main(["leaderboard", *SMALL, "--loads", loads, "--policies", policies, "--out", str(out), *options])
    return out


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("leaderboard") / "out", "--enter", MINE)


def test_there_is_one_row_for_each_policy_and_cell(board: Path) -> None:
    rows = rows_of(board / "leaderboard.csv")
    names = ["random", "round-robin", MINE]
    assert [(row["policy"], float(row["load"])) for row in rows] == [(n, load) for load in (0.7, 1.3) for n in names]
    runs = rows_of(board / "runs.csv")
    assert len(runs) == 2 * 3 * 2
    for row in rows:
        own = [r for r in runs if r["policy"] == row["policy"] and r["load"] == row["load"]]
        assert float(row["e2e_mean_s"]) == pytest.approx(np.mean([float(r["e2e_mean_s"]) for r in own]), abs=1e-6)
        assert float(row["goodput"]) == pytest.approx(np.mean([float(r["goodput"]) for r in own]), abs=1e-6)
        assert 0 < float(row["bound_s"]) < float(row["e2e_mean_s"])


def test_ranks_follow_the_means(board: Path) -> None:
    rows = [row for row in rows_of(board / "leaderboard.csv") if float(row["load"]) == 1.3]
    by_mean = sorted(rows, key=lambda row: float(row["e2e_mean_s"]))
    assert [float(row["rank_e2e_mean_s"]) for row in by_mean] == [1, 2, 3]
    best = next(row["policy"] for row in by_mean if row["policy"] != MINE)
    assert {row["best_heuristic"] for row in rows} == {best}


def test_capacities_and_small_cases_are_there(board: Path) -> None:
    capacities = rows_of(board / "slo-capacity.csv")
    assert len(capacities) == 3 * 2
    assert {float(row["load"]) for row in capacities} <= {0.0, *levels(2)}
    cases = rows_of(board / "small-cases.csv")
    assert len(cases) == 2 * 3
    for row in cases:
        assert float(row["bound_s"]) <= float(row["found_s"]) <= float(row["e2e_mean_s"]) * (1 + 1e-5)


class Tags(HTMLParser):
    """Notes tags that are not closed, and whatever would be fetched."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        values = {name: value or "" for name, value in attrs}
        self.fetched += [values[name] for name in ("src", "href", "data") if name in values]
        self.fetched += [value for name, value in attrs if name == "xlink:href" and not value.startswith("#")]

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_the_page_is_whole_and_needs_no_network(board: Path) -> None:
    text = (board / "leaderboard.html").read_text()
    tags = Tags()
    tags.feed(text)
    assert (tags.open, tags.wrong) == ([], [])
    assert [value for value in tags.fetched if not value.startswith(("#", "data:"))] == []
    pictures = text.split("<figure>")[1:]
    assert len(pictures) == 4
    for picture in pictures:
        ET.fromstring(picture[: picture.index("</svg>") + len("</svg>")])
    assert text.count("<table>") == 2 + 3
    assert text.count(f'<td data-value="{MINE}">') == 2 + 3


def test_the_markdown_shows_every_policy_and_its_pictures(board: Path) -> None:
    text = (board / "leaderboard.md").read_text()
    for name in ("standings.png", "goodput.png", "distance.png", "small.png"):
        assert f"({name})" in text
        assert (board / name).read_bytes().startswith(b"\x89PNG")
    assert sum(line.startswith(f"| {MINE} |") for line in text.splitlines()) == 2 + 3


def test_what_was_measured_is_not_measured_again(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("was run again")

    before = {name: (board / name).read_text() for name in ("leaderboard.csv", "leaderboard.html")}
    monkeypatch.setattr(measure, "run_cell", refuse)
    monkeypatch.setattr(measure, "slo_capacities", refuse)
    monkeypatch.setattr(measure, "small_cases", refuse)
    run(board, "--enter", MINE)
    assert {name: (board / name).read_text() for name in before} == before


def served(policy: str, table: RequestTable) -> RunResult:
    """A run in which every request waits for nobody."""
    count, arrival = len(table), table.arrival_s
    none = np.zeros(count, np.int64)
    records = RequestRecords(none, arrival, arrival, arrival + 1, arrival + 90, none + 1.0, none, none)
    return RunResult(policy, table, records, np.zeros(2), 0.02)


def test_an_interrupted_run_goes_on_and_a_new_policy_runs_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[tuple[float, list[str]]] = []

    def counted(cell, candidates, **options):
        if len(ran) == 1 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        ran.append((cell.load, [candidate.name for candidate in candidates]))
        names = [candidate.name for candidate in candidates]
        return [(number, served(name, table)) for name in names for number, table in enumerate(cell.tables)]

    monkeypatch.setattr(measure, "run_cell", counted)
    quick = ("--bisections", "0", "--search-rounds", "0")
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "out", *quick)
    assert stop.value.code == 130
    assert "the same command goes on" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "out" / "leaderboard.csv").exists()
    run(tmp_path / "out", *quick)
    assert ran == [(0.7, ["random", "round-robin"]), (1.3, ["random", "round-robin"])]
    run(tmp_path / "out", *quick, "--enter", MINE)
    assert ran[2:] == [(0.7, [MINE]), (1.3, [MINE])]


def test_a_result_of_other_settings_or_sources_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxroute.leaderboard import store

    kept = store.Store(tmp_path)
    kept.keep({"seed": 1}, {"value": 2})
    assert kept.find({"seed": 1}) == {"value": 2}
    assert kept.find({"seed": 2}) is None
    [file] = tmp_path.iterdir()
    content = file.read_text()
    file.write_text(content[:-8])
    assert kept.find({"seed": 1}) is None
    file.write_text(content)
    made = {**store.made_by(), "sources": "others"}
    monkeypatch.setattr(store, "made_by", lambda: made)
    assert kept.find({"seed": 1}) is None
    assert json.loads(content)["key"] == {"seed": 1}


def test_bisection_finds_where_each_policy_and_seed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    profile = load_profile(V100)
    fleet = Fleet((profile,), ("chunked",))
    draws = Draws.create("five-task", profile=profile, requests=10, limits=(4096,), overlong="clip")
    block = Block("five-task", f"1x{V100}", "chunked", fleet, draws, 2.0)
    settings = Settings((1.0,), (5, 6), "none", Slo(), levels(4), 0)
    entered = entrants(["random", "round-robin", "least-kv"])
    # By policy and seed, the highest load that is kept.
    limits = {("random", 5): 0.1, ("random", 6): 0.5, ("round-robin", 5): 0.9, ("round-robin", 6): 1.0}
    last_arrival = {seed: draws.table(seed, 2.0)[0].arrival_s[-1] for seed in (5, 6)}
    runs: list[int] = []

    @dataclasses.dataclass(frozen=True)
    class Fake:
        policy: str
        good: float

    def fake_run(cell, candidates, *, most_intervals, tables_of):
        del most_intervals
        for each in candidates:
            for number in tables_of[each.name]:
                seed = cell.seeds[number]
                load = last_arrival[seed] / cell.tables[number].arrival_s[-1]
                runs.append(number)
                yield number, Fake(each.name, 1.0 if load <= limits.get((each.name, seed), 9.0) + 1e-9 else 0.989)

    monkeypatch.setattr(slo_capacity, "run_cell", fake_run)
    monkeypatch.setattr(slo_capacity, "goodput", lambda result, slo: result.good)
    found = slo_capacities(block, entered, settings, lambda rounds: None)
    shown = {(each.policy, each.seed): each.load for each in found}
    grid = np.asarray(levels(4))
    for place, limit in limits.items():
        assert shown[place] == (grid[grid <= limit].max() if (grid <= limit).any() else 0.0)
    assert shown["least-kv", 5] == grid[-1]
    assert all(each.rate_per_s == 2.0 * each.load for each in found)
    assert len(runs) == 4 * 3 * 2


def test_fleets_have_names() -> None:
    assert profiles_of("2xa+1xb") == ["a", "a", "b"]
    assert profiles_of("1xdir/3x+y.json") == ["dir/3x+y.json"]
    for bad in ("a100", "0xa", "2xa+b", ""):
        with pytest.raises(InputError, match="NUMBERxPROFILE") if bad != "2xa+b" else pytest.raises(AssertionError):
            assert profiles_of(bad) == []


def test_the_default_policy_enters_by_arrival_as_well() -> None:
    round_robin, own, by_arrival = entrants(["default", "default+fcfs"])
    assert round_robin.name == "round-robin"
    assert (own.router_order, by_arrival.router_order) == ("shortest-predicted", "fcfs")
    assert own.policy.digest == by_arrival.policy.digest
    assert len({fingerprint(each) for each in (round_robin, own, by_arrival)}) == 3
    with pytest.raises(InputError, match="goes with default only"):
        entrants(["least-kv+fcfs"])


def test_the_router_acts_often_enough() -> None:
    assert [router_interval(rate) for rate in (1, 25, 26, 150, 1e6)] == [0.02, 0.02, 0.01, 0.0025, 0.00125]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--policies", "no-such"), "unknown policy"),
        (("--loads", "0.7,high"), "--loads"),
        (("--fleets", "v100"), "NUMBERxPROFILE"),
        (("--fleets", "1xno-such"), "no such shipped profile"),
        (("--workloads", "no-such.csv"), "no such workload"),
        (("--slo-ttft", "0"), "--slo-ttft"),
        (("--seeds", "0"), "--seeds"),
        (("--schedulers", "chunked,chunked"), "called alike"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        main(["leaderboard", "--quick", "--workloads", "five-task", "--out", str(out), *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
