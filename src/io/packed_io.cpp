// SPDX-License-Identifier: BSD-3-Clause
// Packed weights in safetensors files: arrays as tensors, the rest as a JSON text in the metadata
// (docs/formats.md).
#include "gossamer/packed_io.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "core/fail.h"
#include "core/layouts.h"
#include "io/text.h"

namespace gossamer {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t kMaxInfoBytes = 4096;
constexpr int kFormatVersion = 1;

// Reads the keys of one weight's JSON text; every refusal names the weight and the key.
class InfoReader {
 public:
  InfoReader(std::string_view text, std::string_view weight) : weight_(weight) {
    if (text.size() > kMaxInfoBytes) refuse("its metadata", "is longer than 4096 bytes");
    // The JSON reader takes a zero byte for the end of its input.
    if (text.find('\0') != std::string_view::npos) refuse("its metadata", "holds a zero byte");
    std::set<std::string> seen;
    const auto check_key = [&](int depth, Json::parse_event_t event, const Json& value) {
      if (event == Json::parse_event_t::key && depth == 1 &&
          !seen.insert(value.get<std::string>()).second) {
        refuse(io::shown_name(value.get<std::string>()), "is there twice");
      }
      return true;
    };
    try {
      json_ = Json::parse(text, check_key);
    } catch (const Json::exception&) {
      refuse("its metadata", "is not valid JSON");
    }
    if (!json_.is_object()) refuse("its metadata", "is no JSON object");
    for (const std::string& key : seen) {
      if (std::find(kKeys.begin(), kKeys.end(), key) == kKeys.end()) {
        refuse(io::shown_name(key), "is not a key of a packed weight");
      }
    }
  }

  [[noreturn]] void refuse(std::string_view what, std::string_view why) const {
    detail::fail(ErrorCode::kMalformedData,
                 "packed weight {}: {} {}; it should be like "
                 R"({{"format":"bitmask","pattern":"unstructured:0.9","dtype":"float32",)"
                 R"("shape":[512,784],"transposed":false,"version":1}})",
                 io::shown_name(weight_), what, why);
  }

  std::string string(const char* key) const {
    const Json& value = at(key);
    if (!value.is_string()) refuse(key, "is no string");
    return value.get<std::string>();
  }

  /// Of a convolution; 0 × 0 where the key is not there.
  std::array<std::int64_t, 2> kernel() const {
    const auto place = json_.find("kernel");
    if (place == json_.end()) return {0, 0};
    if (!place->is_array() || place->size() != 2) refuse("kernel", "is no array of two sizes");
    std::array<std::int64_t, 2> sides{};
    for (std::size_t i = 0; i < sides.size(); ++i) {
      constexpr std::uint64_t kLargest = std::numeric_limits<std::uint16_t>::max();
      const Json& side = (*place)[i];
      if (!side.is_number_unsigned() || side.get<std::uint64_t>() < 1 ||
          side.get<std::uint64_t>() > kLargest) {
        refuse("kernel", "has a size that is not an integer from 1 to 2^16 - 1");
      }
      sides[i] = side.get<std::int64_t>();
    }
    return sides;
  }

  bool boolean(const char* key) const {
    const Json& value = at(key);
    if (!value.is_boolean()) refuse(key, "is neither true nor false");
    return value.get<bool>();
  }

  void check_version() const {
    const Json& value = at("version");
    if (!value.is_number_unsigned() || value.get<std::uint64_t>() != kFormatVersion) {
      refuse("version",
             "is not 1, the only one this reader knows: upgrade gossamer, or the file is damaged");
    }
  }

  std::vector<std::int64_t> shape() const {
    const Json& value = at("shape");
    if (!value.is_array() || (value.size() != 2 && value.size() != 3)) {
      refuse("shape", "is no array of two or three sizes");
    }
    std::vector<std::int64_t> sizes;
    for (const Json& size : value) {
      constexpr std::uint64_t kLargest = std::numeric_limits<std::int32_t>::max();
      if (!size.is_number_unsigned() || size.get<std::uint64_t>() > kLargest) {
        refuse("shape", "has a size that is not an integer from 0 to 2^31 - 1");
      }
      sizes.push_back(size.get<std::int64_t>());
    }
    if (sizes.size() == 3 && sizes.front() == 0) refuse("shape", "has a batch of 0");
    return sizes;
  }

 private:
  static constexpr std::array<std::string_view, 7> kKeys{"format",     "pattern", "dtype", "shape",
                                                         "transposed", "version", "kernel"};

  const Json& at(const char* key) const {
    const auto place = json_.find(key);
    if (place == json_.end()) refuse(key, "is missing");
    return *place;
  }

  std::string_view weight_;
  Json json_;
};

std::string weight_key(std::string_view name) { return std::string(kWeightKeyPrefix).append(name); }

// Runs `body`; what it finds wrong with the data is told with the weight's name.
template <typename Body>
auto named(std::string_view name, const Body& body) {
  try {
    return body();
  } catch (const Error& error) {
    constexpr std::string_view kNameless = "packed weight: ";
    std::string_view what = error.what();
    if (what.starts_with(kNameless)) what.remove_prefix(kNameless.size());
    detail::fail(ErrorCode::kMalformedData, "packed weight {}: {}", io::shown_name(name), what);
  }
}

}  // namespace

std::string format_info_json(const FormatInfo& info) {
  Json json;
  json["format"] = layout_name(info.format);
  json["pattern"] = info.pattern.to_string();
  json["dtype"] = dtype_name(info.dtype);
  json["shape"] =
      info.batch > 1 ? std::vector{info.batch, info.out, info.in} : std::vector{info.out, info.in};
  json["transposed"] = info.transposed;
  json["version"] = kFormatVersion;
  if (info.kernel_h > 0) json["kernel"] = std::vector{info.kernel_h, info.kernel_w};
  return json.dump();
}

