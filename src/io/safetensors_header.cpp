// SPDX-License-Identifier: BSD-3-Clause
// The JSON header, read event by event: a header is refused at the first thing that the format does
// not allow, and no document tree is ever built.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "gossamer/error.h"
#include "gossamer/safetensors.h"
#include "io/dtype_words.h"
#include "io/text.h"

namespace gossamer {
namespace {

constexpr std::string_view kMetadataKey = "__metadata__";
constexpr std::size_t kMaxRank = 64;  // more than any framework can hold

[[noreturn]] void refuse(const std::string& message) {
  throw Error(ErrorCode::kMalformedData, "safetensors header: " + message);
}

class HeaderReader {
 public:
  using Json = nlohmann::json;

  explicit HeaderReader(SafetensorsHeader& header) : header_(header) {}

  bool null() { unexpected("null"); }
  bool boolean(bool) { unexpected("a boolean"); }
  bool binary(Json::binary_t&) { unexpected("binary data"); }
  bool number_integer(Json::number_integer_t value) {
    unexpected(fmt::format("the negative number {}", value));
  }
  bool number_float(Json::number_float_t, const Json::string_t& text) {
    unexpected(fmt::format("the number {}", io::shown_name(text)));
  }

  bool number_unsigned(Json::number_unsigned_t value) {
    if (place_ != Place::kShape && place_ != Place::kOffsets) unexpected("a number");
    if (value > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
      unexpected(fmt::format("the number {}, over 2^63 - 1", value));
    }
    const auto number = static_cast<std::int64_t>(value);
    if (place_ == Place::kShape) {
      if (entry_.shape.size() == kMaxRank) refuse(tensor() + ": more than 64 dimensions");
      entry_.shape.push_back(number);
    } else {
      if (offsets_ == 2) refuse(tensor() + ": data_offsets must be two numbers, found more");
      (offsets_ == 0 ? entry_.begin : entry_.end) = number;
      ++offsets_;
    }
    return true;
  }

  bool string(Json::string_t& text) {
    if (place_ == Place::kMetadata) {
      if (!header_.metadata.emplace(key_, std::move(text)).second) {
        refuse(fmt::format("__metadata__ has the key {} twice", io::shown_name(key_)));
      }
      return true;
    }
    if (place_ != Place::kTensor || key_ != "dtype") unexpected("a string");
    entry_.dtype = std::move(text);
    return true;
  }

  bool start_object(std::size_t) {
    switch (place_) {
      case Place::kStart:
        place_ = Place::kTop;
        return true;
      case Place::kTop:
        start_value();
        return true;
      default:
        unexpected("an object (deeper nesting is not part of the format)");
    }
  }

  bool key(Json::string_t& text) {
    key_ = std::move(text);
    if (place_ == Place::kTensor) start_field();
    return true;
  }

  bool end_object() {
    if (place_ == Place::kTensor) finish_tensor();
    place_ = place_ == Place::kTop ? Place::kStart : Place::kTop;
    return true;
  }

  bool start_array(std::size_t) {
    if (place_ != Place::kTensor || key_ == "dtype") unexpected("an array");
    place_ = key_ == "shape" ? Place::kShape : Place::kOffsets;
    return true;
  }

  bool end_array() {
    if (place_ == Place::kOffsets && offsets_ != 2) {
      refuse(fmt::format("{}: data_offsets must be two numbers, found {}", tensor(), offsets_));
    }
    place_ = Place::kTensor;
    return true;
  }

  bool parse_error(std::size_t position, const std::string& token, const std::exception&) {
    refuse(fmt::format("not valid JSON at byte {} near {}", position, io::shown_name(token)));
  }

 private:
  enum class Place { kStart, kTop, kMetadata, kTensor, kShape, kOffsets };
  enum Field : unsigned { kDtype = 1, kShapeField = 2, kOffsetsField = 4, kAllFields = 7 };

  std::string tensor() const { return "tensor " + io::shown_name(entry_.name); }

  [[noreturn]] void unexpected(const std::string& what) const {
    switch (place_) {
      case Place::kStart:
        refuse(fmt::format("must be one JSON object, found {}", what));
      case Place::kTop:
        refuse(fmt::format("{} must be an object, found {}", io::shown_name(key_), what));
      case Place::kMetadata:
        refuse(fmt::format("__metadata__ maps strings to strings, {} is {}", io::shown_name(key_),
                           what));
      case Place::kTensor:
        refuse(
            fmt::format("{}: {} is {}; accepted are dtype (a string), shape and data_offsets "
                        "(arrays of integers from 0 to 2^63 - 1)",
                        tensor(), io::shown_name(key_), what));
      default:
        refuse(fmt::format("{}: {} holds {}; accepted are integers from 0 to 2^63 - 1", tensor(),
                           place_ == Place::kShape ? "shape" : "data_offsets", what));
    }
  }

