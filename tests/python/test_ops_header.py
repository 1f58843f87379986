# SPDX-License-Identifier: BSD-3-Clause
"""A header changed under an operator that has just accepted it."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

ops = torch.ops.gossamer
HEADER_BYTES = 256


def answer(packed: Tensor) -> str:
    """What `info` says of the bytes, or its refusal."""
    try:
        return ops.info(packed)
    except ValueError as error:
        return f"refused: {error}"


def answer_of_a_new_thread(packed: Tensor) -> str:
    """A thread that has not seen any packed weight yet checks the whole header."""
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(answer(packed)))
    thread.start()
    thread.join()
    return answers[0]


def test_a_header_is_checked_whenever_it_changes() -> None:
    """The operators remember headers that were in order; a remembered one excuses no other."""
    w = torch.randn(8, 16) * (torch.rand(8, 16) < 0.5)
    refused = 0
    for layout in ("bitmask", "kcsr128"):
        packed = ops.pack(w, None, "unstructured:0", layout, False, "w")
        original = answer(packed)
        for byte in range(HEADER_BYTES):
            for bit in (0, 7):
                packed[byte] ^= 1 << bit
                changed = answer(packed)
                assert changed == answer_of_a_new_thread(packed)
                assert answer(packed) == changed  # the second time too
                refused += changed.startswith("refused: ")
                packed[byte] ^= 1 << bit
                assert answer(packed) == original
    assert refused > HEADER_BYTES
    zeros = torch.zeros(HEADER_BYTES, dtype=torch.uint8)
    assert answer(zeros).startswith("refused: ")
