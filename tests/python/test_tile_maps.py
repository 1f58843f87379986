# SPDX-License-Identifier: BSD-3-Clause
"""The tiles of 2:4 weights as a sparse tensor core reads them, lane by lane, emulated on the CPU.

What is emulated is the PTX ISA's: the swizzles of shared memory, ldmatrix, the fragments of mma.sp
and the metadata of mma.sp and wgmma.mma_async.sp. The addresses are those that the kernels form.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gossamer  # noqa: F401  (loads the operators)

ROWS = 64
HEADER_BYTES = 256
TYPES = {2: torch.bfloat16, 1: torch.int8}
TOKENS = 8


class Tile:
    """One tile of a 2:4 weight of small integers, and X for it."""

    def __init__(self, element_bytes: int) -> None:
        generator = np.random.default_rng(7)
        self.element_bytes = element_bytes
        self.inputs = 128 // element_bytes
        w = generator.integers(1, 9, (ROWS, self.inputs // 4, 4))
        order = generator.random(w.shape).argsort(-1)
        w[order >= 2] = 0
        # Groups with one non-zero and with none, at every position.
        for position in range(4):
            w[position, 3] = 0
            w[position, 3, position] = 5
        w[9, 2] = 0
        self.w = w.reshape(ROWS, self.inputs)
        self.x = generator.integers(-4, 5, (TOKENS, self.inputs))
        dtype = TYPES[element_bytes]
        values = torch.from_numpy(self.w).to(dtype)
        packed = torch.ops.gossamer.pack(values, None, "2:4", "nm24_tiles", False, "w")
        self.bytes = packed.numpy()[HEADER_BYTES:]
        # A token is 128 bytes; 16-byte chunk c of token t lies at c ^ t % 8 (128-byte swizzle).
        raw = torch.from_numpy(self.x).to(dtype).view(torch.uint8).numpy().reshape(TOKENS, 8, 16)
        self.x_bytes = np.zeros(TOKENS * 128, dtype=np.uint8)
        for token in range(TOKENS):
            for chunk in range(8):
                start = token * 128 + (chunk ^ token % 8) * 16
                self.x_bytes[start : start + 16] = raw[token, chunk]

    def decode(self, raw: np.ndarray) -> list[int]:
        """Bytes as this tile's numbers."""
        tensor = torch.from_numpy(raw.copy()).view(TYPES[self.element_bytes])
        return [int(v) for v in tensor.float()]

    def word(self, index: int) -> int:
        """A word of metadata."""
        start = ROWS * 64 + index * 4
        return int(self.bytes[start : start + 4].view(np.uint32)[0])


