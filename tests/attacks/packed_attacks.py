# SPDX-License-Identifier: BSD-3-Clause
"""Files that are safetensors but whose packed weight "w" is wrong, one entry a file."""

from __future__ import annotations

import json

from attack import Attack
from packed_samples import (
    bitmask,
    blocks,
    changed,
    fan_in,
    four_eight,
    info,
    two_four,
    with_info,
    with_plain,
    with_text,
    with_version,
    without,
)


def packed_attacks() -> list[Attack]:
    """Files that are safetensors but whose packed weight "w" is wrong."""
    text = json.dumps(info("nm", "2:4", [2, 8]))
    rows = [
        (
            "no_version",
            "no gossamer.version",
            "no gossamer.version",
            with_version(two_four(), None),
        ),
        (
            "file_version",
            "gossamer.version 2",
            "gossamer.version is '2'",
            with_version(two_four(), "2"),
        ),
        (
            "format_version",
            "version 2 of the format",
            "version is not 1",
            with_info(two_four(), version=2),
        ),
        (
            "format_unknown",
            "a format that is not known",
            "'coo' is not nm, bitmask, bsr or fanin",
            with_info(two_four(), format="coo"),
        ),
        (
            "format_layout",
            "an execution layout for a format",
            "'kcsr64' is not nm, bitmask, bsr or fanin",
            with_info(bitmask(), format="kcsr64"),
        ),
        (
            "format_pattern",
            "format nm with a block pattern",
            "layout nm holds N:M",
            with_info(two_four(), pattern="block:2x2:0.5"),
        ),
        (
            "pattern_bad",
            "a pattern that is none",
            "pattern '5:4'",
            with_info(two_four(), pattern="5:4"),
        ),
        (
            "dtype_bad",
            "a dtype that no weight has",
            "'bool' is no dtype of a weight",
            with_info(two_four(), dtype="bool"),
        ),
        (
            "shape_rank",
            "a shape of one size",
            "shape is no array of two or three sizes",
            with_info(two_four(), shape=[16]),
        ),
        (
            "shape_huge",
            "a shape of 2^31 rows",
            "an integer from 0 to 2^31 - 1",
            with_info(two_four(), shape=[2**31, 8]),
        ),
        (
            "shape_negative",
            "a negative size",
            "an integer from 0 to 2^31 - 1",
            with_info(two_four(), shape=[-2, 8]),
        ),
        (
            "shape_float",
            "a size of 8.0",
            "an integer from 0 to 2^31 - 1",
            with_info(two_four(), shape=[2, 8.0]),
        ),
        (
            "shape_batch_zero",
            "a batch of 0",
            "a batch of 0",
            with_info(two_four(), shape=[0, 2, 8]),
        ),
        (
            "shape_mismatch",
            "rows that the arrays do not have",
            "'values': shape [2, 4], expected [3, 4]",
            with_info(two_four(), shape=[3, 8]),
        ),
        (
            "shape_overflow",
            "sizes whose product overflows",
            "is too large",
            with_info(bitmask(), shape=[2**31 - 1, 2**31 - 1, 2**31 - 1]),
        ),
        (
            "transposed_number",
            "transposed is 0",
            "transposed is neither true nor false",
            with_info(two_four(), transposed=0),
        ),
        ("key_missing", "no pattern", "pattern is missing", with_info(two_four(), pattern=None)),
        (
            "key_unknown",
            "a key that is not known",
            "'scale' is not a key",
            with_info(two_four(), scale=1),
        ),
        (
            "key_twice",
            "a key given twice",
            "'dtype' is there twice",
            with_text(two_four(), text[:-1] + ',"dtype":"float16"}'),
        ),
        (
            "text_not_json",
            "the metadata text is no JSON",
            "is not valid JSON",
            with_text(two_four(), "{nm}"),
        ),
        (
            "text_array",
            "the metadata text is an array",
            "is no JSON object",
            with_text(two_four(), "[1]"),
        ),
        (
            "text_long",
            "5,000 nested arrays",
            "is longer than 4096 bytes",
            with_text(two_four(), "[" * 5000),
        ),
        (
            "text_zero_byte",
            "a zero byte hides what follows",
            "holds a zero byte",
            with_text(two_four(), text + "\0}"),
        ),
        (
            "plain_tensor",
            "a plain tensor of the weight's name",
            "a plain tensor of the same name",
            with_plain(two_four()),
        ),
        (
            "array_missing",
            "no row_offsets",
            "'w.row_offsets' is missing",
            without(bitmask(), "row_offsets"),
        ),
        (
            "values_dtype",
            "values of another dtype",
            "'values': dtype float64, expected float32",
            changed(two_four(), "values", [1] * 8, dtype="F64"),
        ),
        (
            "values_shape",
            "values too short",
            "'values': shape [2, 3], expected [2, 4]",
            changed(two_four(), "values", [1] * 6, shape=[2, 3]),
        ),
        (
            "indices_dtype",
            "indices of another dtype",
            "'indices': dtype uint16, expected uint8",
            changed(two_four(), "indices", [1, 1], dtype="U16"),
        ),
        (
            "nm_equal_positions",
            "a 2:4 group keeps column 1 twice",
            "row 0, group 0: the positions are not 2 ascending ones",
            changed(two_four(), "indices", [0b1110_0101, 0b1000_1101]),
        ),
        (
            "nm_descending",
            "a 2:4 group's positions descend",
            "row 0, group 0: the positions are not 2 ascending ones",
            changed(two_four(), "indices", [0b1110_0001, 0b1000_1101]),
        ),
        (
            "nm_mask_count",
            "a 4:8 group with five bits",
            "row 0, group 0: the positions are not 4 ascending ones",
            changed(four_eight(), "indices", [0b0001_1111]),
        ),
        (
            "nm_past_edge",
            "a value in a column past the end",
            "row 0: a value past the last column is not zero",
            with_info(two_four(), shape=[2, 7]),
        ),
        (
            "bitmask_popcount",
            "a row with more bits than values",
            "row 0: 4 bits in the bitmask, row_offsets say 3",
            changed(bitmask(), "bitmask", [0b1011, 0b10, 0, 0, 0b10, 0]),
        ),
        (
            "bitmask_padding",
            "a bit past the last column",
            "row 0: bits past the last column",
            changed(bitmask(), "bitmask", [0b1001, 0b1000, 0, 0, 0b10, 0]),
        ),
        (
            "bitmask_offsets_down",
            "row offsets go down",
            "row_offsets: 2 follows 3",
            changed(bitmask(), "row_offsets", [0, 3, 2, 4]),
        ),
        (
            "bitmask_offsets_start",
            "row offsets begin at 1",
            "row_offsets: 1 where 0 is expected",
            changed(bitmask(), "row_offsets", [1, 3, 3, 4]),
        ),
        (
            "bitmask_offsets_end",
            "row offsets end past the values",
            "row_offsets: 4611686018427387904 of 4 values",
            changed(bitmask(), "row_offsets", [0, 3, 3, 2**62]),
        ),
        (
            "bitmask_offsets_negative",
            "a negative row offset",
            "row_offsets: -1 follows 0",
            changed(bitmask(), "row_offsets", [0, -1, 3, 4]),
        ),
        (
            "bsr_offsets_down",
            "block row offsets go down",
            "block_row_offsets: 3 follows 4",
            changed(blocks(), "block_row_offsets", [0, 4, 3]),
        ),
        (
            "bsr_col_past",
            "a block past the last column",
            "row 0: column 3 at place 1",
            changed(blocks(), "block_cols", [0, 3, 1]),
        ),
        (
            "bsr_col_negative",
            "a negative block column",
            "row 0: column -1 at place 0",
            changed(blocks(), "block_cols", [-1, 2, 1]),
        ),
        (
            "bsr_col_twice",
            "the same block twice",
            "row 0: column 2 at place 1",
            changed(blocks(), "block_cols", [2, 2, 1]),
        ),
        (
            "bsr_values_shape",
            "a block too few",
            "'block_cols': shape [3], expected [2]",
            changed(blocks(), "values", [1] * 8, shape=[2, 2, 2]),
        ),
        (
            "fanin_col_past",
            "a column past the last",
            "row 0: column 4 at place 1",
            changed(fan_in(), "cols", [0, 4, 1, 2]),
        ),
        (
            "fanin_col_twice",
            "a column twice in a row",
            "row 1: column 2 at place 1",
            changed(fan_in(), "cols", [0, 3, 2, 2]),
        ),
        (
            "fanin_col_dtype",
            "columns of another dtype",
            "'cols': dtype int32, expected uint16",
            changed(fan_in(), "cols", [0, 3, 1, 2], dtype="I32"),
        ),
    ]
    return [Attack(name, wrong, message, base.bytes()) for name, wrong, message, base in rows]
