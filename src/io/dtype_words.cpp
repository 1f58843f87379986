// SPDX-License-Identifier: BSD-3-Clause
#include "io/dtype_words.h"

#include <array>

#include "gossamer/packed_io.h"

namespace gossamer {
namespace {

struct Word {
  std::string_view text;
  std::int64_t bits;
  std::optional<DType> dtype;
};

// The dtypes of the format; those without a DType are carried through untouched.
constexpr std::array kWords{
    Word{"F64", 64, DType::kFloat64},
    Word{"F32", 32, DType::kFloat32},
    Word{"F16", 16, DType::kFloat16},
    Word{"BF16", 16, DType::kBFloat16},
    Word{"F8_E4M3", 8, DType::kFloat8E4M3},
    Word{"I8", 8, DType::kInt8},
    Word{"U8", 8, DType::kUInt8},
    Word{"BOOL", 8, DType::kBool},
    Word{"U16", 16, DType::kUInt16},
    Word{"I32", 32, DType::kInt32},
    Word{"U32", 32, DType::kUInt32},
    Word{"I64", 64, DType::kInt64},
    Word{"U64", 64, std::nullopt},
    Word{"I16", 16, std::nullopt},
    Word{"F8_E5M2", 8, std::nullopt},
    Word{"F8_E8M0", 8, std::nullopt},
    Word{"F8_E4M3FNUZ", 8, std::nullopt},
    Word{"F8_E5M2FNUZ", 8, std::nullopt},
    Word{"F6_E2M3", 6, std::nullopt},
    Word{"F6_E3M2", 6, std::nullopt},
    Word{"F4", 4, std::nullopt},
    Word{"C64", 64, std::nullopt},
};

}  // namespace

std::string_view safetensors_word(DType dtype) {
  for (const Word& word : kWords) {
    if (word.dtype == dtype) return word.text;
  }
  return {};
}

std::optional<DType> dtype_of_word(std::string_view word) {
  for (const Word& known : kWords) {
    if (known.text == word) return known.dtype;
  }
  return std::nullopt;
}

namespace io {

std::optional<std::int64_t> dtype_word_bits(std::string_view word) {
  for (const Word& known : kWords) {
    if (known.text == word) return known.bits;
  }
  return std::nullopt;
}

std::optional<std::int64_t> tensor_bytes(std::int64_t bits, std::span<const std::int64_t> shape) {
  std::int64_t total = bits;
  for (const std::int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(total, size, &total)) return std::nullopt;
  }
  if (total % 8 != 0) return std::nullopt;
  return total / 8;
}

}  // namespace io
}  // namespace gossamer
