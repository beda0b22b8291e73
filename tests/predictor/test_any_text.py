"""Whatever text comes, there is a bucket, and never an exception."""

from __future__ import annotations

import string

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxroute.predictor.predictor import Predictor
from tiny_predictor import TASKS, tiny_predictor

ANY_CHARACTER = st.characters(codec=None, categories=None)
TEXTS = st.one_of(
    st.text(ANY_CHARACTER, max_size=400),
    st.text(st.sampled_from("\x00\n\r\t \ud800\udfff\u200b\ufffd\u0301[]#" + string.ascii_lowercase), max_size=400),
    st.builds(lambda text, times: text * times, st.text(ANY_CHARACTER, min_size=1, max_size=9), st.integers(1, 400)),
)
NAMES = st.one_of(st.none(), st.sampled_from(TASKS), st.text(ANY_CHARACTER, max_size=20))

PREDICTORS = [Predictor(tiny_predictor(hint=hint)) for hint in ("never", "optional", "required")]


@settings(deadline=None, max_examples=200)
@given(prompts=st.lists(st.tuples(TEXTS, NAMES), min_size=1, max_size=4))
def test_every_text_gets_a_bucket(prompts: list[tuple[str, str | None]]) -> None:
    for predictor in PREDICTORS:
        for estimate in predictor.predict(prompts):
            assert 0 <= estimate.bucket < 4
            assert 0.25 - 1e-6 <= estimate.probability <= 1 + 1e-6
            assert 4 <= estimate.expected_tokens <= 400


@settings(deadline=None, max_examples=200)
@given(prompt=TEXTS, task=NAMES)
def test_no_text_has_more_tokens_than_the_network_takes(prompt: str, task: str | None) -> None:
    encoded = PREDICTORS[0].tokenizer.encode(prompt, task)
    assert 2 <= len(encoded.tokens) <= 48
    assert 0 <= encoded.tokens.min() <= encoded.tokens.max() < PREDICTORS[0].file.config.encoder.vocab_size
    assert np.isfinite(encoded.features).all()
    assert (encoded.features >= 0).all()
