// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace gossamer {

/// Element types. The numbers are stored in packed weights and never change their meaning.
enum class DType : std::uint8_t {
  kFloat64 = 0,
  kFloat32 = 1,
  kFloat16 = 2,
  kBFloat16 = 3,
  kFloat8E4M3 = 4,
  kInt8 = 5,
  kUInt8 = 6,
  kBool = 7,
  kUInt16 = 8,
  kInt32 = 9,
  kUInt32 = 10,
  kInt64 = 11,
};

/// Bytes of one element.
std::int64_t dtype_bytes(DType dtype);

/// The name that PyTorch gives it without the prefix: "float32", "bfloat16", "float8_e4m3fn",
/// "bool".
std::string_view dtype_name(DType dtype);

/// The inverse of dtype_name; nothing where the name is unknown.
std::optional<DType> parse_dtype(std::string_view name);

/// True for the types a weight's values may have: float64, float32, float16, bfloat16,
/// float8_e4m3fn, int8.
bool is_weight_dtype(DType dtype);

}  // namespace gossamer
