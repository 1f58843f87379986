// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <numbers>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/half.h"
#include "gossamer/error.h"
#include "gossamer/mask.h"
#include "gossamer/packed_weight.h"

// What the tests share: matrices that own their memory, random ones, and the message of an error.
namespace gossamer::test {

/// A [batch,] rows × cols matrix that owns its bytes, row-major.
struct Matrix {
  DType dtype = DType::kFloat32;
  std::int64_t batch = 1;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  std::vector<std::byte> bytes;

  ConstMatrixView view() const { return contiguous_view(bytes.data(), dtype, rows, cols, batch); }
  MatrixView view() { return contiguous_view(bytes.data(), dtype, rows, cols, batch); }
  ConstMatrixView const_view() const { return view(); }

  std::int64_t size() const { return batch * rows * cols; }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(bytes.data());
  }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(bytes.data());
  }

  friend bool operator==(const Matrix&, const Matrix&) = default;
};

inline Matrix zeros(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t batch = 1) {
  Matrix m{dtype, batch, rows, cols, {}};
  m.bytes.resize(static_cast<std::size_t>(m.size() * dtype_bytes(dtype)));
  return m;
}

/// A float32 matrix from its elements; batch 1.
inline Matrix matrix_f32(std::int64_t rows, std::int64_t cols, const std::vector<float>& values) {
  Matrix m = zeros(DType::kFloat32, rows, cols);
  std::memcpy(m.bytes.data(), values.data(), m.bytes.size());
  return m;
}

/// A bool matrix from zeros and ones; batch 1.
inline Matrix matrix_bool(std::int64_t rows, std::int64_t cols,
                          const std::vector<std::uint8_t>& values) {
  Matrix m = zeros(DType::kBool, rows, cols);
  std::memcpy(m.bytes.data(), values.data(), m.bytes.size());
  return m;
}

using Random = std::mt19937_64;

/// Writes one element, rounded to the dtype of the matrix; float8 and int8 take what they can hold.
inline void set_element(Matrix& m, std::int64_t index, double value) {
  if (m.dtype == DType::kInt8) {
    m.as<std::int8_t>()[index] = static_cast<std::int8_t>(value);
  } else if (m.dtype == DType::kFloat8E4M3) {
    // The nearest of all 256 is not needed: take the first that does not differ in size from it.
    std::uint8_t bits = 0;
    while (bits < 0x7e && detail::float8_e4m3_to_float(bits) < std::fabs(value)) ++bits;
    m.as<std::uint8_t>()[index] = static_cast<std::uint8_t>(bits | (value < 0 ? 0x80 : 0));
  } else {
    detail::store_as(m.dtype, m.bytes.data(), index, value);
  }
}

/// Element `index` of all, as double.
inline double element(const Matrix& m, std::int64_t index) {
  return detail::load_as<double>(m.dtype, m.bytes.data(), index);
}

/// A standard normal value by Box and Muller. The standard library's takes a third of a sanitized
/// run for the logarithms of its own generator's range, and differs between libraries.
inline double random_normal(Random& random) {
  constexpr double kTurn = 2.0 * std::numbers::pi;
  const double radius = (static_cast<double>(random() >> 11) + 1.0) * 0x1p-53;  // in (0, 1]
  const double angle = static_cast<double>(random() >> 11) * 0x1p-53;
  return std::sqrt(-2.0 * std::log(radius)) * std::cos(kTurn * angle);
}

/// Standard normal values (int8: rounded at 40 times that), none of them zero.
inline Matrix random_matrix(Random& random, DType dtype, std::int64_t rows, std::int64_t cols,
                            std::int64_t batch = 1) {
  Matrix m = zeros(dtype, rows, cols, batch);
  for (std::int64_t i = 0; i < m.size(); ++i) {
    double value = random_normal(random);
    if (dtype == DType::kInt8) value = std::fmin(127.0, std::fmax(-127.0, value * 40.0));
    if (std::fabs(value) < 1.0 / 64) value = 1.0 / 64;
    if (dtype == DType::kInt8 && std::fabs(value) < 1.0) value = 1.0;
    set_element(m, i, value);
  }
  return m;
}

/// A mask that satisfies the pattern with exact counts, chosen by random scores.
inline Matrix random_mask(Random& random, const Pattern& pattern, std::int64_t rows,
                          std::int64_t cols, std::int64_t batch = 1, Scope scope = Scope::kTensor) {
  const Matrix scores = random_matrix(random, DType::kFloat32, rows, cols, batch);
  Matrix mask = zeros(DType::kBool, rows, cols, batch);
  const Selection selection{scores.const_view(), mask.view()};
  select_masks({&selection, 1}, pattern, scope);
  return mask;
}

/// Zeroes what the mask drops.
inline void apply_mask(Matrix& values, const Matrix& mask) {
  const auto bytes = static_cast<std::size_t>(dtype_bytes(values.dtype));
  for (std::size_t i = 0; i < mask.bytes.size(); ++i) {
    if (mask.bytes[i] == std::byte{0}) std::memset(values.bytes.data() + i * bytes, 0, bytes);
  }
}

