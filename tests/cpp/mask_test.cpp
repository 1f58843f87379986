// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/mask.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "testing.h"

namespace gossamer {
namespace {

using test::code_of;
using test::Matrix;
using test::matrix_bool;
using test::matrix_f32;
using test::message_of;

Matrix select_one(const Matrix& scores, const char* pattern, Scope scope = Scope::kTensor) {
  Matrix mask = test::zeros(DType::kBool, scores.rows, scores.cols, scores.batch);
  const Selection selection{scores.const_view(), mask.view()};
  select_masks({&selection, 1}, Pattern::parse(pattern), scope);
  return mask;
}

std::int64_t kept(const Matrix& mask, std::int64_t begin, std::int64_t end) {
  return std::accumulate(mask.as<std::uint8_t>() + begin, mask.as<std::uint8_t>() + end,
                         std::int64_t{0});
}

/// The definition, by sorting: the highest scores, the lower index among equals.
std::vector<std::uint8_t> keep_by_sorting(const std::vector<double>& scores, std::int64_t count) {
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return scores[a] > scores[b]; });
  std::vector<std::uint8_t> mask(scores.size(), 0);
  for (std::int64_t i = 0; i < count; ++i) mask[order[static_cast<std::size_t>(i)]] = 1;
  return mask;
}

std::vector<double> doubles(const Matrix& m) {
  std::vector<double> values(static_cast<std::size_t>(m.size()));
  for (std::int64_t i = 0; i < m.size(); ++i) {
    values[static_cast<std::size_t>(i)] = test::element(m, i);
  }
  return values;
}

/// Scores with many equal ones.
Matrix tied_scores(test::Random& random, DType dtype, std::int64_t rows, std::int64_t cols,
                   std::int64_t batch = 1) {
  Matrix m = test::zeros(dtype, rows, cols, batch);
  std::uniform_int_distribution<int> digit(-3, 3);
  for (std::int64_t i = 0; i < m.size(); ++i) test::set_element(m, i, digit(random));
  return m;
}

TEST(SelectTest, UnstructuredIsTheDefinitionWithTies) {
  test::Random random(1);
  for (const double sparsity : {0.0, 0.3, 0.5, 0.9, 1.0}) {
    for (const auto& [rows, cols] : {std::pair{1, 1}, {7, 13}, {300, 301}}) {  // the last by radix
      const Matrix scores = tied_scores(random, DType::kFloat32, rows, cols);
      Matrix mask = test::zeros(DType::kBool, rows, cols);
      const Selection selection{scores.const_view(), mask.view()};
      select_masks({&selection, 1}, Pattern::unstructured(sparsity), Scope::kTensor);
      const auto expected =
          keep_by_sorting(doubles(scores), rows * cols - dropped_count(sparsity, rows * cols));
      EXPECT_TRUE(std::equal(expected.begin(), expected.end(), mask.as<std::uint8_t>()))
          << sparsity << " " << rows << "x" << cols;
    }
  }
}

TEST(SelectTest, ManyDifferentScoresByRadix) {
  test::Random random(2);
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    Matrix scores = test::random_matrix(random, dtype, 500, 401);
    test::set_element(scores, 5, std::numeric_limits<double>::infinity());
    test::set_element(scores, 6, -std::numeric_limits<double>::infinity());
    test::set_element(scores, 7, 0.0);
    test::set_element(scores, 8, -0.0);
    const Matrix mask = select_one(scores, "unstructured:0.37");
    const auto expected =
        keep_by_sorting(doubles(scores), scores.size() - dropped_count(0.37, scores.size()));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), mask.as<std::uint8_t>()));
  }
}

TEST(SelectTest, NegativeZeroEqualsZero) {
  const Matrix scores = matrix_f32(1, 4, {-0.0f, 0.0f, -0.0f, 0.0f});
  EXPECT_EQ(select_one(scores, "unstructured:0.5"), matrix_bool(1, 4, {1, 1, 0, 0}));
}

TEST(SelectTest, RowsCompeteAlone) {
  test::Random random(3);
  const Matrix scores = tied_scores(random, DType::kFloat64, 9, 11, 2);
  const Matrix mask = select_one(scores, "unstructured:0.6", Scope::kRow);
  const auto all = doubles(scores);
  for (std::int64_t r = 0; r < 18; ++r) {
    const std::vector<double> row(all.begin() + r * 11, all.begin() + (r + 1) * 11);
    const auto expected = keep_by_sorting(row, 11 - dropped_count(0.6, 11));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), mask.as<std::uint8_t>() + r * 11));
  }
}

