# SPDX-License-Identifier: BSD-3-Clause
"""Files that break the safetensors format itself, one entry a file."""

from __future__ import annotations

import json

from attack import Attack, framed, tensor


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
