import dataclasses
import io

import pytest
from rich.console import Console

from fake_results import one_token_result, small_result
from jaxroute import metrics, report
from jaxroute.errors import InputError

NAMES = (
    "random",
    "round-robin",
    "join-shortest-queue",
    "fewest-outstanding-tokens",
    "power-of-two",
    "least-kv",
    "vllm-dp",
    "lmetric",
    "min-min",
    "max-capacity",
    "dedicated-small-large",
    "decode-balancer",
    "gated-central-queue",
    "fewest-outstanding-tokens+spf",
)


def summary(policy, **changes):
    return dataclasses.replace(metrics.summarise(small_result(policy)), **changes)


def rendered(summaries, width=120):
    console = Console(width=width, file=io.StringIO())
    console.print(report.comparison_table(summaries))
    return console.file.getvalue()


def highlighted(summaries):
    """{(header, policy)} of the highlighted cells of the first two tables."""
    found = set()
    for table in report.comparison_table(summaries).renderables[:2]:
        policies = [cell.plain for cell in list(table.columns[0].cells)[-len(summaries) :]]
        for column in table.columns[1:]:
            for policy, cell in zip(policies, list(column.cells)[-len(summaries) :], strict=True):
                if cell.style == report.BEST_STYLE:
                    found.add((column.header.replace("\n", " ").strip(), policy))
    return found


def test_table_shows_every_number_of_a_run_worked_out_by_hand():
    lines = [line.split() for line in rendered([summary("round-robin")]).splitlines()]
    latency, fleet = (line for line in lines if line[:1] == ["round-robin"])
    assert latency[1:] == ["3.938", "+0.0", "3.500", "6.900", "7.380", "1.688", "+0.0", "2.470", "1000.0", "1970.0"]
    assert fleet[1:] == ["0.375", "0.312", "8.000", "+0.0", "3", "700", "1.394"]


def test_changes_are_against_round_robin_where_it_is_among_the_policies():
    rows = [summary("random", e2e_mean_s=3.0, ttft_mean_s=1.0, makespan_s=10.0)]
    rows.append(summary("round-robin", e2e_mean_s=4.0, ttft_mean_s=0.5, makespan_s=8.0))
    text = rendered(rows)
    latency, fleet, changes = (line.split() for line in text.splitlines() if line.strip().startswith("random"))
    assert (latency[2], latency[7], fleet[4]) == ("-25.0", "+100.0", "+25.0")
    assert (changes[1], changes[5], changes[11]) == ("-25.0", "+100.0", "+25.0")
    assert "its left against round-robin" in text


def test_changes_are_against_the_first_policy_without_round_robin():
    rows = [summary("lmetric", e2e_mean_s=4.0), summary("random", e2e_mean_s=5.0)]
    text = rendered(rows)
    assert next(line.split()[2] for line in text.splitlines() if line.strip().startswith("random")) == "+25.0"
    assert "its left against lmetric" in text


def test_lowest_value_of_each_column_is_highlighted_and_nothing_where_all_are_equal():
    rows = [summary("round-robin"), summary("random", e2e_mean_s=3.0, preemptions=9), summary("lmetric", e2e_p99_s=9.0)]
    assert highlighted(rows) == {
        ("E2E mean s", "random"),
        ("E2E Δ %", "random"),
        ("E2E p99 s", "round-robin"),
        ("E2E p99 s", "random"),
        ("preemptions", "round-robin"),
        ("preemptions", "lmetric"),
    }


def test_the_third_table_gives_every_number_against_round_robin_in_percent():
    rows = [summary("round-robin"), summary("random", e2e_p50_s=7.0, preemptions=6, makespan_s=6.0)]
    changes = report.comparison_table(rows).renderables[2]
    assert changes.title == "each against round-robin, %"
    values = {
        column.header.replace("\n", " "): [cell.plain for cell in column.cells][-2:] for column in changes.columns
    }
    assert len(values) == 15
    assert values["E2E p50"] == ["+0.0", "+100.0"]
    assert values["pre- empt."] == ["+0.0", "+100.0"]
    assert values["make- span"] == ["+0.0", "-25.0"]
    assert values["E2E mean"] == ["+0.0", "+0.0"]
    assert len(report.comparison_table(rows[:1]).renderables) == 2


