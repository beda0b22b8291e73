"""`jaxroute paper`: parts by name, what is kept, going on after a kill, and the files it writes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxroute.cli import main
from jaxroute.leaderboard.store import Store
from jaxroute.paired import Interval
from jaxroute.paper import parts, readme, variants
from jaxroute.paper.part import QUICK, Cell, Context, Findings, Part, Picture, Row, Table, Unavailable
from jaxroute.paper.section import keep, kept
from jaxroute.paper.write import (
    Header,
    cell_text,
    grid_of,
    markdown,
    numbers,
    page,
    printed_text,
    verdict_of,
    write_report,
)

WITHIN = Interval(2.0, 1.0, 3.0, 6)
COMMAND = "jaxroute paper --out DIR --parts x"


def context_of(folder: Path, **effort: object) -> Context:
    return Context(folder, dataclasses.replace(QUICK, **effort), 1_000_000, Store(folder / "cache"))


def a_table(**changes: object) -> Table:
    rows = (
        Row(
            "first | policy", (Cell(WITHIN, 2.5), Cell(Interval(12.345, 12.0, 13.0, 6), decimals=1)), headline="% below"
        ),
        Row("second", (Cell(WITHIN, 11.43, signed=True), Cell(text="none"))),
        Row("third", (Cell(Interval(0.5, math.nan, math.nan, 1), 0.7), Cell())),
    )
    table = Table("Routers", ("router", "% below", "wait s"), rows, COMMAND, "6 seeds from 1,000,000", "A note.")
    return dataclasses.replace(table, **changes)


def a_part(letter: str = "x", name: str = "example", run=None) -> Part:
    def found(context: Context) -> Findings:
        figure = Figure(figsize=(2, 1))
        figure.subplots().plot([0, 1])
        value = context.result({"what": name}, lambda: 3)
        return Findings(
            setting=("Set <so>.",),
            tables=(a_table(),),
            pictures=(Picture(f"{letter}-picture", figure, "A caption.", COMMAND),),
            remarks=(f"Three is {value}.",),
            cuts=("Cut.",),
            commands=("jaxroute simulate --seed 1",),
        )

    return Part(letter, name, "An example", "Table 0", run or found)


def test_a_printed_number_differs_where_it_is_outside_the_interval() -> None:
    assert Cell(WITHIN, 2.5).differs is False
    assert Cell(WITHIN, 3.0).differs is False
    assert Cell(WITHIN, 3.01).differs is True
    assert Cell(WITHIN, 0.99).differs is True
    assert Cell(WITHIN).differs is None
    assert Cell(printed=1.0).differs is None
    assert Cell(Interval(2.0, math.nan, math.nan, 1), 9.0).differs is None


def test_a_table_without_a_cell_for_each_heading_is_refused() -> None:
    with pytest.raises(ValueError, match="row second has 1 cells"):
        a_table(rows=(Row("second", (Cell(),)),))


def test_numbers_are_shown_with_interval_and_the_printed_ones_beside_them() -> None:
    lines = grid_of(a_table())
    assert lines[0] == ["router", "% below", "paper", "wait s"]
    assert lines[1] == ["first | policy", "2.00 [1.00, 3.00]", "2.5", "12.3 [12.0, 13.0]"]
    assert lines[2] == ["second", "+2.00 [+1.00, +3.00]", "+11.43 ≠", "none"]
    assert lines[3] == ["third", "0.500", "0.7", ""]
    assert cell_text(Cell(Interval(1234.5, 1200, 1300, 6))) == "1,234 [1,200, 1,300]"
    assert printed_text(Cell(printed=34.0, source="axis")) == "34 (axis)"
    assert verdict_of(a_table()) == "1 of 2 printed numbers are outside our intervals; see below for why."
    assert verdict_of(a_table(rows=a_table().rows[:1])) == "All 1 printed numbers are within our intervals."


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    calls = []

    def compute() -> object:
        calls.append(1)
        return {"value": np.float64(1.5).item()}

    context = context_of(tmp_path)
    assert context.result({"what": "one"}, compute) == {"value": 1.5}
    assert context_of(tmp_path).result({"what": "one"}, compute) == {"value": 1.5}
    assert len(calls) == 1
    context.result({"what": "another"}, compute)
    assert len(calls) == 2


def test_effort_cuts_requests_and_seeds(tmp_path: Path) -> None:
    context = context_of(tmp_path, seeds=3, requests=100)
    assert context.seeds == (1_000_000, 1_000_001, 1_000_002)
    assert context.first_seeds(2) == (1_000_000, 1_000_001)
    assert context.requests(3000, 600) == 100
    assert context_of(tmp_path).requests(3000, 600) == 600
    assert context_of(tmp_path, quick=False).requests(3000, 600) == 3000
    assert context.seeds_text() == "3 seeds from 1,000,000"


def test_a_section_is_read_as_it_was_kept_and_only_under_the_same_options(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    part = a_part()
    section = keep(context, part, part.run(context), 1.5)
    again = kept(context, "x")
    assert again is not None
    # NaN is not equal to itself.
    assert repr(again) == repr(section)
    assert (tmp_path / "x-picture.png").read_bytes().startswith(b"\x89PNG")
    assert kept(context_of(tmp_path, seeds=7), "x") is None
    assert kept(context, "y") is None
    (tmp_path / "parts" / "x.json").write_text("{")
    assert kept(context, "x") is None


class Page(HTMLParser):
    """Notes tags that are not closed, texts of table fields, and whatever would be fetched."""

    VOID = frozenset({"meta", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.fetched: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def test_the_report_is_whole_and_every_number_has_its_command(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    part = a_part()
    section = keep(context, part, part.run(context), 1.5)
    header = Header("jaxroute paper --out DIR", ("A line.",))
    names = write_report(tmp_path, [section], header)
    assert names == ["report.md", "report.html", "results.json"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["numbers"]) == 4
    for number in results["numbers"]:
        assert number["command"] == COMMAND
        assert number["seeds"] == "6 seeds from 1,000,000"
    assert [number["headline"] for number in results["numbers"]] == [True, False, False, False]
    assert [number["differs"] for number in results["numbers"]] == [False, None, True, None]

    text = (tmp_path / "report.md").read_text()
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 2
    for lines in tables:
        widths = {line.replace("\\|", "").count("|") for line in lines}
        assert len(widths) == 1
    assert f"`{COMMAND}` (6 seeds from 1,000,000)" in text
    assert "![A caption.](x-picture.png)" in text
    assert "- Three is 3." in text

    parser = Page()
    parser.feed((tmp_path / "report.html").read_text())
    assert (parser.open, parser.wrong) == ([], [])
    assert [value[:22] for value in parser.fetched] == ["data:image/png;base64,"]
    for expected in ("12.3 [12.0, 13.0]", "+11.43 ≠", "Set <so>.", "Three is 3.", "first | policy"):
        assert expected in parser.texts
    assert parser.texts.count(COMMAND) == 2


def test_no_number_is_in_the_tables_without_being_in_the_results(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    part = a_part()
    section = keep(context, part, part.run(context), 1.5)
    found = list(numbers([section]))
    header = Header("command", ())
    for text in (markdown([section], header), page(tmp_path, [section], header)):
        for number in found:
            assert number.row.split("|")[0].strip() in text
    cells = [cell for row in section.tables[0].rows for cell in row.cells]
    assert len(found) == sum(cell.value is not None for cell in cells)


def test_parts_are_chosen_by_letter_or_name_in_the_order_of_the_report() -> None:
    letters = [part.letter for part in parts.PARTS]
    assert letters == sorted(set(letters))
    assert {"a", "c", "f", "g", "h"} <= set(letters)
    assert [part.letter for part in parts.parts_of("latency, a")] == ["a", "c"]
    assert parts.parts_of("") == parts.PARTS


@pytest.fixture
def two_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    both = (a_part("x", "example"), a_part("y", "other"))
    monkeypatch.setattr(parts, "PARTS", both)


@pytest.mark.usefixtures("two_parts")
def test_the_command_writes_a_report_and_a_part_alone_leaves_the_others_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    main(["paper", "--out", str(out), "--quick", "--parts", "y"])
    assert "## (x)" not in (out / "report.md").read_text()
    main(["paper", "--out", str(out), "--quick", "--parts", "example"])
    text = (out / "report.md").read_text()
    assert text.index("## (x)") < text.index("## (y)")
    assert "    jaxroute paper --out DIR --quick" in text
    main(["paper", "--out", str(out), "--quick", "--seeds", "2", "--parts", "y"])
    text = (out / "report.md").read_text()
    assert "## (x)" not in text
    assert "    jaxroute paper --out DIR --quick --seeds 2" in text
    assert "report.md" in capsys.readouterr().out


def test_a_killed_report_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []

    def run(context: Context) -> Findings:
        def compute(name: str) -> object:
            measured.append(name)
            if measured == ["one", "two"]:
                raise KeyboardInterrupt
            return name

        found = [context.result({"what": name}, lambda name=name: compute(name)) for name in ("one", "two", "three")]
        return Findings(remarks=tuple(map(str, found)))

    monkeypatch.setattr(parts, "PARTS", (a_part(run=run),))
    arguments = ["paper", "--out", str(tmp_path / "out"), "--quick"]
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 130
    assert "the same command goes on" in capsys.readouterr().out
    assert not (tmp_path / "out" / "report.md").exists()
    main(arguments)
    assert measured == ["one", "two", "two", "three"]
    assert "- one\n\n- two\n\n- three" in (tmp_path / "out" / "report.md").read_text()


def test_a_part_that_cannot_be_made_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(context: Context) -> Findings:
        raise Unavailable("no such thing")

    monkeypatch.setattr(parts, "PARTS", (a_part(run=run),))
    main(["paper", "--out", str(tmp_path), "--quick"])
    assert "- Not made: no such thing." in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--parts", "a,q"), "--parts: there is no part 'q'; known: a (batching)"),
        (("--parts", "a,"), "--parts: there is no part ''"),
        (("--seeds", "0"), "--seeds is 0, must be at least 1"),
        (("--requests", "1"), "--requests is 1, must be at least 2"),
        (("--train-steps", "0"), "--train-steps is 0, must be at least 1"),
        (("--prompts", "nowhere.jsonl"), "--prompts nowhere.jsonl: no such file"),
        (("--first-seed", "5"), "--first-seed is 5, must be from 1000000 to"),
    ],
)
def test_bad_input_ends_with_one_line_and_no_output(
    options: tuple[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as failed:
        main(["paper", "--out", str(out), *options])
    assert failed.value.code == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not out.exists()


def test_a_file_in_the_place_of_the_folder_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as failed:
        main(["paper", "--out", str(tmp_path / "file")])
    assert failed.value.code == 2
    assert "is a file; give a folder" in capsys.readouterr().err


class FakeTraining:
    """Stands for `train.loop.Training`: the first run is asked to stop."""

    runs: list[Path]

    def __init__(self, config, out, watcher) -> None:
        self.config, self.out, self.watcher = config, out, watcher

    def run(self, stop) -> bool:
        type(self).runs.append(self.out)
        self.watcher.said("so far so good")
        return len(type(self).runs) > 1


def test_a_variant_is_trained_once_and_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeTraining.runs = []
    monkeypatch.setattr("jaxroute.train.loop.Training", FakeTraining)
    said: list[str] = []
    context = dataclasses.replace(context_of(tmp_path, train_steps=40_000), report=said.append)
    with pytest.raises(KeyboardInterrupt):
        context.trained("aware")
    folder = context.trained("aware")
    assert context.trained("aware") == folder
    assert [folder, folder] == FakeTraining.runs
    text = (folder / "config.toml").read_text()
    assert 'guidance = "constant"' in text
    assert "total_steps = 40000" in text
    assert "training aware: so far so good" in said
    other = dataclasses.replace(context, effort=dataclasses.replace(context.effort, train_steps=50_000))
    assert other.trained("aware") != folder


def test_a_request_to_stop_in_the_last_update_of_a_variant_stops_behind_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Last(FakeTraining):
        def run(self, stop) -> bool:
            type(self).runs.append(self.out)
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop()
            return True

    Last.runs = []
    monkeypatch.setattr("jaxroute.train.loop.Training", Last)
    context = context_of(tmp_path, train_steps=40_000)
    with pytest.raises(KeyboardInterrupt):
        context.trained("aware")
    assert [context.trained("aware")] == Last.runs


def test_a_variant_whose_configuration_is_missing_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(variants.VARIANTS, "dqn", variants.Variant("no-such-configuration"))
    with pytest.raises(Unavailable, match="dqn: left out"):
        context_of(tmp_path).trained("dqn")


def test_all_variants_have_valid_configurations() -> None:
    from jaxroute.train.load_config import load_config, shipped_configs

    for name, variant in variants.VARIANTS.items():
        if variant.config in shipped_configs():
            config = load_config(variant.config, variant.settings(name, 123_456))
            assert config.name == name
            assert f"total_steps={round(123_456 * variant.effort)}" in variant.command(name, 123_456)
    assert load_config("five-task", variants.VARIANTS["guided-8"].settings("x", 1)).fleets[0].instances == 8


def test_the_readme_holds_the_numbers_of_the_kept_results() -> None:
    text = readme.README.read_text(encoding="utf-8")
    kept_results = json.loads(readme.KEPT.read_text(encoding="utf-8"))
    assert readme.with_table(text, kept_results) == text
    for row in kept_results["rows"]:
        if row["low"] is None:
            assert row["differs"] is None
            continue
        assert row["low"] <= row["value"] <= row["high"]
        assert row["differs"] is not (row["low"] <= row["printed"] <= row["high"])
    assert all(row["command"].startswith("jaxroute paper") for row in kept_results["rows"])


def test_the_readme_is_written_from_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(tmp_path)
    part = a_part()
    write_report(tmp_path, [keep(context, part, part.run(context), 1.0)], Header("jaxroute paper --out DIR", ()))
    file = tmp_path / "README.md"
    file.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    monkeypatch.setattr(readme, "README", file)
    monkeypatch.setattr(readme, "KEPT", tmp_path / "results" / "paper.json")
    readme.main([str(tmp_path)])
    first = file.read_text()
    assert "| (x) | first | policy: % below | 2.00 [1.00, 3.00] | 2.5 |" in first
    assert first.startswith("before\n")
    assert first.endswith("after\n")
    assert "old" not in first
    readme.main([])
    assert file.read_text() == first
