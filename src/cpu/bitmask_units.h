// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/layouts.h"
#include "cpu/bitmask_rows.h"
#include "cpu/kcsr_task.h"

namespace gossamer::cpu {

using UnitFunction = void (*)(const BitmaskUnitTask&);

/// One batch of a bitmask weight as units of several inputs in 32 bits, values and all: 5 bytes a
/// unit in scratch memory.
struct BitmaskUnitSource {
  static constexpr std::int64_t kKeptAtOnce = std::int64_t{1} << 18;

  BitmaskRows weight;
  std::int64_t out;
  std::int64_t in;
  std::int64_t block;
  std::int64_t block_count;
  const std::uint32_t* units = nullptr;  ///< of the indexed rows
  const std::uint8_t* cols = nullptr;
  const std::uint32_t* segments = nullptr;
  std::int64_t rows = 0;

  BitmaskUnitSource(const PackedView& packed, std::int64_t batch, std::int64_t block_inputs)
      : weight(packed, batch),
        out(packed.out()),
        in(packed.in()),
        block(block_inputs),
        block_count(detail::ceil_div(in, block)) {}

  std::int64_t balanced_row(std::int64_t part, std::int64_t parts) const {
    return weight.balanced_row(part, parts, 16);
  }

  std::int64_t rows_at_once(std::int64_t row, std::int64_t wanted) const {
    while (wanted > 1 && weight.kept(row, wanted) > kKeptAtOnce) wanted /= 2;
    return wanted;
  }

  /// At most as many units as kept values; segments, units, columns and a word a row.
  std::int64_t scratch_bytes(std::int64_t row, std::int64_t count) const {
    return (block_count + 2) * count * 4 + 5 * (weight.kept(row, count) + 16);
  }

  struct Memory {
    std::uint32_t* segments;
    std::int32_t* row_words;
    std::uint32_t* units;
    std::uint8_t* cols;
  };
  Memory lay_out(std::int64_t row, std::int64_t count, std::byte* memory) {
    Memory m{};
    m.segments = reinterpret_cast<std::uint32_t*>(memory);
    m.row_words = reinterpret_cast<std::int32_t*>(m.segments + (block_count + 1) * count);
    m.units = reinterpret_cast<std::uint32_t*>(m.row_words + count);
    m.cols = reinterpret_cast<std::uint8_t*>(m.units + weight.kept(row, count) + 16);
    units = m.units;
    cols = m.cols;
    segments = m.segments;
    rows = count;
    return m;
  }

  KcsrAddTask add_task(std::int64_t k) const {
    KcsrAddTask task{};
    task.values = units;
    task.cols = cols;
    task.begins = segments + k * rows;
    task.ends = task.begins + rows;
    return task;
  }
};

/// Of floating-point units, and of quantized ones.
template <UnitFunction function>
struct BitmaskUnits : BitmaskUnitSource {
  using BitmaskUnitSource::BitmaskUnitSource;

  void index(std::int64_t row, std::int64_t count, std::byte* memory) {
    const Memory m = lay_out(row, count, memory);
    function({weight.bits + row * weight.row_bytes, weight.row_values(row), count, in, block,
              m.units, m.cols, m.segments, nullptr});
  }
};

template <UnitFunction function>
struct QuantizedBitmaskUnits : BitmaskUnitSource {
  using BitmaskUnitSource::BitmaskUnitSource;
  const std::int32_t* corrections = nullptr;

  void index(std::int64_t row, std::int64_t count, std::byte* memory) {
    const Memory m = lay_out(row, count, memory);
    function({weight.bits + row * weight.row_bytes, weight.row_values(row), count, in, block,
              m.units, m.cols, m.segments, m.row_words});
    corrections = m.row_words;
  }
};

}  // namespace gossamer::cpu
