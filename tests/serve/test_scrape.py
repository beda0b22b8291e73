from __future__ import annotations

import pytest

from jaxroute.errors import InputError
from jaxroute.serve.scrape import ScrapeError, parse_metrics
from jaxroute.serve.types import Metrics

PAGE = """\
# HELP python_info Python platform information
# TYPE python_info gauge
python_info{implementation="CPython",major="3"} 1.0
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 9.0
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 3.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.625
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="7464"} 1.0
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
"""


def test_a_page_of_vllm_is_read() -> None:
    # vLLM keeps one block of 7,464 for itself.
    assert parse_metrics(PAGE) == Metrics(running=9, waiting=4, kv_usage=0.625, kv_tokens=7463 * 16)


def test_the_older_name_of_the_kv_usage_and_a_server_without_cache_config_are_read() -> None:
    old = PAGE.replace("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
    lines = [line for line in old.splitlines() if "cache_config" not in line]
    assert parse_metrics("\n".join(lines)) == Metrics(running=9, waiting=4, kv_usage=0.625, kv_tokens=None)
    assert parse_metrics(PAGE.replace('"7464"', '"None"')).kv_tokens is None
    assert parse_metrics(PAGE.replace("\n", "\r\n")).running == 9


def test_engines_of_one_server_are_summed_and_their_kv_usage_is_averaged() -> None:
    second = "\n".join(
        line.replace('engine="0"', 'engine="1"').replace(" 9.0", " 1.0").replace(" 0.625", " 0.125")
        for line in PAGE.splitlines()
        if line.startswith("vllm:")
    )
    assert parse_metrics(PAGE + second) == Metrics(running=10, waiting=8, kv_usage=0.375, kv_tokens=2 * 7463 * 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no vllm:num_requests_running"),
        ("<html>not here</html>", "holds no vllm:num_requests_running"),
        ("\x00\xff{}{", "holds no vllm:num_requests_running"),
        (PAGE.replace("vllm:num_requests_waiting{", "vllm:other{"), "holds no vllm:num_requests_waiting"),
        (PAGE.replace("vllm:kv_cache", "vllm:cache"), "neither vllm:kv_cache_usage_perc nor"),
        (PAGE.replace(" 9.0", " nine"), "not in the format of Prometheus"),
        (PAGE.replace('"m"} 9.0', '"m'), "not in the format of Prometheus"),
        (PAGE.replace(" 9.0", " NaN"), "num_requests_running is nan"),
        (PAGE.replace(" 9.0", " -1"), "num_requests_running is -1"),
        (PAGE.replace(" 4.0", " 1e300"), "num_requests_waiting is 1e\\+300"),
        (PAGE.replace(" 0.625", " 62.5"), "KV cache usage of .62.5. is not within 0 to 1"),
        (PAGE.replace(" 0.625", " NaN"), "is not within 0 to 1"),
        (PAGE.replace('"7464"', '"many"'), "cache_config_info has 'many' blocks"),
        (PAGE.replace('"7464"', '"' + "9" * 5000 + '"'), "cache_config_info has"),
    ],
)
def test_what_no_server_can_say_is_an_error_that_names_the_place(text: str, message: str) -> None:
    with pytest.raises(ScrapeError, match=message) as error:
        parse_metrics(text, "backend a")
    assert str(error.value).startswith("backend a")
    assert isinstance(error.value, InputError)
