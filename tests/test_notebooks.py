"""Every notebook runs as it stands, on less work, in a kernel of its own, and shows what its text says."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import nbformat
import pytest
import tyro
from nbclient import NotebookClient

from jaxroute.commands.serve import Serve

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TIMEOUT_S = 600


class Ran:
    """A notebook after its last cell.

    Attributes:
      values: of the expressions that were asked for, by name.
      pictures: PNG pictures that it showed.
      text: all that it showed in plain text.
      html: all that it showed in HTML.
    """

    def __init__(self, notebook: Any) -> None:
        *shown, asked = [cell for cell in notebook.cells if cell.cell_type == "code"]
        self.values: dict[str, Any] = json.loads(asked.outputs[-1].text)
        outputs = [output for cell in shown for output in cell.outputs]
        data = [output.data for output in outputs if "data" in output]
        self.pictures = sum("image/png" in each for each in data)
        self.html = "".join(each.get("text/html", "") for each in data)
        self.text = "".join(output.text for output in outputs if output.output_type == "stream")


def run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **asked: str) -> Ran:
    """Runs a notebook in a folder of its own, with little work, and asks for the values of some expressions."""
    monkeypatch.setenv("JAXROUTE_NOTEBOOK_QUICK", "1")
    # jupyter_core warns where this is not chosen.
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    expressions = ", ".join(f"{key!r}: {expression}" for key, expression in asked.items())
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({{{expressions}}}))"))
    client = NotebookClient(
        notebook, timeout=TIMEOUT_S, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return Ran(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebooks_are_short_and_stored_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert len(notebook.cells) < 20
    assert notebook.cells[0].source.startswith("# ")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "clear the outputs before the commit"
    assert "JAXROUTE_NOTEBOOK_QUICK" in code[0].source


def test_each_notebook_is_named_in_the_readme_and_their_links_lead_to_notebooks() -> None:
    readme = (FOLDER.parent / "README.md").read_text()
    assert {path.name for path in NOTEBOOKS} == set(re.findall(r"\]\(notebooks/(\w+\.ipynb)\)", readme))
    for path in NOTEBOOKS:
        for target in re.findall(r"\]\((\w+\.ipynb)\)", path.read_text()):
            assert (FOLDER / target).is_file(), f"{path.name}: {target}"


def test_quickstart_compares_five_routers_and_one_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run(
        "quickstart",
        tmp_path,
        monkeypatch,
        means="{name: summary.e2e_mean_s for name, summary in summaries.items()}",
        preemptions="{name: summary.preemptions for name, summary in summaries.items()}",
        served="[int(result.records.finish_s.size) for result in results]",
    )
    means = ran.values["means"]
    assert list(means) == [
        "round-robin",
        "least-kv",
        "gated-central-queue",
        "gated-central-queue+spf",
        "default",
        "fewest-tokens",
    ]
    assert ran.values["served"] == [300] * 5
    assert all(0 < mean < 100 for mean in means.values())
    # What its text says of the trained policy.
    assert means["default"] < 0.9 * means["round-robin"]
    assert ran.values["preemptions"]["default"] < 0.8 * ran.values["preemptions"]["round-robin"]
    assert ran.pictures == 4
    assert "gated-central-queue" in ran.html
    assert f"fewest-tokens: mean E2E {means['fewest-tokens']:.2f} s" in ran.text


@pytest.mark.slow
def test_a_router_is_trained_on_a_trace_and_judged_on_its_later_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run(
        "train_your_own",
        tmp_path,
        monkeypatch,
        loads="[cell['load'] for cell in evaluation['cells']]",
        policies="list(evaluation['cells'][0]['policies'])",
        seeds="[cell['seeds'] for cell in evaluation['cells']]",
        intervals="[[each['low'], each['value'], each['high']] for each in verdicts.values()]",
        served="int(run.records.finish_s.size)",
    )
    assert ran.values["loads"] == [0.7, 1.0, 1.3]
    assert ran.values["seeds"] == [6, 6, 6]
    assert {"round-robin", "gated-central-queue+spf", "default", "mine"} <= set(ran.values["policies"])
    for low, value, high in ran.values["intervals"]:
        assert low <= value <= high
    # Overloaded, even the rule that it starts from is far better than round robin.
    assert ran.values["intervals"][-2][2] < 0
    assert ran.values["served"] == 400
    assert ran.pictures == 4
    history, later = ((tmp_path / "runs" / "own" / f"{name}.csv").read_text() for name in ("history", "later"))
    assert not set(history.splitlines()[1:]) & set(later.splitlines()[1:])
    assert sorted(file.name for file in (tmp_path / "runs" / "own" / "router").iterdir()) == [
        "policy.json",
        "policy.safetensors",
    ]
    assert_serve_command("train_your_own")


@pytest.mark.slow
def test_a_hold_and_a_choice_are_explained_and_their_alternatives_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run(
        "anatomy_of_a_decision",
        tmp_path,
        monkeypatch,
        hold="[hold.request, hold.first, hold.last, hold.sent_to]",
        actions="[int(watched.action[at]) for at in (hold.first, hold.last, hold.last + 1)]",
        margin="float(watched.logits[hold.first, -1] - watched.logits[hold.first, :-1].max())",
        costs="costs",
        went_to="[int(run.records.instance[hold.request]) for run in other_runs]",
        examples="at_once['the others'].seeds",
        habits="[each.e2e_mean_s for each in habits]",
        gap="float(gap[moment])",
        best="int(watched.logits[moment].argmax()) == server",
    )
    _, first, last, sent_to = ran.values["hold"]
    assert last - first >= 5
    assert ran.values["actions"] == [4, 4, sent_to]
    assert ran.values["margin"] > 0
    assert ran.values["went_to"] == [0, 1, 2, 3]
    assert len(ran.values["costs"]) == 4
    assert all(math.isfinite(seconds) for pair in ran.values["costs"] for seconds in pair)
    assert ran.values["examples"] >= 6
    holds, never_holds = ran.values["habits"]
    assert holds < never_holds
    assert ran.values["gap"] > 0
    assert ran.values["best"]
    assert ran.pictures == 3
    assert "crowding with the head" in ran.html
    assert "sent at once instead of held" in ran.text


@pytest.mark.slow
def test_a_log_becomes_a_profile_that_plans_better_and_a_router(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = run(
        "from_log_to_policy",
        tmp_path,
        monkeypatch,
        before="errors['start']['e2e']['each']",
        after="errors['fitted']['e2e']['each']",
        steps="[step['fitted_ms']['value'] / true_ms[step['label']] - 1 for step in fit['step_times']]",
        capacity="{name: plan['requests_per_s'] for name, plan in plans.items()}",
        means="{name: plan['e2e_mean_s'] for name, plan in plans.items()}",
        judged="means",
        pick="pick",
    )
    assert ran.values["before"] > 15
    assert ran.values["after"] < 5
    assert max(map(abs, ran.values["steps"])) < 0.1, "the guess is 20 % off"
    capacity = ran.values["capacity"]
    assert abs(capacity["calibrated"] / capacity["truth"] - 1) < 0.05
    assert abs(capacity["guess"] / capacity["truth"] - 1) > abs(capacity["calibrated"] / capacity["truth"] - 1)
    judged = ran.values["judged"]
    assert list(judged) == ["round-robin", "least-kv", "gated-central-queue", "default", "trained"]
    assert judged[ran.values["pick"]] == min(judged["default"], judged["trained"])
    assert judged[ran.values["pick"]] < judged["round-robin"]
    assert ran.pictures == 2
    out = tmp_path / "runs" / "from_log"
    assert json.loads((out / "fit" / "profile.json").read_text())["provenance"]["status"] == "fitted"
    assert (out / "router" / "policy.safetensors").is_file()
    assert_serve_command("from_log_to_policy")


def assert_serve_command(name: str) -> None:
    """The command that the notebook ends with is one that `jaxroute serve` takes."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    [command] = re.findall(r"^    jaxroute serve (?:.*\\\n)*.*$", text, re.MULTILINE)
    words = shlex.split(command.replace("\\\n", " "))
    config = tyro.cli(Serve, args=words[2:]).read()
    assert len(config.backends) >= 2
    assert config.policy.endswith("router")
