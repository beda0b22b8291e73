"""A decision taken apart: what the policy saw, what its score is made of, and what its other choices lead to."""

from __future__ import annotations

import dataclasses
import functools
import io

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from jaxroute.anatomy import Watched, latency_change_s, reasons, watch, what_if
from jaxroute.anatomy_report import (
    choice_costs,
    feature_table,
    hold_table,
    moments,
    router_table,
    score_table,
    step_through,
)
from jaxroute.candidates import candidate
from jaxroute.errors import InputError
from jaxroute.policies.runner import Runner
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet, simulate
from jaxroute.types import EMPTY
from jaxroute.workload import five_task
from jaxroute.workload.prediction import predict

SERVER = dataclasses.replace(load_profile("v100-32gb-llama2-7b").with_kv_tokens(2000), max_num_seqs=16)
DEFAULT = candidate("default")
FLEET = DEFAULT.fleet(Fleet((SERVER,) * 2, ("chunked",) * 2))
TABLE = five_task(50, rate=12.0, seed=1)
LENGTHS = predict(TABLE, "0.8", seed=1)


@functools.cache
def watched() -> Watched:
    return watch(FLEET, TABLE, LENGTHS, DEFAULT.policy)


def text_of(table: Table) -> str:
    console = Console(file=io.StringIO(), width=150)
    console.print(table)
    return console.file.getvalue()


def test_a_watched_run_is_the_run_that_simulate_makes() -> None:
    [same] = simulate(FLEET, TABLE, LENGTHS, [DEFAULT.policy])
    for name, values in vars(watched().result.records).items():
        np.testing.assert_array_equal(values, getattr(same.records, name), err_msg=name)


def test_what_was_seen_and_done_fits_the_records() -> None:
    run = watched()
    sent = run.sent
    assert len(sent) == len(TABLE)
    np.testing.assert_array_equal(run.result.records.instance[run.head[sent]], run.action[sent])
    np.testing.assert_allclose(run.result.records.dispatch_s[run.head[sent]], [run.seconds(at) for at in sent])
    assert (run.queue_length[run.head == EMPTY] == 0).all()
    runner = Runner(DEFAULT.policy.file)
    for at in sent[::10]:
        np.testing.assert_allclose(runner.logits(run.seen(at)), run.logits[at], rtol=1e-4, atol=1e-3)


def test_holds_are_the_intervals_in_which_a_request_waited_and_none_was_sent() -> None:
    run = watched()
    holds = run.holds()
    held = [at for each in holds for at in range(each.first, each.last + 1)]
    np.testing.assert_array_equal(held, np.flatnonzero((run.head != EMPTY) & (run.action == run.instances)))
    assert any(each.sent_to is not None for each in holds)
    for each in holds:
        assert set(run.head[each.first : each.last + 1]) == {each.request}
        if each.sent_to is not None:
            assert run.result.records.instance[each.request] == each.sent_to
            assert run.result.records.dispatch_s[each.request] == pytest.approx(run.seconds(each.last + 1))


def test_the_reasons_of_a_decision_add_up_to_its_scores() -> None:
    run, file = watched(), DEFAULT.policy.file
    hold = max(run.holds(), key=lambda each: each.last - each.first)
    for at in (hold.first, hold.last, hold.last + 1):
        why = reasons(file, run.seen(at), run.logits[at])
        np.testing.assert_allclose(why.score_terms.sum(axis=1) + why.score_hidden, run.logits[at, :-1], rtol=1e-5)
        assert sum(why.hold_terms.values()) == pytest.approx(why.hold, abs=1e-3)
        assert (why.hold > 0) == (run.action[at] == run.instances)
    # The hidden layers have been trained from small weights: they correct the linear path, they do not replace it.
    assert np.abs(why.score_hidden).max() < np.abs(why.score_terms).max()


def test_where_holding_is_no_choice_it_has_no_reasons() -> None:
    run = watched()
    first = int(run.sent[0])
    why = reasons(DEFAULT.policy.file, run.seen(first), run.logits[first])
    assert np.isnan(why.hold), "all instances are idle, so the network may not hold"
    assert "send" in text_of(hold_table(run, first))


