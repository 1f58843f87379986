// SPDX-License-Identifier: BSD-3-Clause
#include "cli/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>

#include "cli/output.h"
#include "core/taps.h"
#include "gossamer/error.h"
#include "io/text.h"

namespace gossamer::cli {
namespace {

bool is_ours(std::string_view key) {
  return key == kFileVersionKey || key.starts_with(kWeightKeyPrefix);
}

// Swaps the last two dimensions of [outer, rows, cols].
std::vector<std::byte> swap_inner(std::span<const std::byte> elements, std::int64_t outer,
                                  std::int64_t rows, std::int64_t cols) {
  std::vector<std::byte> swapped(elements.size());
  const auto width = static_cast<std::int64_t>(elements.size()) / (outer * rows * cols);
  std::byte* target = swapped.data();
  for (std::int64_t o = 0; o < outer; ++o) {
    const std::byte* matrix = elements.data() + o * rows * cols * width;
    for (std::int64_t c = 0; c < cols; ++c) {
      for (std::int64_t r = 0; r < rows; ++r) {
        std::memcpy(target, matrix + (r * cols + c) * width, static_cast<std::size_t>(width));
        target += width;
      }
    }
  }
  return swapped;
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
  const DType dtype = dtype_of_word(entry.dtype).value();
  const auto& s = entry.shape;
  const std::byte* data = bytes_.data();
  if (s.size() == 2) {
    view_ = transposed ? ConstMatrixView{data, dtype, s[1], s[0], 1, s[1], 1, s[0] * s[1]}
                       : contiguous_view(data, dtype, s[0], s[1]);
    return;
  }
  const std::int64_t taps = s[2] * s[3];
  if (pattern != nullptr && detail::groups_inputs(*pattern)) {
    view_ = {data, dtype, s[0], s[1], s[1] * taps, taps, taps, 1};
    return;
  }
  if (taps > 1) {
    channels_last_ = swap_inner(bytes_, s[0], s[1], taps);
    data = channels_last_.data();
  }
  view_ = contiguous_view(data, dtype, s[0], taps * s[1]);
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

std::vector<std::byte> LoadedWeight::in_file_order(std::vector<std::byte> elements) const {
  if (channels_last_.empty()) return elements;
  const auto& s = entry_.shape;
  return swap_inner(elements, s[0], s[2] * s[3], s[1]);
}

std::vector<std::byte> channels_first(const PackedView& packed, std::vector<std::byte> elements) {
  if (packed.taps() == 1) return elements;
  return swap_inner(elements, packed.out(), packed.taps(), packed.in() / packed.taps());
}

std::vector<std::int64_t> stored_shape(const FormatInfo& info) {
  if (info.kernel_h > 0) {
    const std::int64_t channels = info.in / (info.kernel_h * info.kernel_w);
    return {info.out, channels, info.kernel_h, info.kernel_w};
  }
  std::vector<std::int64_t> shape{info.out, info.in};
  if (info.transposed) std::swap(shape[0], shape[1]);
  if (info.batch > 1) shape.insert(shape.begin(), info.batch);
  return shape;
}

std::int64_t element_count(std::span<const std::int64_t> shape) {
  std::int64_t elements = 1;
  for (const std::int64_t size : shape) elements *= size;
  return elements;
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
  checkpoint.read(name);  // what is damaged is refused, not handed on
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
