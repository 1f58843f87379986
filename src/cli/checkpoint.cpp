// SPDX-License-Identifier: BSD-3-Clause
#include "cli/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>

#include "cli/output.h"
#include "gossamer/error.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

bool is_ours(std::string_view key) {
  return key == kFileVersionKey || key.starts_with(kWeightKeyPrefix);
}

ConstMatrixView matrix_of(const SafetensorsEntry& entry, const std::byte* data, bool transposed,
                          const Pattern* pattern) {
  const DType dtype = dtype_of_word(entry.dtype).value();
  const auto& s = entry.shape;
  if (s.size() == 2) {
    if (transposed) return {data, dtype, s[1], s[0], 1, s[1], 1, s[0] * s[1]};
    return contiguous_view(data, dtype, s[0], s[1]);
  }
  const std::int64_t taps = s[2] * s[3];
  const bool grouped = pattern != nullptr && pattern->kind != Pattern::Kind::kUnstructured &&
                       pattern->kind != Pattern::Kind::kFanIn;
  if (grouped) return {data, dtype, s[0], s[1], s[1] * taps, taps, taps, 1};
  return contiguous_view(data, dtype, s[0], s[1] * taps);
}

}  // namespace

Checkpoint::Checkpoint(const std::string& path)
    : file_(SafetensorsFile::open(path)), packed_(packed_names(file_)) {
  std::set<const SafetensorsEntry*> arrays;
  for (const std::string& name : packed_) {
    for (const SafetensorsEntry* entry : packed_entries(file_, name)) arrays.insert(entry);
  }
  for (const SafetensorsEntry& entry : file_.entries()) {
    total_bytes_ += entry.end - entry.begin;
    if (!arrays.contains(&entry)) plain_.push_back(&entry);
  }
}

std::int64_t Checkpoint::packed_bytes(const std::string& name) const {
  std::int64_t bytes = 0;
  for (const SafetensorsEntry* entry : packed_entries(file_, name))
    bytes += entry->end - entry->begin;
  return bytes;
}

PackedWeight Checkpoint::read(const std::string& name) const {
  PackedWeight weight = read_packed(file_, name);
  for (const SafetensorsEntry* entry : packed_entries(file_, name)) file_.release(*entry);
  return weight;
}

LoadedWeight::LoadedWeight(const SafetensorsFile& file, const SafetensorsEntry& entry,
                           bool transposed, const Pattern* pattern)
    : file_(file), entry_(entry), bytes_(file.bytes(entry)) {
  view_ = matrix_of(entry, bytes_.data(), transposed, pattern);
}

LoadedWeight::~LoadedWeight() { file_.release(entry_); }

MatrixView LoadedWeight::view_of(std::byte* data, DType dtype) const {
  return {data,
          dtype,
          view_.rows,
          view_.cols,
          view_.row_stride,
          view_.col_stride,
          view_.batch,
          view_.batch_stride};
}

void TargetOptions::add_to(CLI::App& command) {
  command.add_option("FILE", input, "A safetensors file")->required();
  auto* out = command.add_option("-o,--output", output, "The file to write")->type_name("OUT");
  command.add_flag("--in-place", in_place, "Replace FILE itself, when all is written")
      ->excludes(out);
  command.add_flag("--force", force, "Overwrite OUT where it exists");
}

std::string TargetOptions::target() const {
  if (in_place) return input;
  if (output.empty()) {
    throw Error(ErrorCode::kInvalidArgument, "no output file; give -o OUT, or --in-place");
  }
  std::error_code error;
  if (force || !std::filesystem::exists(output, error)) return output;
  if (std::filesystem::equivalent(input, output, error)) {
    throw Error(
        ErrorCode::kInvalidArgument,
        fmt::format("'{}' is the input; choose another OUT, or say --in-place to replace it",
                    io::escaped(output)));
  }
  throw Error(ErrorCode::kInvalidArgument,
              fmt::format("'{}' exists; choose another OUT, or say --force to overwrite it",
                          io::escaped(output)));
}

std::int64_t header_capacity(const Checkpoint& checkpoint, bool packing) {
  std::int64_t bytes = 0;
  for (const SafetensorsEntry* entry : checkpoint.plain()) {
    const std::int64_t plain = SafetensorsWriter::header_bytes(entry->name, entry->shape.size());
    bytes += packing ? std::max(plain, packed_header_bytes(entry->name)) : plain;
  }
  for (const std::string& name : checkpoint.packed()) bytes += packed_header_bytes(name);
  for (const auto& [key, value] : checkpoint.file().metadata()) {
    bytes += SafetensorsWriter::header_bytes(key, 0) + SafetensorsWriter::header_bytes(value, 0);
  }
  return bytes;
}

void copy_tensor(const SafetensorsFile& file, const SafetensorsEntry& entry,
                 SafetensorsWriter& writer) {
  writer.add(entry.name, entry.dtype, entry.shape, file.bytes(entry));
  file.release(entry);
}

void copy_packed(const Checkpoint& checkpoint, const std::string& name, SafetensorsWriter& writer) {
  const SafetensorsFile& file = checkpoint.file();
  for (const SafetensorsEntry* entry : packed_entries(file, name))
    copy_tensor(file, *entry, writer);
  const std::string key = std::string(kWeightKeyPrefix) + name;
  writer.set_metadata(key, file.metadata().at(key));
  writer.set_metadata(std::string(kFileVersionKey), std::string(kFileVersion));
}

void copy_metadata(const SafetensorsFile& file, SafetensorsWriter& writer) {
  for (const auto& [key, value] : file.metadata()) {
    if (!is_ours(key)) writer.set_metadata(key, value);
  }
}

}  // namespace gossamer::cli
