// SPDX-License-Identifier: BSD-3-Clause
// From one layout to another, rows of a packed weight, and the names of layouts. Two layouts in one
// block are named with a plus: "rowpairs64+bitmask".
#include <fmt/format.h>

#include <optional>
#include <string>
#include <vector>

#include "torch/ops.h"

namespace gossamer::door {
namespace {

constexpr char kBoth = '+';

Layout one_layout(const std::string& name, const Pattern& pattern) {
  if (name == "format") return format_for(pattern);
  if (const auto layout = parse_layout(name)) return *layout;
  refuse(
      fmt::format("layout '{}' is not known; \"format\" (the one that is saved), a format (\"nm\", "
                  "\"bitmask\", \"bsr\", \"fanin\"), an execution layout such as \"kcsr128\" or "
                  "two of them with "
                  "a plus is accepted",
                  name));
}

}  // namespace

Layouts layouts_from_name(const std::string& name, const Pattern& pattern) {
  const std::size_t plus = name.find(kBoth);
  if (plus == std::string::npos) return {one_layout(name, pattern), std::nullopt};
  return {one_layout(name.substr(0, plus), pattern), one_layout(name.substr(plus + 1), pattern)};
}

std::string layouts_name(const PackedView& weight) {
  const std::string first(layout_name(weight.layout()));
  const std::optional<PackedView> second = weight.second();
  return second ? fmt::format("{}{}{}", first, kBoth, layout_name(second->layout())) : first;
}

Tensor convert(const Tensor& packed, const std::string& layout) {
  return guarded([&] {
    const PackedTensor weight(packed);
    const Layouts wanted = layouts_from_name(layout, weight.view().pattern());
    if (!wanted.second) {
      return to_tensor(gossamer::convert(weight.view(), wanted.first, tensor_allocator()));
    }
    return to_tensor(
        gossamer::convert(weight.view(), wanted.first, *wanted.second, tensor_allocator()));
  });
}

void fill_second_(const Tensor& packed, const std::string& layout) {
  guarded([&] {
    const PackedView weight = open_in_place(packed);
    const std::optional<Layout> second = parse_layout(layout);
    if (!second || weight.header().has_second == 0) {
      refuse(
          fmt::format("layout '{}': the name of the one that torch.ops.gossamer.plan left "
                      "unfilled is accepted, and its packed weight",
                      layout));
    }
    auto* const memory = static_cast<std::byte*>(packed.mutable_data_ptr());
    gossamer::fill_second(memory, packed.numel(), *second);
    return 0;
  });
}

Tensor slice_rows(const Tensor& packed, std::int64_t begin, std::int64_t end) {
  return guarded([&] {
    const PackedTensor weight(packed);
    return to_tensor(gossamer::slice_rows(weight.view(), begin, end, tensor_allocator()));
  });
}

Tensor concat_rows(const std::vector<Tensor>& parts) {
  return guarded([&] {
    std::vector<PackedTensor> weights;
    std::vector<PackedView> views;
    for (const Tensor& part : parts) views.push_back(weights.emplace_back(part).view());
    return to_tensor(gossamer::concat_rows(views, tensor_allocator()));
  });
}

void validate(const Tensor& packed) {
  guarded([&] { gossamer::validate(PackedTensor(packed).view()); });
}

}  // namespace gossamer::door