TEST(SelectTest, GlobalCompetesOverAllTensorsTheEarlierWinsTies) {
  test::Random random(4);
  const Matrix a = tied_scores(random, DType::kFloat32, 5, 7);
  const Matrix b = tied_scores(random, DType::kFloat64, 3, 4, 2);
  Matrix mask_a = test::zeros(DType::kBool, 5, 7);
  Matrix mask_b = test::zeros(DType::kBool, 3, 4, 2);
  const std::vector<Selection> both{{a.const_view(), mask_a.view()},
                                    {b.const_view(), mask_b.view()}};
  select_masks(both, Pattern::unstructured(0.7), Scope::kGlobal);
  std::vector<double> all = doubles(a);
  const auto more = doubles(b);
  all.insert(all.end(), more.begin(), more.end());
  const auto expected = keep_by_sorting(all, 59 - dropped_count(0.7, 59));
  EXPECT_TRUE(std::equal(expected.begin(), expected.begin() + 35, mask_a.as<std::uint8_t>()));
  EXPECT_TRUE(std::equal(expected.begin() + 35, expected.end(), mask_b.as<std::uint8_t>()));
}

TEST(SelectTest, NmKeepsTheHighestOfEachGroup) {
  const Matrix scores = matrix_f32(1, 11, {1, 4, 3, 2, 5, 5, 5, 5, -1, -2, -3});
  EXPECT_EQ(select_one(scores, "2:4"), matrix_bool(1, 11, {0, 1, 1, 0, 1, 1, 0, 0, 1, 1, 0}));
  EXPECT_EQ(select_one(scores, "4:4"), matrix_bool(1, 11, std::vector<std::uint8_t>(11, 1)));
  const Matrix narrow = matrix_f32(2, 1, {0, 0});
  EXPECT_EQ(select_one(narrow, "2:4"), matrix_bool(2, 1, {1, 1}));
}

TEST(SelectTest, BlocksCompeteByTheMeanOfWhatTheyHave) {
  // 2x2 blocks over 3 × 3. Means: 2, 3 | 2.5, 9: edge blocks are not punished for being small.
  const Matrix scores = matrix_f32(3, 3, {1, 3, 4, 2, 2, 2, 1, 4, 9});
  EXPECT_EQ(select_one(scores, "block:2x2:0.5"), matrix_bool(3, 3, {0, 0, 1, 0, 0, 1, 0, 0, 1}));
  EXPECT_EQ(select_one(scores, "block:2x2:0.25"), matrix_bool(3, 3, {0, 0, 1, 0, 0, 1, 1, 1, 1}));
  EXPECT_EQ(select_one(scores, "block:2x2:0.5", Scope::kRow),
            matrix_bool(3, 3, {0, 0, 1, 0, 0, 1, 0, 0, 1}));
  const Matrix batched = [] {
    Matrix m = test::zeros(DType::kFloat32, 2, 4, 2);
    for (int i = 0; i < 16; ++i) m.as<float>()[i] = static_cast<float>(i);
    return m;
  }();
  const Matrix mask = select_one(batched, "block:2x2:0.75");
  EXPECT_EQ(kept(mask, 0, 16), 4);
  EXPECT_EQ(mask.as<std::uint8_t>()[15], 1);
}

TEST(SelectTest, FanInKeepsTheSameNumberInEveryRowWhateverTheScope) {
  test::Random random(5);
  const Matrix scores = tied_scores(random, DType::kFloat32, 6, 10, 2);
  for (const Scope scope : {Scope::kRow, Scope::kTensor, Scope::kGlobal}) {
    const Matrix mask = select_one(scores, "fanin:0.75", scope);
    for (std::int64_t r = 0; r < 12; ++r) EXPECT_EQ(kept(mask, r * 10, (r + 1) * 10), 2);
  }
}

TEST(SelectTest, VnmRanksColumnsByTheirPanelThenKeepsNOfFour) {
  // One panel of 2 rows, one group of 8: column sums 0, 8, 6, 7, 5, 1, 0, 9 → columns 1, 2, 3, 7.
  const Matrix scores = matrix_f32(2, 8,
                                   {0, 1, 3, 2, 5, 1, 0, 4,  //
                                    0, 7, 3, 5, 0, 0, 0, 5});
  EXPECT_EQ(select_one(scores, "vnm:2:2:8"), matrix_bool(2, 8,
                                                         {0, 0, 1, 0, 0, 0, 0, 1,  //
                                                          0, 1, 0, 1, 0, 0, 0, 0}));
}

