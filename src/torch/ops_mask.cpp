// SPDX-License-Identifier: BSD-3-Clause
#include <nlohmann/json.hpp>

#include "gossamer/mask.h"
#include "gossamer/pattern.h"
#include "torch/ops.h"

namespace gossamer::door {
namespace {

std::string_view kind_name(Pattern::Kind kind) {
  switch (kind) {
    case Pattern::Kind::kUnstructured:
      return "unstructured";
    case Pattern::Kind::kNm:
      return "nm";
    case Pattern::Kind::kBlock:
      return "block";
    case Pattern::Kind::kVnm:
      return "vnm";
    case Pattern::Kind::kFanIn:
      return "fanin";
  }
  return "";
}

}  // namespace

std::vector<Tensor> select_masks(const std::vector<Tensor>& scores, const std::string& pattern,
                                 const std::string& scope) {
  return guarded([&] {
    std::vector<Tensor> masks;
    std::vector<Selection> selections;
    masks.reserve(scores.size());
    selections.reserve(scores.size());
    for (const Tensor& score : scores) {
      masks.push_back(empty(sizes_of(score), DType::kBool));
      selections.push_back(
          {matrix_view(score, "scores"), mutable_matrix_view(masks.back(), "mask")});
    }
    gossamer::select_masks(selections, Pattern::parse(pattern), parse_scope(scope));
    return masks;
  });
}

Tensor magnitude_mask(const Tensor& values, const std::string& pattern, const std::string& scope) {
  return guarded([&] {
    Tensor mask = empty(sizes_of(values), DType::kBool);
    gossamer::magnitude_mask(matrix_view(values, "values"), Pattern::parse(pattern),
                             parse_scope(scope), mutable_matrix_view(mask, "mask"));
    return mask;
  });
}

std::string find_violation(const Tensor& values, const std::string& pattern) {
  return guarded([&] {
    const auto violation =
        gossamer::find_violation(matrix_view(values, "values"), Pattern::parse(pattern));
    return violation ? violation->message : std::string();
  });
}

std::string infer_pattern(const Tensor& values) {
  return guarded(
      [&] { return gossamer::infer_pattern(matrix_view(values, "values")).to_string(); });
}

std::int64_t count_nonzeros(const Tensor& values) {
  return guarded([&] { return gossamer::count_nonzeros(matrix_view(values, "values")); });
}

std::string parse_pattern(const std::string& text) {
  return guarded([&] {
    const Pattern pattern = Pattern::parse(text);
    return nlohmann::json{{"text", pattern.to_string()},
                          {"kind", kind_name(pattern.kind)},
                          {"sparsity", pattern.sparsity},
                          {"n", pattern.n},
                          {"m", pattern.m},
                          {"v", pattern.v},
                          {"block_rows", pattern.block_rows},
                          {"block_cols", pattern.block_cols}}
        .dump();
  });
}

}  // namespace gossamer::door
