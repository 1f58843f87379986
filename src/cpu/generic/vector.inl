// SPDX-License-Identifier: BSD-3-Clause
// Vectors of four by the compiler's vector extension, under the names that the shared loops use.
// Included inside an anonymous namespace.

using Vector = float __attribute__((vector_size(16)));
using Integers = std::int32_t __attribute__((vector_size(16)));
constexpr std::int64_t kLanes = 4;

inline Vector zero() { return Vector{}; }
inline Vector load(const float* p) {
  Vector v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline Vector in_register(Vector v) { return v; }
inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof(v)); }
inline Vector repeat(float value) { return Vector{value, value, value, value}; }
inline Vector broadcast(const float* p) { return repeat(*p); }
inline Vector add(Vector a, Vector b) { return a + b; }
inline Vector times(Vector a, Vector b) { return a * b; }
inline Vector divide(Vector a, Vector b) { return a / b; }
inline Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
/// The second operand where one is NaN.
inline Vector maximum(Vector a, Vector b) { return a > b ? a : b; }
inline Vector minimum(Vector a, Vector b) { return a < b ? a : b; }
inline Vector absolute(Vector a) { return a < -a ? -a : a; }
/// For values below 2^22: adding 1.5·2^23 leaves no bits behind the point.
inline Vector nearest_integer(Vector a) {
  const Vector magic = repeat(12582912.0f);
  return (a + magic) - magic;
}
/// 2^a for whole numbers −126 to 127.
inline Vector power_of_two(Vector a) {
  const Integers bits = (__builtin_convertvector(a, Integers) + 127) << 23;
  Vector v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}
/// a < b ? x : y in every lane.
inline Vector where_less(Vector a, Vector b, Vector x, Vector y) { return a < b ? x : y; }

/// The nearest whole numbers of the first `count` lanes, which fit a byte.
inline void store_bytes(std::int8_t* p, Vector v, std::int64_t count) {
  const Vector numbers = nearest_integer(v);
  for (std::int64_t i = 0; i < count && i < kLanes; ++i) {
    p[i] = static_cast<std::int8_t>(numbers[i]);
  }
}

struct Float32 {
  using Type = float;
  static Vector load(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static Vector load_first(const float* p, std::int64_t count) {
    Vector v{};
    std::memcpy(&v, p, static_cast<std::size_t>(count < 4 ? count : 4) * sizeof(float));
    return v;
  }
  static void store(float* p, Vector v) { std::memcpy(p, &v, sizeof(v)); }
  static void store_first(float* p, Vector v, std::int64_t count) {
    std::memcpy(p, &v, static_cast<std::size_t>(count < 4 ? count : 4) * sizeof(float));
  }
  static Vector broadcast(const float* p) { return repeat(*p); }
};
