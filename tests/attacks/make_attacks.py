#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""Writes the malformed files of this folder and the table in README.md.

    python3 tests/attacks/make_attacks.py

Only the standard library: the files are bytes, and the packed weights are put together by hand from
docs/formats.md. The tests read the table; each file must be refused with the message in its row.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent


@dataclass
class Attack:
    """One file: its bytes, what is wrong with it, and a part of the message that refuses it."""

    name: str
    wrong: str
    message: str
    data: bytes


def framed(header: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    """A file: 8-byte length, header, data; `length` overrides the true one."""
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def tensor(dtype: str, shape: object, begin: object, end: object) -> dict[str, object]:
    """The JSON object of one tensor."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def one(dtype: str, shape: object, begin: object, end: object, data: bytes = bytes(16)) -> bytes:
    """A file with one tensor called "a"."""
    return framed(json.dumps({"a": tensor(dtype, shape, begin, end)}), data)


def file_attacks() -> list[Attack]:
    """Files that break the safetensors format itself."""
    good = json.dumps(tensor("F32", [4], 0, 16))
    rows = [
        ("empty", "no bytes at all", "0 bytes are too few", b""),
        ("short_length", "7 bytes, less than the header length", "7 bytes are too few", bytes(7)),
        ("zero_header", "header length 0", "must begin with '{'", framed("")),
        (
            "header_past_end",
            "header length goes past the file",
            "goes past the end of the file",
            framed("{}", length=1000),
        ),
        (
            "header_huge",
            "header length 2^63",
            "over the format's limit",
            framed("{}", length=2**63),
        ),
        (
            "header_all_ones",
            "header length 2^64 - 1, overflows when 8 is added",
            "over the format's limit",
            framed("{}", length=2**64 - 1),
        ),
        (
            "header_over_limit",
            "header length 100,000,001",
            "over the format's limit",
            framed("{}", length=100_000_001),
        ),
        ("leading_space", "header begins with a space", "must begin with '{'", framed(" {}")),
        (
            "bom",
            "header begins with a byte order mark",
            "must begin with '{'",
            framed(b"\xef\xbb\xbf{}"),
        ),
        ("array_header", "header is an array", "must begin with '{'", framed("[]")),
        ("not_json", "header is no JSON", "not valid JSON", framed("{tensor: 1}")),
        ("truncated_json", "header ends inside the JSON", "not valid JSON", framed('{"a":{"dty')),
        ("trailing_garbage", "text behind the JSON object", "not valid JSON", framed("{} x")),
        ("two_objects", "two JSON objects", "not valid JSON", framed("{}{}")),
        ("zero_byte", "a zero byte hides what follows", "a zero byte", framed(b'{}\x00{"a":1}')),
        ("comment", "a comment in the JSON", "not valid JSON", framed("{/* hi */}")),
        (
            "trailing_comma",
            "a comma before the brace",
            "not valid JSON",
            framed('{"a":' + good + ",}", bytes(16)),
        ),
        (
            "invalid_utf8",
            "a tensor name that is not UTF-8",
            "not valid JSON",
            framed(b'{"\xff\xfe":' + good.encode() + b"}", bytes(16)),
        ),
        (
            "lone_surrogate",
            "a tensor name with half a surrogate pair",
            "not valid JSON",
            framed('{"\\ud800":' + good + "}", bytes(16)),
        ),
        (
            "nan",
            "NaN for a size",
            "not valid JSON",
            framed('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,16]}}', bytes(16)),
        ),
        (
            "deep_arrays",
            "10,000 nested arrays for a shape",
            "shape holds an array",
            framed(
                '{"a":{"dtype":"F32","shape":'
                + "[" * 10_000
                + "]" * 10_000
                + ',"data_offsets":[0,16]}}',
                bytes(16),
            ),
        ),
        (
            "deep_objects",
            "objects in objects",
            "deeper nesting",
            framed('{"a":{"dtype":{"x":{}}}}'),
        ),
        (
            "deep_metadata",
            "an object in __metadata__",
            "deeper nesting",
            framed(json.dumps({"__metadata__": {"k": {"x": "y"}}})),
        ),
        (
            "metadata_number",
            "a number in __metadata__",
            "__metadata__ maps strings to strings",
            framed(json.dumps({"__metadata__": {"k": 1}})),
        ),
        (
            "metadata_string",
            "__metadata__ is a string",
            "must be an object",
            framed(json.dumps({"__metadata__": "k"})),
        ),
        (
            "duplicate_tensor",
            "two tensors of one name",
            "tensor 'a' is there twice",
            framed('{"a":' + good + ',"a":' + good.replace("[0, 16]", "[16, 32]") + "}", bytes(32)),
        ),
        (
            "duplicate_key",
            "dtype given twice",
            "the key 'dtype' is there twice",
            framed(
                '{"a":{"dtype":"F32","dtype":"I8","shape":[4],"data_offsets":[0,16]}}', bytes(16)
            ),
        ),
        (
            "duplicate_metadata",
            "__metadata__ given twice",
            "__metadata__ is there twice",
            framed('{"__metadata__":{},"__metadata__":{}}'),
        ),
        (
            "duplicate_metadata_key",
            "a metadata key given twice",
            "has the key 'k' twice",
            framed('{"__metadata__":{"k":"1","k":"2"}}'),
        ),
        (
            "unknown_key",
            "a key that no tensor has",
            "unknown key 'stride'",
            framed(
                '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16],"stride":[1]}}', bytes(16)
            ),
        ),
        (
            "missing_dtype",
            "no dtype",
            "dtype is missing",
            framed('{"a":{"shape":[4],"data_offsets":[0,16]}}', bytes(16)),
        ),
        (
            "missing_shape",
            "no shape",
            "shape is missing",
            framed('{"a":{"dtype":"F32","data_offsets":[0,16]}}', bytes(16)),
        ),
        (
            "missing_offsets",
            "no data_offsets",
            "data_offsets is missing",
            framed('{"a":{"dtype":"F32","shape":[4]}}', bytes(16)),
        ),
        (
            "tensor_is_null",
            "null instead of a tensor",
            "must be an object, found null",
            framed('{"a":null}'),
        ),
        (
            "tensor_is_number",
            "a number instead of a tensor",
            "must be an object, found a number",
            framed('{"a":1}'),
        ),
        ("dtype_unknown", "dtype F31", "unknown dtype 'F31'", one("F31", [4], 0, 16)),
        ("dtype_lower", "dtype f32", "unknown dtype 'f32'", one("f32", [4], 0, 16)),
        (
            "dtype_number",
            "dtype is a number",
            "'dtype' is a number",
            framed('{"a":{"dtype":4,"shape":[4],"data_offsets":[0,16]}}', bytes(16)),
        ),
        (
            "dtype_wrong_size",
            "dtype does not fit the bytes",
            "takes 32 bytes",
            one("F64", [4], 0, 16),
        ),
        ("shape_negative", "a negative size", "the negative number -4", one("F32", [-4], 0, 16)),
        ("shape_float", "a size of 4.0", "the number '4.0'", one("F32", [4.0], 0, 16)),
        (
            "shape_exponent",
            "a size of 4e0",
            "the number '4e0'",
            framed('{"a":{"dtype":"F32","shape":[4e0],"data_offsets":[0,16]}}', bytes(16)),
        ),
        ("shape_string", "a size in quotes", "shape holds a string", one("F32", ["4"], 0, 16)),
        ("shape_bool", "a size of true", "shape holds a boolean", one("F32", [True], 0, 16)),
        ("shape_scalar", "shape is a number", "'shape' is a number", one("F32", 4, 0, 16)),
        ("shape_2_63", "a size of 2^63", "over 2^63 - 1", one("F32", [2**63], 0, 16)),
        (
            "shape_2_64",
            "a size of 2^64",
            "the number '18446744073709551616'",
            one("F32", [2**64], 0, 16),
        ),
        (
            "shape_overflow",
            "sizes whose product overflows to 4",
            "more than 2^63 bits",
            one("F32", [2**32, 2**32, 4], 0, 16),
        ),
        (
            "shape_overflow_bytes",
            "elements fit 64 bits, bytes do not",
            "more than 2^63 bits",
            one("F64", [2**60], 0, 0, b""),
        ),
        (
            "shape_rank",
            "65 dimensions",
            "more than 64 dimensions",
            one("U8", [1] * 65, 0, 1, bytes(1)),
        ),
        (
            "shape_half_byte",
            "three 4-bit elements are no whole bytes",
            "no whole bytes",
            one("F4", [3], 0, 2, bytes(2)),
        ),
        (
            "offsets_one",
            "one offset",
            "must be two numbers, found 1",
            framed('{"a":{"dtype":"F32","shape":[4],"data_offsets":[16]}}', bytes(16)),
        ),
        (
            "offsets_three",
            "three offsets",
            "must be two numbers, found more",
            framed('{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16,32]}}', bytes(16)),
        ),
        (
            "offsets_negative",
            "a negative offset",
            "the negative number -16",
            one("F32", [4], -16, 0),
        ),
        ("offsets_backwards", "begin behind end", "run backwards", one("F32", [4], 16, 0)),
        ("offsets_2_63", "an offset of 2^63", "over 2^63 - 1", one("F32", [4], 2**63, 2**63 + 16)),
        ("offsets_wrong_size", "range longer than the tensor", "hold 16", one("F32", [3], 0, 16)),
        (
            "truncated_data",
            "data section cut short",
            "end past the 8 data bytes",
            one("F32", [4], 0, 16, bytes(8)),
        ),
        (
            "offsets_past_end",
            "range far past the end",
            "end past the 16 data bytes",
            one("F32", [4], 2**62, 2**62 + 16),
        ),
        (
            "hole",
            "four bytes between two tensors belong to none",
            "leave a hole",
            framed(
                json.dumps({"a": tensor("F32", [1], 0, 4), "b": tensor("F32", [1], 8, 12)}),
                bytes(12),
            ),
        ),
        ("hole_at_start", "the first tensor begins at 4", "leave a hole", one("F32", [3], 4, 16)),
        (
            "overlap",
            "two tensors share bytes",
            "overlap",
            framed(
                json.dumps({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}),
                bytes(12),
            ),
        ),
        (
            "same_range",
            "two tensors on the same bytes",
            "overlap",
            framed(
                json.dumps({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 0, 8)}), bytes(8)
            ),
        ),
        (
            "trailing_bytes",
            "bytes behind the last tensor",
            "belong to no tensor",
            one("F32", [4], 0, 16, bytes(20)),
        ),
        (
            "terminal_escape",
            "a tensor name that would drive the terminal",
            "\\x1b[2J",
            framed('{"\\u001b[2J":{"dtype":"F31","shape":[4],"data_offsets":[0,16]}}', bytes(16)),
        ),
    ]
    return [Attack(name, wrong, message, data) for name, wrong, message, data in rows]


DTYPE_CODES = {"F32": "f", "U8": "B", "U16": "H", "I32": "i", "I64": "q", "F64": "d"}


@dataclass
class Packed:
    """A packed weight "w" put together by hand, and a good one until something is changed."""

    info: dict[str, object]
    arrays: dict[str, tuple[str, list[int], list[float] | list[int]]]
    version: str | None = "1"
    text: str | None = None
    extra: dict[str, tuple[str, list[int], list[float] | list[int]]] = field(default_factory=dict)

    def bytes(self) -> bytes:
        """The file."""
        metadata: dict[str, str] = {}
        if self.version is not None:
            metadata["gossamer.version"] = self.version
        metadata["gossamer.weight.w"] = json.dumps(self.info) if self.text is None else self.text
        header: dict[str, object] = {"__metadata__": metadata}
        data = b""
        named = {f"w.{key}": value for key, value in self.arrays.items()} | self.extra
        for name, (dtype, shape, values) in named.items():
            raw = struct.pack(f"<{len(values)}{DTYPE_CODES[dtype]}", *values)
            header[name] = tensor(dtype, shape, len(data), len(data) + len(raw))
            data += raw
        return framed(json.dumps(header), data)


def info(fmt: str, pattern: str, shape: list[int]) -> dict[str, object]:
    """The metadata of a float32 weight."""
    return {
        "format": fmt,
        "pattern": pattern,
        "dtype": "float32",
        "shape": shape,
        "transposed": False,
        "version": 1,
    }


def bitmask() -> Packed:
    """[[1, 0, 0, 2, 0, 0, 0, 0, 0, 3], [0 …], [0, 4, 0 …]]."""
    return Packed(
        info("bitmask", "unstructured:0.8", [3, 10]),
        {
            "bitmask": ("U8", [3, 2], [0b1001, 0b10, 0, 0, 0b10, 0]),
            "values": ("F32", [4], [1, 2, 3, 4]),
            "row_offsets": ("I64", [4], [0, 3, 3, 4]),
        },
    )


def two_four() -> Packed:
    """[[1, 2, 0, 0, 0, 0, 3, 4], [0, 5, 0, 6, 7, 0, 8, 0]]."""
    return Packed(
        info("nm", "2:4", [2, 8]),
        {
            "values": ("F32", [2, 4], [1, 2, 3, 4, 5, 6, 7, 8]),
            "indices": ("U8", [2, 1], [0b1110_0100, 0b1000_1101]),
        },
    )


def four_eight() -> Packed:
    """One row of one group, kept columns 0 to 3."""
    return Packed(
        info("nm", "4:8", [1, 8]),
        {
            "values": ("F32", [1, 4], [1, 2, 3, 4]),
            "indices": ("U8", [1, 1], [0b0000_1111]),
        },
    )


def blocks() -> Packed:
    """A 4×6 weight with 2×2 blocks at (0, 0), (0, 2) and (1, 1)."""
    return Packed(
        info("bsr", "block:2x2:0.5", [4, 6]),
        {
            "block_row_offsets": ("I64", [3], [0, 2, 3]),
            "block_cols": ("I32", [3], [0, 2, 1]),
            "values": ("F32", [3, 2, 2], list(range(1, 13))),
        },
    )


def fan_in() -> Packed:
    """Two rows that keep two of four inputs each."""
    return Packed(
        info("fanin", "fanin:0.5", [2, 4]),
        {
            "values": ("F32", [2, 2], [1, 2, 3, 4]),
            "cols": ("U16", [2, 2], [0, 3, 1, 2]),
        },
    )


def changed(
    base: Packed,
    array: str,
    values: list[float] | list[int],
    dtype: str | None = None,
    shape: list[int] | None = None,
) -> Packed:
    """The same with one array replaced."""
    old_dtype, old_shape, _ = base.arrays[array]
    base.arrays[array] = (dtype or old_dtype, shape or old_shape, values)
    return base


def without(base: Packed, array: str) -> Packed:
    """The same with one array missing."""
    del base.arrays[array]
    return base


def with_info(base: Packed, **keys: object) -> Packed:
    """The same with metadata keys replaced, or removed where None."""
    merged = base.info | keys
    base.info = {key: value for key, value in merged.items() if value is not None}
    return base


def with_text(base: Packed, text: str) -> Packed:
    """The same with another metadata text."""
    base.text = text
    return base


def with_version(base: Packed, version: str | None) -> Packed:
    """The same with another file version."""
    base.version = version
    return base


def with_plain(base: Packed) -> Packed:
    """The same with a plain tensor of the weight's name beside it."""
    base.extra["w"] = ("F32", [1], [1.0])
    return base


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


README = """# Attacks

One small malformed file per attack, written by `make_attacks.py`, which also writes this page. Each
file must be refused with an error that contains the text in the last column, without a crash and
before anything is allocated for it: by `SafetensorsFile::open` for the files of this folder, by
`read_packed` for those of `packed/` (good safetensors files with a wrong packed weight `w`).
`patterns.txt` holds pattern texts that `Pattern::parse` must refuse, one a line. The C++ tests, the
tests of the command and the fuzz targets read them all.

"""


def main() -> None:
    """Writes every file and the table."""
    lines = ["| file | what is wrong | message |", "|---|---|---|"]
    for folder, attacks in ((".", file_attacks()), ("packed", packed_attacks())):
        target = HERE / folder
        target.mkdir(exist_ok=True)
        for old in target.glob("*.safetensors"):
            old.unlink()
        for attack in attacks:
            path = target / f"{attack.name}.safetensors"
            path.write_bytes(attack.data)
            lines.append(f"| `{path.relative_to(HERE)}` | {attack.wrong} | `{attack.message}` |")
    (HERE / "README.md").write_text(README + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
