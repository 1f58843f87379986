// SPDX-License-Identifier: BSD-3-Clause
#include "cli/sensitivity.h"

#include <vector>

#include "cli/calibrated.h"

namespace gossamer::cli {
namespace {

/// What stands in for statistics where there are none: inputs of norm 1 that are uncorrelated,
/// under which Wanda is magnitude and the error that of the weight itself.
LayerStatistics plain_inputs(const SafetensorsEntry& entry, bool transposed) {
  const auto& s = entry.shape;
  LayerStatistics found;
  found.tokens = 1;
  found.segment = s[transposed ? 0 : 1];
  found.inputs = s.size() == 4 ? s[1] * s[2] * s[3] : found.segment;
  found.norms.assign(static_cast<std::size_t>(found.inputs), 1.0);
  return found;
}

}  // namespace

Tried sensitivity(const SafetensorsFile& file, const SafetensorsEntry& entry, bool transposed,
                  const std::optional<Statistics>& statistics) {
  const bool known = statistics && statistics->has(entry.name);
  const LayerStatistics inputs =
      known ? statistics->read(entry.name) : plain_inputs(entry, transposed);
  const LoadedWeight weight(file, entry, transposed || inputs.transposed, nullptr);
  const std::vector<float> dense = dense_matrix(weight, entry.name, inputs);
  const Scope scope = known ? Scope::kRow : Scope::kTensor;
  Tried tried;
  if (known) {
    tried.by = "wanda";
    tried.over = inputs.gram.empty() ? "norms" : "gram";
  }
  for (std::size_t i = 0; i < tried.errors.size(); ++i) {
    const auto mask = wanda_mask(dense, inputs, Pattern::parse(kTriedPatterns[i]), scope);
    tried.errors[i] = masked_error(dense, mask, inputs);
  }
  return tried;
}

}  // namespace gossamer::cli
