// SPDX-License-Identifier: BSD-3-Clause
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/fail.h"
#include "core/layouts.h"
#include "gossamer/packed_weight.h"

namespace gossamer {
namespace {

using detail::fail;

[[noreturn]] void refuse(std::string_view why) {
  fail(ErrorCode::kMalformedData,
       "packed weight: {}; it must come unchanged from pack() or a file that gossamer wrote", why);
}

void check_frame(const std::byte* data, std::int64_t bytes) {
  if (data == nullptr || bytes < static_cast<std::int64_t>(sizeof(PackedHeader))) {
    refuse(fmt::format("{} bytes, the header alone has {}", data == nullptr ? 0 : bytes,
                       sizeof(PackedHeader)));
  }
  if (reinterpret_cast<std::uintptr_t>(data) % detail::kArrayAlignment != 0) {
    refuse(fmt::format("the address is not a multiple of {}", detail::kArrayAlignment));
  }
}

/// The arrays must lie exactly where packing puts them: then every size that a kernel derives from
/// the dimensions is inside.
void check_arrays(const PackedHeader& h, const detail::LayoutSpec& spec) {
  if (h.kept != spec.kept) {
    refuse(fmt::format("{} kept positions, the pattern and shape say {}", h.kept, spec.kept));
  }
  if (h.array_count != spec.count) {
    refuse(fmt::format("{} arrays, layout {} has {}", h.array_count, layout_name(h.layout),
                       spec.count));
  }
  const std::int64_t behind = h.total_bytes - spec.total_bytes;
  if (h.has_second == 0 ? behind != 0 : behind < std::int64_t{sizeof(PackedHeader)}) {
    refuse(fmt::format("it says {} bytes, its shape needs {}{}", h.total_bytes, spec.total_bytes,
                       h.has_second == 0 ? "" : " and a second layout"));
  }
  for (int i = 0; i < PackedHeader::kMaxArrays; ++i) {
    const auto& array = h.arrays[static_cast<std::size_t>(i)];
    const auto& expected = spec.arrays[static_cast<std::size_t>(i)];
    if (array.offset != expected.offset || array.bytes != expected.bytes) {
      refuse(fmt::format("array {} has {} bytes at {}, expected {} at {}", i, array.bytes,
                         array.offset, expected.bytes, expected.offset));
    }
  }
}

void check_second_fields(const PackedHeader& h) {
  if (h.has_second > 1) refuse(fmt::format("it says {} layouts follow the first", h.has_second));
  const int count =
      PackedHeader::kTokenBuckets - (h.version == PackedHeader::kOldestVersion ? 1 : 0);
  const int buckets = h.has_second == 0 ? 0 : (1 << count) - 1;
  if ((h.second_buckets & ~buckets) != 0) {
    refuse(fmt::format("token buckets {:#x} run in its second layout; it has {}", h.second_buckets,
                       h.has_second == 0 ? "none" : fmt::format("{} buckets", count)));
  }
}

/// What decides whether a header is in order: all of it but the plan, which may name anything.
using CheckedBytes = std::array<std::byte, offsetof(PackedHeader, plan)>;

// A thread keeps the headers that it last found in order, because a call opens the same weight
// again and again. They are compared byte by byte: an address proves nothing about memory that
// somebody else owns. Slots that hold nothing yet have no magic. Power of two; 11.5 KiB a thread.
constexpr int kSlotBits = 6;

CheckedBytes& slot_of(const std::byte* data) {
  thread_local constinit std::array<CheckedBytes, std::size_t{1} << kSlotBits> slots{};
  const std::uint64_t hash = reinterpret_cast<std::uintptr_t>(data) * 0x9e3779b97f4a7c15u;
  return slots[static_cast<std::size_t>(hash >> (64 - kSlotBits))];
}

}  // namespace

void PackedHeader::set_plan(const PackedHeader& other) {
  const bool two = has_second != 0 && other.has_second != 0;
  version = kVersion;
  second_buckets = 0;
  for (int bucket = 0; bucket < kTokenBuckets; ++bucket) {
    plan[static_cast<std::size_t>(bucket)] = other.planned(bucket);
    if (two && other.in_second(bucket)) second_buckets |= static_cast<std::uint8_t>(1u << bucket);
  }
}

PackedView PackedView::open(const std::byte* data, std::int64_t bytes) {
  check_frame(data, bytes);
  const auto* header = reinterpret_cast<const PackedHeader*>(data);
  if (header->magic != PackedHeader::kMagic) refuse("it does not start with GSMR");
  if (header->version < PackedHeader::kOldestVersion || header->version > PackedHeader::kVersion) {
    refuse(fmt::format("version {}, this library reads {} and {}", header->version,
                       PackedHeader::kOldestVersion, PackedHeader::kVersion));
  }
  if (header->total_bytes != bytes) {
    refuse(fmt::format("{} bytes given, the header says {}", bytes, header->total_bytes));
  }
  CheckedBytes& known = slot_of(data);
  if (std::memcmp(data, known.data(), known.size()) == 0) return PackedView(header);
  if (header->transposed > 1) refuse(fmt::format("transposed is {}", header->transposed));
  check_second_fields(*header);
  try {
    // How many units and columns row pairs store depends on the weight: the header's table of
    // arrays says it.
    check_arrays(*header, detail::layout_spec(detail::info_of(*header), header->kept,
                                              detail::pair_sizes(*header)));
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kMalformedData) throw;
    refuse(error.what());
  }
  std::memcpy(known.data(), data, known.size());
  return PackedView(header);
}

Pattern PackedView::pattern() const { return detail::info_of(*header_).pattern; }

}  // namespace gossamer
