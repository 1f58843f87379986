// SPDX-License-Identifier: BSD-3-Clause
// Row pairs: inside a panel of rows and a block of inputs, rows that keep equally many inputs are
// paired with what they share in mind, and pairs of equal counts lie one behind the other. A kernel
// then loads a shared column of X once for both rows, and its loops end after the same number of
// rounds again and again, which a processor guesses. A column is one input, or a unit of four
// neighbours, of which any may be kept.
#include <algorithm>
#include <array>
#include <bit>
#include <numeric>
#include <vector>

#include "core/encode.h"
#include "core/half.h"

namespace gossamer::detail {
namespace {

constexpr int kWords = 2;  ///< of 64 bits, in the longest block
using BlockBits = std::array<std::uint64_t, kWords>;

BlockBits both(const BlockBits& a, const BlockBits& b) { return {a[0] & b[0], a[1] & b[1]}; }
int count_of(const BlockBits& bits) { return std::popcount(bits[0]) + std::popcount(bits[1]); }

/// An odd number is one less: half as many different counts, so that runs of equal ones are longer.
constexpr int rounded(int shared) { return shared / 2 * 2; }

/// Takes the highest bit away.
void drop_last(BlockBits& bits) {
  std::uint64_t& word = bits[1] != 0 ? bits[1] : bits[0];
  word ^= std::bit_floor(word);
}

/// What rows `a` and `b` of a pair keep in common, as far as it is stored so.
BlockBits shared_bits(const BlockBits& a, const BlockBits& b) {
  BlockBits bits = both(a, b);
  if (const int count = count_of(bits); count != rounded(count)) drop_last(bits);
  return bits;
}

/// What rows keep, [batch·out][blocks]: a bit a unit.
std::vector<BlockBits> read_bits(const RowSource& source, std::int64_t block, std::int64_t unit,
                                 std::int64_t& kept) {
  const std::int64_t blocks = ceil_div(source.in(), block);
  kept = 0;
  std::vector<BlockBits> bits(static_cast<std::size_t>(source.batch() * source.out() * blocks));
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(source.in()));
  BlockBits* row_bits = bits.data();
  for (std::int64_t row = 0; row < source.batch() * source.out(); ++row, row_bits += blocks) {
    source.read_mask(row / source.out(), row % source.out(), mask.data());
    for (std::int64_t i = 0; i < source.in(); ++i) {
      const std::uint64_t is_kept = mask[static_cast<std::size_t>(i)];
      const std::int64_t bit = i % block / unit;
      row_bits[i / block][static_cast<std::size_t>(bit / 64)] |= is_kept << (bit % 64);
      kept += static_cast<std::int64_t>(is_kept);
    }
  }
  return bits;
}

struct Pair {
  int first;
  int second;
  int kept;  ///< units of each
  int shared;
};

/// The pairs of one panel's block, and the rows that found no partner.
class Pairing {
 public:
  /// `bits`: of the panel's rows, `stride` apart.
  Pairing(const BlockBits* bits, std::int64_t stride, int rows) : bits_(bits), stride_(stride) {
    std::vector<int> order(static_cast<std::size_t>(rows));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return kept(a) < kept(b); });
    for (auto begin = order.begin(); begin != order.end();) {
      const auto end =
          std::find_if(begin, order.end(), [&](int row) { return kept(row) != kept(*begin); });
      pair_equals({begin, end});
      begin = end;
    }
    std::stable_sort(pairs_.begin(), pairs_.end(), [](const Pair& a, const Pair& b) {
      return a.kept != b.kept ? a.kept < b.kept : a.shared < b.shared;
    });
  }

  const std::vector<Pair>& pairs() const { return pairs_; }
  const std::vector<int>& singles() const { return singles_; }
  int kept(int row) const { return count_of(bits(row)); }

 private:
  const BlockBits& bits(int row) const { return bits_[row * stride_]; }

  /// Each row takes the partner with which it shares most, of those that are left.
  void pair_equals(std::vector<int> left) {
    while (left.size() > 1) {
      const int row = left.front();
      left.erase(left.begin());
      const auto partner = std::max_element(left.begin(), left.end(), [&](int a, int b) {
        return count_of(both(bits(row), bits(a))) < count_of(both(bits(row), bits(b)));
      });
      pairs_.push_back(
          {row, *partner, kept(row), count_of(shared_bits(bits(row), bits(*partner)))});
      left.erase(partner);
    }
    singles_.insert(singles_.end(), left.begin(), left.end());
  }

  const BlockBits* bits_;
  std::int64_t stride_;
  std::vector<Pair> pairs_;
  std::vector<int> singles_;
};

/// All arrays but values, columns and masks.
struct RowPairsIndex {
  std::vector<std::uint8_t> rows;
  std::vector<std::uint8_t> counts;
  std::vector<std::int64_t> segments;
  PairSizes sizes{0, 0};

