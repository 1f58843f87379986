// SPDX-License-Identifier: BSD-3-Clause
// A packed weight in memory: any bytes are refused with an Error, or pass validate() and can be
// unpacked, converted, sliced and multiplied.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "gossamer/error.h"
#include "gossamer/linear.h"
#include "gossamer/packed_weight.h"

namespace {

using namespace gossamer;

constexpr std::int64_t kMostElements = 1 << 16;

void use(const PackedView& view) {
  if (view.in() > 0 && view.batch() * view.out() > kMostElements / view.in()) return;
  const std::int64_t count = view.batch() * view.out() * view.in();
  std::vector<std::byte> dense(static_cast<std::size_t>(count * dtype_bytes(view.dtype())));
  const auto values = contiguous_view(static_cast<void*>(dense.data()), view.dtype(), view.out(),
                                      view.in(), view.batch());
  unpack(view, values);
  const PackedWeight canonical = convert(view, format_for(view.pattern()));
  validate(canonical);
  std::vector<std::byte> again(dense.size());
  unpack(canonical, contiguous_view(static_cast<void*>(again.data()), view.dtype(), view.out(),
                                    view.in(), view.batch()));
  if (!dense.empty() && std::memcmp(dense.data(), again.data(), dense.size()) != 0) std::abort();
  validate(slice_rows(canonical, 0, view.out()));
  if (view.dtype() == DType::kFloat32) {
    validate(convert(view, Layout::kKcsr64));
    validate(convert(view, Layout::kRowPairs64));
  }
  if (view.dtype() == DType::kInt8) validate(convert(view, Layout::kRowQuads512));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  constexpr std::size_t kAlignment = 64;
  const std::size_t room = (size + kAlignment) / kAlignment * kAlignment;
  const std::unique_ptr<void, decltype(&std::free)> block(std::aligned_alloc(kAlignment, room),
                                                          &std::free);
  if (size > 0) std::memcpy(block.get(), data, size);
  try {
    const auto view = PackedView::open(static_cast<const std::byte*>(block.get()),
                                       static_cast<std::int64_t>(size));
    validate(view);
    use(view);
  } catch (const Error&) {
    return 0;
  }
  return 0;
}
