// SPDX-License-Identifier: BSD-3-Clause
#include "convert/rows.h"
#include "core/encode.h"
#include "core/fail.h"
#include "core/mask_verify.h"
#include "core/row_source.h"
#include "gossamer/packed_weight.h"

namespace gossamer {
namespace {

using detail::fail;

/// What a weight that breaks its pattern is refused with.
[[noreturn]] void refuse_violation(const std::string& name, const Violation& violation,
                                   const Pattern& pattern) {
  fail(ErrorCode::kPatternViolation,
       "weight '{}' {}; prune it first (gossamer.Magnitude(\"{}\")) or pass "
       "pattern=\"unstructured\"",
       name, violation.message, pattern.to_string());
}

}  // namespace

PackedWeight pack(const ConstMatrixView& values, const ConstMatrixView* mask,
                  const Pattern& pattern, Layout layout, const PackOptions& options) {
  try {
    const FormatInfo info{
        layout,      values.dtype,       pattern,          values.batch,    values.rows,
        values.cols, options.transposed, options.kernel_h, options.kernel_w};
    const std::unique_ptr<detail::RowSource> source = detail::dense_source(values, mask);
    detail::layout_spec(info, 0);
    if (auto packed = detail::pack_rows(values, mask, info, options)) return std::move(*packed);
    if (const auto violation = detail::find_violation(*source, pattern)) {
      refuse_violation(options.name, *violation, pattern);
    }
    return detail::encode(*source, info, options.allocator);
  } catch (const Error& error) {
    if (error.code() == ErrorCode::kPatternViolation) throw;
    fail(error.code(), "weight '{}': {}", options.name, error.what());
  }
}

}  // namespace gossamer
