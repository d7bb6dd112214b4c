"""Frozen sentence encoders in a folder of the Hugging Face layout: BERT by `nets.bert`, others by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .. import schema
from ..errors import SfumatoError
from ..files import first_line
from ..nets.bert import Bert
from .wordpiece import WordPiece

# What an encoder is: configs, weights, vocabularies.
FILES = (
    "config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json", "spiece.model",
    "vocab.json", "merges.txt",
)  # fmt: skip


class Reader(Protocol):
    """An encoder that is loaded. size: numbers of a vector."""

    size: int

    def count(self, text: str, most: int) -> int:
        """The number of tokens of a text, at most `most`."""

    def embed(self, texts: Sequence[str], length: int) -> Tensor:
        """(n, 1 + length, size): the vector of each text, the mean of its tokens, then these; all of mean square 1."""


@lru_cache(4)
def reader_of(folder: Path) -> Reader:
    """The encoder in a folder. Raises SfumatoError for one that cannot be read."""
    config = schema.json_of((folder / "config.json").read_bytes(), folder / "config.json")
    kind = config.get("model_type") if isinstance(config, dict) else None
    try:
        return (
            _Bert(folder, config) if kind == "bert" and (folder / "vocab.txt").is_file() else _Other(folder, str(kind))
        )
    except SfumatoError:
        raise
    except Exception as error:  # transformers raises many kinds
        raise SfumatoError(f"the text encoder in {folder} cannot be read: {first_line(error)}") from None


def _laid_out(states: Tensor, mask: Tensor, length: int) -> Tensor:
    """States (n, L, d) of the tokens in a mask, bool (n, L), with the vector of each text in front."""
    states = states.float() * mask[:, :, None]
    vectors = torch.cat([states.sum(1, keepdim=True), states], dim=1)[:, : 1 + length]
    norm = vectors.norm(dim=2, keepdim=True).clamp_min(1e-12)
    found = torch.zeros(len(states), 1 + length, states.shape[2])
    found[:, : vectors.shape[1]] = vectors / norm * states.shape[2] ** 0.5 * (norm > 1e-12)
    return found


class _Bert:
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.size = int(config["hidden_size"])
        self.pieces = WordPiece((folder / "vocab.txt").read_text("utf-8"))
        with torch.device("meta"):
            net = Bert(config)
        self.net = net.to_empty(device="cpu").read(load_file(folder / "model.safetensors"))

    def count(self, text: str, most: int) -> int:
        return len(self.pieces(text, most))

    def embed(self, texts: Sequence[str], length: int) -> Tensor:
        rows = [torch.tensor(self.pieces(text, length)) for text in texts]
        mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
        with torch.inference_mode():
            states = self.net(pad_sequence(rows, batch_first=True), mask)
        return _laid_out(states.clone(), mask, length)


class _Other:
    """T5, CLIP and other encoders of transformers."""

    def __init__(self, folder: Path, kind: str) -> None:
        try:
            import transformers
        except ImportError:
            raise SfumatoError(
                f"the text encoder in {folder} is a {kind}, which transformers reads: pip install 'sfumato[encoders]'"
            ) from None
        classes = {"t5": "T5EncoderModel", "clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel"}
        maker = getattr(transformers, classes.get(kind, "AutoModel"))
        self.net = (
            maker.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval().requires_grad_(False)
        )
        self.tokens = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.size = int(self.net.config.hidden_size)

    def count(self, text: str, most: int) -> int:
        return len(self.tokens(text, truncation=True, max_length=most)["input_ids"])

    def embed(self, texts: Sequence[str], length: int) -> Tensor:
        found = self.tokens(list(texts), truncation=True, max_length=length, padding=True, return_tensors="pt")
        with torch.inference_mode():
            states = self.net(input_ids=found["input_ids"], attention_mask=found["attention_mask"]).last_hidden_state
        return _laid_out(states.clone(), found["attention_mask"].bool(), length)
