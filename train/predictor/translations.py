"""Requests to translate, made of other prompts' texts: for a model that has no translations that it may be trained on.

A translation is about as long as its text times a ratio of the language (`jaxroute.predictor.languages`); the spread
about it has a standard deviation of 0.2 in the logarithm. No text and no length of any row of WMT24 is used.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from jaxroute.predictor.languages import RATIOS
from jaxroute.predictor.prompts import PromptTable

TASK, SOURCE, LENGTH_KIND = "translation", "made_translation", "made"

SPREAD = 0.2

WORDINGS = (
    "Translate the following text from English to {language}.\n\n{text}",
    "Translate the following text from English to {language}.\n\n{text}",
    "Translate this text into {language}:\n\n{text}",
    "Translate to {language}: {text}",
    "{text}\n\nTranslate the text above into {language}.",
)

MEDIAN_WORDS, WORDS_SPREAD, MOST_WORDS = 25.0, 1.0, 200
"""Words of a text: lognormal."""


def made_translations(table: PromptTable, count: int, pieces: Callable[[str], int], seed: int) -> PromptTable:
    """Requests to translate parts of the texts of a table's prompts.

    Args:
      table: rows of one split; a made row has the group and the split of the row that its text is from.
      count: rows to make.
      pieces: word pieces of a text.
      seed: of texts, languages, wordings and lengths.
    """
    rng = np.random.default_rng([seed, 0x7472616E])
    languages = list(RATIOS)
    prompts, lengths = [], []
    chosen = rng.integers(0, len(table), count)
    for number in chosen:
        text = _part(table.prompt[number], rng)
        language = languages[int(rng.integers(len(languages)))]
        wording = WORDINGS[int(rng.integers(len(WORDINGS)))]
        prompts.append(wording.format(language=language, text=text))
        tokens = RATIOS[language] * pieces(text) * np.exp(SPREAD * rng.standard_normal())
        lengths.append(max(1, round(float(tokens))))
    return PromptTable(
        prompt=tuple(prompts),
        output_tokens=np.asarray(lengths, np.int64),
        task=np.full(count, TASK),
        split=table.split[chosen],
        group=table.group[chosen],
        source=np.full(count, SOURCE),
        license=np.full(count, ""),
        length_kind=np.full(count, LENGTH_KIND),
    )


def _part(prompt: str, rng: np.random.Generator) -> str:
    """Some words on end of a prompt, without the instruction that comes before an empty line."""
    words = prompt.split("\n\n", 1)[-1].split() or ["."]
    wanted = int(np.clip(MEDIAN_WORDS * np.exp(WORDS_SPREAD * rng.standard_normal()), 1, MOST_WORDS))
    first = int(rng.integers(0, max(1, len(words) - wanted + 1)))
    return " ".join(words[first : first + wanted])
