"""The motivating search of part (d): every partition once, and what is said of the printed ones."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

from jaxroute.paper import partitions
from jaxroute.paper.partitions import PARTITIONS, PRINTED, REQUESTS, EveryPartition, Spread, partitions_remark
from views import view


def test_the_policy_goes_through_every_partition_once():
    choose = jax.jit(lambda sent: EveryPartition().choose(view(2, dispatched=sent), jax.random.key(0)))
    chosen = np.asarray(jax.vmap(choose)(np.arange(PARTITIONS * REQUESTS))).reshape(PARTITIONS, REQUESTS)
    assert (chosen[:, 0] == 0).all()
    assert len({tuple(row) for row in chosen.tolist()}) == PARTITIONS == 128


def test_the_printed_partitions_go_with_their_spikes():
    assert PRINTED.best == pytest.approx(100 * (27.03 / 29.81 - 1))
    assert (PRINTED.fewest, PRINTED.most) == (18, 40)
    assert 0.9 < PRINTED.correlation < 1


@pytest.mark.slow
def test_a_search_has_every_partition_with_its_latency_and_spikes(monkeypatch):
    monkeypatch.setattr(partitions, "PARTITIONS", 4)
    found = json.loads(json.dumps(partitions.search("prefill-first", 1_000_000)))
    assert len(found["e2e_s"]) == len(found["spikes"]) == 4
    rng = np.random.default_rng([1_000_000, 0x70617274])
    outputs = rng.integers(10, 100, (2, 8), endpoint=True)[1]
    # Alone, a request takes at least a prefill and a decode step of some 20 ms for each further token.
    assert min(found["e2e_s"]) > 0.0204 * (outputs - 1).sum()
    assert max(found["e2e_s"]) < 2 * 0.0204 * outputs.sum()
    # In the first partition all share one instance, so that prompts come between tokens.
    assert found["spikes"][0] >= max(found["spikes"]) > 0


def test_the_remark_is_made_of_the_spreads():
    text = partitions_remark({"chunked": [Spread(-1, 2, 3, 5, 0.5), Spread(-3, 2, 3, 5, 0.7)]})
    assert "4.0 % between best and worst under chunked (correlation with spikes +0.60)" in text
    assert "8 of at most 100 output tokens" in text
