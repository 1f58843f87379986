// SPDX-License-Identifier: BSD-3-Clause
#include "cli/statistics.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string_view>

#include "core/half.h"
#include "gossamer/error.h"
#include "gossamer/packed_io.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

constexpr std::string_view kVersionKey = "gossamer.stats";
constexpr std::string_view kWeightKey = "gossamer.stats.";
constexpr std::string_view kVersion = "1";

[[noreturn]] void malformed(const std::string& weight, const std::string& what) {
  throw Error(ErrorCode::kMalformedData,
              fmt::format("statistics of {}: {}", io::shown_name(weight), what));
}

std::int64_t positive(const nlohmann::json& json, const char* key, const std::string& weight) {
  const auto found = json.find(key);
  if (found == json.end() || !found->is_number_integer() || found->get<std::int64_t>() <= 0) {
    malformed(weight, fmt::format("\"{}\" must be an integer of 1 or more", key));
  }
  return found->get<std::int64_t>();
}

/// An array of float32 or float64 as doubles that are finite.
std::vector<double> numbers(const SafetensorsFile& file, const SafetensorsEntry& entry,
                            const std::string& weight) {
  const auto dtype = dtype_of_word(entry.dtype);
  if (dtype != DType::kFloat32 && dtype != DType::kFloat64) {
    malformed(weight, fmt::format("'{}' is {}; F32 and F64 are accepted", io::escaped(entry.name),
                                  entry.dtype));
  }
  const auto bytes = file.bytes(entry);
  const std::int64_t width = dtype == DType::kFloat64 ? 8 : 4;
  const std::int64_t count = static_cast<std::int64_t>(bytes.size()) / width;
  std::vector<double> values(static_cast<std::size_t>(count));
  detail::load_row(*dtype, bytes.data(), count, 1, values.data());
  file.release(entry);
  for (const double value : values) {
    if (!std::isfinite(value)) {
      malformed(weight, fmt::format("'{}' holds NaN or infinity", io::escaped(entry.name)));
    }
  }
  return values;
}

}  // namespace

Statistics::Statistics(const std::string& path) : path_(path), file_(SafetensorsFile::open(path)) {
  const auto found = file_.metadata().find(std::string(kVersionKey));
  if (found == file_.metadata().end() || found->second != kVersion) {
    throw Error(ErrorCode::kMalformedData,
                fmt::format("'{}' is no file of statistics of version {}; write one with "
                            "gossamer.prune.save_statistics(model, batches, path)",
                            io::escaped(path), kVersion));
  }
}

bool Statistics::has(const std::string& weight) const {
  return file_.metadata().contains(std::string(kWeightKey) + weight);
}

LayerStatistics Statistics::read(const std::string& weight) const {
  const auto& text = file_.metadata().at(std::string(kWeightKey) + weight);
  const auto json = nlohmann::json::parse(text, nullptr, false);
  if (!json.is_object()) malformed(weight, "its metadata is no JSON object");
  LayerStatistics found;
  found.tokens = positive(json, "tokens", weight);
  found.groups = positive(json, "groups", weight);
  found.segment = positive(json, "segment", weight);
  found.transposed = json.value("transposed", nlohmann::json(false)) == true;
  const SafetensorsEntry* gram = file_.find(weight + ".gram");
  const SafetensorsEntry* norms = file_.find(weight + ".norms");
  const SafetensorsEntry* entry = gram != nullptr ? gram : norms;
  const std::size_t rank = gram != nullptr ? 3 : 2;
  if (entry == nullptr) malformed(weight, "neither '.gram' nor '.norms' is there");
  if (entry->shape.size() != rank || entry->shape.front() != found.groups ||
      (rank == 3 && entry->shape[1] != entry->shape[2])) {
    malformed(weight, fmt::format("'{}' must be [groups, in{}]", io::escaped(entry->name),
                                  rank == 3 ? ", in" : ""));
  }
  found.inputs = entry->shape.back();
  if (found.inputs <= 0 || found.inputs % found.segment != 0) {
    malformed(weight, fmt::format("\"segment\" {} is no divisor of its {} inputs", found.segment,
                                  found.inputs));
  }
  std::vector<double> values = numbers(file_, *entry, weight);
  const std::int64_t stride = gram != nullptr ? found.inputs + 1 : 1;
  for (std::int64_t group = 0; group < found.groups; ++group) {
    const double* const from =
        values.data() + group * found.inputs * (gram != nullptr ? found.inputs : 1);
    for (std::int64_t i = 0; i < found.inputs; ++i) {
      const double value = from[i * stride];
      if (value < 0) malformed(weight, "a norm is negative");
      found.norms.push_back(gram != nullptr ? std::sqrt(value) : value);
    }
  }
  if (gram != nullptr) found.gram = std::move(values);
  return found;
}

}  // namespace gossamer::cli
