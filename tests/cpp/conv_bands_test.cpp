// SPDX-License-Identifier: BSD-3-Clause
// Convolutions over bands in every shape of a panel, whatever a row of the table would choose.
#include <gtest/gtest.h>

#include <set>
#include <string>
#include <utility>
#include <vector>

#include "conv_problem.h"
#include "cpu/conv2d_bands.h"
#include "cpu/conv_bands.h"
#include "gossamer/machine.h"

namespace gossamer::test {
namespace {

using cpu::BandRows;
using cpu::BandShape;

struct Set {
  const char* name;
  std::uint32_t needs;
  const cpu::KcsrFunctions& sums;
  const cpu::ConvFunctions& steps;
  const cpu::ConvBandsFunctions& bands;
};

std::vector<Set> sets() {
  std::vector<Set> all{{"generic", kIsaGeneric, cpu::generic_spmm_f32, cpu::generic_conv2d_f32,
                        cpu::generic_conv2d_bands}};
#if defined(__x86_64__)
  all.push_back(
      {"avx2", kIsaAvx2, cpu::avx2_spmm_f32, cpu::avx2_conv2d_f32, cpu::avx2_conv2d_bands});
  all.push_back({"avx512", kIsaAvx512, cpu::avx512_spmm_f32, cpu::avx512_conv2d_f32,
                 cpu::avx512_conv2d_bands});
#endif
  std::vector<Set> here;
  for (const Set& set : all) {
    if (host_machine().has(set.needs)) here.push_back(set);
  }
  return here;
}

std::vector<BandShape> shapes(const cpu::ConvBandsFunctions& bands) {
  std::vector<BandShape> all;
  for (std::int64_t rows = 1; rows <= cpu::kMaxBandVectors; ++rows) {
    for (std::int64_t vectors = 1; rows * vectors <= cpu::kMaxBandVectors; ++vectors) {
      if (bands.add[rows * vectors - 1] != nullptr) all.push_back({rows, vectors});
    }
  }
  return all;
}

std::vector<Case> cases() {
  std::vector<Case> all{
      {"one_image", shape(1, 9, 5, 18, 20, 3, 1, 1)},
      {"images_share_vectors", shape(5, 16, 6, 7, 7, 3, 1, 1)},
      {"strided", shape(2, 11, 5, 17, 21, 3, 2, 1)},
      {"stride_of_three", shape(1, 5, 4, 23, 19, 5, 3, 2)},
      {"larger_than_a_block", shape(1, 2, 3, 15, 14, 13, 1, 6)},
      {"one_column", shape(2, 6, 5, 19, 1, 3, 1, 1)},
      {"pointwise", shape(2, 70, 5, 5, 6, 1, 1, 0)},
  };
  Case apart{"taps_apart", shape(2, 7, 5, 40, 18, 3, 1, 12)};
  apart.shape.dilation_h = apart.shape.dilation_w = 12;
  all.push_back(apart);
  Case uneven{"uneven", shape(2, 12, 10, 16, 19, 3, 1, 0)};
  uneven.shape.kernel_w = 4;
  uneven.shape.stride_h = 3;
  uneven.shape.dilation_h = 2;
  uneven.shape.stride_w = 2;
  uneven.shape.pad_left = 2;
  uneven.shape.pad_right = 5;
  uneven.shape.pad_bottom = 3;
  all.push_back(uneven);
  for (std::size_t i = 0; i < all.size(); ++i) {
    all[i].bias = i % 2 == 0;
    all[i].residual = i % 3 == 0;
    all[i].relu = i % 4 < 2;
    all[i].threads = i % 4 == 1 ? 3 : 1;
  }
  return all;
}

TEST(BandRows, EveryTapFindsItsRowsBelowEachOther) {
  for (const std::int64_t stride : {1, 2, 3}) {
    for (const std::int64_t dilation : {1, 2, 5, 12}) {
      for (const std::int64_t rows : {1, 2, 7}) {
        Conv2dShape s = shape(1, 1, 1, 64, 64, 5, 1, 0);
        s.stride_h = stride;
        s.dilation_h = dilation;
        const BandRows found(s, rows);
        std::set<std::int64_t> inputs;
        for (std::int64_t i = 0; i < found.count(); ++i) inputs.insert(found.input(i));
        EXPECT_EQ(found.count(), BandRows::count(s, rows));
        std::set<std::int64_t> wanted;
        for (std::int64_t tap = 0; tap < s.kernel_h; ++tap) {
          for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t input = r * stride + tap * dilation;
            wanted.insert(input);
            ASSERT_LT(found.first_of(tap) + r, found.count());
            EXPECT_EQ(found.input(found.first_of(tap) + r), input)
                << "stride " << stride << " dilation " << dilation << " rows " << rows;
          }
        }
        EXPECT_EQ(inputs, wanted);
        // Nothing is copied twice where taps lie closer than a band is high.
        if (stride == 1 && dilation <= rows) {
          EXPECT_EQ(found.count(), static_cast<std::int64_t>(wanted.size()));
        }
      }
    }
  }
}

TEST(ConvBands, EveryShapeAgreesWithTheReference) {
  Random random(21);
  for (const Set& set : sets()) {
    for (const Case& plain : cases()) {
      for (const bool channels_last : {false, true}) {
        Case c = plain;
        c.channels_last = channels_last;
        c.name = std::string(set.name) + " " + c.name + (channels_last ? " nhwc" : "");
        Problem problem(c, Layout::kKcsr64, random);
        const std::vector<float> expected = problem.reference();
        for (const BandShape& panel : shapes(set.bands)) {
          const Conv2dArgs args = problem.args();
          std::fill_n(static_cast<float*>(args.y), expected.size(), -1.0f);
          cpu::run_conv2d_bands(set.sums, set.steps, set.bands, panel, args);
          const auto* y = static_cast<const float*>(args.y);
          Case named = c;
          named.name += " " + std::to_string(panel.rows) + "x" + std::to_string(panel.vectors);
          expect_near(named, problem, {y, y + expected.size()});
          EXPECT_TRUE(problem.guards_untouched()) << named.name;
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  }
}

TEST(ConvBands, AreChosenWhereVerticalTapsShareRows) {
  Random random(22);
  const auto chosen = [&](const Conv2dShape& s) {
    Case c{"chosen", s};
    Problem problem(c, Layout::kKcsr128, random);
    return cpu::find_bands(problem.args(), cpu::generic_conv2d_bands, 8, 8);
  };
  const auto large = chosen(shape(4, 32, 32, 28, 28, 3, 1, 1));
  ASSERT_TRUE(large.has_value());
  EXPECT_GT(large->rows, 1);
  EXPECT_FALSE(chosen(shape(1, 32, 32, 2, 2, 3, 1, 1)));    // a single panel of pixels
  EXPECT_FALSE(chosen(shape(4, 32, 32, 28, 28, 1, 1, 0)));  // a single tap
  EXPECT_FALSE(chosen(shape(1, 1, 1, 202, 202, 200, 1, 0)));
  EXPECT_FALSE(chosen(shape(0, 32, 32, 28, 28, 3, 1, 1)));
}

}  // namespace
}  // namespace gossamer::test
