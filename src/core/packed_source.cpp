// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "core/fail.h"
#include "core/half.h"
#include "core/layouts.h"
#include "core/nm24_tile.h"
#include "core/nm_group.h"
#include "core/row_pairs.h"
#include "core/row_source.h"

namespace gossamer::detail {
namespace {

class NmSource final : public PackedSource {
 public:
  explicit NmSource(const PackedView& p) : PackedSource(p), shape_(nm_shape(p.pattern(), p.in())) {}

  std::int64_t entries(std::int64_t batch, std::int64_t row, std::int32_t* cols,
                       std::byte* values) const override {
    return with_raw_type(dtype_bytes(dtype()), [&]<typename Raw>(Raw) {
      const std::int64_t r = batch * out() + row;
      const auto* stored = packed().array<Raw>(NmArrays::kValues) + r * shape_.groups * shape_.n;
      const auto* bits = packed().array<std::uint8_t>(NmArrays::kIndices) + r * shape_.index_bytes;
      std::int64_t count = 0;
      for (std::int64_t g = 0; g < shape_.groups; ++g) {
        std::uint64_t kept = nm_group_mask(shape_, bits, g);
        for (std::int64_t i = 0; kept != 0; ++i, kept &= kept - 1) {
          const std::int64_t col = g * shape_.m + std::countr_zero(kept);
          if (col >= in()) break;
          cols[count] = static_cast<std::int32_t>(col);
          if (values != nullptr) {
            store_raw(values + count * std::int64_t{sizeof(Raw)}, stored[g * shape_.n + i]);
          }
          ++count;
        }
      }
      return count;
    });
  }

 private:
  NmShape shape_;
};

class BitmaskSource final : public PackedSource {
 public:
  using PackedSource::PackedSource;

  std::int64_t entries(std::int64_t batch, std::int64_t row, std::int32_t* cols,
                       std::byte* values) const override {
    const std::int64_t row_bytes = ceil_div(in(), 8);
    const auto* bits =
        packed().array<std::byte>(BitmaskArrays::kBitmask) + (batch * out() + row) * row_bytes;
    std::int64_t count = 0;
    for (std::int64_t at = 0; at < row_bytes; at += 8) {
      std::uint64_t word = 0;
      std::memcpy(&word, bits + at,
                  static_cast<std::size_t>(std::min<std::int64_t>(8, row_bytes - at)));
      for (; word != 0; word &= word - 1) {
        cols[count++] = static_cast<std::int32_t>(at * 8 + std::countr_zero(word));
      }
    }
    const std::int64_t bytes = dtype_bytes(dtype());
    const std::int64_t begin =
        packed().array<std::int64_t>(BitmaskArrays::kRowOffsets)[batch * (out() + 1) + row];
    if (values != nullptr && count > 0) {
      std::memcpy(values, packed().array(BitmaskArrays::kValues) + begin * bytes,
                  static_cast<std::size_t>(count * bytes));
    }
    return count;
  }
};

class BsrSource final : public PackedSource {
 public:
  explicit BsrSource(const PackedView& p)
      : PackedSource(p),
        rows_(p.pattern().block_rows),
        cols_(p.pattern().block_cols),
        offsets_per_batch_(ceil_div(p.out(), rows_) + 1) {}

  std::int64_t entries(std::int64_t batch, std::int64_t row, std::int32_t* cols,
                       std::byte* values) const override {
    const auto* offsets = packed().array<std::int64_t>(BsrArrays::kBlockRowOffsets) +
                          batch * offsets_per_batch_ + row / rows_;
    const auto* block_cols = packed().array<std::int32_t>(BsrArrays::kBlockCols);
    const std::int64_t bytes = dtype_bytes(dtype());
    std::int64_t count = 0;
    for (std::int64_t block = offsets[0]; block < offsets[1]; ++block) {
      const std::int64_t first = block_cols[block] * cols_;
      const std::int64_t width = std::min(cols_, in() - first);
      for (std::int64_t i = 0; i < width; ++i) {
        cols[count + i] = static_cast<std::int32_t>(first + i);
      }
      if (values != nullptr) {
        const std::int64_t from = (block * rows_ + row % rows_) * cols_;
        std::memcpy(values + count * bytes, packed().array(BsrArrays::kValues) + from * bytes,
                    static_cast<std::size_t>(width * bytes));
      }
      count += width;
    }
    return count;
  }