  void start_value() {
    if (key_ == kMetadataKey) {
      if (std::exchange(metadata_seen_, true)) refuse("__metadata__ is there twice");
      place_ = Place::kMetadata;
      return;
    }
    entry_ = {};
    entry_.name = std::move(key_);
    fields_ = 0;
    offsets_ = 0;
    place_ = Place::kTensor;
  }

  void start_field() {
    unsigned field = 0;
    if (key_ == "dtype") field = kDtype;
    if (key_ == "shape") field = kShapeField;
    if (key_ == "data_offsets") field = kOffsetsField;
    if (field == 0) {
      refuse(fmt::format("{}: unknown key {}; a tensor has dtype, shape and data_offsets", tensor(),
                         io::shown_name(key_)));
    }
    if ((fields_ & field) != 0) {
      refuse(fmt::format("{}: the key {} is there twice", tensor(), io::shown_name(key_)));
    }
    fields_ |= field;
  }

  void finish_tensor() {
    if (fields_ != kAllFields) {
      const char* missing = (fields_ & kDtype) == 0        ? "dtype"
                            : (fields_ & kShapeField) == 0 ? "shape"
                                                           : "data_offsets";
      refuse(fmt::format("{}: {} is missing", tensor(), missing));
    }
    check_size();
    header_.entries.push_back(std::move(entry_));
  }

  void check_size() const {
    const auto bits = io::dtype_word_bits(entry_.dtype);
    if (!bits) {
      refuse(
          fmt::format("{}: unknown dtype {}; known are F64, F32, F16, BF16, F8_*, F6_*, F4, I8 to "
                      "I64, U8 to U64, BOOL and C64",
                      tensor(), io::shown_name(entry_.dtype)));
    }
    if (entry_.begin > entry_.end) {
      refuse(fmt::format("{}: data_offsets [{}, {}] run backwards", tensor(), entry_.begin,
                         entry_.end));
    }
    const auto bytes = io::tensor_bytes(*bits, entry_.shape);
    if (!bytes) {
      refuse(fmt::format("{}: {} elements of shape [{}] are more than 2^63 bits or no whole bytes",
                         tensor(), entry_.dtype, fmt::join(entry_.shape, ", ")));
    }
    if (*bytes != entry_.end - entry_.begin) {
      refuse(fmt::format("{}: {} of shape [{}] takes {} bytes, data_offsets [{}, {}] hold {}",
                         tensor(), entry_.dtype, fmt::join(entry_.shape, ", "), *bytes,
                         entry_.begin, entry_.end, entry_.end - entry_.begin));
    }
  }

  SafetensorsHeader& header_;
  Place place_ = Place::kStart;
  std::string key_;
  SafetensorsEntry entry_;
  unsigned fields_ = 0;
  int offsets_ = 0;
  bool metadata_seen_ = false;
};

void refuse_duplicate_names(const std::vector<SafetensorsEntry>& entries) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const SafetensorsEntry& entry : entries) names.push_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  if (twice != names.end()) refuse(fmt::format("tensor {} is there twice", io::shown_name(*twice)));
}

// The tensors must cover the data section exactly.
void check_coverage(const std::vector<SafetensorsEntry>& entries, std::int64_t data_bytes) {
  std::int64_t covered = 0;
  for (const SafetensorsEntry& entry : entries) {
    if (entry.end > data_bytes) {
      refuse(
          fmt::format("tensor {}: data_offsets [{}, {}] end past the {} data bytes of the file; it "
                      "may be cut short, fetch it again",
                      io::shown_name(entry.name), entry.begin, entry.end, data_bytes));
    }
    if (entry.begin != covered) {
      refuse(
          fmt::format("tensor {}: data_offsets [{}, {}] {} at byte {}; tensors must follow one "
                      "another without holes or overlaps",
                      io::shown_name(entry.name), entry.begin, entry.end,
                      entry.begin < covered ? "overlap the tensor that ends"
                                            : "leave a hole after the tensor that ends",
                      covered));
    }
    covered = entry.end;
  }
  if (covered != data_bytes) {
    refuse(
        fmt::format("{} bytes at the end of the file belong to no tensor", data_bytes - covered));
  }
}

}  // namespace

SafetensorsHeader SafetensorsHeader::parse(std::string_view json, std::int64_t data_bytes) {
  if (json.empty() || json.front() != '{') refuse("must begin with '{'");
  // The JSON reader takes a zero byte for the end of its input; whatever came behind would go
  // unseen.
  if (const auto zero = json.find('\0'); zero != std::string_view::npos) {
    refuse(fmt::format("a zero byte at byte {}; it may be padded with spaces only", zero));
  }
  SafetensorsHeader header;
  HeaderReader reader(header);
  nlohmann::json::sax_parse(json.begin(), json.end(), &reader);
  refuse_duplicate_names(header.entries);
  std::sort(header.entries.begin(), header.entries.end(), [](const auto& a, const auto& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_coverage(header.entries, data_bytes);
  return header;
}

}  // namespace gossamer
