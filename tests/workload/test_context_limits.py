from __future__ import annotations

import pytest

from jaxroute.errors import InputError
from jaxroute.workload.limits import fit_to_context
from jaxroute.workload.table import RequestTable


@pytest.fixture
def table() -> RequestTable:
    """Of 100 tokens of context: fits exactly, one over, prompt far over, output alone over."""
    return RequestTable.create([0, 1, 2, 3], [60, 61, 900, 5], [40, 40, 30, 200], name="mixed.csv")


def test_clip_cuts_the_prompt_and_the_output_only_where_it_must(table: RequestTable) -> None:
    clipped, report = fit_to_context(table, 100, "clip")
    assert clipped.prompt_tokens.tolist() == [60, 60, 70, 1]
    assert clipped.output_tokens.tolist() == [40, 40, 30, 99]
    assert (report.total, report.clipped, report.dropped, report.changed) == (4, 3, 0, True)
    assert report.text == "clipped 3 of 4 requests (75.0%) with prompt + output over 100 tokens"


def test_drop_leaves_out_what_does_not_fit_and_keeps_arrivals(table: RequestTable) -> None:
    kept, report = fit_to_context(table, 101, "drop")
    assert kept.request_id.tolist() == [0, 1]
    assert kept.arrival_s.tolist() == [0, 1]
    assert (report.total, report.clipped, report.dropped) == (4, 0, 2)
    assert report.text == "dropped 2 of 4 requests (50.0%) with prompt + output over 101 tokens"


def test_error_names_the_first_row_and_the_remedies(table: RequestTable) -> None:
    with pytest.raises(
        InputError, match=r"mixed.csv: row 1 .*61 prompt \+ 40 output.*max_model_len = 100 \(3 requests"
    ):
        fit_to_context(table, 100, "error")
    with pytest.raises(InputError, match=r"--overlong clip .* --overlong drop"):
        fit_to_context(table, 100, "error")


@pytest.mark.parametrize("mode", ["error", "clip", "drop"])
def test_a_table_that_fits_is_unchanged(table: RequestTable, mode: str) -> None:
    same, report = fit_to_context(table, 930, mode)
    assert same is table
    assert not report.changed
    assert report.text == "all 4 requests fit: none has prompt + output over 930 tokens"


def test_dropping_everything_is_an_error(table: RequestTable) -> None:
    with pytest.raises(InputError, match=r"mixed.csv: all 4 requests .* use --overlong clip"):
        fit_to_context(table, 50, "drop")


def test_smallest_context_holds_one_prompt_and_one_output_token(table: RequestTable) -> None:
    clipped, _ = fit_to_context(table, 2, "clip")
    assert clipped.prompt_tokens.tolist() == clipped.output_tokens.tolist() == [1, 1, 1, 1]
    with pytest.raises(InputError, match="max_model_len is 1, must be at least 2"):
        fit_to_context(table, 1, "clip")


def test_unknown_mode_lists_the_known_ones(table: RequestTable) -> None:
    with pytest.raises(InputError, match=r"'cut' .* known: error, clip, drop"):
        fit_to_context(table, 100, "cut")
