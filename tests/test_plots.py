import dataclasses
import subprocess
import sys

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_hex

from fake_results import one_token_result, queue_result, small_result, small_timeline
from jaxroute import plots
from jaxroute.errors import InputError
from jaxroute.training_plots import learning_curve

POLICIES = [f"policy-{index}" for index in range(15)]


@pytest.fixture
def with_timeline():
    return dataclasses.replace(small_result(), timeline=small_timeline(), dt_s=0.5)


def legend_labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_cdf_has_a_line_per_policy_in_both_panels_and_all_in_the_legend():
    figure = plots.latency_cdf([small_result(name) for name in POLICIES])
    assert [axes.get_xlabel() for axes in figure.axes] == ["end-to-end latency (s)", "time to first token (s)"]
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "log"]
    for axes in figure.axes:
        assert len(axes.lines) == len(POLICIES)
    assert legend_labels(figure) == POLICIES


@pytest.mark.parametrize("longest", [5, 25, 37, 60])
def test_the_legend_of_learning_curves_has_room(tmp_path, longest):
    path = tmp_path / "metrics.csv"
    path.write_text("env_steps,valid_e2e_mean\n100,-0.1\n200,-0.2\n")
    labels = ["a" * 12, "b" * 25, "c" * longest, "d" * longest]
    figure = learning_curve([(label[:longest], path) for label in labels])
    figure.canvas.draw()
    extent, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= extent.x0 and extent.x1 <= page.x1 and extent.y1 <= page.y1
    assert legend_labels(figure) == [label[:longest] for label in labels]


def test_28_policies_look_different():
    assert len({str(plots.policy_line_style(index)) for index in range(28)}) == 28


def test_cdf_reaches_each_latency_at_its_share_of_the_requests():
    e2e, ttft = (axes.lines[0] for axes in plots.latency_cdf([small_result()]).axes)
    np.testing.assert_allclose(e2e.get_xydata(), [[1.25, 0.25], [3.5, 0.5], [3.5, 0.75], [7.5, 1]])
    np.testing.assert_allclose(ttft.get_xdata(), [1.25, 1.5, 1.5, 2.5])


def test_cdf_of_many_requests_is_thinned_but_keeps_its_ends():
    seconds, share = plots.distribution(np.arange(100_000.0)[::-1])
    assert (len(seconds), seconds[0], seconds[-1], share[-1]) == (plots.MAX_POINTS, 0, 99_999, 1)
    np.testing.assert_allclose(share, (seconds + 1) / 100_000)


def test_log_axis_is_labelled_in_plain_numbers():
    figure = plots.latency_cdf([queue_result("random", requests=60)])
    for axes in figure.axes:
        labels = [label.get_text() for label in axes.get_xticklabels()]
        assert len(labels) >= 4
        assert [float(label) for label in labels] == pytest.approx(axes.get_xticks())


def test_queue_panels_stack_waiting_on_running_and_end_with_the_last_interval(with_timeline):
    figure = plots.queue_lengths(with_timeline)
    assert [axes.get_ylabel() for axes in figure.axes] == ["router", "instance 0", "instance 1"]
    assert legend_labels(figure) == ["held at the router", "running", "waiting"]
    assert (figure.axes[-1].get_xlabel(), figure.axes[-1].get_xlim()) == ("time (s)", (0, 1.5))
    tops = [[area.get_datalim(axes.transData).y1 for area in axes.collections] for axes in figure.axes]
    assert tops == [[3], [2, 6], [1, 1]]
    assert figure.axes[1].get_ylim() == figure.axes[2].get_ylim()


def test_long_queues_are_binned_by_their_largest_value():
    count = 3 * plots.MAX_POINTS + 1
    queue = np.zeros(count, int)
    queue[4] = 7
    sides = np.zeros((count, 2), int)
    timeline = dataclasses.replace(
        small_timeline(), time_s=np.arange(count) * 0.5, router_queue=queue, running=sides, waiting=sides
    )
    time_s, binned, running, _ = plots.thinned(timeline, dt_s=0.5)
    assert len(time_s) == len(binned) == len(running) <= plots.MAX_POINTS + 1
    assert (time_s[1], binned[1], binned.sum(), time_s[-1]) == (2.0, 7, 7, count * 0.5)


def test_a_single_interval_can_be_drawn(with_timeline):
    first = {name: getattr(small_timeline(), name)[:1] for name in ("time_s", "router_queue", "running", "waiting")}
    timeline = dataclasses.replace(small_timeline(), **first)
    figure = plots.queue_lengths(dataclasses.replace(with_timeline, timeline=timeline))
    assert figure.axes[0].get_xlim() == (0, 0.5)


