# SPDX-License-Identifier: BSD-3-Clause
"""Transformer blocks of plain torch, in the shapes of Llama 3 8B and ViT-L, and 2:4 copies of them.

Only the linear layers matter here; attention is torch's own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Case", "LlamaBlock", "VitBlock", "block_cases", "pruned_24"]


class LlamaBlock(nn.Module):
    """Grouped-query attention over a cache of keys and values, then a gated feed-forward layer."""

    keys: Tensor
    values: Tensor

    def __init__(
        self, batch: int, context: int, hidden: int, heads: int, cached_heads: int, feed: int
    ) -> None:
        """A block with room for `context` positions of `batch` sequences.

        Args:
            batch: sequences.
            context: positions that are attended to; the last ones are those of the call.
            hidden: features of a token.
            heads: of the queries.
            cached_heads: of keys and values; divides `heads`.
            feed: features of the feed-forward layer.
        """
        super().__init__()
        self.heads, self.cached_heads, self.size = heads, cached_heads, hidden // heads
        cached = cached_heads * self.size
        self.norm, self.feed_norm = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.query = nn.Linear(hidden, hidden, bias=False)
        self.key = nn.Linear(hidden, cached, bias=False)
        self.value = nn.Linear(hidden, cached, bias=False)
        self.out = nn.Linear(hidden, hidden, bias=False)
        self.gate = nn.Linear(hidden, feed, bias=False)
        self.up = nn.Linear(hidden, feed, bias=False)
        self.down = nn.Linear(feed, hidden, bias=False)
        cache = torch.randn(2, batch, cached_heads, context, self.size)
        self.register_buffer("keys", cache[0].clone())
        self.register_buffer("values", cache[1].clone())

    def _split(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, self.size)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, hidden] to the same; the tokens are the last of the context."""
        tokens = x.shape[1]
        h = self.norm(x)
        q = self._split(self.query(h), self.heads)
        self.keys[:, :, -tokens:] = self._split(self.key(h), self.cached_heads)
        self.values[:, :, -tokens:] = self._split(self.value(h), self.cached_heads)
        # A prompt fills its context; a single token sees all of it.
        y = F.scaled_dot_product_attention(
            q, self.keys, self.values, is_causal=tokens > 1, enable_gqa=True
        )
        x = x + self.out(y.transpose(1, 2).flatten(2))
        h = self.feed_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class VitBlock(nn.Module):
    """Attention over all tokens of an image, then two layers with GELU between them."""

    def __init__(self, hidden: int, heads: int, feed: int) -> None:
        """A block of `hidden` features with `heads` heads and `feed` features between the two."""
        super().__init__()
        self.heads = heads
        self.norm, self.feed_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, feed), nn.Linear(feed, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[images, tokens, hidden] to the same."""
        qkv = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        y = F.scaled_dot_product_attention(*qkv.unbind(2))
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.feed_norm(x))))


@dataclass(frozen=True)
class Case:
    """A block and the shape of its input, [batch, tokens, hidden]."""

    name: str
    make: Callable[[], nn.Module]
    batch: int
    tokens: int
    hidden: int

    def __str__(self) -> str:
        """The name, the number of sequences and the tokens of each."""
        return f"{self.name} {self.batch}x{self.tokens}"


def block_cases(quick: bool) -> list[Case]:
    """Llama 3 8B with a context of 2048 (a prompt; one token of 1 to 64 sequences) and ViT-L/16."""
    vit = partial(VitBlock, 1024, 16, 4096)

    def llama(name: str, batch: int, tokens: int) -> Case:
        return Case(name, partial(LlamaBlock, batch, 2048, 4096, 32, 8, 14336), batch, tokens, 4096)

    cases = [llama("llama8b-prefill", 1, 2048), llama("llama8b-decode", 16, 1)]
    cases += [Case("vit-l", vit, 32, 197, 1024)]
    if not quick:
        cases += [llama("llama8b-decode", batch, 1) for batch in (1, 64)]
        cases += [llama("llama8b-prefill", 4, 2048), Case("vit-l", vit, 1, 197, 1024)]
    return cases


@torch.no_grad()
def pruned_24(block: nn.Module) -> nn.Module:
    """A copy whose linear layers keep the two largest of every four inputs."""
    block = copy.deepcopy(block)
    for layer in block.modules():
        if isinstance(layer, nn.Linear):
            mask = torch.ops.gossamer.magnitude_mask(layer.weight, "2:4", "tensor")
            layer.weight.copy_(torch.where(mask, layer.weight, 0.0))
    return block