def test_values_that_read_the_same_are_equally_good():
    rows = [summary("round-robin", e2e_mean_s=3.00012), summary("random", e2e_mean_s=3.00011), summary("lmetric")]
    best = {policy for header, policy in highlighted(rows) if header == "E2E mean s"}
    assert best == {"round-robin", "random"}


def test_tbt_that_does_not_exist_is_a_dash_and_never_the_best():
    absent = dataclasses.replace(metrics.summarise(one_token_result()), policy="random")
    assert next(line for line in rendered([absent]).splitlines() if "random" in line).split()[-2:] == ["-", "-"]
    rows = [absent, summary("lmetric", tbt_mean_s=0.2), summary("min-min", tbt_mean_s=0.1)]
    assert {policy for header, policy in highlighted(rows) if header == "TBT mean ms"} == {"min-min"}


@pytest.mark.parametrize("width", [120, 140])
def test_all_policies_and_overload_sized_numbers_fit_the_terminal_uncut(width):
    large = {"e2e_mean_s": 12_345.6, "e2e_p50_s": 9_999.9, "e2e_p95_s": 99_999.0, "e2e_p99_s": 99_999.0}
    large |= {"ttft_mean_s": 12_345.0, "ttft_p99_s": 99_999.0, "tbt_mean_s": 9.9, "tbt_p99_s": 99.0}
    large |= {"makespan_s": 99_999.0, "preemptions": 123_456, "recomputed_tokens": 123_456_789}
    text = rendered([summary(name, **large) for name in NAMES], width)
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    # In the third and widest table the longest name, with a suffix, may be folded.
    assert min(text.count(f"\n {name} ") for name in NAMES) >= 2
    assert sum(text.count(f"\n {name} ") for name in NAMES) >= 3 * len(NAMES) - 1
    assert text.count("123,456,789") == len(NAMES)


def test_a_policy_name_too_long_for_the_terminal_is_folded_and_no_number_is_cut():
    text = rendered([summary("runs/" + "very-long-" * 8 + "name")])
    assert "…" not in text
    assert "1970.0" in text


def test_a_policy_name_in_brackets_is_shown_as_it_is():
    assert "[bold]x" in rendered([summary("[bold]x")])


def test_markdown_table_has_a_row_per_policy_and_the_best_in_bold():
    text = report.markdown_table([summary("round-robin"), summary("random", e2e_mean_s=3.15)])
    latency, fleet, note = text.split("\n\n")
    assert latency.splitlines() == [
        "| policy | E2E mean s | E2E Δ % | E2E p50 s | E2E p95 s | E2E p99 s"
        " | TTFT mean s | TTFT Δ % | TTFT p99 s | TBT mean ms | TBT p99 ms |",
        "| --- |" + " --: |" * 10,
        "| round-robin | 3.938 | +0.0 | 3.500 | 6.900 | 7.380 | 1.688 | +0.0 | 2.470 | 1000.0 | 1970.0 |",
        "| random | **3.150** | **-20.0** | 3.500 | 6.900 | 7.380 | 1.688 | +0.0 | 2.470 | 1000.0 | 1970.0 |",
    ]
    assert fleet.splitlines()[0] == (
        "| policy | router wait mean s | instance wait mean s | makespan s | makespan Δ % | preemptions"
        " | recomputed tokens | imbalance max / mean |"
    )
    assert note == "Δ: change of the column to its left against round-robin; the best of each column is in bold.\n"


def test_runs_of_different_workloads_are_not_compared():
    with pytest.raises(InputError, match="one workload, not over large, small"):
        report.comparison_table([summary("random"), summary("lmetric", workload="large")])
    with pytest.raises(InputError, match="nothing to compare"):
        report.markdown_table([])