/// A random matrix whose non-zeros are exactly those of a random mask of the pattern.
inline Matrix random_sparse(Random& random, DType dtype, const Pattern& pattern, std::int64_t rows,
                            std::int64_t cols, std::int64_t batch = 1) {
  Matrix values = random_matrix(random, dtype, rows, cols, batch);
  apply_mask(values, random_mask(random, pattern, rows, cols, batch));
  return values;
}

/// Packs without a mask.
inline PackedWeight pack_matrix(const Matrix& values, const Pattern& pattern, Layout layout) {
  return pack(values.const_view(), nullptr, pattern, layout);
}

/// Whether packed_size_bytes says what a weight takes; of row pairs it says the most they may take.
inline bool size_is_foretold(const PackedView& p) {
  const std::int64_t foretold =
      packed_size_bytes(p.layout(), p.pattern(), p.dtype(), p.batch(), p.out(), p.in(), p.kept());
  const bool most = p.layout() == Layout::kRowPairs64 || p.layout() == Layout::kRowPairs128 ||
                    p.layout() == Layout::kRowQuads512;
  return most ? p.size_bytes() <= foretold : p.size_bytes() == foretold;
}

/// The dense values of a packed weight.
inline Matrix unpack_values(const PackedView& packed) {
  Matrix values = zeros(packed.dtype(), packed.out(), packed.in(), packed.batch());
  unpack(packed, values.view());
  return values;
}

/// The kept positions of a packed weight.
inline Matrix unpack_mask(const PackedView& packed) {
  Matrix values = zeros(packed.dtype(), packed.out(), packed.in(), packed.batch());
  Matrix mask = zeros(DType::kBool, packed.out(), packed.in(), packed.batch());
  const MatrixView mask_view = mask.view();
  unpack(packed, values.view(), &mask_view);
  return mask;
}

/// One of the arrays of a packed weight.
template <typename T>
std::vector<T> array_of(const PackedView& packed, int index) {
  const auto bytes = packed.header().arrays[static_cast<std::size_t>(index)].bytes;
  const T* data = packed.array<T>(index);
  return {data, data + static_cast<std::size_t>(bytes) / sizeof(T)};
}

/// All bytes of a packed weight.
inline std::vector<std::byte> bytes_of(const PackedView& packed) {
  return {packed.data(), packed.data() + packed.size_bytes()};
}

/// A copy in fresh memory, aligned as packed weights must be.
inline PackedWeight copy_bytes(const std::vector<std::byte>& bytes) {
  constexpr std::align_val_t kAlignment{64};
  std::shared_ptr<std::byte> data(
      static_cast<std::byte*>(::operator new(bytes.size() + 1, kAlignment)),
      [](std::byte* p) { ::operator delete(p, kAlignment); });
  if (!bytes.empty()) std::memcpy(data.get(), bytes.data(), bytes.size());
  return {data, static_cast<std::int64_t>(bytes.size())};
}

/// What an action throws: "" where nothing, its message where a gossamer::Error.
template <typename F>
std::string message_of(const F& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return {};
}

/// The code of the Error that an action must throw; throws itself where there is none.
template <typename F>
ErrorCode code_of(const F& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.code();
  }
  throw std::logic_error("the action threw nothing");
}

inline const std::vector<DType>& weight_dtypes() {
  static const std::vector<DType> all{DType::kFloat64,  DType::kFloat32,    DType::kFloat16,
                                      DType::kBFloat16, DType::kFloat8E4M3, DType::kInt8};
  return all;
}

inline const std::vector<Layout>& all_layouts() {
  static const std::vector<Layout> all{
      Layout::kNm,          Layout::kBitmask,     Layout::kBsr,      Layout::kFanIn,
      Layout::kKcsr64,      Layout::kKcsr128,     Layout::kKcsr256,  Layout::kRowPairs64,
      Layout::kRowPairs128, Layout::kRowQuads512, Layout::kNm24Pairs};
  return all;
}

/// Whether a layout can hold a pattern: its own format, bitmask, K-blocked CSR; 2:4 in row pairs.
inline bool layout_holds(Layout layout, const Pattern& pattern) {
  if (layout == Layout::kNm24Pairs) return pattern == Pattern::nm(2, 4);
  return layout == format_for(pattern) || layout == Layout::kBitmask || !is_format(layout);
}

/// The code that validate() throws after one array's element was changed.
template <typename T>
ErrorCode code_after_change(const PackedWeight& packed, int array, std::size_t index, T value) {
  const auto offset = packed.view().header().arrays[static_cast<std::size_t>(array)].offset;
  std::memcpy(packed.data() + offset + static_cast<std::int64_t>(index * sizeof(T)), &value,
              sizeof(T));
  return code_of([&] { validate(packed); });
}

}  // namespace gossamer::test
