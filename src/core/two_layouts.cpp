// SPDX-License-Identifier: BSD-3-Clause
// One weight in two layouts, the second one's block behind the first one's arrays. Each is complete
// in itself; what the first's header says more is that the second is there and which token buckets
// run in it.
#include <cstring>
#include <memory>
#include <optional>

#include "core/encode.h"
#include "core/fail.h"
#include "core/layouts.h"
#include "core/row_source.h"
#include "core/validate.h"

namespace gossamer {

using detail::fail;

std::int64_t PackedView::layout_bytes() const {
  if (header_->has_second == 0) return header_->total_bytes;
  const auto& last = header_->arrays[static_cast<std::size_t>(header_->array_count) - 1];
  const std::int64_t end = last.offset + last.bytes + detail::kArraySlack;
  return detail::ceil_div(end, detail::kArrayAlignment) * detail::kArrayAlignment;
}

std::optional<PackedView> PackedView::second() const {
  if (header_->has_second == 0) return std::nullopt;
  const std::int64_t begin = layout_bytes();
  const PackedView other = open(data() + begin, size_bytes() - begin);
  const PackedHeader& a = *header_;
  const PackedHeader& b = other.header();
  // Every call asks this, so what only validate() needs is not looked at.
  if (b.has_second != 0 || b.layout == a.layout || b.dtype != a.dtype || b.batch != a.batch ||
      b.out != a.out || b.in != a.in || b.kernel_h != a.kernel_h || b.kernel_w != a.kernel_w) {
    fail(ErrorCode::kMalformedData,
         "packed weight: its second layout, {}, holds another shape, dtype or convolution than its "
         "first, {}, or the same layout; it must come unchanged from convert()",
         layout_name(b.layout), layout_name(a.layout));
  }
  return other;
}

namespace {

void check_different(Layout first, Layout second) {
  if (first != second) return;
  fail(ErrorCode::kInvalidArgument,
       "layout {} is given twice; two layouts of one weight must differ, or convert it to one",
       layout_name(first));
}

FormatInfo info_in(const PackedView& packed, Layout layout) {
  FormatInfo info = detail::info_of(packed.header());
  info.format = layout;
  return info;
}

/// Memory behind the first `begin` bytes of a block that somebody else owns.
PackedAllocator part_of(const std::shared_ptr<std::byte>& block, std::int64_t begin) {
  return [=](std::int64_t) { return std::shared_ptr<std::byte>(block, block.get() + begin); };
}

/// A block whose first layout is in its place.
PackedWeight announce_second(const std::shared_ptr<std::byte>& block, std::int64_t bytes) {
  auto* const header = reinterpret_cast<PackedHeader*>(block.get());
  header->has_second = 1;
  header->total_bytes = bytes;
  return {block, bytes};
}

}  // namespace

PackedWeight convert_leaving_room(const PackedView& packed, Layout first, Layout second,
                                  const PackedAllocator& allocator) {
  check_different(first, second);
  const auto source = detail::packed_source(packed);
  const std::int64_t behind = detail::encoded_bytes(*source, info_in(packed, second));
  std::shared_ptr<std::byte> block;
  std::int64_t begin = 0;
  detail::encode(*source, info_in(packed, first), [&](std::int64_t bytes) {
    begin = bytes;
    block = detail::allocate_packed(bytes + behind, allocator);
    return block;
  });
  std::memset(block.get() + begin, 0, sizeof(PackedHeader));
  return announce_second(block, begin + behind);
}

void fill_second(std::byte* block, std::int64_t bytes, Layout second) {
  const PackedView first = PackedView::open(block, bytes);
  const std::int64_t begin = first.layout_bytes();
  const auto source = detail::packed_source(first);
  const auto room = [&](std::int64_t needed) {
    if (first.header().has_second == 0 || second == first.layout() || needed != bytes - begin) {
      fail(ErrorCode::kInvalidArgument, "layout {} takes {} bytes, {} were left behind layout {}",
           layout_name(second), needed, bytes - begin, layout_name(first.layout()));
    }
    return std::shared_ptr<std::byte>(block + begin, [](std::byte*) {});
  };
  try {
    const PackedWeight made = detail::encode(*source, info_in(first, second), room);
    reinterpret_cast<PackedHeader*>(made.data())->set_plan(first.header());
  } catch (...) {  // a header alone would make the room look filled
    if (first.header().has_second != 0) std::memset(block + begin, 0, sizeof(PackedHeader));
    throw;
  }
}

PackedWeight convert(const PackedView& packed, Layout first, Layout second,
                     const PackedAllocator& allocator) {
  check_different(first, second);
  // The format fills what a group or a row keeps too few of; another layout may not have been. Both
  // must hold the same.
  if (const Layout format = format_for(packed.pattern()); packed.layout() != format) {
    return convert(convert(packed, format), first, second, allocator);
  }
  // One of them must be counted before there is memory, and rows are not paired twice for that.
  if (detail::row_pairs_block(first) != 0) {
    PackedWeight both = convert_leaving_room(packed, first, second, allocator);
    fill_second(both.data(), both.size_bytes(), second);
    return both;
  }
  const auto source = detail::packed_source(packed);
  const std::int64_t begin = detail::encoded_bytes(*source, info_in(packed, first));
  std::shared_ptr<std::byte> block;
  std::int64_t total = 0;
  detail::encode(*source, info_in(packed, second), [&](std::int64_t bytes) {
    total = begin + bytes;
    block = detail::allocate_packed(total, allocator);
    return part_of(block, begin)(bytes);
  });
  detail::encode(*source, info_in(packed, first), part_of(block, 0));
  return announce_second(block, total);
}

namespace {

/// Nothing where what is held does not fit the layout.
std::optional<PackedWeight> converted(const PackedView& packed, Layout layout) {
  try {
    return convert(packed, layout);
  } catch (const Error&) {
    return std::nullopt;
  }
}

/// Both layouts hold the same weight, bit by bit: an encoder gives equal weights equal bytes.
void check_same_weight(const PackedView& first, const PackedView& second) {
  const bool may_be =
      first.pattern() == second.pattern() && first.transposed() == second.transposed();
  // Nothing kept may be of more rows than can be converted.
  if (may_be && first.kept() == 0 && second.kept() == 0) return;
  if (may_be) {
    const std::optional<PackedWeight> again = converted(first, second.layout());
    const bool alike =
        again && again->size_bytes() == second.size_bytes() &&
        std::memcmp(again->data() + sizeof(PackedHeader), second.data() + sizeof(PackedHeader),
                    static_cast<std::size_t>(second.size_bytes()) - sizeof(PackedHeader)) == 0;
    if (alike) return;
  }
  fail(ErrorCode::kMalformedData, "packed weight: layouts {} and {} do not hold the same weight",
       layout_name(first.layout()), layout_name(second.layout()));
}

}  // namespace

void validate(const PackedView& packed) {
  const PackedView p = PackedView::open(packed.data(), packed.size_bytes());
  detail::validate_layout(p);
  const std::optional<PackedView> second = p.second();
  if (!second) return;
  detail::validate_layout(*second);
  check_same_weight(p, *second);
}

}  // namespace gossamer
