"""The model that the engines serve: a Llama as small as can be, with random weights, and a tokenizer made here."""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from jaxroute.errors import InputError, first_line
from jaxroute.whole_folder import write_folder

NAME = "testbed"
"""What the API calls the model."""

VOCABULARY = 4096
LONGEST = 131_072
END = "<|end|>"
TURN = "<|turn|>"
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": LONGEST,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 0,
}
KV_BYTES = 2 * 64 * 2
"""Of one token: key and value, 64 numbers of two bytes each."""

CHAT_TEMPLATE = (
    f"{{% for message in messages %}}{TURN}{{{{ message['role'] }}}}\n{{{{ message['content'] }}}}{END}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{TURN}assistant\n{{% endif %}}"
)
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "bos_token": TURN,
    "model_max_length": LONGEST,
    "clean_up_tokenization_spaces": False,
    "chat_template": CHAT_TEMPLATE,
}
TEXT_FILES = 250
"""Files of the standard library that the tokenizer is trained on."""


def model_folder(cache: Path | None = None) -> Path:
    """The model's folder, which transformers and vLLM load; made when it is not there yet.

    Args:
      cache: folder to keep it in; None for the user's cache.

    Raises:
      InputError: the cache cannot be written.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxroute" / "testbed"
    recipe = json.dumps([CONFIG, TOKENIZER_CONFIG, TEXT_FILES], sort_keys=True)
    folder = cache / f"nano-llama-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    if not folder.is_dir():
        try:
            write_folder(_files(), folder)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({first_line(error)}); set XDG_CACHE_HOME") from error
    return folder


def _files() -> dict[str, bytes]:
    return {
        "config.json": json.dumps(CONFIG, indent=2).encode(),
        "tokenizer_config.json": json.dumps(TOKENIZER_CONFIG, indent=2).encode(),
        "tokenizer.json": _trained_tokenizer().encode(),
    }


def _trained_tokenizer() -> str:
    """A byte-level BPE of `VOCABULARY` tokens, as the JSON of tokenizers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END, TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(), trainer)
    return str(tokenizer.to_str())


def _text() -> Iterator[str]:
    """Python's own standard library: text that every machine has."""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:TEXT_FILES]:
        yield path.read_text(encoding="utf-8", errors="ignore")