  void add(const Pairing& pairing) {
    segments.insert(segments.end(), {sizes.units, sizes.columns,
                                     static_cast<std::int64_t>(pairing.pairs().size())});
    for (const Pair& pair : pairing.pairs()) {
      add_place(pair.first, pair.shared);
      add_place(pair.second, pair.kept - pair.shared);
      sizes.units += std::int64_t{2} * pair.kept;
      sizes.columns += 2 * pair.kept - pair.shared;
    }
    for (const int row : pairing.singles()) {
      add_place(row, pairing.kept(row));
      sizes.units += pairing.kept(row);
      sizes.columns += pairing.kept(row);
    }
  }

 private:
  void add_place(int row, int count) {
    rows.push_back(static_cast<std::uint8_t>(row));
    counts.push_back(static_cast<std::uint8_t>(count));
  }
};

RowPairsIndex index_of(const std::vector<BlockBits>& bits, const FormatInfo& info,
                       std::int64_t blocks) {
  RowPairsIndex index;
  for (std::int64_t b = 0; b < info.batch; ++b) {
    for (std::int64_t row = 0; row < info.out; row += kRowPairsPanel) {
      const std::int64_t rows = std::min(kRowPairsPanel, info.out - row);
      for (std::int64_t k = 0; k < blocks; ++k) {
        index.add(Pairing(bits.data() + (b * info.out + row) * blocks + k, blocks,
                          static_cast<int>(rows)));
      }
    }
  }
  return index;
}

/// Where what a row keeps in a block goes.
struct Place {
  std::int64_t value = 0;
  std::int64_t col = 0;
  std::int64_t step = 1;  ///< between its values, and between the columns that it has alone
  const BlockBits* partner = nullptr;
  bool second = false;  ///< of a pair: its own columns come one behind the first's
};

/// The places of one panel, [blocks][rows].
std::vector<Place> places_of(const RowPairsIndex& index, const BlockBits* bits, std::int64_t blocks,
                             std::int64_t rows, std::int64_t first_place,
                             const std::int64_t* segment) {
  std::vector<Place> places(static_cast<std::size_t>(blocks * rows));
  for (std::int64_t k = 0; k < blocks; ++k, segment += RowPairsSegment::kCount) {
    const std::uint8_t* row = index.rows.data() + first_place + k * rows;
    const std::uint8_t* counts = index.counts.data() + first_place + k * rows;
    Place* block_places = places.data() + k * rows;
    std::int64_t value = segment[RowPairsSegment::kValue];
    std::int64_t col = segment[RowPairsSegment::kCol];
    const std::int64_t paired = 2 * segment[RowPairsSegment::kPairs];
    for (std::int64_t i = 0; i < paired; i += 2) {
      block_places[row[i]] = {value, col, 2, bits + row[i + 1] * blocks + k, false};
      block_places[row[i + 1]] = {value + 1, col, 2, bits + row[i] * blocks + k, true};
      value += 2 * (std::int64_t{counts[i]} + counts[i + 1]);
      col += std::int64_t{counts[i]} + 2 * std::int64_t{counts[i + 1]};
    }
    for (std::int64_t i = paired; i < rows; ++i) {
      block_places[row[i]] = {value, col, 1, nullptr, false};
      value += counts[i];
      col += counts[i];
    }
  }
  return places;
}

/// The inputs of a row's block.
struct BlockInputs {
  const std::byte* values;
  const std::uint8_t* mask;
  std::int64_t count;
  std::int64_t unit;  ///< inputs of a column
};

/// The arrays of the whole weight; no masks where units are single inputs.
template <typename Raw>
struct PairArrays {
  Raw* values;
  std::uint8_t* cols;
  std::uint8_t* masks;
};

/// The inputs of unit `column`: its values, zeros where nothing is kept, and its mask.
template <typename Raw>
unsigned copy_unit(const BlockInputs& from, std::int64_t column, Raw* values) {
  unsigned mask = 0;
  for (std::int64_t i = 0; i < from.unit; ++i) {
    const std::int64_t input = column * from.unit + i;
    const bool inside = input < from.count;
    values[i] = inside ? load_raw<Raw>(from.values + input * std::int64_t{sizeof(Raw)}) : Raw{0};
    if (inside && from.mask[input] != 0) mask |= 1u << static_cast<unsigned>(i);
  }
  return mask;
}

