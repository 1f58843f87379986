// SPDX-License-Identifier: BSD-3-Clause
// Writing, tensor by tensor. The format allows no holes between tensors, yet readers want each
// tensor at a multiple of its element size. So a tensor whose length is a multiple of 8 is appended
// at once, which keeps the next one aligned; the others wait in a nameless scratch file and follow
// at the end, wide elements first.
//
//   [length][header, padded with spaces][lengths % 8 == 0, as they came][the rest: 4-, 2-, 1-byte
//   elements]
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "gossamer/error.h"
#include "gossamer/safetensors.h"
#include "io/dtype_words.h"
#include "io/temporary_file.h"
#include "io/text.h"

namespace gossamer {
namespace {

constexpr std::int64_t kLengthBytes = 8;
constexpr std::int64_t kMaxHeaderBytes = 100'000'000;
constexpr std::int64_t kDataAlignment = 64;
constexpr std::int64_t kFrameBytes = 32;
constexpr std::size_t kCopyBytes = std::size_t{1} << 20;
constexpr std::int64_t kDigits = 20;  // of a 64-bit number and the comma behind it
constexpr std::string_view kMetadataKey = "__metadata__";

std::string json_string(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("{} is not valid UTF-8 and cannot be written; rename it",
                            io::shown_name(text)));
  }
}

std::string entry_json(const std::string& quoted_name, const SafetensorsEntry& entry) {
  return fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", quoted_name,
                     entry.dtype, fmt::join(entry.shape, ","), entry.begin, entry.end);
}

// The header's room: what the tensors want and the writer's own frame (the braces, the metadata's
// key), rounded up so that the data begin at a multiple of kDataAlignment.
std::int64_t checked_capacity(std::int64_t wanted) {
  constexpr std::int64_t kMost = kMaxHeaderBytes - kFrameBytes - kDataAlignment;
  if (wanted < 0 || wanted > kMost) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("header_capacity {} is not between 0 and {}; write fewer tensors to one "
                    "file",
                    wanted, kMost));
  }
  const std::int64_t units =
      (kLengthBytes + kFrameBytes + wanted + kDataAlignment - 1) / kDataAlignment;
  return units * kDataAlignment - kLengthBytes;
}

}  // namespace

struct SafetensorsWriter::Impl {
  struct Pending {
    SafetensorsEntry entry;  // begin and end count from the start of its own file
    std::string quoted_name;
    bool waiting = false;  // in the scratch file
    std::int64_t element_bits = 8;
  };

  Impl(const std::string& path, std::int64_t wanted)
      : capacity(checked_capacity(wanted)), temporary(path) {
    // Written now, so that a full disk is not found out at the very end.
    const std::vector<std::byte> room(static_cast<std::size_t>(kLengthBytes + capacity),
                                      std::byte{' '});
    io::write_all(temporary.file(), room, temporary.path());
  }

  void reserve_header(std::int64_t bytes, const std::string& name) {
    if (used + bytes > capacity) {
      throw Error(ErrorCode::kInvalidArgument,
                  fmt::format("{}: the header of {} bytes is full; open the writer with a larger "
                              "header_capacity (the sum of header_bytes of all tensors)",
                              io::shown_name(name), capacity));
    }
    used += bytes;
  }

  const io::FileDescriptor& scratch_file() {
    if (!scratch.valid()) scratch = temporary.scratch();
    return scratch;
  }

  // Appends the waiting tensors of one element size and moves their offsets to where they now are.
  void append_waiting(std::int64_t element_bits) {
    std::vector<std::byte> buffer;
    for (Pending& tensor : tensors) {
      if (!tensor.waiting || tensor.element_bits != element_bits) continue;
      buffer.resize(kCopyBytes);
      for (std::int64_t at = tensor.entry.begin; at < tensor.entry.end;) {
        const auto want = std::min(static_cast<std::size_t>(tensor.entry.end - at), kCopyBytes);
        const ssize_t got = ::pread(scratch.get(), buffer.data(), want, at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) io::throw_errno("cannot read back", temporary.path(), got < 0 ? errno : EIO);
        io::write_all(temporary.file(), {buffer.data(), static_cast<std::size_t>(got)},
                      temporary.path());
        at += got;
      }
      const std::int64_t bytes = tensor.entry.end - tensor.entry.begin;
      tensor.entry.begin = data_bytes;
      tensor.entry.end = data_bytes + bytes;
      tensor.waiting = false;
      data_bytes += bytes;
    }
  }

