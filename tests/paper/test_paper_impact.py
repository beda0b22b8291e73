"""Part (i): steps from records against the profile that made them, and what the table says of equations 1 and 2."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from fake_results import small_result, small_timeline
from jaxroute.errors import InputError
from jaxroute.leaderboard.store import Store
from jaxroute.paper import impact_fit, impact_steps
from jaxroute.paper.part import QUICK, Context
from jaxroute.policies import heuristic
from jaxroute.profiles import load_profile
from jaxroute.simulate import Fleet, simulate
from jaxroute.step_records import step_records
from jaxroute.workload.five_task import five_task
from jaxroute.workload.prediction import predict

V100 = load_profile("v100-32gb-llama2-7b")
COEFFICIENTS = V100.coefficients_ms
REQUESTS = 60


@pytest.fixture(scope="module")
def busy() -> dict:
    return json.loads(json.dumps(impact_steps.busy_steps(V100, REQUESTS, 1_000_000)))


@pytest.fixture(scope="module")
def designed() -> dict:
    return json.loads(json.dumps(impact_steps.designed_steps(V100)))


def test_the_contexts_of_every_step_give_its_time_by_the_profile():
    table = five_task(REQUESTS, 20.0, 1_000_000)
    fleet = Fleet((V100,) * 4, ("prefill-first",) * 4)
    [result] = simulate(fleet, table, predict(table, "oracle", seed=0), [heuristic("round-robin")])
    steps = step_records(result)
    decodes, single = np.flatnonzero(steps.decodes), np.flatnonzero(steps.prefills(1))
    assert len(decodes) > 500
    assert len(single) > 20
    c = COEFFICIENTS
    n, context = steps.decode_seqs[decodes], steps.resident_tokens[decodes]
    expected = np.maximum(c["W"], c["h"] + c["g"] * n) + c["d"] * context + c["e"] * n + c["v"]
    np.testing.assert_allclose(1e3 * steps.duration_s[decodes], expected, rtol=1e-4)
    for k in single:
        assert 1e3 * steps.duration_s[k] == pytest.approx(
            V100.step_ms([(int(steps.prefill_tokens[k]), 0)], []), rel=1e-4
        )
    assert steps.prefill_tokens.sum() == table.prompt_tokens.sum()
    assert steps.prefill_requests.sum() == REQUESTS


def test_steps_that_cannot_be_put_together_are_refused():
    result = dataclasses.replace(small_result(), timeline=small_timeline())
    with pytest.raises(InputError, match="were preempted; give the servers more KV cache"):
        step_records(result)
    records = dataclasses.replace(result.records, preemptions=np.zeros(4, int))
    with pytest.raises(InputError, match="both prefill and decode"):
        step_records(dataclasses.replace(result, records=records))


def test_designed_runs_give_the_slopes_of_the_profile(designed):
    for batch in designed["batches"]:
        assert batch["slope"] == pytest.approx(COEFFICIENTS["d"] / 1e3, rel=1e-3)
        assert batch["r2"] > 0.9999
        assert max(batch["x"]) == pytest.approx(impact_steps.MOST_CONTEXT, rel=0.02)
    # Beyond the flat part and with its square, a prompt costs between g and g + 2 f p more a token.
    low, high = COEFFICIENTS["g"], COEFFICIENTS["g"] + 2 * COEFFICIENTS["f"] * impact_steps.LONGEST_PROMPT
    assert low < 1e3 * designed["prompt"]["slope"] < high
    assert max(designed["prompt"]["x"]) == impact_steps.LONGEST_PROMPT


def test_only_a_reading_by_the_prompt_alone_goes_with_the_records(busy):
    fits = {
        reading.name: numbers["r2"] for reading, numbers in zip(impact_steps.READINGS, busy["readings"], strict=True)
    }
    assert max(fits, key=fits.get) == "grad1 · p"
    assert fits["grad1 · p"] > 0.9
    assert busy["readings"][0]["ratio"] > 5
    assert abs(busy["per_resident"]) < 0.01 * impact_steps.GRAD1
    assert busy["equation_2"] == {"printed": 0.0, "mended": 1.0}
    assert busy["decode_held"]["slope"] == pytest.approx(COEFFICIENTS["d"] / 1e3, rel=0.2)


def test_the_part_puts_them_beside_the_printed_gradients(busy, designed, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(impact_fit, "busy", lambda profile, requests, seed: lambda: busy)
    monkeypatch.setattr(impact_fit, "designed", lambda profile: lambda: designed)
    effort = dataclasses.replace(QUICK, seeds=2)
    findings = impact_fit.PART.run(Context(tmp_path, effort, 1_000_000, Store(tmp_path / "cache")))
    slopes, readings = findings.tables
    printed = [row.cells[0].printed for row in slopes.rows]
    assert printed[0] == 320
    assert printed[1:5] == pytest.approx([0.5] * 4)
    assert printed[-2:] == pytest.approx([33, 33])
    assert slopes.rows[0].cells[0].value.value == pytest.approx(1e6 * designed["prompt"]["slope"])
    assert slopes.rows[5].cells[0].differs is True
    assert len(readings.rows) == len(impact_steps.READINGS) + 2
    assert [picture.name for picture in findings.pictures] == ["i-impact", "i-readings"]
    assert "R² 1.0" in findings.remarks[0] or "R² 0.99" in findings.remarks[0]
    assert "grad1 · p goes with the records best" in findings.remarks[3]
    assert findings.cuts == ("500 of 2,000 requests in the busy run",)
    assert all("nan" not in remark for remark in findings.remarks)
