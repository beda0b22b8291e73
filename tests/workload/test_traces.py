from __future__ import annotations

import gzip
import json
import logging
import time
from pathlib import Path

import numpy as np
import pytest

from jaxroute.workload.traces import read_trace

NATIVE = "arrival_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n"

README_TABLE = {
    "azure2023_conv": (19366, 5.53),
    "mooncake_conversation": (12031, 3.40),
    "mooncake_synthetic": (3993, 3.91),
    "servegen_m_small_1h": (14480, 4.02),
    "aibrix_sharegpt_8min_up_and_down": (2024, 4.44),
    "aibrix_sharegpt_5s": (203, 40.8),
    "apex_lmsys_llama2": (1024, 0.50),
    "apex_creation_llama2": (512, 0.47),
    "apex_arxiv_summarization_llama2": (1302, 0.47),
    "sharegpt_sim_llama-31-8b": (300, 10.3),
}
"""Rows and mean requests per second, as ../shared/data/README.md prints them."""


@pytest.fixture
def trace(tmp_path: Path):
    def write(text: str | bytes, name: str = "trace.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_native_trace_starts_at_zero_and_ignores_other_columns(trace) -> None:
    table = read_trace(trace("client_id,output_tokens,arrival_s,prompt_tokens\n7,2,10.5,30\n8,4.0,12.25,5\n"))
    assert table.arrival_s.tolist() == [0.0, 1.75]
    assert table.prompt_tokens.tolist() == [30, 5]
    assert table.output_tokens.tolist() == [2, 4]
    assert (table.name, table.task_names) == ("trace.csv", ("none",))


def test_unsorted_arrivals_are_sorted_and_ties_keep_their_order(trace) -> None:
    table = read_trace(trace(NATIVE + "3,1,1\n1,2,1\n3,3,1\n1,4,1\n"))
    assert table.arrival_s.tolist() == [0, 0, 2, 2]
    assert table.prompt_tokens.tolist() == [2, 4, 1, 3]
    assert table.request_id.tolist() == [1, 3, 0, 2]


def test_task_column_names_the_tasks_in_order_of_appearance(trace) -> None:
    table = read_trace(
        trace("arrival_s,prompt_tokens,output_tokens,task\n0,1,1,chat\n1,1,1,code\n2,1,1,chat\n3,1,1,\n")
    )
    assert table.task_names == ("chat", "code", "none")
    assert table.task.tolist() == [0, 1, 0, 2]


def test_azure_2023_dates_have_seven_digits(trace) -> None:
    table = read_trace(trace(AZURE + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319601,3180,8\n"))
    np.testing.assert_allclose(table.arrival_s, [0, 0.0520001], atol=1e-9)
    assert table.prompt_tokens.tolist() == [4808, 3180]


def test_azure_2024_dates_have_an_offset_and_whole_seconds_have_no_fraction(trace) -> None:
    rows = "2024-05-10 23:59:59.009930+00:00,2162,5\n2024-05-11 00:00:01+00:00,2399,6\n"
    np.testing.assert_allclose(read_trace(trace(AZURE + rows)).arrival_s, [0, 1.99007], atol=1e-9)


def test_burstgpt_failures_are_left_out_and_reported(trace, caplog) -> None:
    rows = "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,API log\n118,GPT-4,417,276,693,API log\n"
    with caplog.at_level(logging.WARNING):
        table = read_trace(trace(BURSTGPT + rows))
    assert table.arrival_s.tolist() == [0, 113]
    assert table.request_id.tolist() == [0, 2]
    assert "left out 1 of 3 requests" in caplog.text


def test_newer_burstgpt_has_more_columns(trace) -> None:
    header = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    table = read_trace(trace(header + '1.5,"a,b",2.25,GPT-4,10,20,30,API log\n'))
    assert (table.prompt_tokens[0], table.output_tokens[0]) == (10, 20)


def test_mooncake_times_are_milliseconds(trace) -> None:
    records = [
        {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]},
        {"timestamp": 30535, "input_length": 6472, "output_length": 26, "hash_ids": [46]},
    ]
    table = read_trace(trace("\n".join(json.dumps(record) for record in records), "trace.jsonl"))
    np.testing.assert_allclose(table.arrival_s, [0, 3.053])
    assert table.output_tokens.tolist() == [52, 26]


def test_vidur_trace(trace) -> None:
    table = read_trace(trace(VIDUR + "0.5,100,7\n0.75,200,9\n"))
    assert table.arrival_s.tolist() == [0, 0.25]
    assert table.prompt_tokens.tolist() == [100, 200]


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + (NATIVE + "0,1,2\n1,3,4\n").encode(),
        (NATIVE + "0,1,2\n1,3,4\n\n  \n\n").replace("\n", "\r\n").encode(),
        (NATIVE + "0,1,2\n1,3,4").replace("\n", "\r").encode(),
        gzip.compress((NATIVE + "0,1,2\n1,3,4\n").encode()),
        b'"arrival_s","prompt_tokens","output_tokens"\n"0","1","2"\n1, 3 ,4\n',
    ],
    ids=["byte order mark", "CRLF and blank lines", "CR", "gzip", "quotes and spaces"],
)
def test_files_of_other_programs_read_the_same(trace, text: bytes) -> None:
    table = read_trace(trace(text))
    assert table.arrival_s.tolist() == [0, 1]
    assert table.prompt_tokens.tolist() == [1, 3]
    assert table.output_tokens.tolist() == [2, 4]


def test_twenty_thousand_rows_read_in_well_under_a_second(trace) -> None:
    path = trace(AZURE + "2023-11-16 18:17:03.9799600,4808,10\n" * 20_000)
    took = []
    # The best of three, of this thread: a garbage collection of all that other tests left is not the reader's.
    for _ in range(3):
        start = time.thread_time()
        assert len(read_trace(path)) == 20_000
        took.append(time.thread_time() - start)
    assert min(took) < 0.7


@pytest.mark.parametrize("name", README_TABLE)
def test_real_traces_have_the_rows_and_rates_of_their_readme(shared_data: Path, name: str) -> None:
    table = read_trace(shared_data / "traces" / f"{name}.csv")
    rows, rate = README_TABLE[name]
    assert len(table) == rows
    # The README prints three digits and rows over the span; ours is gaps over the span.
    assert table.mean_rate == pytest.approx(rate, rel=1 / rows + 0.005 / rate + 1e-3)
    assert table.arrival_s[0] == 0


def test_no_real_trace_is_left_unread(shared_data: Path) -> None:
    assert {path.stem for path in (shared_data / "traces").iterdir()} == set(README_TABLE)
