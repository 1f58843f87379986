// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>

#include "gossamer/dtype.h"
#include "gossamer/error.h"

// Conversions between the small floating-point types and float or double, in plain integer code:
// the same bits on every machine. Rounding is to nearest, ties to even.
namespace gossamer::detail {

static_assert(std::endian::native == std::endian::little, "packed weights are little-endian");

/// Reads an element that need not be aligned (tensors in mapped files are not).
template <typename T>
T load_raw(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <typename T>
void store_raw(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

inline float float16_to_float(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = (half >> 10) & 0x1fu;
  const std::uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa · 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const std::uint32_t biased = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (biased << 23) | (mantissa << 13));
}

inline std::uint16_t float_to_float16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>((bits >> 16) & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u);
  // 65520 is halfway between the largest finite half and the next power of two.
  if (magnitude >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x38800000u) {
    // Below 2^-14 a half is a multiple of 2^-24. Adding 0.5, whose last mantissa bit weighs 2^-24,
    // lets the addition round.
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    const std::uint32_t rounded = std::bit_cast<std::uint32_t>(sum) - 0x3f000000u;
    return static_cast<std::uint16_t>(sign | rounded);
  }
  const std::uint32_t odd = (magnitude >> 13) & 1u;
  const std::uint32_t rounded = (magnitude + 0xfffu + odd - 0x38000000u) >> 13;
  return static_cast<std::uint16_t>(sign | rounded);
}

inline float bfloat16_to_float(std::uint16_t value) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(value) << 16);
}

inline std::uint16_t float_to_bfloat16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  }
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// float8_e4m3fn: bias 7, no infinities, NaN is 0x7f and 0xff (Micikevicius et al. 2022,
/// arXiv:2209.05433, table 1).
inline float float8_e4m3_to_float(std::uint8_t value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value & 0x80u) << 24;
  const std::uint32_t magnitude = value & 0x7fu;
  if (magnitude == 0x7fu) return std::bit_cast<float>(sign | 0x7fc00000u);
  if (magnitude < 8u) {  // subnormal: multiples of 2^-9
    const float small = static_cast<float>(magnitude) * 0x1p-9f;
    return sign != 0 ? -small : small;
  }
  return std::bit_cast<float>(sign | ((magnitude << 20) + (120u << 23)));
}

/// Rounds to float so that a second rounding to a type of at most 22 mantissa bits gives what one
/// rounding would have given: towards zero, with the last bit set where anything was lost.
inline float round_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  if (std::isnan(value) || static_cast<double>(nearest) == value) return nearest;
  std::uint32_t bits = std::bit_cast<std::uint32_t>(nearest);
  if (std::fabs(static_cast<double>(nearest)) > std::fabs(value)) --bits;
  return std::bit_cast<float>(bits | 1u);
}

[[noreturn]] inline void refuse_element_dtype(DType dtype, const char* accepted) {
  throw Error(ErrorCode::kInvalidArgument,
              "elements of dtype " + std::string(dtype_name(dtype)) + "; expected " + accepted);
}

/// Element `index` of an array of a weight dtype as float or double; exact but for double → float.
template <typename T>
T load_as(DType dtype, const std::byte* data, std::int64_t index) {
  static_assert(std::is_floating_point_v<T>);
  switch (dtype) {
    case DType::kFloat64:
      return static_cast<T>(load_raw<double>(data + index * 8));
    case DType::kFloat32:
      return static_cast<T>(load_raw<float>(data + index * 4));
    case DType::kFloat16:
      return static_cast<T>(float16_to_float(load_raw<std::uint16_t>(data + index * 2)));
    case DType::kBFloat16:
      return static_cast<T>(bfloat16_to_float(load_raw<std::uint16_t>(data + index * 2)));
    case DType::kFloat8E4M3:
      return static_cast<T>(float8_e4m3_to_float(load_raw<std::uint8_t>(data + index)));
    case DType::kInt8:
      return static_cast<T>(load_raw<std::int8_t>(data + index));
    default:
      refuse_element_dtype(dtype, "float64, float32, float16, bfloat16, float8_e4m3fn or int8");
  }
}

/// Rounds once to a float64, float32, float16 or bfloat16 element.
template <typename T>
void store_as(DType dtype, std::byte* data, std::int64_t index, T value) {
  static_assert(std::is_floating_point_v<T>);
  const auto narrow = [&]() -> float {
    if constexpr (std::is_same_v<T, double>) {
      return round_to_odd(value);
    } else {
      return value;
    }
  };
  switch (dtype) {
    case DType::kFloat64:
      return store_raw<double>(data + index * 8, static_cast<double>(value));
    case DType::kFloat32:
      return store_raw<float>(data + index * 4, static_cast<float>(value));
    case DType::kFloat16:
      return store_raw<std::uint16_t>(data + index * 2, float_to_float16(narrow()));
    case DType::kBFloat16:
      return store_raw<std::uint16_t>(data + index * 2, float_to_bfloat16(narrow()));
    default:
      refuse_element_dtype(dtype, "float64, float32, float16 or bfloat16");
  }
}

/// `count` elements, `stride` elements apart, as float or double.
template <typename T>
void load_row(DType dtype, const std::byte* data, std::int64_t count, std::int64_t stride, T* to) {
  const auto each = [&]<typename Raw>(Raw, auto convert) {
    constexpr auto kBytes = static_cast<std::int64_t>(sizeof(Raw));
    for (std::int64_t i = 0; i < count; ++i) {
      to[i] = static_cast<T>(convert(load_raw<Raw>(data + i * stride * kBytes)));
    }
  };
  const auto same = [](auto value) { return value; };
  switch (dtype) {
    case DType::kFloat64:
      return each(double{}, same);
    case DType::kFloat32:
      return each(float{}, same);
    case DType::kFloat16:
      return each(std::uint16_t{}, float16_to_float);
    case DType::kBFloat16:
      return each(std::uint16_t{}, bfloat16_to_float);
    case DType::kFloat8E4M3:
      return each(std::uint8_t{}, float8_e4m3_to_float);
    case DType::kInt8:
      return each(std::int8_t{}, same);
    default:
      if (count > 0) load_as<T>(dtype, data, 0);  // throws the sentence
  }
}

}  // namespace gossamer::detail