def test_each_step_is_a_bar_as_wide_and_tall_as_its_duration_in_the_colour_of_its_kind(with_timeline):
    figure = plots.step_timeline(with_timeline, 0, 2)
    lanes = [
        {
            to_hex(c.get_facecolor()[0]).upper(): [p.get_extents().bounds for p in c.get_paths()]
            for c in axes.collections
        }
        for axes in figure.axes
    ]
    prefill, decode, mixed = (kind.colour for kind in plots.STEP_KINDS)
    assert lanes == [
        {prefill: [(0, 0, 0.5, 500)], decode: [(0.5, 0, 0.25, 250)], mixed: [(1, 0, 0.375, 375)]},
        {prefill: [(0.75, 0, 0.25, 250)], decode: [(0.25, 0, 0.125, 125)], mixed: []},
    ]
    assert legend_labels(figure) == ["prefill only", "decode only", "prefill + decode", "preempts"]
    assert [axes.get_ylabel() for axes in figure.axes] == ["instance 0", "instance 1"]
    assert figure.get_supylabel() == "step duration (ms)"


def test_a_step_that_preempted_is_marked_on_top_of_its_bar(with_timeline):
    marks = [axes.lines[0].get_xydata().tolist() for axes in plots.step_timeline(with_timeline, 0, 2).axes]
    assert marks == [[[1.1875, 375]], []]


def test_window_shows_the_steps_that_touch_it_and_no_others(with_timeline):
    figure = plots.step_timeline(with_timeline, 0.6, 0.75)
    bars = [[len(collection.get_paths()) for collection in axes.collections] for axes in figure.axes]
    assert bars == [[0, 1, 0], [0, 0, 0]]
    assert figure.axes[0].get_xlim() == (0.6, 0.75)


def test_every_step_of_a_long_run_is_of_exactly_one_kind():
    timeline = queue_result("round-robin", requests=60).timeline
    assert (sum(kind.mask(timeline).astype(int) for kind in plots.STEP_KINDS) == 1).all()


def test_comparison_lists_policies_by_mean_latency_with_mean_and_tail():
    slower = small_result("slow", finish_s=np.array([4, 2.5, 9, 5]) + 4)
    figure = plots.policy_comparison([slower, small_result("fast")])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["slow", "fast"]  # drawn from the bottom up
    means, tails = axes.lines
    np.testing.assert_allclose(means.get_xydata(), [[7.9375, 0], [3.9375, 1]])
    np.testing.assert_allclose(tails.get_xdata(), [11.38, 7.38])
    assert [text.get_text() for text in axes.texts] == ["7.94", "11.4", "3.94", "7.38"]
    assert legend_labels(figure) == ["mean", "99th percentile"]


def test_pictures_that_need_a_timeline_say_so():
    with pytest.raises(InputError, match="random: the run has no timeline"):
        plots.queue_lengths(small_result("random"))
    with pytest.raises(InputError, match="no timeline"):
        plots.step_timeline(small_result(), 0, 1)


def test_an_empty_window_is_rejected(with_timeline):
    with pytest.raises(InputError, match="from 2 s to 2 s is empty"):
        plots.step_timeline(with_timeline, 2, 2)


def test_all_pictures_of_one_run_are_saved_as_png_at_150_dpi(tmp_path):
    result = queue_result("gated-central-queue", requests=80)
    figures = {
        "cdf": plots.latency_cdf([result, one_token_result()]),
        "queues": plots.queue_lengths(result),
        "steps": plots.step_timeline(result, 0, 5),
        "comparison": plots.policy_comparison([result]),
    }
    for name, figure in figures.items():
        plots.save(figure, tmp_path / f"{name}.png")
        height, width, _ = matplotlib.image.imread(tmp_path / f"{name}.png").shape
        assert (width, height) == tuple((figure.get_size_inches() * 150).astype(int))
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(figures)


def test_plots_need_no_pyplot():
    code = "import sys, jaxroute.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_picture_that_fails_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    figure = plots.policy_comparison([small_result()])

    def write_half(path, **_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    (tmp_path / "picture.png").write_bytes(b"old")
    monkeypatch.setattr(figure, "savefig", write_half)
    with pytest.raises(OSError, match="disk full"):
        plots.save(figure, tmp_path / "picture.png")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"picture.png": b"old"}
