"""A predictor with random weights and a handful of words, and the folder of one."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np

from jaxroute.predictor.buckets import Buckets
from jaxroute.predictor.confusion import Confusion
from jaxroute.predictor.folder import write_predictor
from jaxroute.predictor.predictor_file import PredictorFile
from jaxroute.predictor.shape import DistilBertConfig, Pooling, PredictorConfig, predictor_shapes
from jaxroute.predictor.tokenizer import FEATURES

TASKS = ("qa_open", "ner", "chat")
WORDS = (
    "this",
    "is",
    "a",
    "task",
    "qa",
    "open",
    "ne",
    "##r",
    "chat",
    "who",
    "are",
    "you",
    "the",
    "story",
    "tell",
    "me",
)
BUCKETS = Buckets("quantile-4", (1, 10, 50, 200), (4, 25, 100, 400), (9, 49, 199, 900))


def tokenizer_json() -> str:
    """A WordPiece tokenizer of BERT's kind."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    characters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = dict.fromkeys([*special, *characters, *(f"##{character}" for character in characters), *WORDS])
    vocabulary = {word: number for number, word in enumerate(words)}
    added = [
        {"id": vocabulary[word], "content": word, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for word in special
    ]
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}
    model = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##"}
    return json.dumps(
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": normalizer | {"strip_accents": None},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": None,
            "decoder": None,
            "model": model | {"max_input_chars_per_word": 100, "vocab": vocabulary},
        }
    )


def tiny_predictor(
    *, hint: str = "optional", tasks: bool = True, pooling: Pooling = "mean", head_hidden: int = 8, seed: int = 0
) -> PredictorFile:
    """A predictor of four buckets and three tasks with random weights."""
    tokenizer = tokenizer_json()
    config = PredictorConfig(
        DistilBertConfig(len(json.loads(tokenizer)["model"]["vocab"]), 48, 16, 2, 2, 32),
        buckets=len(BUCKETS),
        tasks=len(TASKS) if tasks else 0,
        features=len(FEATURES),
        pooling=pooling,
        head_hidden=head_hidden,
    )
    rng = np.random.default_rng(seed)
    return PredictorFile(
        name="tiny",
        config=config,
        buckets=BUCKETS,
        tasks=TASKS,
        hint=hint,
        max_tokens=48,
        tail_tokens=8,
        majority=1,
        task_majority=(2, 0, 3),
        confusion=tiny_confusion(),
        training={"rows": 10, "seed": seed},
        weights={
            name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in predictor_shapes(config).items()
        },
        tokenizer=tokenizer,
    )


def tiny_confusion() -> Confusion:
    """Three in four right; of `ner` the long buckets were never seen, and `chat` is always one bucket too high."""
    right = 60 * np.eye(4, dtype=np.int64)
    near = 20 * (np.eye(4, k=1, dtype=np.int64) + np.eye(4, k=-1, dtype=np.int64))
    short = np.zeros((4, 4), np.int64)
    short[0] = (9, 1, 0, 0)
    high = 10 * np.eye(4, k=1, dtype=np.int64)
    high[3, 3] = 10
    by_task = np.stack([right + near, short, high])
    return Confusion(by_task.sum(axis=0), by_task)


def tiny_folder(path: Path, **options: object) -> Path:
    """The folder of a tiny predictor."""
    write_predictor(tiny_predictor(**options), path)  # type: ignore[arg-type]
    return path
