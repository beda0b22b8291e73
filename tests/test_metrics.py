import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest

from fake_results import one_token_result, queue_result, small_result
from jaxroute import metrics


def test_latencies_count_from_arrival_and_include_the_front_end_of_the_serving_instance():
    result = small_result()
    np.testing.assert_allclose(metrics.e2e_s(result), [3.5, 1.25, 7.5, 3.5])
    np.testing.assert_allclose(metrics.ttft_s(result), [1.5, 1.25, 1.5, 2.5])


def test_waits_split_the_time_before_the_first_step_at_the_dispatch():
    result = small_result()
    np.testing.assert_allclose(metrics.router_wait_s(result), [0, 0.5, 0, 1])
    np.testing.assert_allclose(metrics.instance_wait_s(result), [0.25, 0, 0.5, 0.5])


def test_a_request_of_one_token_has_no_time_between_tokens():
    result = small_result()
    np.testing.assert_allclose(metrics.tbt_mean_s(result), [0.5, np.nan, 2, 0.5])
    np.testing.assert_allclose(metrics.tbt_max_s(result), [1, np.nan, 3, 0.75])


def test_summary_of_a_run_worked_out_by_hand():
    summary = metrics.summarise(small_result())
    expected = {
        "e2e_mean_s": 15.75 / 4,  # of 1.25, 3.5, 3.5, 7.5
        "e2e_p50_s": 3.5,
        "e2e_p95_s": 3.5 + 0.85 * 4,  # linear between ranks: 0.95 * 3 = 2.85
        "e2e_p99_s": 3.5 + 0.97 * 4,
        "ttft_mean_s": 6.75 / 4,
        "ttft_p50_s": 1.5,
        "ttft_p99_s": 1.5 + 0.97,
        "tbt_mean_s": 1.0,  # of 0.5, 0.5, 2
        "tbt_p99_s": 0.5 + 0.98 * 1.5,
        "tbt_max_p99_s": 1 + 0.98 * 2,  # of 0.75, 1, 3
        "router_wait_mean_s": 0.375,
        "router_wait_p99_s": 0.5 + 0.97 * 0.5,
        "instance_wait_mean_s": 1.25 / 4,
        "makespan_s": 8.0,  # 1 to 9
        "load_imbalance": 462 / ((462 + 201) / 2),
        "throughput_tokens_per_s": 13 / 8,
    }
    assert {name: getattr(summary, name) for name in expected} == pytest.approx(expected)
    assert (summary.policy, summary.workload, summary.count) == ("round-robin", "small", 4)
    assert (summary.preemptions, summary.recomputed_tokens) == (3, 700)
    assert summary.action_share == (0.75, 0.25)


def test_summary_holds_plain_python_values():
    values = dataclasses.asdict(metrics.summarise(queue_result("random", requests=40))).values()
    assert {type(value) for value in values} == {str, int, float, tuple}


def test_workload_of_one_token_outputs_has_no_tbt_but_every_other_number():
    summary = metrics.summarise(one_token_result())
    absent = {name for name, value in dataclasses.asdict(summary).items() if value != value}
    assert absent == {"tbt_mean_s", "tbt_p99_s", "tbt_max_p99_s"}
    assert summary.e2e_mean_s == summary.ttft_mean_s == pytest.approx(6.75 / 4)
    assert summary.throughput_tokens_per_s == pytest.approx(4 / 3)


def test_an_idle_instance_counts_in_the_imbalance_and_the_shares():
    result = dataclasses.replace(small_result(), frontend_s=np.zeros(4))
    assert metrics.load_imbalance(result) == pytest.approx(462 / (663 / 4))
    assert metrics.action_share(result).tolist() == [0.75, 0.25, 0, 0]


def test_reference_is_round_robin_wherever_it_stands_and_else_the_first():
    names = ("random", "round-robin", "lmetric")
    random, round_robin, lmetric = (metrics.summarise(small_result(name)) for name in names)
    assert metrics.reference_summary([random, round_robin, lmetric]) is round_robin
    assert metrics.reference_summary([random, lmetric]) is random


def test_relative_change_is_in_percent_of_the_reference():
    assert metrics.relative_change_percent(1.5, 2.0) == -25.0
    assert metrics.relative_change_percent(2.0, 2.0) == 0.0
    assert math.isnan(metrics.relative_change_percent(1.0, 0.0))


def test_importing_jaxroute_and_its_metrics_leaves_matplotlib_out():
    code = "import sys, jaxroute.metrics, jaxroute.output, jaxroute.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