  std::string header_json() const {
    std::string json = "{";
    if (!metadata.empty()) {
      json += fmt::format("\"{}\":{{", kMetadataKey);
      for (const auto& [key, value] : metadata) {
        json += fmt::format("{}:{},", json_string(key), json_string(value));
      }
      json.back() = '}';
      json += ',';
    }
    for (const Pending& tensor : tensors)
      json += entry_json(tensor.quoted_name, tensor.entry) + ",";
    if (json.back() == ',') json.pop_back();
    return json + "}";
  }

  std::int64_t capacity;
  io::TemporaryFile temporary;
  io::FileDescriptor scratch;
  std::int64_t used = kFrameBytes;
  std::int64_t data_bytes = 0;
  std::int64_t scratch_bytes = 0;
  std::vector<Pending> tensors;
  std::set<std::string> names;
  std::map<std::string, std::string> metadata;
};

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::int64_t header_capacity)
    : impl_(std::make_unique<Impl>(path, header_capacity)) {}
SafetensorsWriter::SafetensorsWriter(SafetensorsWriter&&) noexcept = default;
SafetensorsWriter::~SafetensorsWriter() = default;

std::int64_t SafetensorsWriter::header_bytes(std::string_view name, std::size_t rank) {
  static const auto frame =
      static_cast<std::int64_t>(entry_json("", {"", "F8_E4M3FNUZ", {}, 0, 0}).size() + 1);
  return static_cast<std::int64_t>(json_string(std::string(name)).size()) + frame +
         (static_cast<std::int64_t>(rank) + 2) * kDigits;
}

void SafetensorsWriter::add(const std::string& name, const std::string& dtype,
                            const std::vector<std::int64_t>& shape,
                            std::span<const std::byte> bytes) {
  const auto bits = io::dtype_word_bits(dtype);
  const auto expected = bits ? io::tensor_bytes(*bits, shape) : std::nullopt;
  if (!expected || *expected != static_cast<std::int64_t>(bytes.size())) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("tensor {}: {} bytes given, dtype {} of shape [{}] takes {}",
                            io::shown_name(name), bytes.size(), io::shown_name(dtype),
                            fmt::join(shape, ", "),
                            expected ? std::to_string(*expected) : "no whole number"));
  }
  if (name == kMetadataKey || impl_->names.contains(name)) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("tensor {}: the name is {}; choose another", io::shown_name(name),
                    name == kMetadataKey ? "reserved by the format" : "in the file already"));
  }
  impl_->reserve_header(header_bytes(name, shape.size()), name);

  Impl::Pending tensor;
  tensor.quoted_name = json_string(name);
  tensor.element_bits = *bits;
  tensor.waiting = *expected % 8 != 0;
  std::int64_t& position = tensor.waiting ? impl_->scratch_bytes : impl_->data_bytes;
  tensor.entry = {name, dtype, shape, position, position + *expected};
  io::write_all(tensor.waiting ? impl_->scratch_file() : impl_->temporary.file(), bytes,
                impl_->temporary.path());
  position += *expected;
  impl_->names.insert(name);
  impl_->tensors.push_back(std::move(tensor));
}

void SafetensorsWriter::set_metadata(const std::string& key, const std::string& value) {
  const auto bytes =
      static_cast<std::int64_t>(json_string(key).size() + json_string(value).size() + 2);
  impl_->reserve_header(bytes, key);
  impl_->metadata[key] = value;
}

void SafetensorsWriter::finish() {
  // Elements narrower than a byte come last with the bytes.
  for (const std::int64_t bits : {32, 16, 8, 6, 4}) impl_->append_waiting(bits);
  std::string header(static_cast<std::size_t>(kLengthBytes), '\0');
  std::memcpy(header.data(), &impl_->capacity, static_cast<std::size_t>(kLengthBytes));
  header += impl_->header_json();
  header.resize(static_cast<std::size_t>(kLengthBytes + impl_->capacity), ' ');
  const auto& file = impl_->temporary.file();
  if (::lseek(file.get(), 0, SEEK_SET) < 0) {
    io::throw_errno("cannot write", impl_->temporary.path(), errno);
  }
  io::write_all(file, std::as_bytes(std::span(header)), impl_->temporary.path());
  impl_->temporary.commit();
}

}  // namespace gossamer
