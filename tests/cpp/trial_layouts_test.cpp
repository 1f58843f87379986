// SPDX-License-Identifier: BSD-3-Clause
// Which layouts a plan holds together, as memory allows.
#include "plan/trial_layouts.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "plan/memory.h"
#include "testing.h"

namespace gossamer::plan {
namespace {

constexpr std::int64_t kSize = 128;

/// Half of the places of a 128×128 matrix, in the format of its pattern.
PackedWeight half_weight() {
  std::vector<float> values(kSize * kSize, 0.0f);
  for (std::size_t i = 0; i < values.size(); i += 2) values[i] = static_cast<float>(i + 1);
  return pack(contiguous_view(values.data(), DType::kFloat32, kSize, kSize), nullptr,
              Pattern::unstructured(0.5), Layout::kBitmask);
}

TEST(TrialLayouts, HoldsAllWhereTheyFit) {
  const PackedWeight weight = half_weight();
  TrialLayouts layouts(weight, std::numeric_limits<std::int64_t>::max());
  for (const Layout layout : {Layout::kKcsr64, Layout::kBitmask, Layout::kRowPairs64}) {
    EXPECT_TRUE(layouts.add(layout));
    EXPECT_EQ(layouts.group(layout), 0u);
  }
  EXPECT_EQ(layouts.groups(), 1u);
  const PackedView first = layouts.view(Layout::kKcsr64);
  layouts.view(Layout::kRowPairs64);
  EXPECT_EQ(layouts.view(Layout::kKcsr64).array(0), first.array(0)) << "converted again";
  EXPECT_EQ(layouts.view(Layout::kBitmask).array(0), weight.view().array(0)) << "a copy of itself";
}

TEST(TrialLayouts, MakesOneGroupAfterTheOtherWhereTheyDoNot) {
  const PackedWeight weight = half_weight();
  std::int64_t room = 0;  // for any of them
  for (const Layout layout : {Layout::kKcsr64, Layout::kRowPairs64, Layout::kKcsr128}) {
    room = std::max(room, layout_bytes(weight, layout));
  }
  TrialLayouts layouts(weight, room);
  EXPECT_TRUE(layouts.add(Layout::kKcsr64));
  EXPECT_TRUE(layouts.add(Layout::kBitmask)) << "it is there in any case";
  EXPECT_TRUE(layouts.add(Layout::kRowPairs64));
  EXPECT_TRUE(layouts.add(Layout::kKcsr128));
  EXPECT_FALSE(layouts.add(Layout::kKcsr256)) << "a fourth group";
  ASSERT_EQ(layouts.groups(), 3u);
  EXPECT_EQ(layouts.group(Layout::kKcsr64), 0u);
  EXPECT_EQ(layouts.group(Layout::kBitmask), 0u);
  EXPECT_EQ(layouts.group(Layout::kRowPairs64), 1u);
  EXPECT_EQ(layouts.group(Layout::kKcsr128), 2u);
  for (const Layout layout : {Layout::kRowPairs64, Layout::kKcsr64, Layout::kBitmask}) {
    const PackedView view = layouts.view(layout);
    EXPECT_EQ(view.layout(), layout);
    EXPECT_EQ(view.kept(), weight.view().kept());
  }
}

TEST(TrialLayouts, TakesTheFirstWhateverItsSizeAndNothingOfAnotherPattern) {
  const PackedWeight weight = half_weight();
  TrialLayouts layouts(weight, 1);
  EXPECT_FALSE(layouts.add(Layout::kNm24Pairs)) << "unstructured";
  EXPECT_TRUE(layouts.add(Layout::kKcsr64));
  EXPECT_FALSE(layouts.add(Layout::kKcsr128)) << "larger than the room";
  EXPECT_EQ(layouts.groups(), 1u);
}

}  // namespace
}  // namespace gossamer::plan
