"""The torch models of transformers that the Flax ones are compared with; tests that need them skip without."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from jaxroute.predictor.shape import DistilBertConfig
from jaxroute.predictor.weights import Tensors

MISSING = "torch is not here: `make setup-reference` installs what the reference tests need"


def distilbert(config: DistilBertConfig, tensors: Tensors | None = None, *, seed: int = 0) -> Any:
    """A torch `DistilBertModel` with given weights, or random ones."""
    torch = _torch()
    from transformers import DistilBertConfig as TorchConfig
    from transformers import DistilBertModel

    torch.manual_seed(seed)
    sizes = TorchConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position,
        dim=config.dim,
        n_layers=config.layers,
        n_heads=config.heads,
        hidden_dim=config.hidden,
    )
    model = DistilBertModel(sizes).eval()
    if tensors is not None:
        model.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    return model


def bert(folder: str) -> Any:
    """The torch `BertModel` of a folder."""
    torch = _torch()
    from transformers import BertModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return BertModel.from_pretrained(folder, dtype=torch.float32).eval()


def states(model: Any, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[R, L, D] hidden states of the last layer."""
    torch = _torch()
    with torch.no_grad():
        output = model(torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long())
    return np.asarray(output.last_hidden_state.numpy())


def tensors_of(model: Any) -> Tensors:
    """The weights of a torch model."""
    return {name: array.numpy() for name, array in model.state_dict().items()}


def _torch() -> Any:
    # Importing it may warn of what is not installed beside it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("torch", reason=MISSING)
