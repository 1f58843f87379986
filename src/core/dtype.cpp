// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/dtype.h"

#include <array>
#include <cstddef>

#include "core/fail.h"

namespace gossamer {
namespace {

struct DTypeRow {
  std::string_view name;
  std::int64_t bytes;
};

/// Indexed by the number of the DType.
constexpr std::array<DTypeRow, 12> kRows{{{"float64", 8},
                                          {"float32", 4},
                                          {"float16", 2},
                                          {"bfloat16", 2},
                                          {"float8_e4m3fn", 1},
                                          {"int8", 1},
                                          {"uint8", 1},
                                          {"bool", 1},
                                          {"uint16", 2},
                                          {"int32", 4},
                                          {"uint32", 4},
                                          {"int64", 8}}};

const DTypeRow& row_of(DType dtype) {
  const auto index = static_cast<std::size_t>(dtype);
  if (index >= kRows.size()) {
    detail::fail(ErrorCode::kInvalidArgument, "dtype number {} is not known; the last is {}", index,
                 kRows.size() - 1);
  }
  return kRows[index];
}

}  // namespace

std::int64_t dtype_bytes(DType dtype) { return row_of(dtype).bytes; }

std::string_view dtype_name(DType dtype) { return row_of(dtype).name; }

std::optional<DType> parse_dtype(std::string_view name) {
  for (std::size_t i = 0; i < kRows.size(); ++i) {
    if (kRows[i].name == name) return static_cast<DType>(i);
  }
  return std::nullopt;
}

bool is_weight_dtype(DType dtype) { return dtype <= DType::kInt8; }

}  // namespace gossamer