 private:
  std::int64_t rows_;
  std::int64_t cols_;
  std::int64_t offsets_per_batch_;
};

class FanInSource final : public PackedSource {
 public:
  explicit FanInSource(const PackedView& p)
      : PackedSource(p), count_(fan_in_count(p.pattern(), p.in())) {}

  std::int64_t entries(std::int64_t batch, std::int64_t row, std::int32_t* cols,
                       std::byte* values) const override {
    const std::int64_t begin = (batch * out() + row) * count_;
    if (fan_in_col_dtype(in()) == DType::kUInt16) {
      std::copy_n(packed().array<std::uint16_t>(FanInArrays::kCols) + begin, count_, cols);
    } else {
      std::copy_n(packed().array<std::int32_t>(FanInArrays::kCols) + begin, count_, cols);
    }
    const std::int64_t bytes = dtype_bytes(dtype());
    if (values != nullptr && count_ > 0) {
      std::memcpy(values, packed().array(FanInArrays::kValues) + begin * bytes,
                  static_cast<std::size_t>(count_ * bytes));
    }
    return count_;
  }

 private:
  std::int64_t count_;
};

class KcsrSource final : public PackedSource {
 public:
  explicit KcsrSource(const PackedView& p)
      : PackedSource(p),
        block_(kcsr_block(p.layout())),
        blocks_(ceil_div(p.in(), block_)),
        taps_(p.taps()),
        order_{taps_, p.in() / taps_} {}

  std::int64_t entries(std::int64_t batch, std::int64_t row, std::int32_t* cols,
                       std::byte* values) const override {
    const auto* starts =
        packed().array<std::int64_t>(KcsrArrays::kBlockOffsets) + batch * (blocks_ + 1);
    const auto* segments = packed().array<std::uint32_t>(KcsrArrays::kSegmentOffsets) +
                           batch * blocks_ * (out() + 1) + row;
    const auto* stored_cols = packed().array<std::uint8_t>(KcsrArrays::kCols);
    const std::int64_t bytes = dtype_bytes(dtype());
    std::int64_t count = 0;
    for (std::int64_t k = 0; k < blocks_; ++k) {
      const std::uint32_t* segment = segments + k * (out() + 1);
      const std::int64_t begin = starts[k] + segment[0];
      const std::int64_t width = std::int64_t{segment[1]} - std::int64_t{segment[0]};
      for (std::int64_t i = 0; i < width; ++i) {
        const std::int64_t stored = k * block_ + stored_cols[begin + i];
        cols[count + i] = static_cast<std::int32_t>(taps_ == 1 ? stored : order_.from(stored));
      }
      if (values != nullptr && width > 0) {
        std::memcpy(values + count * bytes, packed().array(KcsrArrays::kValues) + begin * bytes,
                    static_cast<std::size_t>(width * bytes));
      }
      count += width;
    }
    return count;
  }

 private:
  std::int64_t block_;
  std::int64_t blocks_;
  std::int64_t taps_;
  ChannelMajor order_;
};

class Nm24Source final : public PackedSource {
 public:
  explicit Nm24Source(const PackedView& p)
      : PackedSource(p), groups_(nm24_groups(p.in())), pairs_(ceil_div(p.out(), 2)) {}

  std::int64_t entries(std::int64_t batch, std::int64_t row, std::int32_t* cols,
                       std::byte* values) const override {
    const std::int64_t line = (batch * pairs_ + row / 2) * groups_;
    const auto* meta = packed().array<std::uint8_t>(Nm24Arrays::kMeta) + line;
    const std::int64_t bytes = dtype_bytes(dtype());
    const std::byte* stored = packed().array(Nm24Arrays::kValues) + line * 4 * bytes;
    const std::int64_t half = row % 2;
    std::int64_t count = 0;
    for (std::int64_t g = 0; g * 4 < in(); ++g) {
      for (std::int64_t slot = 0; slot < 2; ++slot) {
        const std::int64_t col = g * 4 + ((meta[g] >> (4 * half + 2 * slot)) & 3);
        if (col >= in()) break;
        cols[count] = static_cast<std::int32_t>(col);
        if (values != nullptr) {
          std::memcpy(values + count * bytes, stored + (g * 4 + 2 * half + slot) * bytes,
                      static_cast<std::size_t>(bytes));
        }
        ++count;
      }
    }
    return count;
  }

