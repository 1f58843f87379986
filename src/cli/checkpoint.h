// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <CLI/CLI.hpp>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "gossamer/packed_io.h"
#include "gossamer/pattern.h"
#include "gossamer/safetensors.h"
#include "gossamer/tensor_view.h"

namespace gossamer::cli {

/// A safetensors file with the packed weights in it told apart from the plain tensors.
class Checkpoint {
 public:
  explicit Checkpoint(const std::string& path);

  const SafetensorsFile& file() const { return file_; }
  const std::vector<std::string>& packed() const { return packed_; }
  /// Entries that belong to no packed weight, in the file's order.
  const std::vector<const SafetensorsEntry*>& plain() const { return plain_; }
  /// Bytes of all tensors.
  std::int64_t total_bytes() const { return total_bytes_; }
  /// Bytes of a packed weight's arrays in the file.
  std::int64_t packed_bytes(const std::string& name) const;
  /// Reads a packed weight and lets its pages go.
  PackedWeight read(const std::string& name) const;

 private:
  SafetensorsFile file_;
  std::vector<std::string> packed_;
  std::vector<const SafetensorsEntry*> plain_;
  std::int64_t total_bytes_ = 0;
};

/// A weight of a checkpoint as a matrix; the pages are let go when it goes out of scope.
class LoadedWeight {
 public:
  /// `entry` must have a weight's dtype and two or four dimensions. A convolution [OC, IC, KH, KW]
  /// is a batch of KH·KW matrices [OC, IC] for N:M and V:N:M, whose groups never cross taps, and
  /// one matrix [OC, KH·KW·IC], channels last, for the others and without a pattern.
  LoadedWeight(const SafetensorsFile& file, const SafetensorsEntry& entry, bool transposed,
               const Pattern* pattern);
  LoadedWeight(const LoadedWeight&) = delete;
  LoadedWeight& operator=(const LoadedWeight&) = delete;
  ~LoadedWeight();

  const ConstMatrixView& view() const { return view_; }
  std::span<const std::byte> bytes() const { return bytes_; }
  std::int64_t elements() const { return view_.batch * view_.rows * view_.cols; }
  /// The same geometry over other memory of as many elements.
  MatrixView view_of(std::byte* data, DType dtype) const;
  /// Elements that were written through `view_of`, in the order of the file.
  std::vector<std::byte> in_file_order(std::vector<std::byte> elements) const;

 private:
  const SafetensorsFile& file_;
  const SafetensorsEntry& entry_;
  std::span<const std::byte> bytes_;
  std::vector<std::byte> channels_last_;  // empty where the file's own order will do
  ConstMatrixView view_;
};

/// A convolution's elements [OC, taps, IC], as its packed matrix has them, in the order of a
/// module, [OC, IC, taps]; those of any other weight as they are.
std::vector<std::byte> channels_first(const PackedView& packed, std::vector<std::byte> elements);

/// The shape that a module stores a packed weight with: [[batch,] out, in], the last two swapped
/// where it is transposed, or a convolution's [OC, IC, KH, KW].
std::vector<std::int64_t> stored_shape(const FormatInfo& info);

/// The number of elements of a shape.
std::int64_t element_count(std::span<const std::int64_t> shape);

/// Where a subcommand that writes puts its result.
struct TargetOptions {
  std::string input;
  std::string output;
  bool in_place = false;
  bool force = false;

  void add_to(CLI::App& command);
  /// The output's path. Throws Error(kInvalidArgument) where it would overwrite something unasked.
  std::string target() const;
  /// The same without the check, for reports.
  const std::string& target_path() const { return in_place ? input : output; }
};

/// Header bytes that all tensors and metadata of a checkpoint can take in a new file, packed or
/// not.
std::int64_t header_capacity(const Checkpoint& checkpoint, bool packing);

/// Copies a tensor unchanged.
void copy_tensor(const SafetensorsFile& file, const SafetensorsEntry& entry,
                 SafetensorsWriter& writer);

/// Copies a packed weight unchanged, its metadata included. Throws Error(kMalformedData) where it
/// is damaged.
void copy_packed(const Checkpoint& checkpoint, const std::string& name, SafetensorsWriter& writer);

/// Copies the metadata that is not about packed weights.
void copy_metadata(const SafetensorsFile& file, SafetensorsWriter& writer);

}  // namespace gossamer::cli
