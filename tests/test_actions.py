"""What a router did over time, and the pictures of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_hex

from fake_results import queue_result, small_result, small_timeline
from jaxroute.actions import action_counts, is_held
from jaxroute.cli import main
from jaxroute.errors import InputError
from jaxroute.plots import BLACK
from jaxroute.plots_cluster import HELD, QUEUED, action_share, cluster_timeline


@pytest.fixture
def with_timeline():
    """Three intervals of 0.5 s; 0, 3 and 1 requests at the router after the dispatches at 0, 1, 1 and 1 s."""
    dispatch = np.array([0, 1, 1, 1.0])
    return dataclasses.replace(small_result(dispatch_s=dispatch), timeline=small_timeline(), dt_s=0.5)


def test_a_hold_is_an_interval_in_which_one_waits_and_none_is_sent(with_timeline):
    assert is_held(with_timeline).tolist() == [False, True, False]


def test_decisions_are_counted_by_bins(with_timeline):
    each = action_counts(with_timeline, bins=3)
    assert each.edges_s.tolist() == [0, 0.5, 1, 1.5]
    assert each.sent.tolist() == [[1, 0], [0, 0], [2, 1]]
    assert each.held.tolist() == [0, 1, 0]
    assert each.hold_share == 0.2
    np.testing.assert_allclose(each.shares, [[1, 0, 0], [0, 0, 1], [2 / 3, 1 / 3, 0]])
    both = action_counts(with_timeline, bins=2)
    assert both.edges_s.tolist() == [0, 1, 1.5]
    assert both.sent.sum() == 4
    assert both.held.tolist() == [1, 0]


def test_a_bin_with_nothing_to_decide_has_no_shares(with_timeline):
    idle = dataclasses.replace(with_timeline.timeline, router_queue=np.zeros(3, int))
    counts = action_counts(dataclasses.replace(with_timeline, timeline=idle), bins=3)
    assert np.isnan(counts.shares[1]).all()
    assert counts.hold_share == 0


def test_every_dispatch_is_counted_once_and_only_a_gate_holds():
    gated, plain = (queue_result(name, requests=200) for name in ("gated-central-queue", "round-robin"))
    for result in (gated, plain):
        counts = action_counts(result, bins=17)
        assert counts.sent.sum(axis=0).tolist() == np.bincount(result.records.instance, minlength=4).tolist()
    assert action_counts(gated, bins=17).hold_share > 0.05
    assert is_held(plain).sum() < is_held(gated).sum()


def test_the_share_picture_stacks_to_one_and_says_how_much_was_held(with_timeline):
    figure = action_share(with_timeline, bins=3)
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["hold", "instance 1", "instance 0"]
    assert "held in 20.0 % of the decisions" in axes.get_title(loc="left")
    tops = max(area.get_datalim(axes.transData).y1 for area in axes.collections)
    assert tops == pytest.approx(1)
    assert to_hex(axes.collections[-1].get_facecolor()[0]).upper() == BLACK


def test_the_cluster_timeline_has_the_router_on_top_and_its_holds_in_another_colour(with_timeline):
    figure = cluster_timeline(with_timeline, 0, 1.5)
    router, *lanes = figure.axes
    assert [axes.get_ylabel() for axes in lanes] == ["instance 0\n(step, ms)", "instance 1\n(step, ms)"]
    assert [to_hex(area.get_facecolor()[0]).upper() for area in router.collections] == [QUEUED, HELD]
    queued, held = (area.get_datalim(router.transData) for area in router.collections)
    assert (queued.y1, held.y1) == (3, 3)
    held_x = router.collections[1].get_paths()[0].vertices
    assert held_x[held_x[:, 1] > 0][:, 0].min() == 0.5
    assert held_x[held_x[:, 1] > 0][:, 0].max() == 1.0
    marks = [line.get_xydata().tolist() for axes in lanes for line in axes.lines if line.get_marker() == 7]
    assert marks == [[[1.1875, 375]], []]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"preempts", "held: nothing is sent", "a request is sent here"} < set(labels)


def test_a_timeline_of_no_time_is_refused(with_timeline):
    with pytest.raises(InputError, match="from 2 s to 1 s is empty"):
        cluster_timeline(with_timeline, 2, 1)


def test_simulate_draws_a_timeline_for_every_policy(tmp_path, capsys):
    options = ["simulate", "--profile", "v100-32gb-llama2-7b", "--workload", "five-task", "--requests", "40"]
    options += ["--policy", "round-robin,least-kv", "--kv-tokens", "3800", "--no-pictures"]
    main([*options, "--out", str(tmp_path / "out"), "--timeline", "busiest"])
    names = {path.name for path in (tmp_path / "out").glob("*.png")}
    expected = {f"{policy}.{kind}.png" for policy in ("round-robin", "least-kv") for kind in ("timeline", "actions")}
    assert names == expected
    with pytest.raises(SystemExit) as stop:
        main([*options, "--out", str(tmp_path / "bad"), "--timeline", "9:3"])
    assert stop.value.code == 2
    assert "--timeline 9:3: give START:END" in capsys.readouterr().err
    assert not (tmp_path / "bad").exists()
