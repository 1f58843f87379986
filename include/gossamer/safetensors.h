// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gossamer {

/// A tensor of a safetensors file. `dtype` is the file's own word ("F32", "BF16", "BOOL", "I64",
/// …): files may hold types that Gossamer only carries through.
struct SafetensorsEntry {
  std::string name;
  std::string dtype;
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0;  ///< bytes from the start of the data section
  std::int64_t end = 0;
};

/// Reads a header (the JSON between the length and the data). Throws Error(kMalformedData) on
/// anything the format does not allow: duplicate keys, overlapping or out-of-range offsets, holes,
/// sizes that do not match dtype and shape, unknown dtypes, overflowing shapes, nesting, a header
/// over 100 MB. Allocates no more than the header's own size asks for.
struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;        ///< ordered by offset
  std::map<std::string, std::string> metadata;  ///< "__metadata__"
  static SafetensorsHeader parse(std::string_view json, std::int64_t data_bytes);
};

/// A safetensors file, memory-mapped for reading. https://github.com/huggingface/safetensors#format
class SafetensorsFile {
 public:
  /// Throws Error(kIo) where the file cannot be read, Error(kMalformedData) where it is not valid.
  static SafetensorsFile open(const std::string& path);

  SafetensorsFile(SafetensorsFile&&) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) noexcept;
  ~SafetensorsFile();

  const std::vector<SafetensorsEntry>& entries() const;
  const std::map<std::string, std::string>& metadata() const;
  /// Null where there is none of that name.
  const SafetensorsEntry* find(std::string_view name) const;
  /// The mapped bytes; valid while the file is open.
  std::span<const std::byte> bytes(const SafetensorsEntry& entry) const;
  /// Tells the system that these pages will not be read again soon.
  void release(const SafetensorsEntry& entry) const;

 private:
  struct Impl;
  explicit SafetensorsFile(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Writes a safetensors file tensor by tensor into a temporary file beside the target; finish()
/// completes the header, syncs and renames. Destroyed before that, it removes the temporary file
/// and the old one stays.
class SafetensorsWriter {
 public:
  /// `header_capacity`: bytes set aside for the header (padding is allowed by the format); throws
  /// Error(kIo).
  SafetensorsWriter(const std::string& path, std::int64_t header_capacity);
  SafetensorsWriter(SafetensorsWriter&&) noexcept;
  ~SafetensorsWriter();

  /// Appends a tensor. Throws Error(kIo) (full disk, …) or Error(kInvalidArgument) (bytes do not
  /// match).
  void add(const std::string& name, const std::string& dtype,
           const std::vector<std::int64_t>& shape, std::span<const std::byte> bytes);
  void set_metadata(const std::string& key, const std::string& value);
  void finish();

  /// Header bytes that a tensor of that name and rank can take at most.
  static std::int64_t header_bytes(std::string_view name, std::size_t rank);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace gossamer