TEST(SelectTest, WhatIsSelectedSatisfiesThePattern) {
  test::Random random(6);
  for (const char* text :
       {"unstructured:0.77", "unstructured:0.4", "1:4", "2:4", "4:8", "8:16", "1:1",
        "block:4x3:0.6", "block:16x1:0.4", "vnm:4:2:8", "vnm:3:1:10", "fanin:0.4"}) {
    for (const auto& [rows, cols] : {std::pair{1, 3}, {3, 3}, {17, 23}, {16, 32}}) {
      for (const Scope scope : {Scope::kRow, Scope::kTensor}) {
        const Matrix scores = tied_scores(random, DType::kFloat32, rows, cols, 2);
        const Matrix mask = select_one(scores, text, scope);
        const auto violation = find_violation(mask.const_view(), Pattern::parse(text));
        EXPECT_FALSE(violation) << text << " " << rows << "x" << cols << ": " << violation->message;
      }
    }
  }
}

TEST(SelectTest, StridedScoresAndMasks) {
  test::Random random(7);
  const Matrix scores = test::random_matrix(random, DType::kFloat32, 6, 9);
  Matrix turned_scores = test::zeros(DType::kFloat32, 9, 6);
  for (int r = 0; r < 6; ++r) {
    for (int c = 0; c < 9; ++c) {
      turned_scores.as<float>()[c * 6 + r] = scores.as<float>()[r * 9 + c];
    }
  }
  for (const char* text : {"unstructured:0.5", "2:4", "block:2x3:0.5", "vnm:2:2:4"}) {
    const Matrix straight = select_one(scores, text);
    Matrix mask = test::zeros(DType::kBool, 9, 6);
    Selection selection{turned_scores.const_view(), mask.view()};
    std::swap(selection.scores.rows, selection.scores.cols);
    std::swap(selection.scores.row_stride, selection.scores.col_stride);
    std::swap(selection.mask.rows, selection.mask.cols);
    std::swap(selection.mask.row_stride, selection.mask.col_stride);
    select_masks({&selection, 1}, Pattern::parse(text), Scope::kTensor);
    for (int r = 0; r < 6; ++r) {
      for (int c = 0; c < 9; ++c) {
        EXPECT_EQ(mask.as<std::uint8_t>()[c * 6 + r], straight.as<std::uint8_t>()[r * 9 + c]);
      }
    }
  }
}

TEST(SelectTest, RefusesNaNWithItsPlaceAndOtherShapes) {
  Matrix scores = matrix_f32(2, 3, {1, 2, 3, 4, std::nanf(""), 6});
  const std::string message = message_of([&] { select_one(scores, "2:4"); });
  EXPECT_NE(message.find("row 1, column 1"), std::string::npos) << message;
  const Matrix fine = matrix_f32(2, 3, {1, 2, 3, 4, 5, 6});
  Matrix mask = test::zeros(DType::kBool, 3, 2);
  const Selection shape{fine.const_view(), mask.view()};
  EXPECT_EQ(code_of([&] { select_masks({&shape, 1}, Pattern::nm(2, 4), Scope::kRow); }),
            ErrorCode::kInvalidArgument);
  const Matrix halves = test::zeros(DType::kFloat16, 3, 2);
  const Selection dtype{halves.const_view(), mask.view()};
  EXPECT_EQ(code_of([&] { select_masks({&dtype, 1}, Pattern::nm(2, 4), Scope::kRow); }),
            ErrorCode::kInvalidArgument);
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(code_of([&] { select_one(matrix_f32(1, 2, {infinity, -infinity}), "block:1x2:0.5"); }),
            ErrorCode::kInvalidArgument);
}

TEST(MagnitudeMaskTest, IsSelectionByAbsoluteValueInEveryDType) {
  test::Random random(8);
  for (const DType dtype : test::weight_dtypes()) {
    const Matrix w = test::random_matrix(random, dtype, 12, 20);
    Matrix scores = test::zeros(DType::kFloat64, 12, 20);
    for (std::int64_t i = 0; i < w.size(); ++i) {
      test::set_element(scores, i, std::fabs(test::element(w, i)));
    }
    for (const char* text :
         {"unstructured:0.8", "2:4", "block:4x4:0.5", "vnm:4:2:8", "fanin:0.5"}) {
      Matrix mask = test::zeros(DType::kBool, 12, 20);
      magnitude_mask(w.const_view(), Pattern::parse(text), Scope::kTensor, mask.view());
      EXPECT_EQ(mask, select_one(scores, text)) << text << " " << dtype_name(dtype);
    }
  }
  Matrix mask = test::zeros(DType::kBool, 1, 2);
  EXPECT_EQ(code_of([&] {
              magnitude_mask(matrix_bool(1, 2, {0, 1}).const_view(), Pattern::nm(1, 2), Scope::kRow,
                             mask.view());
            }),
            ErrorCode::kInvalidArgument);
}

