// SPDX-License-Identifier: BSD-3-Clause
#include <algorithm>
#include <cstring>

#include "core/encode.h"
#include "core/fail.h"
#include "core/layouts.h"
#include "gossamer/packed_weight.h"

namespace gossamer {
namespace {

using detail::ArraySpec;
using detail::fail;
using detail::LayoutSpec;

std::vector<std::int64_t> shape_of(const ArraySpec& spec) {
  return {spec.shape.begin(), spec.shape.begin() + spec.rank};
}

std::string shape_text(std::span<const std::int64_t> shape) {
  return fmt::format("[{}]", fmt::join(shape, ", "));
}

const PackedArray* find(std::span<const PackedArray> arrays, std::string_view name) {
  const PackedArray* found = nullptr;
  for (const PackedArray& array : arrays) {
    if (array.name != name) continue;
    if (found != nullptr) fail(ErrorCode::kMalformedData, "array '{}' is given twice", name);
    found = &array;
  }
  return found;
}

/// The number of kept positions is the one size that no other says: the values have it.
std::int64_t kept_of(const FormatInfo& info, std::span<const PackedArray> arrays) {
  if (info.format == Layout::kNm || info.format == Layout::kFanIn) return 0;
  const PackedArray* values = find(arrays, "values");
  if (values == nullptr) fail(ErrorCode::kMalformedData, "array 'values' is missing");
  std::int64_t kept = 1;
  for (const std::int64_t size : values->shape) {
    if (size < 0 || __builtin_mul_overflow(kept, size, &kept)) {
      fail(ErrorCode::kMalformedData, "array 'values': shape {} cannot be",
           shape_text(values->shape));
    }
  }
  return kept;
}

const PackedArray& checked_array(const ArraySpec& spec, std::span<const PackedArray> arrays) {
  const PackedArray* array = find(arrays, spec.name);
  if (array == nullptr) fail(ErrorCode::kMalformedData, "array '{}' is missing", spec.name);
  if (array->dtype != spec.dtype) {
    fail(ErrorCode::kMalformedData, "array '{}': dtype {}, expected {}", spec.name,
         dtype_name(array->dtype), dtype_name(spec.dtype));
  }
  if (array->shape != shape_of(spec)) {
    fail(ErrorCode::kMalformedData, "array '{}': shape {}, expected {}", spec.name,
         shape_text(array->shape), shape_text(shape_of(spec)));
  }
  if (static_cast<std::int64_t>(array->bytes.size()) != spec.bytes) {
    fail(ErrorCode::kMalformedData, "array '{}': {} bytes, its shape needs {}", spec.name,
         array->bytes.size(), spec.bytes);
  }
  return *array;
}

LayoutSpec spec_of(const FormatInfo& info, std::span<const PackedArray> arrays) {
  try {
    return detail::layout_spec(info, kept_of(info, arrays));
  } catch (const Error& error) {
    throw Error(ErrorCode::kMalformedData, error.what());
  }
}

}  // namespace

std::vector<PackedArray> format_arrays(const PackedView& packed) {
  if (!is_format(packed.layout())) {
    fail(ErrorCode::kInvalidArgument, "layout {} is not saved; convert() it to its format, {}",
         layout_name(packed.layout()), layout_name(format_for(packed.pattern())));
  }
  const LayoutSpec spec = detail::layout_spec(detail::info_of(packed.header()), packed.kept());
  std::vector<PackedArray> arrays;
  for (int i = 0; i < spec.count; ++i) {
    const ArraySpec& array = spec.arrays[static_cast<std::size_t>(i)];
    arrays.push_back({array.name,
                      array.dtype,
                      shape_of(array),
                      {packed.data() + array.offset, static_cast<std::size_t>(array.bytes)}});
  }
  return arrays;
}

PackedWeight from_format_arrays(const FormatInfo& info, std::span<const PackedArray> arrays,
                                const PackedAllocator& allocator) {
  if (!is_format(info.format)) {
    fail(ErrorCode::kMalformedData,
         "layout number {} is no format; expected nm, bitmask, bsr or fanin", int(info.format));
  }
  const LayoutSpec spec = spec_of(info, arrays);
  if (arrays.size() != static_cast<std::size_t>(spec.count)) {
    fail(ErrorCode::kMalformedData, "{} arrays, format {} has {}", arrays.size(),
         layout_name(info.format), spec.count);
  }
  std::array<const PackedArray*, PackedHeader::kMaxArrays> sources{};
  for (int i = 0; i < spec.count; ++i) {
    const auto index = static_cast<std::size_t>(i);
    sources[index] = &checked_array(spec.arrays[index], arrays);
  }
  const detail::PackedBuffer buffer(info, spec.kept, allocator);
  for (int i = 0; i < spec.count; ++i) {
    const auto& bytes = sources[static_cast<std::size_t>(i)]->bytes;
    if (!bytes.empty()) std::memcpy(buffer.array<std::byte>(i), bytes.data(), bytes.size());
  }
  PackedWeight weight = buffer.finish();
  validate(weight.view());
  return weight;
}

}  // namespace gossamer
