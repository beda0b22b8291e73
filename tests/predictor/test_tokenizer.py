"""Prompts become tokens and features: hints survive the cut, time is bounded, nothing is too odd."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import tokenizers

from jaxroute.errors import InputError
from jaxroute.predictor.hint import hint_of, known_task
from jaxroute.predictor.tokenizer import Encoded, PromptTokenizer, pad, prune
from tiny_predictor import TASKS, tokenizer_json

CONTENT = tokenizer_json()
PLAIN = tokenizers.Tokenizer.from_str(CONTENT)


def words(encoded: Encoded) -> list[str]:
    return [str(PLAIN.id_to_token(int(number))) for number in encoded.tokens]


def tokenizer(max_tokens: int = 24, tail_tokens: int = 0) -> PromptTokenizer:
    return PromptTokenizer(CONTENT, max_tokens=max_tokens, tail_tokens=tail_tokens)


def test_a_hint_is_the_papers_sentence() -> None:
    assert hint_of("qa_open") == " This is a qa open task."
    assert hint_of(None) == ""


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("qa_open", "qa_open"),
        (" QA-Open ", "qa_open"),
        ("qa open", "qa_open"),
        *((name, None) for name in ("juggling", "", None, 3, ["ner"])),
    ],
)
def test_a_task_is_known_however_it_is_written(name: object, task: str | None) -> None:
    assert known_task(name, TASKS) == task


def test_a_prompt_with_its_hint_is_what_the_text_of_both_would_be() -> None:
    encoded = tokenizer().encode("Who are you?", "qa_open")
    whole = PLAIN.encode("Who are you?" + hint_of("qa_open"), add_special_tokens=False).ids
    assert encoded.tokens[1:-1].tolist() == whole
    assert (words(encoded)[0], words(encoded)[-1]) == ("[CLS]", "[SEP]")


def test_the_hint_of_a_prompt_that_is_cut_stays_whole() -> None:
    encoded = tokenizer().encode("tell me the story " * 50, "ner")
    assert len(encoded.tokens) == 24
    assert words(encoded)[-8:] == ["this", "is", "a", "ne", "##r", "task", ".", "[SEP]"]
    assert words(encoded)[1:5] == ["tell", "me", "the", "story"]


def test_the_end_of_a_prompt_that_is_cut_stays_if_asked_for() -> None:
    for middle in (" the story" * 20, " the story" * 5000):
        encoded = tokenizer(tail_tokens=3).encode("tell me" + middle + " who are you", "ner")
        assert words(encoded)[1:3] == ["tell", "me"]
        assert words(encoded)[-11:-8] == ["who", "are", "you"]
        assert len(encoded.tokens) == 24


def test_a_prompt_that_fits_is_not_cut() -> None:
    text = " ".join(["who"] * 22)
    assert len(tokenizer(tail_tokens=4).encode(text).tokens) == 24
    assert words(tokenizer(tail_tokens=4).encode(text))[1:-1] == ["who"] * 22


def test_an_empty_prompt_is_its_special_tokens() -> None:
    encoded = tokenizer().encode("")
    assert words(encoded) == ["[CLS]", "[SEP]"]
    assert encoded.features.tolist() == [0, 0, 0, 0]


def test_nuls_and_lone_surrogates_are_dropped_and_pairs_are_one_character() -> None:
    assert words(tokenizer().encode("who\x00 \ud800are\udfff you")) == ["[CLS]", "who", "are", "you", "[SEP]"]
    pair = "\ud83d\ude00"
    assert words(tokenizer().encode(pair)) == words(tokenizer().encode("\U0001f600")) == ["[CLS]", "[UNK]", "[SEP]"]


def test_features_are_logarithms_of_tokens_characters_and_lines() -> None:
    encoded = tokenizer().encode("who are you\nwho\n")
    np.testing.assert_allclose(encoded.features[:3], [math.log1p(count) / 8 for count in (4, 16, 2)], rtol=1e-6)
    assert encoded.features.dtype == np.float32


@pytest.mark.parametrize(
    ("prompt", "ratio"),
    [
        ("Translate the text from English to Hindi.\n\nTell me.", 4.7),
        ("Translate into  german: Hindi is a language", 1.5),
        (f"{'who ' * 200}\n\nNow say that in Japanese.", 2.4),
        ("Is Hindi spoken here?", 1.0),
        ("Move on to Germanic tribes", 1.0),
        ("", 1.0),
    ],
)
def test_the_language_to_translate_into_is_a_feature(prompt: str, ratio: float) -> None:
    assert tokenizer().encode(prompt).features[3] == pytest.approx(math.log(ratio))


def test_the_hint_does_not_count_as_prompt() -> None:
    plain, hinted = (tokenizer().encode("who are you", task).features for task in (None, "ner"))
    np.testing.assert_array_equal(plain, hinted)


@pytest.mark.parametrize("tail_tokens", [0, 8])
def test_a_long_prompts_tokens_are_estimated_from_the_part_that_is_read(tail_tokens: int) -> None:
    line = "who are you\n"
    encoded = tokenizer(tail_tokens=tail_tokens).encode(line * 10_000)
    np.testing.assert_allclose(np.expm1(8 * encoded.features[:3]), [30_000, 120_000, 10_000], rtol=0.01)


def test_only_a_bounded_part_of_a_prompt_is_read() -> None:
    pieces, scale = tokenizer().pieces("x" * 100_000)
    assert sum(map(len, pieces)) == 6 * 24
    assert scale == pytest.approx(100_000 / (6 * 24))
    pieces, _ = tokenizer(tail_tokens=8).pieces("x" * 99_999 + "y")
    assert [len(piece) for piece in pieces] == [6 * 24] * 2
    assert pieces[1].endswith("y")


def test_a_batch_is_padded_and_masked() -> None:
    encode = tokenizer()
    rows = encode.encode_all(["who", "who are you"], [None, "ner"])
    tokens, mask, features = pad(rows, encode.padding)
    assert tokens.shape == mask.shape == (2, len(rows[1].tokens))
    assert mask.sum(axis=1).tolist() == [3, len(rows[1].tokens)]
    assert set(tokens[~mask].tolist()) == {encode.padding}
    assert features.shape == (2, 4)
    assert pad(rows, encode.padding, length=24)[0].shape == (2, 24)


def test_a_smaller_vocabulary_keeps_what_is_used_and_spells_the_rest() -> None:
    smaller, kept = prune(CONTENT, ["tell me the story", "tell me who"], 3)
    number_of, old = json.loads(smaller)["model"]["vocab"], json.loads(CONTENT)["model"]["vocab"]
    assert sorted(number_of.values()) == list(range(len(kept)))
    assert all(kept[number] == old[word] for word, number in number_of.items())
    assert {"tell", "me", "[CLS]", "[SEP]", "[UNK]", "[PAD]", "a", "##z", "7", "?"} <= number_of.keys()
    assert "story" not in number_of
    pruned = PromptTokenizer(smaller, max_tokens=24)
    again = tokenizers.Tokenizer.from_str(smaller)
    spelt = [again.id_to_token(int(number)) for number in pruned.encode("tell open").tokens]
    assert spelt == ["[CLS]", "tell", "o", "##p", "##e", "##n", "[SEP]"]
    assert pruned.vocab_size == len(kept)


def test_what_is_no_tokenizer_is_one_line() -> None:
    with pytest.raises(InputError, match=r"^my.json: is no tokenizer that can be read \("):
        PromptTokenizer("{}", max_tokens=24, place="my.json")
    data = json.loads(CONTENT)
    data["added_tokens"] = []
    del data["model"]["vocab"]["[SEP]"]
    with pytest.raises(InputError, match=r"knows no \[SEP\]"):
        PromptTokenizer(json.dumps(data), max_tokens=24)
    with pytest.raises(InputError, match="max_tokens is 23"):
        tokenizer(max_tokens=23)
    with pytest.raises(InputError, match="tail_tokens 13"):
        tokenizer(tail_tokens=13)
    with pytest.raises(InputError, match="only a WordPiece one"):
        prune(json.dumps({"model": {"type": "BPE"}}), [], 10)
