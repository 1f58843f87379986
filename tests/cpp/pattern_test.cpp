// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/pattern.h"

#include <gtest/gtest.h>

#include <limits>

#include "gossamer/dtype.h"
#include "gossamer/packed_weight.h"
#include "gossamer/prune.h"
#include "testing.h"

namespace gossamer {
namespace {

using test::code_of;
using test::message_of;

TEST(PatternTest, ReadsEveryKind) {
  const Pattern u = Pattern::parse("unstructured:0.9");
  EXPECT_EQ(u.kind, Pattern::Kind::kUnstructured);
  EXPECT_EQ(u.sparsity, 0.9);
  const Pattern nm = Pattern::parse("2:4");
  EXPECT_EQ(nm.kind, Pattern::Kind::kNm);
  EXPECT_EQ(nm.n, 2);
  EXPECT_EQ(nm.m, 4);
  EXPECT_EQ(nm.sparsity, 0.5);
  const Pattern block = Pattern::parse("block:64x32:0.8");
  EXPECT_EQ(block.kind, Pattern::Kind::kBlock);
  EXPECT_EQ(block.block_rows, 64);
  EXPECT_EQ(block.block_cols, 32);
  EXPECT_EQ(block.sparsity, 0.8);
  const Pattern vnm = Pattern::parse("vnm:64:2:8");
  EXPECT_EQ(vnm.kind, Pattern::Kind::kVnm);
  EXPECT_EQ(vnm.v, 64);
  EXPECT_EQ(vnm.n, 2);
  EXPECT_EQ(vnm.m, 8);
  EXPECT_EQ(vnm.sparsity, 0.75);
  const Pattern fan_in = Pattern::parse("fanin:0.25");
  EXPECT_EQ(fan_in.kind, Pattern::Kind::kFanIn);
  EXPECT_EQ(fan_in.sparsity, 0.25);
}

TEST(PatternTest, WithoutFractionAnyNumberOfZerosWillDo) {
  EXPECT_EQ(Pattern::parse("unstructured"), Pattern::unstructured(0.0));
  EXPECT_EQ(Pattern::parse("block:4x4"), Pattern::block(4, 4, 0.0));
  EXPECT_EQ(Pattern::parse("fanin"), Pattern::fan_in(0.0));
  EXPECT_EQ(Pattern::parse("unstructured:-0"), Pattern::unstructured(0.0));
}

TEST(PatternTest, TextReadsBackEqual) {
  for (const char* text : {"unstructured", "unstructured:0.9", "unstructured:1", "1:1", "1:4",
                           "2:4", "64:64", "block:64x64:0.8", "block:1x4", "vnm:64:2:8",
                           "vnm:1:4:4", "fanin:0.99", "fanin", "unstructured:0.8999999761581421"}) {
    const Pattern pattern = Pattern::parse(text);
    EXPECT_EQ(pattern.to_string(), text);
    EXPECT_EQ(Pattern::parse(pattern.to_string()), pattern);
  }
  EXPECT_EQ(Pattern::parse("unstructured:9e-1").to_string(), "unstructured:0.9");
  const Pattern third = Pattern::unstructured(1.0 / 3.0);
  EXPECT_EQ(Pattern::parse(third.to_string()).sparsity, 1.0 / 3.0);
}

TEST(PatternTest, RefusesWhatIsNoPattern) {
  for (const char* text : {"",
                           ":",
                           "2",
                           "2:",
                           ":4",
                           "2:4:8",
                           "2:3",
                           "2:128",
                           "0:4",
                           "5:4",
                           "-1:4",
                           "2 :4",
                           " 2:4",
                           "a:b",
                           "99999999999:4",
                           "unstructured:",
                           "unstructured:1.1",
                           "unstructured:-0.1",
                           "unstructured:nan",
                           "unstructured:inf",
                           "unstructured:0x1p-1",
                           "unstructured:0.9:1",
                           "unstructured:0,9",
                           "Unstructured:0.9",
                           "block",
                           "block:4",
                           "block:4x",
                           "block:x4",
                           "block:0x4:0.5",
                           "block:4x4x4:0.5",
                           "block:4x4:2",
                           "block:4x4:0.5:1",
                           "block:8192x4:0.5",
                           "vnm",
                           "vnm:64:2",
                           "vnm:0:2:8",
                           "vnm:64:5:8",
                           "vnm:64:2:3",
                           "vnm:64:2:8:1",
                           "fanin:1.5",
                           "fanin:",
                           "nm:2:4"}) {
    EXPECT_EQ(code_of([&] { Pattern::parse(text); }), ErrorCode::kInvalidArgument) << text;
  }
}

TEST(PatternTest, MessageQuotesTheTextAndSaysWhatWouldDo) {
  const std::string message = message_of([] { Pattern::parse("2:5"); });
  EXPECT_NE(message.find("'2:5'"), std::string::npos) << message;
  EXPECT_NE(message.find("M is 5"), std::string::npos) << message;
  EXPECT_NE(message.find("unstructured:S"), std::string::npos) << message;
  const std::string respelled = message_of([] { Pattern::parse("unstructured:15e-1"); });
  EXPECT_NE(respelled.find("'unstructured:15e-1'"), std::string::npos) << respelled;
}

TEST(PatternTest, MessageShowsNeitherControlCharactersNorEndlessText) {
  const std::string control = message_of([] { Pattern::parse("\x1b[31mred\n"); });
  EXPECT_EQ(control.find('\x1b'), std::string::npos);
  EXPECT_EQ(control.find('\n'), std::string::npos);
  EXPECT_LT(message_of([] { Pattern::parse(std::string(1 << 20, 'a')); }).size(), 1000u);
}

TEST(PatternTest, FactoriesRefuseWhatTheGrammarRefuses) {
  EXPECT_EQ(code_of([] { Pattern::unstructured(1.5); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([] { Pattern::unstructured(std::numeric_limits<double>::quiet_NaN()); }),
            ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([] { Pattern::nm(0, 0); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([] { Pattern::nm(2, -4); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([] { Pattern::block(-1, 4, 0.5); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([] { Pattern::vnm(-1, 2, 8); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([] { Pattern::fan_in(-0.5); }), ErrorCode::kInvalidArgument);
}

TEST(DroppedCountTest, RoundsToNearestHalvesUp) {
  EXPECT_EQ(dropped_count(0.5, 1), 1);
  EXPECT_EQ(dropped_count(0.5, 3), 2);
  EXPECT_EQ(dropped_count(0.9, 10), 9);
  EXPECT_EQ(dropped_count(0.9, 4), 4);  // 3.6
  EXPECT_EQ(dropped_count(0.25, 5), 1);
  EXPECT_EQ(dropped_count(0.0, 100), 0);
  EXPECT_EQ(dropped_count(1.0, 100), 100);
  EXPECT_EQ(dropped_count(0.7, 0), 0);
}

TEST(DTypeTest, NamesAndSizes) {
  const std::vector<std::pair<DType, std::int64_t>> sizes{
      {DType::kFloat64, 8}, {DType::kFloat32, 4},    {DType::kFloat16, 2}, {DType::kBFloat16, 2},
      {DType::kInt8, 1},    {DType::kFloat8E4M3, 1}, {DType::kUInt8, 1},   {DType::kBool, 1},
      {DType::kUInt16, 2},  {DType::kInt32, 4},      {DType::kUInt32, 4},  {DType::kInt64, 8}};
  for (const auto& [dtype, bytes] : sizes) {
    EXPECT_EQ(dtype_bytes(dtype), bytes);
    EXPECT_EQ(parse_dtype(dtype_name(dtype)), dtype);
  }
  EXPECT_EQ(dtype_name(DType::kFloat8E4M3), "float8_e4m3fn");
  EXPECT_EQ(parse_dtype("float31"), std::nullopt);
  EXPECT_EQ(code_of([] { dtype_bytes(static_cast<DType>(12)); }), ErrorCode::kInvalidArgument);
  for (const DType dtype : test::weight_dtypes()) EXPECT_TRUE(is_weight_dtype(dtype));
  EXPECT_FALSE(is_weight_dtype(DType::kUInt8));
  EXPECT_FALSE(is_weight_dtype(static_cast<DType>(200)));
}

TEST(LayoutTest, NamesAndFormats) {
  for (const Layout layout : test::all_layouts()) {
    EXPECT_EQ(parse_layout(layout_name(layout)), layout);
  }
  EXPECT_EQ(parse_layout("csr"), std::nullopt);
  EXPECT_EQ(format_for(Pattern::parse("2:4")), Layout::kNm);
  EXPECT_EQ(format_for(Pattern::parse("block:4x4:0.5")), Layout::kBsr);
  EXPECT_EQ(format_for(Pattern::parse("fanin:0.5")), Layout::kFanIn);
  EXPECT_EQ(format_for(Pattern::parse("unstructured:0.5")), Layout::kBitmask);
  EXPECT_EQ(format_for(Pattern::parse("vnm:4:2:8")), Layout::kBitmask);
  EXPECT_TRUE(is_format(Layout::kBsr));
  EXPECT_FALSE(is_format(Layout::kKcsr128));
}

TEST(CubicSparsityTest, FollowsTheFormula) {
  EXPECT_EQ(cubic_sparsity(0.0, 0.9, 10, 20, 0), 0.0);
  EXPECT_EQ(cubic_sparsity(0.0, 0.9, 10, 20, 10), 0.0);
  EXPECT_EQ(cubic_sparsity(0.0, 0.9, 10, 20, 20), 0.9);
  EXPECT_EQ(cubic_sparsity(0.0, 0.9, 10, 20, 1000), 0.9);
  // Half way: 0.8 − 0.8 / 8 by hand.
  EXPECT_DOUBLE_EQ(cubic_sparsity(0.0, 0.8, 0, 10, 5), 0.7);
  EXPECT_DOUBLE_EQ(cubic_sparsity(0.2, 1.0, 0, 4, 1), 1.0 - 0.8 * 27.0 / 64.0);
  const std::int64_t far = std::numeric_limits<std::int64_t>::max();
  EXPECT_DOUBLE_EQ(cubic_sparsity(0.0, 0.8, -far, far, 0), 0.7);
  EXPECT_EQ(code_of([] { cubic_sparsity(0.0, 0.9, 5, 5, 5); }), ErrorCode::kInvalidArgument);
  EXPECT_EQ(code_of([] { cubic_sparsity(0.0, 1.9, 0, 5, 5); }), ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace gossamer
