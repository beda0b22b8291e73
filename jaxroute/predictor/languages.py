"""How much longer a translation is than its text: a feature of prompts, since cut prompts hide it from the tokens.

The ratios are Llama-2's tokens of a translation over BERT's word pieces of its English text, medians over the training
rows of WMT24 (answers of Llama-3-70B), rounded to one decimal. Languages that are not here count as none.
"""

from __future__ import annotations

import math
import re

RATIOS = {
    "Czech": 1.8,
    "German": 1.5,
    "Spanish": 1.5,
    "Hindi": 4.7,
    "Icelandic": 2.1,
    "Japanese": 2.4,
    "Russian": 1.7,
    "Ukrainian": 1.8,
    "Chinese": 2.0,
}
"""Tokens of a translation for each word piece of the text, by language."""

SEEN_CHARACTERS = 300
"""Of the beginning and of the end of a prompt, in which the language is looked for."""

_NAMED = re.compile(rf"\b(?:to|into|in)\s+({'|'.join(RATIOS)})\b", re.IGNORECASE)
_LOG_RATIOS = {language.lower(): math.log(ratio) for language, ratio in RATIOS.items()}


def log_ratio(prompt: str) -> float:
    """Logarithm of the ratio of the first language that a prompt names behind to, into or in; 0 where it names none."""
    named = _NAMED.search(prompt[:SEEN_CHARACTERS]) or _NAMED.search(prompt[-SEEN_CHARACTERS:])
    return 0.0 if named is None else _LOG_RATIOS[named[1].lower()]