 private:
  std::int64_t groups_;
  std::int64_t pairs_;
};

class Nm24TilesSource final : public PackedSource {
 public:
  explicit Nm24TilesSource(const PackedView& p) : PackedSource(p) {}

  std::int64_t entries(std::int64_t batch, std::int64_t row, std::int32_t* cols,
                       std::byte* values) const override {
    return dtype_bytes(dtype()) == 2 ? read_row<2>(batch, row, cols, values)
                                     : read_row<1>(batch, row, cols, values);
  }

 private:
  template <int kElementBytes>
  std::int64_t read_row(std::int64_t batch, std::int64_t row, std::int32_t* cols,
                        std::byte* values) const {
    using Tile = Nm24Tile<kElementBytes>;
    const std::int64_t line = batch * nm24_row_tiles(out()) + row / Tile::kRows;
    const std::byte* tile = packed().array(Nm24TilesArrays::kTiles) +
                            line * nm24_input_tiles(in(), kElementBytes) * Tile::kBytes;
    const int tile_row = static_cast<int>(row % Tile::kRows);
    std::int64_t count = 0;
    for (std::int64_t first = 0; first < in(); first += 4) {
      const int group = static_cast<int>(first / 4 % Tile::kGroups);
      if (first != 0 && group == 0) tile += Tile::kBytes;
      const int nibble = Tile::meta_nibble(tile_row, group);
      const auto meta = std::to_integer<int>(tile[Tile::kValueBytes + nibble / 2]);
      for (int slot = 0; slot < 2; ++slot) {
        const std::int64_t col = first + ((meta >> (nibble % 2 * 4 + 2 * slot)) & 3);
        if (col >= in()) break;
        cols[count] = static_cast<std::int32_t>(col);
        if (values != nullptr) {
          std::memcpy(values + count * kElementBytes,
                      tile + Tile::value_byte(tile_row, 2 * group + slot), kElementBytes);
        }
        ++count;
      }
    }
    return count;
  }
};

}  // namespace

void PackedSource::read_mask(std::int64_t batch, std::int64_t row, std::uint8_t* mask) const {
  cols_.resize(static_cast<std::size_t>(in()));
  const std::int64_t count = entries(batch, row, cols_.data(), nullptr);
  std::fill_n(mask, in(), std::uint8_t{0});
  for (std::int64_t i = 0; i < count; ++i) mask[cols_[static_cast<std::size_t>(i)]] = 1;
}

void PackedSource::read(std::int64_t batch, std::int64_t row, std::byte* values,
                        std::uint8_t* mask) const {
  const std::int64_t bytes = dtype_bytes(dtype());
  cols_.resize(static_cast<std::size_t>(in()));
  values_.resize(static_cast<std::size_t>(in() * bytes));
  const std::int64_t count = entries(batch, row, cols_.data(), values_.data());
  std::fill_n(mask, in(), std::uint8_t{0});
  std::fill_n(values, in() * bytes, std::byte{0});
  with_raw_type(bytes, [&]<typename Raw>(Raw) {
    constexpr std::int64_t kBytes = sizeof(Raw);
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int32_t col = cols_[static_cast<std::size_t>(i)];
      mask[col] = 1;
      store_raw(values + col * kBytes, load_raw<Raw>(values_.data() + i * kBytes));
    }
  });
}

std::unique_ptr<PackedSource> packed_source(const PackedView& packed) {
  switch (packed.layout()) {
    case Layout::kNm:
      return std::make_unique<NmSource>(packed);
    case Layout::kBitmask:
      return std::make_unique<BitmaskSource>(packed);
    case Layout::kBsr:
      return std::make_unique<BsrSource>(packed);
    case Layout::kFanIn:
      return std::make_unique<FanInSource>(packed);
    case Layout::kKcsr64:
    case Layout::kKcsr128:
    case Layout::kKcsr256:
      return std::make_unique<KcsrSource>(packed);
    case Layout::kRowPairs64:
    case Layout::kRowPairs128:
    case Layout::kRowQuads512:
      return row_pairs_source(packed);
    case Layout::kNm24Pairs:
      return std::make_unique<Nm24Source>(packed);
    case Layout::kNm24Tiles:
      return std::make_unique<Nm24TilesSource>(packed);
  }
  fail(ErrorCode::kInvalidArgument, "layout number {} is not known", int(packed.layout()));
}

}  // namespace gossamer::detail