template <typename Raw>
void fill_block(const Place& place, const BlockBits& bits, const BlockInputs& from,
                const PairArrays<Raw>& to) {
  const BlockBits shared =
      place.partner == nullptr ? BlockBits{} : shared_bits(bits, *place.partner);
  std::int64_t value = place.value;
  std::int64_t col = place.col;
  const auto put = [&](const BlockBits& which, std::int64_t step, bool high) {
    for (std::size_t word = 0; word < kWords; ++word) {
      for (std::uint64_t left = which[word]; left != 0; left &= left - 1, col += step) {
        const int column = static_cast<int>(word) * 64 + std::countr_zero(left);
        to.cols[col] = static_cast<std::uint8_t>(column);
        const unsigned mask = copy_unit(from, column, to.values + value * from.unit);
        if (to.masks != nullptr) {
          to.masks[col] = static_cast<std::uint8_t>(to.masks[col] | mask << (high ? 4 : 0));
        }
        value += place.step;
      }
    }
  };
  put(shared, 1, place.second);
  if (place.second) ++col;
  put({bits[0] ^ shared[0], bits[1] ^ shared[1]}, place.step, false);
}

template <typename Raw>
void fill(const RowSource& source, const FormatInfo& info, const std::vector<BlockBits>& bits,
          const RowPairsIndex& index, const PairArrays<Raw>& to) {
  const std::int64_t block = row_pairs_block(info.format);
  const std::int64_t blocks = ceil_div(info.in, block);
  std::vector<std::byte> row_values(static_cast<std::size_t>(info.in) * sizeof(Raw));
  std::vector<std::uint8_t> mask(static_cast<std::size_t>(info.in));
  const std::int64_t* segment = index.segments.data();
  for (std::int64_t first = 0; first < (blocks == 0 ? 0 : info.batch * info.out);) {
    const std::int64_t rows = std::min(kRowPairsPanel, info.out - first % info.out);
    const BlockBits* panel_bits = bits.data() + first * blocks;
    const std::vector<Place> places =
        places_of(index, panel_bits, blocks, rows, first * blocks, segment);
    for (std::int64_t r = 0; r < rows; ++r) {
      source.read((first + r) / info.out, (first + r) % info.out, row_values.data(), mask.data());
      for (std::int64_t k = 0; k < blocks; ++k) {
        const Place& place = places[static_cast<std::size_t>(k * rows + r)];
        fill_block(
            place, panel_bits[r * blocks + k],
            {row_values.data() + k * block * std::int64_t{sizeof(Raw)}, mask.data() + k * block,
             std::min(block, info.in - k * block), row_pairs_unit(info.format)},
            to);
      }
    }
    first += rows;
    segment += blocks * RowPairsSegment::kCount;
  }
}

void correct(const RowSource& source, std::int32_t* corrections) {
  std::vector<std::int8_t> values(static_cast<std::size_t>(source.in()));
  std::vector<std::uint8_t> mask(values.size());
  for (std::int64_t row = 0; row < source.batch() * source.out(); ++row) {
    source.read(row / source.out(), row % source.out(), reinterpret_cast<std::byte*>(values.data()),
                mask.data());
    corrections[row] = row_correction(values.data(), source.in());
  }
}

}  // namespace

PackedWeight encode_row_pairs(const RowSource& source, const FormatInfo& info,
                              const PackedAllocator& allocator) {
  const std::int64_t block = row_pairs_block(info.format);
  const std::int64_t unit = row_pairs_unit(info.format);
  std::int64_t kept = 0;
  const std::vector<BlockBits> bits = read_bits(source, block, unit, kept);
  const RowPairsIndex index = index_of(bits, info, ceil_div(info.in, block));
  const PackedBuffer buffer(info, kept, allocator, index.sizes);
  auto* rows = buffer.array<std::uint8_t>(RowPairsArrays::kRows);
  auto* counts =
      unit == 1 ? buffer.array<std::uint8_t>(RowPairsArrays::kCounts) : rows + index.rows.size();
  std::copy(index.rows.begin(), index.rows.end(), rows);
  std::copy(index.counts.begin(), index.counts.end(), counts);
  std::copy(index.segments.begin(), index.segments.end(),
            buffer.array<std::int64_t>(RowPairsArrays::kSegments));
  std::uint8_t* masks = nullptr;
  if (unit > 1) {
    masks = buffer.array<std::uint8_t>(RowPairsArrays::kMasks);
    std::fill_n(masks, index.sizes.columns, std::uint8_t{0});
  }
  with_raw_type(dtype_bytes(info.dtype), [&]<typename Raw>(Raw) {
    fill(source, info, bits, index,
         PairArrays<Raw>{buffer.array<Raw>(RowPairsArrays::kValues),
                         buffer.array<std::uint8_t>(RowPairsArrays::kCols), masks});
  });
  if (unit > 1 && info.dtype == DType::kInt8) {
    correct(source, buffer.array<std::int32_t>(RowPairsArrays::kCorrections));
  }
  return buffer.finish();
}

}  // namespace gossamer::detail
