"""Gaps between tokens and spikes, by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from fake_results import small_timeline
from jaxroute.results import Timeline
from jaxroute.token_gaps import token_gaps


def timeline_with(instance, start_s, duration_s, prefill, decode) -> Timeline:
    steps = {
        "step_instance": np.asarray(instance),
        "step_start_s": np.asarray(start_s, float),
        "step_duration_s": np.asarray(duration_s, float),
        "step_prefill_tokens": np.asarray(prefill),
        "step_decode_seqs": np.asarray(decode),
        "step_preemptions": np.zeros(len(instance), int),
    }
    return dataclasses.replace(small_timeline(), **steps)


def test_prefills_between_two_decode_steps_lengthen_the_gap_and_make_a_spike():
    # Two decode steps of 20 ms, a prefill of 100 ms, two more decode steps.
    timeline = timeline_with(
        [0] * 5, [0, 0.02, 0.04, 0.14, 0.16], [0.02, 0.02, 0.1, 0.02, 0.02], [0, 0, 300, 0, 0], [3, 3, 0, 4, 4]
    )
    gaps = token_gaps(timeline)
    np.testing.assert_allclose(gaps.gap_s, [0.02, 0.12, 0.02])
    np.testing.assert_allclose(gaps.end_s, [0.04, 0.16, 0.18])
    assert gaps.prompt_tokens.tolist() == [0, 300, 0]
    assert gaps.plain_s == pytest.approx(0.02)
    assert gaps.spikes.tolist() == [False, True, False]


def test_a_mixed_step_is_a_spike_where_it_is_twice_as_long():
    timeline = timeline_with([1] * 4, [0, 0.02, 0.04, 0.07], [0.02, 0.02, 0.03, 0.05], [0, 0, 64, 256], [3, 3, 3, 3])
    gaps = token_gaps(timeline)
    np.testing.assert_allclose(gaps.gap_s, [0.02, 0.03, 0.05])
    assert gaps.spikes.tolist() == [False, False, True]


def test_there_is_no_gap_across_idle_time_or_instances():
    timeline = timeline_with([0, 1, 0, 0, 1], [0, 0, 0.5, 0.52, 0.02], [0.02] * 5, [0] * 5, [1] * 5)
    gaps = token_gaps(timeline)
    assert gaps.instance.tolist() == [0, 1]
    np.testing.assert_allclose(gaps.end_s, [0.54, 0.04])


def test_an_empty_timeline_has_no_gaps():
    gaps = token_gaps(timeline_with([], [], [], [], []))
    assert len(gaps.gap_s) == 0
    assert np.isnan(gaps.plain_s)