TEST(ScopeTest, Parse) {
  EXPECT_EQ(parse_scope("row"), Scope::kRow);
  EXPECT_EQ(parse_scope("tensor"), Scope::kTensor);
  EXPECT_EQ(parse_scope("global"), Scope::kGlobal);
  EXPECT_EQ(code_of([] { parse_scope("layer"); }), ErrorCode::kInvalidArgument);
}

// ---- Verification. ----

std::string violation_of(const Matrix& w, const char* pattern) {
  const auto violation = find_violation(w.const_view(), Pattern::parse(pattern));
  return violation ? violation->message : std::string();
}

TEST(FindViolationTest, NamesTheFirstPlace) {
  Matrix w = test::zeros(DType::kFloat32, 18, 44);
  for (const int col : {40, 41, 43}) w.as<float>()[17 * 44 + col] = 1;
  EXPECT_EQ(violation_of(w, "2:4"), "row 17, columns 40–43: 3 non-zeros, 2:4 allows 2");
  EXPECT_EQ(violation_of(w, "fanin:0.95"),
            "row 17, columns 0–43: 3 non-zeros, fanin:0.95 allows 2 of 44 inputs");
  EXPECT_EQ(violation_of(w, "4:8"), "");
  const auto violation = find_violation(w.const_view(), Pattern::parse("1:4"));
  ASSERT_TRUE(violation);
  EXPECT_EQ(violation->row, 17);
  EXPECT_EQ(violation->col_begin, 40);
  EXPECT_EQ(violation->col_end, 44);
}

TEST(FindViolationTest, TheBatchIsNamedWhereThereIsOne) {
  Matrix w = test::zeros(DType::kFloat32, 1, 2, 3);
  w.as<float>()[4] = w.as<float>()[5] = 1;
  EXPECT_EQ(violation_of(w, "1:2"), "batch 2, row 0, columns 0–1: 2 non-zeros, 1:2 allows 1");
}

TEST(FindViolationTest, FractionsAreLowerBounds) {
  const Matrix w = matrix_f32(2, 5, {1, 0, 0, 0, 0, 0, 1, 1, 0, 0});
  EXPECT_EQ(violation_of(w, "unstructured:0.7"), "");
  EXPECT_EQ(violation_of(w, "unstructured:0.3"), "");
  EXPECT_EQ(violation_of(w, "unstructured:0.9"),
            "row 1, column 1: non-zero number 2 of 3, unstructured:0.9 allows 1 of 10 positions");
  EXPECT_EQ(violation_of(w, "fanin:0.6"), "");
  EXPECT_NE(violation_of(w, "fanin:0.8"), "");
}

TEST(FindViolationTest, RowsThatRoundForThemselvesAreAccepted) {
  // A third of 4 is 1 a row, but 3 of 8 over both: both answers are what was asked.
  const Matrix by_row = matrix_f32(2, 4, {0, 1, 1, 1, 1, 1, 1, 0});
  EXPECT_EQ(violation_of(by_row, "unstructured:0.33"), "");
  EXPECT_NE(violation_of(matrix_f32(2, 4, {1, 1, 1, 1, 1, 1, 1, 0}), "unstructured:0.33"), "");
}

TEST(FindViolationTest, Blocks) {
  const Matrix w = matrix_f32(3, 4, {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2});
  EXPECT_EQ(violation_of(w, "block:2x2:0.5"), "");
  EXPECT_EQ(violation_of(w, "block:2x2:0.75"),
            "row 2, columns 2–3: non-zero block number 2, block:2x2:0.75 allows 1 of 4 blocks");
}

