from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from jaxroute.errors import InputError
from jaxroute.workload.traces import read_trace

NATIVE = "arrival_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
MOONCAKE = '{"timestamp": 0, "input_length": 1, "output_length": 1}\n'


def complaint(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        read_trace(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty; give a trace"),
        ("\n \n", "is empty; give a trace"),
        (NATIVE, "has a header but no requests"),
        (NATIVE + "0,1,2\n1,2\n", "line 3: has 2 columns, the header has 3"),
        (NATIVE + "0,1,2\n\n1,2,3,4\n", "line 4: has 4 columns, the header has 3"),
        (NATIVE + "0,1,2\nsoon,1,2\n", "line 3: arrival_s is 'soon', must be a number"),
        (NATIVE + "0,1_0,2\n", "line 2: prompt_tokens is '1_0', must be a number"),
        (NATIVE + "0,1,\n", "line 2: output_tokens is '', must be a number"),
        (NATIVE + "-0.5,1,2\n", "line 2: arrival_s is -0.5, must be a finite time >= 0"),
        (NATIVE + "0,1,2\nnan,1,2\n", "line 3: arrival_s is nan, must be a finite time"),
        (NATIVE + "inf,1,2\n", "line 2: arrival_s is inf, must be a finite time"),
        (NATIVE + "0,12.5,2\n", "line 2: prompt_tokens is 12.5, must be a whole number of tokens"),
        (NATIVE + "0,nan,2\n", "line 2: prompt_tokens is nan, must be a whole number of tokens"),
        (NATIVE + "0,1,inf\n", "line 2: output_tokens is inf, must be a whole number of tokens"),
        (NATIVE + "0,0,2\n", "line 2: prompt_tokens is 0, must be at least 1 token; correct the row or delete it"),
        (
            NATIVE + "0,1,2\n1,1,0\n",
            "line 3: output_tokens is 0, must be at least 1 token; correct the row or delete it",
        ),
        (NATIVE + "0,1,-3\n", "line 2: output_tokens is -3, must be at least 1"),
        (NATIVE + "0,2147483648,1\n", "line 2: prompt_tokens is 2147483648, must be at most 2147483647"),
        ("arrival_s,prompt_tokens,output_tokens,arrival_s\n0,1,1,2\n", "line 1: column arrival_s occurs twice"),
        (AZURE + "2023-11-16 18:17:03.9799600,1,1\n2023-02-30 00:00:00,1,1\n", "line 3: TIMESTAMP is '2023-02-30"),
        (AZURE + "12.5,1,1\n", "line 2: TIMESTAMP is '12.5', must be a UTC time such as"),
        (AZURE + "2024-05-10 00:00:00+02:00,1,1\n", "line 2: TIMESTAMP is '2024-05-10 00:00:00+02:00', must be a UTC"),
        (AZURE + "2023-11-16 18:17:03,1,0\n", "line 2: GeneratedTokens is 0, must be at least 1"),
        (BURSTGPT + "1,GPT-4,5,0,5,API log\n", "all 1 requests have 0 Response tokens"),
        (BURSTGPT + "1,GPT-4,5,0,5,API log\n2,GPT-4,5,-1,4,API log\n", "line 3: Response tokens is -1"),
        (MOONCAKE + "{broken\n", "line 2: not JSON"),
        (MOONCAKE + "[1, 2]\n", "line 2: must be a JSON object"),
        (MOONCAKE + '{"timestamp": 1, "input_length": 1}\n', "line 2: lacks output_length"),
        (
            MOONCAKE + '{"timestamp": "1", "input_length": 1, "output_length": 1}\n',
            "line 2: timestamp is '\"1\"', must be",
        ),
        (MOONCAKE + '{"timestamp": 1, "input_length": true, "output_length": 1}\n', "line 2: input_length is 'true'"),
        (MOONCAKE + '{"timestamp": NaN, "input_length": 1, "output_length": 1}\n', "line 2: timestamp is nan"),
        (MOONCAKE + '\n{"timestamp": 1, "input_length": 1, "output_length": 1e400}\n', "line 3: output_length is inf"),
        (
            MOONCAKE + '{"timestamp": 1, "input_length": 1' + "0" * 400 + ', "output_length": 1}\n',
            "line 2: input_length is",
        ),
    ],
)
def test_bad_content_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    assert expected in complaint(path)


def test_unknown_header_lists_the_accepted_ones(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time,in,out\n0,1,2\n")
    message = complaint(path)
    assert "line 1: unknown header 'time,in,out'" in message
    for column in ("arrival_s", "ContextTokens", "Response tokens", "num_decode_tokens", "input_length"):
        assert column in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ((NATIVE + "0,1,2\n").encode("utf-16"), "line 1: not UTF-8 text"),
        (NATIVE.encode() + b"0,1,2\n0,\xff,2\n", "line 3: not UTF-8 text"),
        (gzip.compress((NATIVE + "0,1,2\n").encode(), mtime=0)[:-9], "broken gzip file"),
        (b"\x1f\x8b not gzip", "broken gzip file"),
    ],
)
def test_bytes_that_are_no_text_are_named(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_bytes(content)
    assert expected in complaint(path)


def test_missing_file_folder_and_unreadable_file_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "no such file" in complaint(tmp_path / "absent.csv")
    assert "is a folder" in complaint(tmp_path)

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert re.search(r"cannot be read \(Permission denied\)", complaint(tmp_path / "trace.csv"))
