"""What a sweep goes over, as options and as a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.sweep.space import Choices, Range, check_axes, parse_over, read_space


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed=0,1,2", Choices("seed", ("0", "1", "2"))),
        ("reward.kind = latency, paper", Choices("reward.kind", ("latency", "paper"))),
        ("workloads.loads=[0.5, 1.0],[0.9,1.1]", Choices("workloads.loads", ("[0.5, 1.0]", "[0.9,1.1]"))),
        ('name="a,b",c', Choices("name", ('"a,b"', "c"))),
        ("ppo.learning_rate=log(1e-4, 1e-2)", Range("ppo.learning_rate", "log", 1e-4, 1e-2)),
        ("ppo.epochs=int(1,8)", Range("ppo.epochs", "int", 1, 8)),
    ],
)
def test_options_are_values_or_a_range(text: str, expected: Choices | Range) -> None:
    assert parse_over(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed", "must be KEY=VALUE"),
        ("seed=", "must be KEY=VALUE"),
        ("seed=0,,1", "empty value"),
        ("ppo.clip=log(0,1)", "must be above 0"),
        ("ppo.clip=uniform(1,0)", "low end must be below"),
        ("ppo.epochs=int(1.5,3)", "whole numbers"),
        ("ppo.epochs=uniform(a,3)", "must be numbers"),
    ],
)
def test_other_options_are_refused(text: str, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        parse_over(text)


def test_a_file_says_the_same_with_or_without_quotes(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(
        '[over]\nseed = [0, 1]\n"reward.kind" = ["latency", "paper"]\nppo.learning_rate = {log = [1e-4, 1e-2]}\n'
        "network.hidden = [[8], [16, 16]]\nfleets.0.lanes = {int = [2, 4]}\n"
    )
    assert read_space(path) == [
        Choices("seed", ("0", "1")),
        Choices("reward.kind", ('"latency"', '"paper"')),
        Range("ppo.learning_rate", "log", 1e-4, 1e-2),
        Choices("network.hidden", ("[8]", "[16, 16]")),
        Range("fleets.0.lanes", "int", 2, 4),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed = [1]", "one table"),
        ("[over]\nseed = 1", "must be a list of values, or a range"),
        ("[over]\nseed = {log = [1]}", "must have two ends"),
        ("[over", "cannot be read"),
    ],
)
def test_other_files_are_refused(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=expected):
        read_space(path)


def test_every_value_is_one_that_the_configuration_takes() -> None:
    good = [parse_over("ppo.learning_rate=1e-3,3e-4"), parse_over("fleets.0.lanes=int(2,8)")]
    check_axes(good, "smoke", [])
    for axes, expected in (
        ([], "nothing to go over"),
        ([*good, parse_over("ppo.learning_rate=1e-2")], "ppo.learning_rate: is given twice"),
        ([parse_over("ppo.learning_rat=1e-2,1e-3")], "learning_rat"),
        ([parse_over("ppo.clip=0.2,-1")], "ppo.clip"),
    ):
        with pytest.raises(InputError, match=expected):
            check_axes(axes, "smoke", [])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--config", "smoke"], "give --config and --out to start a run"),
        (["--config", "smoke", "--out", "RUN"], "nothing to go over"),
        (["--config", "smoke", "--out", "RUN", "--over", "ppo.clip=log(0.1,0.3)"], "ppo.clip is a range: give"),
        (["--config", "smoke", "--out", "RUN", "--over", "seed=0,1", "--search", "random"], "give --samples"),
        (["--config", "smoke", "--out", "RUN", "--over", "seed=0,1", "--parallel", "0"], "--parallel is 0"),
        (["--resume", "RUN"], "holds no sweep"),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused_before_anything_is_written(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        main(["sweep", *(str(run) if option == "RUN" else option for option in options)])
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err
    assert not run.exists()