TEST(FindViolationTest, VnmCountsRowsAndPanels) {
  Matrix w = test::zeros(DType::kFloat32, 4, 8);
  for (const auto& [row, col] : {std::pair{0, 0}, {0, 1}, {1, 2}, {1, 3}}) {
    w.as<float>()[row * 8 + col] = 1;
  }
  EXPECT_EQ(violation_of(w, "vnm:4:2:8"), "");
  w.as<float>()[3 * 8 + 7] = 1;
  EXPECT_EQ(violation_of(w, "vnm:4:2:8"),
            "row 3, columns 0–7: 5 columns live in the panel from row 0, vnm:4:2:8 allows 4");
  EXPECT_EQ(violation_of(w, "vnm:3:2:8"), "");
  EXPECT_EQ(violation_of(w, "vnm:3:1:8"), "row 0, columns 0–7: 2 non-zeros, vnm:3:1:8 allows 1");
}

TEST(FindViolationTest, NegativeZeroIsZeroAndNaNIsNot) {
  EXPECT_EQ(violation_of(matrix_f32(1, 2, {-0.0f, 1}), "1:2"), "");
  EXPECT_NE(violation_of(matrix_f32(1, 2, {std::nanf(""), 1}), "1:2"), "");
  EXPECT_EQ(count_nonzeros(matrix_f32(1, 4, {-0.0f, 0, std::nanf(""), 1}).const_view()), 2);
}

// ---- Inference. ----

std::string inferred(const Matrix& w) { return infer_pattern(w.const_view()).to_string(); }

TEST(InferTest, FindsWhatWasSelected) {
  test::Random random(9);
  const auto sparse = [&](const char* text, std::int64_t rows, std::int64_t cols) {
    return test::random_sparse(random, DType::kFloat32, Pattern::parse(text), rows, cols);
  };
  for (const char* text : {"1:4", "2:4", "1:8", "2:8", "4:8", "1:16", "2:16", "4:16", "8:16",
                           "block:64x64:0.5", "block:32x32:0.75", "block:16x16:0.25",
                           "block:16x1:0.5", "block:4x1:0.5", "block:1x4:0.5", "fanin:0.875"}) {
    EXPECT_EQ(inferred(sparse(text, 256, 256)), text);
  }
  EXPECT_EQ(inferred(sparse("unstructured:0.75", 256, 256)), "unstructured:0.75");
  EXPECT_EQ(inferred(sparse("unstructured:0", 16, 16)), "unstructured");
  EXPECT_EQ(inferred(sparse("2:4", 16, 19)), "2:4");
}

TEST(InferTest, ZerosAloneShowNoStructure) {
  EXPECT_EQ(inferred(test::zeros(DType::kFloat32, 8, 8)), "unstructured:1");
  EXPECT_EQ(inferred(test::zeros(DType::kFloat32, 0, 8)), "unstructured");
}

TEST(InferTest, SlotsMustBeUsed) {
  // One non-zero in each of 8 groups of 4, of 16 slots that 2:4 would keep; 1:4 fits and is full.
  Matrix w = test::zeros(DType::kFloat32, 1, 32);
  for (int g = 0; g < 8; ++g) w.as<float>()[g * 4 + g % 4] = 1;
  EXPECT_EQ(inferred(w), "1:4");
  // With three groups empty 1:4 is used at 62 %: no N:M pattern may pad that much.
  for (const int g : {1, 2, 6}) w.as<float>()[g * 4 + g % 4] = 0;
  EXPECT_EQ(infer_pattern(w.const_view()).kind, Pattern::Kind::kFanIn);
}

TEST(InferTest, ABlockMustFitIntoTheWeight) {
  // In a single row every column would be a 16x1 block that holds together.
  const Matrix w = matrix_f32(1, 6, {1, 0, 0, 0, 0, 0});
  EXPECT_EQ(infer_pattern(w.const_view()).kind, Pattern::Kind::kFanIn);
}

TEST(InferTest, TheFoundPatternHolds) {
  test::Random random(10);
  for (int i = 0; i < 200; ++i) {
    const std::int64_t rows = 1 + static_cast<std::int64_t>(random() % 40);
    const std::int64_t cols = 1 + static_cast<std::int64_t>(random() % 40);
    const double sparsity = static_cast<double>(random() % 100) / 100.0;
    const Matrix w = test::random_sparse(random, DType::kFloat32, Pattern::unstructured(sparsity),
                                         rows, cols, 1 + static_cast<std::int64_t>(random() % 2));
    const Pattern pattern = infer_pattern(w.const_view());
    const auto violation = find_violation(w.const_view(), pattern);
    EXPECT_FALSE(violation) << pattern.to_string() << ": " << violation->message;
    EXPECT_EQ(test::unpack_values(test::pack_matrix(w, pattern, format_for(pattern))), w);
  }
}

}  // namespace
}  // namespace gossamer