def lane_metadata(
    words: list[int], element_bytes: int, selector: int
) -> dict[tuple[int, int], int]:
    """The nibble of (row of 16, group) that 32 lanes' operands mean to the instruction."""
    nibbles = {}
    for lane, word in enumerate(words):
        g, q = divmod(lane, 4)
        for i in range(8):
            nibble = word >> (4 * i) & 15
            if element_bytes == 2:
                if q // 2 == selector:  # the other pair of lanes is not looked at
                    nibbles[g + 8 * (i // 4), 4 * (q % 2) + i % 4] = nibble
            else:
                nibbles[g + 8 * (q % 2), 8 * (q // 2) + i] = nibble
    return nibbles


def expand(
    stored: dict[tuple[int, int], int], nibbles: dict[tuple[int, int], int], inputs: int
) -> np.ndarray:
    """The dense 16 rows that kept values and nibbles stand for."""
    dense = np.zeros((16, inputs), dtype=np.int64)
    for (row, group), nibble in nibbles.items():
        first, second = nibble & 3, nibble >> 2
        assert first < second, "metadata must name ascending positions"
        dense[row, 4 * group + first] += stored[row, 2 * group]
        dense[row, 4 * group + second] += stored[row, 2 * group + 1]
    return dense


def load_matrices(memory: np.ndarray, addresses: list[int]) -> list[list[np.ndarray]]:
    """ldmatrix.x4: register i of lane t is word t % 4 of the row that lane 8·i + t / 4 names."""
    registers = []
    for i in range(4):
        rows = [addresses[8 * i + t // 4] + 4 * (t % 4) for t in range(32)]
        registers.append([memory[start : start + 4] for start in rows])
    return registers


@pytest.mark.parametrize("element_bytes", [2, 1])
def test_wgmma_reads_the_weight_out_of_a_tile(element_bytes: int) -> None:
    tile = Tile(element_bytes)
    half_inputs = tile.inputs // 2
    for half in range(2):
        for warp in range(4):
            # 16-bit: one word a lane and the selector; 8-bit: a word for each half, selector 0.
            base = 0 if element_bytes == 2 else 128 * half
            words = [tile.word(base + 32 * warp + lane) for lane in range(32)]
            nibbles = lane_metadata(words, element_bytes, half if element_bytes == 2 else 0)
            stored = {}
            for row in range(16):
                raw = []
                for byte in range(32):
                    # The descriptor's start advances by 32 bytes; the engine swizzles addresses.
                    address = (16 * warp + row) * 64 + 32 * half + byte
                    raw.append(tile.bytes[address ^ (address >> 7 & 3) << 4])
                for slot, value in enumerate(tile.decode(np.array(raw, dtype=np.uint8))):
                    stored[row, slot] = value
            dense = expand(stored, nibbles, half_inputs)
            expected = tile.w[16 * warp : 16 * warp + 16, half_inputs * half :][:, :half_inputs]
            assert np.array_equal(dense, expected)


@pytest.mark.parametrize("element_bytes", [2, 1])
def test_mma_computes_the_product_out_of_a_tile(element_bytes: int) -> None:
    """The addresses are those of src/cuda/sm80/sm80_mma_sp24.cuh."""
    tile = Tile(element_bytes)
    half_inputs = tile.inputs // 2
    per_word = 4 // element_bytes
    y = np.zeros((ROWS, TOKENS), dtype=np.int64)
    for fragment in range(4):
        for half in range(2):
            rows = [fragment * 16 + lane % 16 for lane in range(32)]
            chunks = [half * 2 + lane // 16 for lane in range(32)]
            a = load_matrices(
                tile.bytes,
                [r * 64 + (c ^ r // 2 % 4) * 16 for r, c in zip(rows, chunks, strict=True)],
            )
            tokens = [lane % 8 for lane in range(32)]
            chunks = [half * 4 + lane // 8 for lane in range(32)]
            b = load_matrices(
                tile.x_bytes,
                [t * 128 + (c ^ t % 8) * 16 for t, c in zip(tokens, chunks, strict=True)],
            )
            base = half * 128 if element_bytes == 1 else 0
            words = [tile.word(base + fragment * 32 + lane) for lane in range(32)]
            nibbles = lane_metadata(words, element_bytes, half if element_bytes == 2 else 0)
            stored = {}
            x = np.zeros((half_inputs, TOKENS), dtype=np.int64)
            for lane in range(32):
                g, q = divmod(lane, 4)
                for i in range(4):
                    for k, value in enumerate(tile.decode(a[i][lane])):
                        slot = (i // 2) * 4 * per_word + q * per_word + k
                        stored[g + 8 * (i % 2), slot] = value
                    for k, value in enumerate(tile.decode(b[i][lane])):
                        x[i * 4 * per_word + q * per_word + k, g] = value
            assert np.array_equal(x.T, tile.x[:, half_inputs * half :][:, :half_inputs])
            y[16 * fragment : 16 * fragment + 16] += expand(stored, nibbles, half_inputs) @ x
    assert np.array_equal(y, tile.w @ tile.x.T)


@pytest.mark.parametrize("element_bytes", [2, 1])
def test_metadata_is_legal_also_where_a_tile_is_padding(element_bytes: int) -> None:
    """Two ascending positions a nibble, so that no word is below that of empty groups.

    Kernels take the larger of a word and 0x44444444, which must leave these words as they are.
    """
    values = torch.zeros(70, 200, dtype=TYPES[element_bytes])
    values[:, 1::4] = 1
    values[3:40, 2::4] = 2
    packed = torch.ops.gossamer.pack(values, None, "2:4", "nm24_tiles", False, "w")
    tile_bytes = ROWS * 64 + ROWS * 16 // element_bytes
    # Rows of 200 inputs are two tiles of 128, or four of 64.
    count = 2 * 2 * element_bytes
    tiles = packed.numpy()[HEADER_BYTES:][: count * tile_bytes].reshape(count, tile_bytes)
    words = tiles[:, ROWS * 64 :].copy().view(np.uint32)
    assert words.min() == 0x44444444
    nibbles = words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32) & 15
    assert (nibbles >> 2 > (nibbles & 3)).all()
    assert set(np.unique(nibbles)) == {0x4, 0x9}


def test_ldmatrix_meets_every_bank_once() -> None:
    """Eight rows of 16 bytes, read at once, lie in all 32 banks of shared memory."""
    for first in range(0, ROWS, 8):
        for chunk in range(4):
            banks = {
                (r * 64 + (chunk ^ r // 2 % 4) * 16) // 16 % 8 for r in range(first, first + 8)
            }
            assert len(banks) == 8
    for chunk in range(8):
        assert len({(t * 128 + (chunk ^ t % 8) * 16) // 16 % 8 for t in range(8)}) == 8