FormatInfo parse_format_info(std::string_view json, std::string_view weight_name) {
  const InfoReader reader(json, weight_name);
  reader.check_version();
  FormatInfo info;
  const auto format = parse_layout(reader.string("format"));
  if (!format || !is_format(*format)) {
    reader.refuse("format",
                  io::shown_name(reader.string("format")) + " is not nm, bitmask, bsr or fanin");
  }
  info.format = *format;
  const auto dtype = parse_dtype(reader.string("dtype"));
  if (!dtype || !is_weight_dtype(*dtype)) {
    reader.refuse("dtype", io::shown_name(reader.string("dtype")) + " is no dtype of a weight");
  }
  info.dtype = *dtype;
  info.pattern = named(weight_name, [&] { return Pattern::parse(reader.string("pattern")); });
  const auto shape = reader.shape();
  info.in = shape.back();
  info.out = shape[shape.size() - 2];
  info.batch = shape.size() == 3 ? shape.front() : 1;
  info.transposed = reader.boolean("transposed");
  const auto [kernel_h, kernel_w] = reader.kernel();
  info.kernel_h = kernel_h;
  info.kernel_w = kernel_w;
  return info;
}

std::vector<std::string> packed_names(const SafetensorsFile& file) {
  const auto& metadata = file.metadata();
  const auto version = metadata.find(std::string(kFileVersionKey));
  std::vector<std::string> names;
  for (auto place = metadata.lower_bound(std::string(kWeightKeyPrefix));
       place != metadata.end() && place->first.starts_with(kWeightKeyPrefix); ++place) {
    names.push_back(place->first.substr(kWeightKeyPrefix.size()));
  }
  if (version == metadata.end() && !names.empty()) {
    detail::fail(
        ErrorCode::kMalformedData,
        "the file holds packed weights but no gossamer.version in its metadata; the file is "
        "damaged or not written by gossamer");
  }
  if (version != metadata.end() && version->second != kFileVersion) {
    detail::fail(ErrorCode::kMalformedData,
                 "gossamer.version is {}, this reader knows version 1; upgrade gossamer",
                 io::shown_name(version->second));
  }
  return names;
}

FormatInfo packed_info(const SafetensorsFile& file, std::string_view name) {
  const auto place = file.metadata().find(weight_key(name));
  if (place == file.metadata().end()) {
    detail::fail(ErrorCode::kInvalidArgument,
                 "the file has no packed weight {}; packed_names() lists those it has",
                 io::shown_name(name));
  }
  return parse_format_info(place->second, name);
}

std::vector<const SafetensorsEntry*> packed_entries(const SafetensorsFile& file,
                                                    std::string_view name) {
  const FormatInfo info = packed_info(file, name);
  if (file.find(name) != nullptr) {
    detail::fail(ErrorCode::kMalformedData,
                 "packed weight {}: a plain tensor of the same name is in the file; remove one",
                 io::shown_name(name));
  }
  const auto spec = named(name, [&] { return detail::layout_spec(info, 0); });
  std::vector<const SafetensorsEntry*> entries;
  for (int i = 0; i < spec.count; ++i) {
    const std::string array =
        std::string(name).append(".").append(spec.arrays[static_cast<std::size_t>(i)].name);
    const SafetensorsEntry* entry = file.find(array);
    if (entry == nullptr) {
      detail::fail(
          ErrorCode::kMalformedData,
          "packed weight {}: the array {} is missing; the file is incomplete, write it again",
          io::shown_name(name), io::shown_name(array));
    }
    entries.push_back(entry);
  }
  return entries;
}

PackedWeight read_packed(const SafetensorsFile& file, std::string_view name,
                         const PackedAllocator& allocator) {
  const FormatInfo info = packed_info(file, name);
  std::vector<PackedArray> arrays;
  for (const SafetensorsEntry* entry : packed_entries(file, name)) {
    const auto dtype = dtype_of_word(entry->dtype);
    if (!dtype) {
      detail::fail(ErrorCode::kMalformedData, "packed weight {}: the array {} has the dtype {}",
                   io::shown_name(name), io::shown_name(entry->name), entry->dtype);
    }
    const std::string_view array = std::string_view(entry->name).substr(name.size() + 1);
    arrays.push_back({array, *dtype, entry->shape, file.bytes(*entry)});
  }
  return named(name, [&] { return from_format_arrays(info, arrays, allocator); });
}

void write_packed(SafetensorsWriter& writer, const std::string& name, const PackedView& packed) {
  const FormatInfo info = detail::info_of(packed.header());
  for (const PackedArray& array : format_arrays(packed)) {
    writer.add(std::string(name).append(".").append(array.name),
               std::string(safetensors_word(array.dtype)), array.shape, array.bytes);
  }
  writer.set_metadata(weight_key(name), format_info_json(info));
  writer.set_metadata(std::string(kFileVersionKey), std::string(kFileVersion));
}

std::int64_t packed_header_bytes(std::string_view name) {
  // Three arrays at most, the longest array name, rank 4; a JSON text of at most 256 bytes whose
  // quotes are escaped; the version.
  constexpr std::string_view kLongestArray = ".block_row_offsets";
  constexpr std::int64_t kArrays = 3;
  constexpr std::size_t kMaxRank = 4;
  constexpr std::int64_t kMaxInfo = 320;
  return kArrays *
             SafetensorsWriter::header_bytes(std::string(name).append(kLongestArray), kMaxRank) +
         SafetensorsWriter::header_bytes(weight_key(name), 0) + kMaxInfo +
         SafetensorsWriter::header_bytes(kFileVersionKey, 0);
}

}  // namespace gossamer
