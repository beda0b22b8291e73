"""Prompts to token ids and numeric features, the same in training and in service; `tokenizers` and NumPy, no jax.

A prompt becomes `[CLS] its tokens, its hint's tokens [SEP]`, at most `max_tokens` in all. A longer prompt is cut in
between, so that its hint survives: its first tokens stay, and its last `tail_tokens` (an instruction may come last).

The time is bounded whatever the prompt: of a long text only the first `CHARACTERS_PER_TOKEN * max_tokens` characters,
and as many of its end where there is a tail, are tokenised. The features then extrapolate from these by the number of
characters. Lone surrogates count as U+FFFD, NULs and other control characters as nothing, as BERT has it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import tokenizers

from jaxroute.errors import InputError
from jaxroute.predictor.hint import hint_of
from jaxroute.predictor.languages import log_ratio

CHARACTERS_PER_TOKEN = 6
"""More than the mean of English (4 to 5), so that a cut text mostly fills the tokens that there are."""

FEATURES = ("log1p(tokens) / 8", "log1p(characters) / 8", "log1p(lines) / 8", "log(translation ratio)")
"""The F numeric features of a prompt: cut prompts would lose their length. The last one is that of `languages`."""

FEATURE_SCALE = 8.0

FEWEST_TOKENS = 24
"""That `max_tokens` may be: room for the special tokens, a hint and a few words."""

START, END, UNKNOWN, PADDING = "[CLS]", "[SEP]", "[UNK]", "[PAD]"


class Encoded(NamedTuple):
    """One prompt.

    Attributes:
      tokens: [L] int32, ids, special tokens included; 2 <= L <= max_tokens.
      features: [F] float32, see `FEATURES`.
    """

    tokens: np.ndarray
    features: np.ndarray


class PromptTokenizer:
    """Encodes prompts.

    Attributes:
      content: of the `tokenizer.json`.
      max_tokens: most tokens of an encoded prompt.
      tail_tokens: tokens of a longer prompt's end that stay.
      vocab_size: ids are below it.
    """

    def __init__(self, content: str, *, max_tokens: int, tail_tokens: int = 0, place: str = "tokenizer.json") -> None:
        """Reads it.

        Args:
          content: of a `tokenizer.json` with BERT's special tokens.
          max_tokens: most tokens of an encoded prompt.
          tail_tokens: tokens of a longer prompt's end that stay.
          place: what errors call the file.

        Raises:
          InputError: no such tokenizer, or limits that leave no room.
        """
        if max_tokens < FEWEST_TOKENS or not 0 <= tail_tokens <= max_tokens // 2:
            raise InputError(
                f"{place}: max_tokens is {max_tokens}, tail_tokens {tail_tokens}; the first must be at least "
                f"{FEWEST_TOKENS}, the second at least 0 and at most half of it"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        # What the bindings raise is a bare Exception.
        except Exception as error:
            raise InputError(f"{place}: is no tokenizer that can be read ({error}); take the model's own") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._special: dict[str, int] = {}
        for name in (START, END, UNKNOWN, PADDING):
            if (number := self._tokenizer.token_to_id(name)) is None:
                raise InputError(f"{place}: knows no {name}; a tokenizer with BERT's special tokens is needed")
            self._special[name] = number
        self.content, self.max_tokens, self.tail_tokens = content, max_tokens, tail_tokens
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values())
        self._hint = lru_cache(maxsize=64)(self._hint_ids)

    @property
    def padding(self) -> int:
        """Id that fills up a batch."""
        return self._special[PADDING]

    @property
    def unknown(self) -> int:
        """Id of a token that is not in the vocabulary."""
        return self._special[UNKNOWN]

    def encode(self, prompt: str, task: str | None = None) -> Encoded:
        """Tokens and features of one prompt, with the hint of its task if one is given."""
        pieces, scale = self.pieces(prompt)
        ids = [self._tokenizer.encode(piece, add_special_tokens=False).ids for piece in pieces]
        hint = self._hint(task)
        tokens = [self._special[START], *self._cut(ids, self.max_tokens - 2 - len(hint)), *hint, self._special[END]]
        lines = sum(piece.count("\n") for piece in pieces)
        counts = (scale * sum(map(len, ids)), len(prompt), scale * lines)
        features = [*(math.log1p(count) / FEATURE_SCALE for count in counts), log_ratio(prompt)]
        return Encoded(np.asarray(tokens, np.int32), np.asarray(features, np.float32))

    def encode_all(self, prompts: Iterable[str], tasks: Iterable[str | None]) -> list[Encoded]:
        """`encode` of each prompt with its task."""
        return [self.encode(prompt, task) for prompt, task in zip(prompts, tasks, strict=True)]

    def pieces(self, prompt: str) -> tuple[list[str], float]:
        """The parts of a prompt that are tokenised, and how many times as long as they the prompt is.

        These and the number of characters are all that `encode` looks at.
        """
        most = CHARACTERS_PER_TOKEN * self.max_tokens
        if len(prompt) <= (2 * most if self.tail_tokens else most):
            pieces = [prompt]
        else:
            pieces = [prompt[:most], prompt[-most:]] if self.tail_tokens else [prompt[:most]]
        characters = sum(map(len, pieces))
        return [_well_formed(piece) for piece in pieces], len(prompt) / characters if characters else 1.0

    def _cut(self, pieces: Sequence[list[int]], most: int) -> list[int]:
        """At most `most` ids: of one piece, or of the beginning and the end of a longer prompt."""
        first, last = pieces[0], pieces[-1]
        if len(pieces) == 1 and len(first) <= most:
            return first
        tail = min(self.tail_tokens, most // 2)
        return first[: most - tail] + (last[-tail:] if tail else [])

    def _hint_ids(self, task: str | None) -> tuple[int, ...]:
        """Ids of a task's hint; the hint of an absurdly long name is cut."""
        ids = self._tokenizer.encode(_well_formed(hint_of(task)[:200]), add_special_tokens=False).ids
        return tuple(ids[: self.max_tokens // 2])


def pad(encoded: Sequence[Encoded], padding: int, *, length: int | None = None) -> tuple[np.ndarray, ...]:
    """A batch for the Flax network.

    Args:
      encoded: R prompts.
      padding: id that fills up the rows.
      length: L; by default that of the longest.

    Returns:
      tokens [R, L] int32, mask [R, L] bool, features [R, F] float32.
    """
    length = max(len(row.tokens) for row in encoded) if length is None else length
    tokens = np.full((len(encoded), length), padding, np.int32)
    mask = np.zeros((len(encoded), length), bool)
    for number, row in enumerate(encoded):
        tokens[number, : len(row.tokens)] = row.tokens
        mask[number, : len(row.tokens)] = True
    return tokens, mask, np.stack([row.features for row in encoded])


def prune(content: str, texts: Iterable[str], size: int) -> tuple[str, np.ndarray]:
    """A WordPiece tokenizer with fewer words: those that texts use most, all special tokens and single characters.

    A word that is gone falls apart into pieces that are there, so nothing of the network has to change but the rows of
    its word embedding: `embedding[kept]`.

    Args:
      content: of a `tokenizer.json` whose model is a WordPiece.
      texts: training prompts and hints, from which the uses are counted.
      size: words to keep at least; single ASCII characters and special tokens come on top if they are not among them.

    Returns:
      The content of the smaller tokenizer, whose ids are 0..V-1, and [V] int64, their ids in the larger one.

    Raises:
      InputError: another kind of tokenizer.
    """
    data = json.loads(content)
    if data.get("model", {}).get("type") != "WordPiece":
        raise InputError("tokenizer: only a WordPiece one (BERT's) can be pruned")
    vocabulary: dict[str, int] = data["model"]["vocab"]
    uses = np.zeros(1 + max(vocabulary.values()), np.int64)
    tokenizer = tokenizers.Tokenizer.from_str(content)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for text in texts:
        np.add.at(uses, tokenizer.encode(_well_formed(text), add_special_tokens=False).ids, 1)
    always = {entry["id"] for entry in data["added_tokens"]} | {
        number for word, number in vocabulary.items() if len(bare := word.removeprefix("##")) == 1 and bare.isascii()
    }
    # Of equally frequent words the first ones, which a vocabulary lists by frequency.
    frequent = np.argsort(-uses, kind="stable")[:size]
    kept = np.asarray(sorted(always | {int(number) for number in frequent if uses[number]}), np.int64)
    number_of = {int(old): new for new, old in enumerate(kept)}
    data["model"]["vocab"] = {word: number_of[old] for word, old in vocabulary.items() if old in number_of}
    for entry in data["added_tokens"]:
        entry["id"] = number_of[entry["id"]]
    data |= {"post_processor": None, "truncation": None, "padding": None}
    return json.dumps(data, ensure_ascii=False), kept


def _well_formed(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which the tokenizer cannot take."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
