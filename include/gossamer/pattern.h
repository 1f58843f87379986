// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace gossamer {

/// Which positions of a weight [out, in] may be non-zero. One grammar everywhere
/// (docs/patterns.md):
///
///   unstructured:S   any positions; a fraction S of them zero          0 <= S <= 1
///   N:M              N kept of every M along the input dimension       1 <= N <= M <= 64, M a
///   power of two block:RxC:S      R×C blocks kept or dropped whole; a fraction S of the blocks
///   zero    R, C <= 4096 vnm:V:N:M        in every panel of V rows and group of M columns, 4
///   columns live; N of those 4 kept
///                    V <= 4096, N <= 4 <= M <= 4096
///   fanin:S          every output keeps the same number of inputs, in - round(S·in)
///
/// The sparsity S is the fraction of zeros; `:S` may be left out where any number of zeros will do
/// (S = 0).
struct Pattern {
  enum class Kind : std::uint8_t { kUnstructured = 0, kNm = 1, kBlock = 2, kVnm = 3, kFanIn = 4 };

  Kind kind = Kind::kUnstructured;
  double sparsity = 0.0;  ///< asked for; for N:M and V:N:M it follows from the numbers
  std::int32_t n = 0;
  std::int32_t m = 0;
  std::int32_t v = 0;
  std::int32_t block_rows = 0;
  std::int32_t block_cols = 0;

  /// Reads the grammar. Throws Error(kInvalidArgument) that quotes the text and says what would do.
  static Pattern parse(std::string_view text);

  static Pattern unstructured(double sparsity);
  static Pattern nm(int n, int m);
  static Pattern block(int rows, int cols, double sparsity);
  static Pattern vnm(int v, int n, int m);
  static Pattern fan_in(double sparsity);

  /// The shortest text that parse() reads back to an equal pattern.
  std::string to_string() const;

  friend bool operator==(const Pattern&, const Pattern&) = default;
};

/// How many of `count` things a sparsity drops: S·count rounded to the nearest, halves up.
std::int64_t dropped_count(double sparsity, std::int64_t count);

}  // namespace gossamer
