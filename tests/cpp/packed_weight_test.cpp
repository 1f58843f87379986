// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/packed_weight.h"

#include <gtest/gtest.h>

#include <cstring>

#include "core/layouts.h"
#include "testing.h"

namespace gossamer {
namespace {

using test::array_of;
using test::bytes_of;
using test::code_of;
using test::copy_bytes;
using test::Matrix;
using test::matrix_bool;
using test::matrix_f32;
using test::message_of;
using test::pack_matrix;
using test::unpack_mask;
using test::unpack_values;

using Floats = std::vector<float>;
using Bytes = std::vector<std::uint8_t>;
using Longs = std::vector<std::int64_t>;

// ---- The bits of each layout, written out by hand. ----

TEST(PackedBytesTest, Nm24IsANibbleAGroupLowNibbleFirst) {
  // Row 0 keeps columns 1, 3 | 4, 5 | 8 and, its last group being short, the next free position 9.
  // Row 1 keeps 0, 1 (filled) | 6, 7 | 8 and 9 (both filled).
  const Matrix w = matrix_f32(2, 9,
                              {0, 1, 0, 2, 3, 4, 0, 0, 5,  //
                               0, 6, 0, 0, 0, 0, 7, 8, 0});
  const PackedWeight packed = pack_matrix(w, Pattern::parse("2:4"), Layout::kNm);
  const PackedView view = packed;
  EXPECT_EQ(array_of<float>(view, 0), (Floats{1, 2, 3, 4, 5, 0, 0, 6, 7, 8, 0, 0}));
  // positions 1,3 → 1|3<<2 = 0xd; 0,1 → 0x4; 0,1 → 0x4.   0,1 → 0x4; 2,3 → 2|3<<2 = 0xe; 0,1 → 0x4
  EXPECT_EQ(array_of<std::uint8_t>(view, 1), (Bytes{0x4d, 0x04, 0xe4, 0x04}));
  EXPECT_EQ(view.kept(), 12);
  EXPECT_EQ(unpack_values(view), w);
  EXPECT_EQ(unpack_mask(view), matrix_bool(2, 9,
                                           {0, 1, 0, 1, 1, 1, 0, 0, 1,  //
                                            1, 1, 0, 0, 0, 0, 1, 1, 1}));
}

TEST(PackedBytesTest, Nm48IsAMaskAGroup) {
  const Matrix w = matrix_f32(1, 8, {0, 1, 2, 0, 0, 3, 0, 4});
  const PackedWeight packed = pack_matrix(w, Pattern::parse("4:8"), Layout::kNm);
  EXPECT_EQ(array_of<float>(packed, 0), (Floats{1, 2, 3, 4}));
  EXPECT_EQ(array_of<std::uint8_t>(packed, 1), (Bytes{0b10100110}));
}

TEST(PackedBytesTest, Nm28PositionsRunAcrossBytes) {
  // 2 × 3 bits a group: groups at bits 0, 6, 12. Positions (1, 6), (0, 7), (3, 4).
  const Matrix w =
      matrix_f32(1, 24, {0, 1, 0, 0, 0, 0, 2, 0, 3, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 5, 6, 0, 0, 0});
  const PackedWeight packed = pack_matrix(w, Pattern::parse("2:8"), Layout::kNm);
  const unsigned stream = (1u | 6u << 3) | (0u | 7u << 3) << 6 | (3u | 4u << 3) << 12;
  EXPECT_EQ(array_of<std::uint8_t>(packed, 1),
            (Bytes{std::uint8_t(stream), std::uint8_t(stream >> 8), std::uint8_t(stream >> 16)}));
  EXPECT_EQ(array_of<float>(packed, 0), (Floats{1, 2, 3, 4, 5, 6}));
}

TEST(PackedBytesTest, Nm11HasNoIndices) {
  const Matrix w = matrix_f32(1, 3, {1, 0, 2});
  const PackedWeight packed = pack_matrix(w, Pattern::parse("1:1"), Layout::kNm);
  EXPECT_EQ(array_of<float>(packed, 0), (Floats{1, 0, 2}));
  EXPECT_EQ(array_of<std::uint8_t>(packed, 1), Bytes{});
  EXPECT_EQ(unpack_values(packed), w);
}

TEST(PackedBytesTest, Bitmask) {
  const Matrix w = matrix_f32(3, 9, {1, 0, 0, 2, 0, 0, 0, 3, 4,  //
                                     0, 0, 0, 0, 0, 0, 0, 0, 0,  //
                                     0, 5, 0, 0, 0, 0, 0, 0, 0});
  const PackedWeight packed = pack_matrix(w, Pattern::parse("unstructured"), Layout::kBitmask);
  EXPECT_EQ(array_of<std::uint8_t>(packed, 0), (Bytes{0x89, 0x01, 0x00, 0x00, 0x02, 0x00}));
  EXPECT_EQ(array_of<float>(packed, 1), (Floats{1, 2, 3, 4, 5}));
  EXPECT_EQ(array_of<std::int64_t>(packed, 2), (Longs{0, 4, 4, 5}));
}

TEST(PackedBytesTest, BitmaskOffsetsRunOnOverTheBatch) {
  Matrix w = test::zeros(DType::kFloat32, 2, 2, 2);
  const Floats values{1, 0, 2, 3, 0, 4, 5, 0};
  std::memcpy(w.bytes.data(), values.data(), w.bytes.size());
  const PackedWeight packed = pack_matrix(w, Pattern::parse("unstructured"), Layout::kBitmask);
  EXPECT_EQ(array_of<std::int64_t>(packed, 2), (Longs{0, 1, 3, 3, 4, 5}));
  EXPECT_EQ(array_of<float>(packed, 1), (Floats{1, 2, 3, 4, 5}));
  EXPECT_EQ(unpack_values(packed), w);
}

TEST(PackedBytesTest, BsrHoldsWholeBlocksZeroPastTheEdge) {
  // 2x2 blocks over 3 × 5: block rows {0, 1}, {2}; block columns {0, 1}, {2, 3}, {4}.
  const Matrix w = matrix_f32(3, 5,
                              {1, 2, 0, 0, 0,  //
                               3, 4, 0, 0, 5,  //
                               0, 0, 0, 6, 0});
  const PackedWeight packed = pack_matrix(w, Pattern::parse("block:2x2"), Layout::kBsr);
  EXPECT_EQ(array_of<std::int64_t>(packed, 0), (Longs{0, 2, 3}));
  EXPECT_EQ(array_of<std::int32_t>(packed, 1), (std::vector<std::int32_t>{0, 2, 1}));
  EXPECT_EQ(array_of<float>(packed, 2), (Floats{1, 2, 3, 4, 0, 0, 5, 0, 0, 6, 0, 0}));
  EXPECT_EQ(packed.view().kept(), 12);
  EXPECT_EQ(unpack_values(packed), w);
  EXPECT_EQ(unpack_mask(packed), matrix_bool(3, 5,
                                             {1, 1, 0, 0, 1,  //
                                              1, 1, 0, 0, 1,  //
                                              0, 0, 1, 1, 0}));
}

TEST(PackedBytesTest, FanInFillsTheLowestFreeColumns) {
  const Matrix w = matrix_f32(2, 4, {0, 1, 0, 2, 0, 0, 3, 0});
  const PackedWeight packed = pack_matrix(w, Pattern::parse("fanin:0.5"), Layout::kFanIn);
  EXPECT_EQ(array_of<float>(packed, 0), (Floats{1, 2, 0, 3}));
  EXPECT_EQ(array_of<std::uint16_t>(packed, 1), (std::vector<std::uint16_t>{1, 3, 0, 2}));
  EXPECT_EQ(unpack_values(packed), w);
}

TEST(PackedBytesTest, FanInColumnsGrowWithTheInput) {
  for (const std::int64_t in : {65536, 65537}) {
    Matrix w = test::zeros(DType::kInt8, 1, in);
    w.as<std::int8_t>()[in - 1] = 7;
    const Pattern pattern = Pattern::fan_in(double(in - 1) / double(in));
    const PackedWeight packed = pack_matrix(w, pattern, Layout::kFanIn);
    if (in == 65536) {
      EXPECT_EQ(array_of<std::uint16_t>(packed, 1), (std::vector<std::uint16_t>{65535}));
    } else {
      EXPECT_EQ(array_of<std::int32_t>(packed, 1), (std::vector<std::int32_t>{65536}));
    }
    EXPECT_EQ(unpack_values(packed), w);
    validate(packed);
  }
}

TEST(PackedBytesTest, KcsrIsOrderedByBlockThenRow) {
  Matrix w = test::zeros(DType::kFloat32, 2, 70);
  float* data = w.as<float>();
  data[3] = 1;
  data[64] = 2;
  data[69] = 3;
  data[70 + 63] = 4;
  data[70 + 65] = 5;
  const PackedWeight packed = pack_matrix(w, Pattern::parse("unstructured"), Layout::kKcsr64);
  EXPECT_EQ(array_of<float>(packed, 0), (Floats{1, 4, 2, 3, 5}));
  EXPECT_EQ(array_of<std::uint8_t>(packed, 1), (Bytes{3, 63, 0, 5, 1}));
  EXPECT_EQ(array_of<std::uint32_t>(packed, 2), (std::vector<std::uint32_t>{0, 1, 2, 0, 2, 3}));
  EXPECT_EQ(array_of<std::int64_t>(packed, 3), (Longs{0, 2, 5}));
  EXPECT_EQ(unpack_values(packed), w);
}

TEST(PackedBytesTest, RowPairsShareALine) {
  // Eight groups a line whatever the width; an odd last row is paired with an empty one.
  const Matrix w = matrix_f32(3, 5,
                              {0, 1, 0, 2, 3,  //
                               4, 5, 0, 0, 0,  //
                               0, 0, 6, 7, 8});
  const PackedWeight packed = pack_matrix(w, Pattern::parse("2:4"), Layout::kNm24Pairs);
  Floats values(64, 0.0f);
  const Floats first{1, 2, 4, 5, 3, 0, 0, 0};
  const Floats second{6, 7, 0, 0, 8, 0, 0, 0};
  std::copy(first.begin(), first.end(), values.begin());
  std::copy(second.begin(), second.end(), values.begin() + 32);
  EXPECT_EQ(array_of<float>(packed, 0), values);
  Bytes meta(16, 0x44);
  meta[0] = 0x4d;  // row 0: 1 | 3<<2 low, row 1: 0 | 1<<2 high
  meta[8] = 0x4e;  // row 2: 2 | 3<<2 low
  EXPECT_EQ(array_of<std::uint8_t>(packed, 1), meta);
  EXPECT_EQ(unpack_values(packed), w);
}

TEST(PackedBytesTest, HeaderStartsWithItsName) {
  const PackedWeight packed =
      pack_matrix(matrix_f32(1, 1, {1}), Pattern::parse("unstructured"), Layout::kBitmask);
  EXPECT_EQ(std::memcmp(packed.data(), "GSMR", 4), 0);
  EXPECT_EQ(packed.view().header().version, PackedHeader::kVersion);
}

// ---- What packing promises. ----

TEST(PackTest, EveryArrayIsAlignedAndFollowedByZeros) {
  test::Random random(1);
  for (const Layout layout : test::all_layouts()) {
    const Pattern pattern = layout == Layout::kBsr     ? Pattern::parse("block:2x4:0.5")
                            : layout == Layout::kFanIn ? Pattern::parse("fanin:0.5")
                                                       : Pattern::parse("2:4");
    const Matrix w = test::random_sparse(random, DType::kFloat16, pattern, 13, 37);
    const PackedWeight packed = pack_matrix(w, pattern, layout);
    const PackedHeader& header = packed.view().header();
    for (int i = 0; i < header.array_count; ++i) {
      const auto& array = header.arrays[static_cast<std::size_t>(i)];
      EXPECT_EQ(array.offset % 64, 0);
      const std::int64_t end = array.offset + array.bytes;
      ASSERT_LE(end + 64, packed.size_bytes());
      for (std::int64_t at = end; at < end + 64; ++at) {
        EXPECT_EQ(packed.data()[at], std::byte{0}) << layout_name(layout) << " array " << i;
      }
    }
    EXPECT_TRUE(test::size_is_foretold(packed)) << layout_name(layout);
  }
}

TEST(PackTest, AKeptZeroStaysKept) {
  const Matrix w = matrix_f32(1, 4, {0, 1, 0, 2});
  const Matrix mask = matrix_bool(1, 4, {1, 1, 0, 0});
  const ConstMatrixView mask_view = mask.const_view();
  const PackedWeight packed =
      pack(w.const_view(), &mask_view, Pattern::parse("unstructured:0.5"), Layout::kBitmask);
  EXPECT_EQ(unpack_mask(packed), mask);
  EXPECT_EQ(unpack_values(packed), matrix_f32(1, 4, {0, 1, 0, 0}));
}

TEST(PackTest, NegativeZeroIsZero) {
  for (const DType dtype : test::weight_dtypes()) {
    if (dtype == DType::kInt8) continue;
    Matrix w = test::zeros(dtype, 1, 4);
    const auto bytes = static_cast<std::size_t>(dtype_bytes(dtype));
    w.bytes[bytes - 1] = std::byte{0x80};
    EXPECT_EQ(count_nonzeros(w.const_view()), 0);
    const Matrix mask = matrix_bool(1, 4, {1, 1, 0, 0});
    const ConstMatrixView mask_view = mask.const_view();
    const PackedWeight packed =
        pack(w.const_view(), &mask_view, Pattern::parse("2:4"), Layout::kNm);
    EXPECT_EQ(unpack_values(packed), test::zeros(dtype, 1, 4)) << dtype_name(dtype);
  }
}

TEST(PackTest, Int8KeepsItsLowestValue) {
  Matrix w = test::zeros(DType::kInt8, 1, 2);
  w.as<std::int8_t>()[0] = -128;
  EXPECT_EQ(count_nonzeros(w.const_view()), 1);
  EXPECT_EQ(unpack_values(pack_matrix(w, Pattern::parse("unstructured"), Layout::kBitmask)), w);
}

TEST(PackTest, NaNIsKept) {
  Matrix w = matrix_f32(1, 2, {std::nanf(""), 0});
  const PackedWeight packed = pack_matrix(w, Pattern::parse("unstructured"), Layout::kBitmask);
  EXPECT_EQ(packed.view().kept(), 1);
  EXPECT_EQ(unpack_values(packed).bytes, w.bytes);
}

TEST(PackTest, ReadsStridedAndWritesStrided) {
  const Matrix stored = matrix_f32(3, 2, {1, 0, 0, 4, 5, 0});  // [in, out]
  ConstMatrixView transposed = stored.const_view();
  std::swap(transposed.rows, transposed.cols);
  std::swap(transposed.row_stride, transposed.col_stride);
  const PackedWeight packed =
      pack(transposed, nullptr, Pattern::parse("unstructured"), Layout::kBitmask, {true, "w", {}});
  EXPECT_TRUE(packed.view().transposed());
  EXPECT_EQ(packed.view().out(), 2);
  EXPECT_EQ(unpack_values(packed), matrix_f32(2, 3, {1, 0, 5, 0, 4, 0}));
  Matrix back = test::zeros(DType::kFloat32, 3, 2);
  MatrixView back_view = back.view();
  std::swap(back_view.rows, back_view.cols);
  std::swap(back_view.row_stride, back_view.col_stride);
  unpack(packed, back_view);
  EXPECT_EQ(back, stored);
}

TEST(PackTest, EmptyWeights) {
  for (const auto& [out, in] : {std::pair{0, 7}, std::pair{7, 0}, std::pair{0, 0}}) {
    for (const Layout layout : test::all_layouts()) {
      const Pattern pattern = layout == Layout::kBsr     ? Pattern::parse("block:2x2")
                              : layout == Layout::kFanIn ? Pattern::parse("fanin:0.5")
                                                         : Pattern::parse("2:4");
      const Matrix w = test::zeros(DType::kFloat32, out, in);
      const PackedWeight packed = pack_matrix(w, pattern, layout);
      validate(packed);
      EXPECT_EQ(packed.view().kept(), 0);
      EXPECT_EQ(unpack_values(packed), w);
      EXPECT_EQ(bytes_of(convert(packed, format_for(pattern))),
                bytes_of(pack_matrix(w, pattern, format_for(pattern))));
    }
  }
}

TEST(PackTest, UsesTheAllocatorAndRefusesUnalignedMemory) {
  const Matrix w = matrix_f32(1, 2, {1, 0});
  std::int64_t asked = 0;
  PackOptions options;
  options.allocator = [&](std::int64_t bytes) {
    asked = bytes;
    return copy_bytes(std::vector<std::byte>(static_cast<std::size_t>(bytes))).storage();
  };
  const Pattern pattern = Pattern::parse("unstructured");
  const PackedWeight packed = pack(w.const_view(), nullptr, pattern, Layout::kBitmask, options);
  EXPECT_EQ(asked, packed.size_bytes());
  const auto storage = copy_bytes(std::vector<std::byte>(4096)).storage();
  options.allocator = [&](std::int64_t) {
    return std::shared_ptr<std::byte>(storage, storage.get() + 8);
  };
  EXPECT_EQ(code_of([&] { pack(w.const_view(), nullptr, pattern, Layout::kBitmask, options); }),
            ErrorCode::kInvalidArgument);
}

TEST(PackTest, AViolationIsRefusedByNameAndPlace) {
  Matrix w = test::zeros(DType::kFloat32, 18, 44);
  for (const int col : {40, 41, 43}) w.as<float>()[17 * 44 + col] = 1;
  const std::string message = message_of([&] {
    pack(w.const_view(), nullptr, Pattern::parse("2:4"), Layout::kNm, {false, "blk.3.fc1", {}});
  });
  EXPECT_EQ(message,
            "weight 'blk.3.fc1' row 17, columns 40–43: 3 non-zeros, 2:4 allows 2; prune it first "
            "(gossamer.Magnitude(\"2:4\")) or pass pattern=\"unstructured\"");
  EXPECT_EQ(code_of([&] { pack_matrix(w, Pattern::parse("2:4"), Layout::kNm); }),
            ErrorCode::kPatternViolation);
}

TEST(PackTest, RefusesWhatCannotBe) {
  const Matrix w = matrix_f32(2, 2, {1, 0, 0, 1});
  const Matrix other = matrix_bool(1, 2, {1, 1});
  const ConstMatrixView wrong_shape = other.const_view();
  const ConstMatrixView wrong_dtype = w.const_view();
  const Pattern any = Pattern::parse("unstructured");
  EXPECT_EQ(code_of([&] { pack(w.const_view(), &wrong_shape, any, Layout::kBitmask); }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { pack(w.const_view(), &wrong_dtype, any, Layout::kBitmask); }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { pack_matrix(w, any, static_cast<Layout>(99)); }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { pack_matrix(matrix_bool(1, 1, {1}), any, Layout::kBitmask); }),
            ErrorCode::kInvalidArgument);
  for (const Layout layout : {Layout::kNm, Layout::kBsr, Layout::kFanIn, Layout::kNm24Pairs}) {
    const std::string message = message_of([&] { pack_matrix(w, any, layout); });
    EXPECT_NE(message.find("bitmask (any pattern)"), std::string::npos) << message;
  }
  EXPECT_EQ(code_of([&] { pack_matrix(w, Pattern::parse("1:4"), Layout::kNm24Pairs); }),
            ErrorCode::kInvalidArgument);
}

TEST(PackTest, SizesThatOverflowAreRefused) {
  const std::int64_t huge = std::numeric_limits<std::int32_t>::max();
  const auto size = [&](Layout layout, const char* pattern, std::int64_t batch) {
    return packed_size_bytes(layout, Pattern::parse(pattern), DType::kFloat64, batch, huge, huge,
                             0);
  };
  EXPECT_EQ(code_of([&] { size(Layout::kNm, "4:4", huge); }), ErrorCode::kUnsupported);
  EXPECT_EQ(code_of([&] { size(Layout::kFanIn, "fanin", huge); }), ErrorCode::kUnsupported);
  EXPECT_EQ(code_of([&] { size(Layout::kBitmask, "unstructured", huge); }),
            ErrorCode::kUnsupported);
  EXPECT_EQ(code_of([&] { size(Layout::kBitmask, "unstructured", huge + 1); }),
            ErrorCode::kInvalidArgument);
}

TEST(UnpackTest, RefusesOtherShapesAndDTypes) {
  const PackedWeight packed =
      pack_matrix(matrix_f32(2, 2, {1, 0, 0, 1}), Pattern::parse("unstructured"), Layout::kBitmask);
  Matrix shape = test::zeros(DType::kFloat32, 2, 3);
  Matrix dtype = test::zeros(DType::kFloat64, 2, 2);
  Matrix fine = test::zeros(DType::kFloat32, 2, 2);
  const MatrixView wrong_mask = shape.view();
  EXPECT_EQ(code_of([&] { unpack(packed, shape.view()); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { unpack(packed, dtype.view()); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { unpack(packed, fine.view(), &wrong_mask); }),
            ErrorCode::kInvalidArgument);
}

TEST(SliceTest, BlocksAreCutAtBlockRows) {
  test::Random random(2);
  const Pattern pattern = Pattern::parse("block:4x4:0.5");
  const Matrix w = test::random_sparse(random, DType::kFloat32, pattern, 10, 12);
  for (const Layout layout : {Layout::kBsr, Layout::kBitmask, Layout::kKcsr64}) {
    const PackedWeight packed = pack_matrix(w, pattern, layout);
    const std::string message = message_of([&] { slice_rows(packed, 0, 6); });
    EXPECT_NE(message.find("the nearest rows are 4 and 8"), std::string::npos) << message;
    const std::vector<PackedWeight> parts{slice_rows(packed, 0, 4), slice_rows(packed, 4, 10)};
    const std::vector<PackedView> views{parts[0], parts[1]};
    EXPECT_EQ(bytes_of(concat_rows(views)), bytes_of(packed));
    const std::vector<PackedView> swapped{parts[1], parts[0]};
    EXPECT_EQ(code_of([&] { concat_rows(swapped); }), ErrorCode::kInvalidArgument);
  }
  const PackedWeight packed = pack_matrix(w, pattern, Layout::kBsr);
  EXPECT_EQ(code_of([&] { slice_rows(packed, -1, 4); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { slice_rows(packed, 4, 0); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([&] { slice_rows(packed, 0, 11); }), ErrorCode::kInvalidArgument);
}

TEST(ConcatTest, PartsMustAgree) {
  const Pattern any = Pattern::parse("unstructured");
  const PackedWeight a = pack_matrix(matrix_f32(1, 2, {1, 0}), any, Layout::kBitmask);
  const PackedWeight wider = pack_matrix(matrix_f32(1, 3, {1, 0, 0}), any, Layout::kBitmask);
  const PackedWeight other = pack_matrix(matrix_f32(1, 2, {1, 0}), any, Layout::kKcsr64);
  EXPECT_EQ(code_of([] { concat_rows({}); }), ErrorCode::kInvalidArgument);
  for (const PackedWeight& part : {wider, other}) {
    const std::vector<PackedView> views{a, part};
    EXPECT_EQ(code_of([&] { concat_rows(views); }), ErrorCode::kInvalidArgument);
  }
}

TEST(FormatArraysTest, RoundTripAndShapes) {
  test::Random random(3);
  for (const char* text : {"2:4", "unstructured:0.7", "block:4x2:0.5", "fanin:0.8"}) {
    for (const std::int64_t batch : {1, 3}) {
      const Pattern pattern = Pattern::parse(text);
      const Matrix w = test::random_sparse(random, DType::kBFloat16, pattern, 8, 10, batch);
      const PackedWeight packed = pack_matrix(w, pattern, format_for(pattern));
      const PackedView view = packed;
      const std::vector<PackedArray> arrays = format_arrays(view);
      for (const PackedArray& array : arrays) {
        std::int64_t bytes = dtype_bytes(array.dtype);
        for (const std::int64_t size : array.shape) bytes *= size;
        EXPECT_EQ(bytes, static_cast<std::int64_t>(array.bytes.size())) << array.name;
      }
      const FormatInfo info{view.layout(), view.dtype(), pattern, batch, 8, 10, false};
      EXPECT_EQ(bytes_of(from_format_arrays(info, arrays)), bytes_of(packed)) << text;
    }
  }
}

TEST(FormatArraysTest, RefusesWhatDoesNotFit) {
  const Pattern pattern = Pattern::parse("unstructured");
  const PackedWeight packed =
      pack_matrix(matrix_f32(2, 9, {1, 0, 0, 2, 0, 0, 0, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}), pattern,
                  Layout::kBitmask);
  const FormatInfo info{Layout::kBitmask, DType::kFloat32, pattern, 1, 2, 9, false};
  const std::vector<PackedArray> good = format_arrays(packed);
  const auto code_after = [&](auto change) {
    std::vector<PackedArray> arrays = good;
    FormatInfo changed = info;
    change(arrays, changed);
    return code_of([&] { from_format_arrays(changed, arrays); });
  };
  const auto bad = ErrorCode::kMalformedData;
  EXPECT_EQ(code_after([](auto& a, auto&) { a.pop_back(); }), bad);
  EXPECT_EQ(code_after([](auto& a, auto&) { a.push_back(a[0]); }), bad);
  EXPECT_EQ(code_after([](auto& a, auto&) { a[1].name = "vals"; }), bad);
  EXPECT_EQ(code_after([](auto& a, auto&) { a[1].dtype = DType::kFloat64; }), bad);
  EXPECT_EQ(code_after([](auto& a, auto&) { a[1].shape = {-4}; }), bad);
  EXPECT_EQ(code_after([](auto& a, auto&) { a[1].shape = {1ll << 62, 1ll << 62}; }), bad);
  EXPECT_EQ(code_after([](auto& a, auto&) { a[1].shape = {1ll << 40}; }), bad);
  EXPECT_EQ(code_after([](auto& a, auto&) { a[1].bytes = a[1].bytes.first(4); }), bad);
  EXPECT_EQ(code_after([](auto&, auto& i) { i.in = 17; }), bad);
  EXPECT_EQ(code_after([](auto&, auto& i) { i.out = std::numeric_limits<std::int64_t>::max(); }),
            bad);
  EXPECT_EQ(code_after([](auto&, auto& i) { i.batch = 0; }), bad);
  EXPECT_EQ(code_after([](auto&, auto& i) { i.format = Layout::kKcsr64; }), bad);
  EXPECT_EQ(code_after([](auto&, auto& i) { i.format = Layout::kNm; }), bad);
  EXPECT_EQ(code_after([](auto&, auto& i) { i.pattern.n = 3; }), bad);
  EXPECT_EQ(code_of([&] { format_arrays(convert(packed, Layout::kKcsr64)); }),
            ErrorCode::kInvalidArgument);
}

// ---- Bytes that somebody changed. ----

class OpenTest : public ::testing::Test {
 protected:
  OpenTest()
      : bytes_(bytes_of(pack_matrix(matrix_f32(2, 4, {1, 0, 0, 2, 0, 3, 4, 0}),
                                    Pattern::parse("2:4"), Layout::kNm))) {}

  template <typename F>
  ErrorCode code_after(const F& change) {
    std::vector<std::byte> bytes = bytes_;
    PackedHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    change(header);
    std::memcpy(bytes.data(), &header, sizeof(header));
    const PackedWeight copy = copy_bytes(bytes);
    return code_of([&] { copy.view(); });
  }

  std::vector<std::byte> bytes_;
};

TEST_F(OpenTest, RefusesEveryHeaderThatContradictsItself) {
  const auto bad = ErrorCode::kMalformedData;
  const std::int64_t most = std::numeric_limits<std::int64_t>::max();
  EXPECT_EQ(code_after([](PackedHeader& h) { h.magic ^= 1; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.version = PackedHeader::kVersion + 1; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.dtype = static_cast<DType>(77); }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.dtype = DType::kUInt32; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.dtype = DType::kFloat16; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.transposed = 2; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.layout = static_cast<Layout>(5); }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.layout = Layout::kBitmask; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.pattern_kind = static_cast<Pattern::Kind>(9); }),
            bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.pattern_m = 0; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.pattern_n = -1; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.pattern_v = 1; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.sparsity = 0.75; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.sparsity = std::nan(""); }), bad);
  EXPECT_EQ(code_after([&](PackedHeader& h) { h.batch = most; }), bad);
  EXPECT_EQ(code_after([&](PackedHeader& h) { h.out = most; }), bad);
  EXPECT_EQ(code_after([&](PackedHeader& h) { h.in = most; }), bad);
  EXPECT_EQ(code_after([&](PackedHeader& h) { h.out = h.in = h.batch = 1 << 30; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.out = -2; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.batch = 0; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.kept += 1; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.total_bytes += 64; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.array_count = 1; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.arrays[0].offset += 64; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.arrays[1].bytes = 1ll << 40; }), bad);
  EXPECT_EQ(code_after([](PackedHeader& h) { h.arrays[5].offset = 64; }), bad);
}

TEST_F(OpenTest, RefusesOtherSizesAndUnalignedMemory) {
  const PackedWeight copy = copy_bytes(bytes_);
  const auto open = [&](std::int64_t bytes) { PackedView::open(copy.data(), bytes); };
  EXPECT_NO_THROW(open(copy.size_bytes()));
  for (const std::int64_t bytes : {std::int64_t{-1}, std::int64_t{0}, std::int64_t{255},
                                   std::int64_t{256}, copy.size_bytes() - 1}) {
    EXPECT_EQ(code_of([&] { open(bytes); }), ErrorCode::kMalformedData);
  }
  EXPECT_EQ(code_of([&] { PackedView::open(nullptr, 1024); }), ErrorCode::kMalformedData);
  std::vector<std::byte> shifted(bytes_.size() + 8);
  std::memcpy(shifted.data() + 8, bytes_.data(), bytes_.size());
  const PackedWeight other = copy_bytes(shifted);
  EXPECT_EQ(code_of([&] {
              PackedView::open(other.data() + 8, static_cast<std::int64_t>(bytes_.size()));
            }),
            ErrorCode::kMalformedData);
}

/// The code that validate() throws after one array's element was changed.
template <typename T>
ErrorCode code_after(const Matrix& w, const char* pattern, Layout layout, int array,
                     std::size_t index, T value) {
  const PackedWeight packed = pack_matrix(w, Pattern::parse(pattern), layout);
  EXPECT_NO_THROW(validate(packed));
  const auto offset = packed.view().header().arrays[static_cast<std::size_t>(array)].offset;
  std::memcpy(packed.data() + offset + static_cast<std::int64_t>(index * sizeof(T)), &value,
              sizeof(T));
  return code_of([&] { validate(packed); });
}

TEST(ValidateTest, RefusesIndicesThatAreNotCanonical) {
  const auto bad = ErrorCode::kMalformedData;
  using U8 = std::uint8_t;
  const Matrix w = matrix_f32(2, 5, {1, 0, 0, 2, 0, 0, 3, 4, 0, 5});
  // nm: equal positions, descending positions, bits behind the last group, a value past the end
  EXPECT_EQ(code_after(w, "2:4", Layout::kNm, 1, 0, U8{0x40}), bad);
  EXPECT_EQ(code_after(w, "2:4", Layout::kNm, 1, 0, U8{0x41}), bad);
  EXPECT_EQ(code_after(w, "2:4", Layout::kNm, 0, 3, 1.0f), bad);
  EXPECT_EQ(code_after(matrix_f32(1, 4, {1, 0, 0, 2}), "2:4", Layout::kNm, 1, 0, U8{0x1c}), bad);
  EXPECT_EQ(
      code_after(matrix_f32(1, 8, {1, 2, 3, 4, 0, 0, 0, 0}), "4:8", Layout::kNm, 1, 0, U8{0x1f}),
      bad);
  // bitmask: another number of bits, bits past the end, falling and long offsets
  EXPECT_EQ(code_after(w, "unstructured", Layout::kBitmask, 0, 0, U8{0x01}), bad);
  EXPECT_EQ(code_after(w, "unstructured", Layout::kBitmask, 0, 0, U8{0x21}), bad);
  EXPECT_EQ(code_after(w, "unstructured", Layout::kBitmask, 2, 1, std::int64_t{-1}), bad);
  EXPECT_EQ(code_after(w, "unstructured", Layout::kBitmask, 2, 2, std::int64_t{1} << 40), bad);
  EXPECT_EQ(code_after(w, "unstructured", Layout::kBitmask, 2, 0, std::int64_t{1}), bad);
  // bsr: columns outside, twice, negative; offsets; values past the edge
  const Matrix b = matrix_f32(2, 5, {1, 1, 0, 0, 1, 1, 1, 0, 0, 1});
  EXPECT_EQ(code_after(b, "block:2x2", Layout::kBsr, 1, 1, std::int32_t{3}), bad);
  EXPECT_EQ(code_after(b, "block:2x2", Layout::kBsr, 1, 1, std::int32_t{0}), bad);
  EXPECT_EQ(code_after(b, "block:2x2", Layout::kBsr, 1, 0, std::int32_t{-1}), bad);
  EXPECT_EQ(code_after(b, "block:2x2", Layout::kBsr, 0, 1, std::int64_t{3}), bad);
  EXPECT_EQ(code_after(b, "block:2x2", Layout::kBsr, 0, 1, std::int64_t{1}), bad);
  EXPECT_EQ(code_after(b, "block:2x2", Layout::kBsr, 2, 5, 1.0f), bad);
  // fanin
  const Matrix f = matrix_f32(1, 4, {1, 0, 2, 0});
  EXPECT_EQ(code_after(f, "fanin:0.5", Layout::kFanIn, 1, 1, std::uint16_t{4}), bad);
  EXPECT_EQ(code_after(f, "fanin:0.5", Layout::kFanIn, 1, 1, std::uint16_t{0}), bad);
  // kcsr: columns outside the matrix, unsorted; offsets
  EXPECT_EQ(code_after(w, "unstructured", Layout::kKcsr64, 1, 1, U8{5}), bad);
  EXPECT_EQ(code_after(w, "unstructured", Layout::kKcsr64, 1, 0, U8{3}), bad);
  EXPECT_EQ(code_after(w, "unstructured", Layout::kKcsr64, 2, 1, std::uint32_t{9}), bad);
  EXPECT_EQ(code_after(w, "unstructured", Layout::kKcsr64, 2, 2, std::uint32_t{4}), bad);
  EXPECT_EQ(code_after(w, "unstructured", Layout::kKcsr64, 3, 1, std::int64_t{6}), bad);
  // row pairs: equal positions, an empty group that is not, a value past the end
  EXPECT_EQ(code_after(w, "2:4", Layout::kNm24Pairs, 1, 0, U8{0x40}), bad);
  EXPECT_EQ(code_after(w, "2:4", Layout::kNm24Pairs, 1, 2, U8{0x48}), bad);
  EXPECT_EQ(code_after(w, "2:4", Layout::kNm24Pairs, 0, 8, 1.0f), bad);
}

TEST(ValidateTest, RefusesPaddingThatIsNotZero) {
  const PackedWeight packed =
      pack_matrix(matrix_f32(1, 1, {1}), Pattern::parse("unstructured"), Layout::kBitmask);
  packed.data()[packed.size_bytes() - 1] = std::byte{1};
  EXPECT_EQ(code_of([&] { validate(packed); }), ErrorCode::kMalformedData);
}

TEST(ConvertTest, RefusesMoreThanTheFormatHolds) {
  // A pattern is a promise that the bytes of a general layout can break.
  const PackedWeight packed =
      pack_matrix(matrix_f32(1, 4, {1, 1, 0, 0}), Pattern::parse("2:4"), Layout::kBitmask);
  PackedHeader header;
  std::memcpy(&header, packed.data(), sizeof(header));
  header.pattern_n = 1;
  header.sparsity = 0.75;
  std::memcpy(packed.data(), &header, sizeof(header));
  EXPECT_NO_THROW(validate(packed));
  EXPECT_EQ(code_of([&] { convert(packed, Layout::kNm); }), ErrorCode::kPatternViolation);
}

}  // namespace
}  // namespace gossamer
