from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxroute.errors import InputError
from jaxroute.profiles import load_profile
from jaxroute.workload import RequestTable, make_workload, workload_names

V100 = load_profile("v100-32gb-llama2-7b")


def make(
    name: str | Path, requests: int | None = None, rate: float | None = None, seed: int = 0, **more
) -> RequestTable:
    return make_workload(str(name), profile=V100, requests=requests, rate=rate, seed=seed, **more)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i * i},{i + 1},1\n" for i in range(5)))
    return path


def test_five_task_defaults_to_the_papers_main_run() -> None:
    table = make("five-task")
    assert len(table) == 2000
    assert table.mean_rate == pytest.approx(20, rel=0.1)


@pytest.mark.parametrize("name", [name for name in workload_names() if name not in ("five-task", "chat")])
def test_synthetic_sets_default_to_the_papers_3000_requests(name: str) -> None:
    assert len(make(name)) == 3000


@pytest.mark.parametrize("name", workload_names())
def test_the_seed_alone_decides_what_is_drawn(name: str) -> None:
    first, again, other = make(name, 50), make(name, 50), make(name, 50, seed=1)
    np.testing.assert_array_equal(first.output_tokens, again.output_tokens)
    np.testing.assert_array_equal(first.arrival_s, again.arrival_s)
    assert not np.array_equal(first.output_tokens, other.output_tokens)


@pytest.mark.parametrize("name", workload_names())
def test_the_arrival_process_does_not_change_the_requests(name: str) -> None:
    poisson, constant = make(name, 50, 4.0), make(name, 50, 8.0, arrivals="constant")
    np.testing.assert_array_equal(poisson.prompt_tokens, constant.prompt_tokens)
    np.testing.assert_array_equal(poisson.output_tokens, constant.output_tokens)
    np.testing.assert_allclose(np.diff(constant.arrival_s), 1 / 8)


def test_a_trace_is_taken_whole_and_as_recorded(trace: Path) -> None:
    table = make(trace)
    assert table.arrival_s.tolist() == [0, 1, 4, 9, 16]
    assert table.prompt_tokens.tolist() == [1, 2, 3, 4, 5]


def test_a_trace_is_cut_to_its_first_requests_and_then_stretched(trace: Path) -> None:
    table = make(trace, 3, 1.0)
    np.testing.assert_allclose(table.arrival_s, [0, 0.5, 2])
    assert table.prompt_tokens.tolist() == [1, 2, 3]


def test_more_requests_than_the_trace_has_is_an_error(trace: Path) -> None:
    with pytest.raises(InputError, match=r"trace.csv: .*6.* only 5"):
        make(trace, 6)


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"workload 'six-task': no such workload .*five-task, chat, lh-hl-random, all-random"
    ):
        make("six-task")


@pytest.mark.parametrize(("requests", "rate"), [(0, None), (-1, None), (None, 0.0), (None, float("nan"))])
def test_bad_numbers_are_refused(trace: Path, requests: int | None, rate: float | None) -> None:
    for name in ("five-task", "all-random", trace):
        with pytest.raises(InputError, match="requests is" if rate is None else "rate is"):
            make(name, requests, rate)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="seed is -1, must be at least 0"):
        make("five-task", seed=-1)


def test_the_host_side_of_workloads_does_not_import_jax() -> None:
    code = "import sys, jaxroute.workload; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
