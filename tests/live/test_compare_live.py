import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxroute.cli import main
from jaxroute.live.comparison import Contest, prediction_headers
from jaxroute.live.ways import ALL, ways, write_fcfs_default
from jaxroute.policies.folder import DEFAULT_FOLDER, read_policy
from jaxroute.workload.prediction import Prediction

PROFILE = "h100-80gb-llama31-8b"
HEADER = "x-jaxroute-predicted-tokens"


def compare(servers, out: Path, *options: str) -> dict:
    urls = [text for server in servers for text in ("--url", server.url)]
    main(["compare-live", "--profile", PROFILE, "--out", str(out), "--workload", "five-task", *urls, *options])
    return json.loads((out / "comparison.json").read_text())


def stub_router(folder: Path) -> Path:
    program = folder / "vllm-router"
    program.write_text(f"#!{sys.executable}\n" + (Path(__file__).parent / "stub_router.py").read_text())
    program.chmod(0o755)
    return program


def test_all_ways_take_turns_on_the_same_requests(serving, tmp_path):
    servers = serving(2, profile=PROFILE, speed=2.0)
    out = tmp_path / "out"
    asked = "direct:round-robin,direct:fewest-requests,vllm-router:power_of_two,jaxroute:default,jaxroute:default+fcfs"
    content = compare(servers, out, "--ways", asked, "--vllm-router", str(stub_router(tmp_path)), "--requests", "10",
                      "--rate", "20", "--rounds", "2")  # fmt: skip
    [contest] = content["contests"]
    names = asked.split(",")
    assert sorted((run["way"], run["round"]) for run in contest["runs"]) == sorted(
        (name, number) for name in names for number in (1, 2)
    )
    orders = [[run["way"] for run in contest["runs"] if run["round"] == number] for number in (1, 2)]
    assert orders[0] != orders[1]
    folder = out / "chunked-five-task-rate-20"
    sizes = {}
    for name in names:
        for number in (1, 2):
            file = folder / f"{name.replace(':', '-')}.round-{number}.requests.csv"
            rows = list(csv.DictReader(file.read_text().splitlines()))
            sizes.setdefault(number, []).append([(row["prompt_tokens"], row["arrival_s"]) for row in rows])
            instances = {row["instance"] for row in rows}
            # Only vllm-router does not say whom it chose.
            assert instances == {"-1"} if name.startswith("vllm-router") else instances <= {"0", "1"}
            live = contest["live"][name]["e2e_mean_s"]
            assert live["low"] <= live["value"] <= live["high"]
    assert all(each == sizes[1][0] for each in sizes[1]) and all(each == sizes[2][0] for each in sizes[2])
    assert sizes[1][0] != sizes[2][0]
    assert content["reference"] == "jaxroute:default"
    assert contest["against_reference_percent"]["jaxroute:default"]["e2e_mean_s"]["value"] == 0
    assert set(contest["simulated"]) == set(names)
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_router_that_does_not_start_is_one_line(serving, tmp_path, capsys):
    servers = serving(1, profile=PROFILE)
    program = tmp_path / "vllm-router"
    program.write_text(f"#!{sys.executable}\nraise SystemExit('no such option')\n")
    program.chmod(0o755)
    with pytest.raises(SystemExit) as ended:
        compare(servers, tmp_path / "out", "--ways", "vllm-router:round_robin", "--vllm-router", str(program),
                "--rate", "5", "--requests", "4", "--rounds", "1")  # fmt: skip
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "vllm-router ended with code 1" in said and "no such option" in said


def test_without_vllm_router_its_ways_are_left_out_of_all_but_not_of_a_list(tmp_path, capsys):
    options = [
        "compare-live",
        "--out",
        str(tmp_path / "out"),
        "--vllm-router",
        "not-there",
        "--url",
        "http://127.0.0.1:9",
    ]
    with pytest.raises(SystemExit):
        main([*options, "--rate", "5", "--requests", "4"])
    told = capsys.readouterr()
    assert "not-there is not found: the ways through it are left out" in told.out
    with pytest.raises(SystemExit):
        main([*options, "--ways", "vllm-router:round_robin"])
    assert "--vllm-router not-there: is not found; pip install vllm-router" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ways", "direct:random"), "there is no way 'direct:random'"),
        (("--ways", ""), "--ways: no way given"),
        (("--rounds", "0"), "--rounds is 0"),
        (("--scrape-s", "2"), "--scrape-s is 2.0, must be 0.05 to 1"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, options, said):
    with pytest.raises(SystemExit) as ended:
        main(["compare-live", "--out", str(tmp_path / "out"), *options])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert said in message and message.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ways_say_what_simulates_them(tmp_path):
    found = {way.name: way for way in ways(list(ALL), tmp_path)}
    assert found["direct:fewest-requests"].simulated == "join-shortest-queue"
    assert found["vllm-router:cache_aware"].simulated is None
    assert found["jaxroute:default"].simulated == "default"
    [other] = ways(["jaxroute:round-robin"], tmp_path)
    assert (other.kind, other.policy, other.simulated) == ("jaxroute", "round-robin", "round-robin")


def test_the_shipped_policy_in_order_of_arrival_is_the_same_but_for_the_order(tmp_path):
    write_fcfs_default(tmp_path)
    [way] = ways(["jaxroute:default+fcfs"], tmp_path)
    ours, theirs = read_policy(Path(way.policy)), read_policy(DEFAULT_FOLDER)
    assert (ours.router_order, theirs.router_order) == ("fcfs", "shortest-predicted")
    assert ours.router_features == theirs.router_features and ours.instance_features == theirs.instance_features


def test_predictions_are_stated_as_they_are():
    prediction = Prediction(np.array([1, 2]), np.array([40, 90]), np.array([63, 127]))
    assert prediction_headers(prediction) == [{HEADER: "40,63"}, {HEADER: "90,127"}]


def contest(live: dict[str, list[float]], simulated: dict[str, list[float]]) -> Contest:
    def columns(rows: dict[str, list[float]]) -> dict:
        return {name: {"e2e_mean_s": np.array(values)} for name, values in rows.items()}

    return Contest(None, (), columns(live), columns(simulated))  # type: ignore[arg-type]


def test_pairs_with_a_clear_predicted_gap_are_held_against_the_measured_order():
    made = contest(
        {"a": [1.0, 1.1], "b": [1.2, 1.3], "c": [1.1, 1.2], "d": [9.0, 9.0]},
        {"a": [1.0, 1.0], "b": [1.04, 1.04], "c": [1.3, 1.3]},
    )
    found = {(pair.better, pair.worse): pair for pair in made.pairs}
    # a and b are too close, and d is not simulated.
    assert set(found) == {("a", "c"), ("b", "c")}
    assert found["a", "c"].agrees and not found["b", "c"].agrees
    assert found["a", "c"].predicted_percent == pytest.approx(30)
    assert found["b", "c"].measured_percent.value == pytest.approx(100 * (1.15 / 1.25 - 1))