def test_the_choice_that_was_made_leads_to_the_run_that_was_and_others_elsewhere() -> None:
    run = watched()
    at = int(run.sent[20])
    action, request = int(run.action[at]), int(run.head[at])
    same, other, held = what_if(
        FLEET, TABLE, LENGTHS, DEFAULT.policy, [(at, action), (at, 1 - action), (at, run.instances)]
    )
    for name, values in vars(run.result.records).items():
        np.testing.assert_array_equal(values, getattr(same.records, name), err_msg=name)
    assert latency_change_s(same, run, at, request) == (0, 0)
    assert other.records.instance[request] == 1 - action
    own, others = latency_change_s(other, run, at, request)
    change = other.records.finish_s - run.result.records.finish_s
    there = (TABLE.arrival_s <= run.seconds(at)) & (run.result.records.finish_s > run.seconds(at))
    assert own == pytest.approx(change[request])
    assert own + others == pytest.approx(change[there].sum())
    before = run.result.records.dispatch_s < run.seconds(at)
    assert before.sum() >= 20
    np.testing.assert_array_equal(other.records.dispatch_s[before], run.result.records.dispatch_s[before])
    assert held.records.dispatch_s[request] > run.result.records.dispatch_s[request]


def test_tables_name_the_features_and_what_was_decided() -> None:
    run = watched()
    hold = max(run.holds(), key=lambda each: each.last - each.first)
    seen = text_of(feature_table(run, hold.first))
    assert all(name.split(",")[0] in seen for name in DEFAULT.policy.file.instance_features)
    assert f"{run.seen(hold.first).instances[1, 0]:.3f}" in seen
    assert all(name in text_of(router_table(run, hold.first)) for name in DEFAULT.policy.file.router_features)
    assert "hold  " in text_of(hold_table(run, hold.first))
    at = int(run.sent[20])
    ahead = run.logits[at, :-1] - run.logits[at, :-1].mean()
    assert all(f"{value:+.2f}" in text_of(score_table(run, at)) for value in ahead)


def test_moments_show_the_queue_every_instance_and_the_scores() -> None:
    run = watched()
    hold = max(run.holds(), key=lambda each: each.last - each.first)
    figure = moments(run, hold.first - 5, hold.last + 5)
    names = [axes.get_ylabel() for axes in figure.axes]
    assert names == ["router\n(requests)", "instance 0", "instance 1", "hold less\nbest score"]
    window = slice(hold.first - 5, hold.last + 6)
    column = DEFAULT.policy.file.instance_features.index("crowding with the head")
    np.testing.assert_allclose(
        figure.axes[1].lines[0].get_ydata()[:-1], run.observed.instances[window, 0, column], rtol=1e-6
    )
    sent = sum(len(axes.lines[1].get_xdata()) for axes in figure.axes[1:3])
    assert sent == np.isin(np.arange(len(run.head))[window], run.sent).sum()
    with pytest.raises(InputError, match="outside of the run"):
        moments(run, 0, len(run.head))
    with pytest.raises(InputError, match="unknown feature"):
        moments(run, 0, 5, feature="mood")


def test_the_costs_of_choices_are_drawn_as_they_are() -> None:
    figure = choice_costs(["send to 0", "send to 1"], [0.5, -1.0], [2.0, 0.25])
    assert [round(bar.get_width(), 6) for bar in figure.axes[0].patches] == [0.5, -1.0, 2.0, 0.25]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["send to 0", "send to 1"]


def test_moments_can_be_stepped_through() -> None:
    run = watched()
    at = int(run.sent[20])
    animation = step_through(run, at - 2, at)
    page = animation.to_jshtml(fps=5)
    assert page.count("data:image/png;base64") == 3
    axes = animation._fig.axes[0]
    assert f"request {run.head[at]} to instance {run.action[at]}" in axes.get_title(loc="left")
