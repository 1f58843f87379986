// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "gossamer/dtype.h"
#include "gossamer/packed_weight.h"
#include "gossamer/safetensors.h"

namespace gossamer {

/// The safetensors word of an element type: "F32", "BF16", "F8_E4M3", "BOOL", …
std::string_view safetensors_word(DType dtype);

/// The inverse; nothing for words of types that Gossamer only carries through.
std::optional<DType> dtype_of_word(std::string_view word);

/// Metadata keys of a file that holds packed weights (docs/formats.md): the version, and one entry
/// with a JSON text for every packed weight.
inline constexpr std::string_view kFileVersionKey = "gossamer.version";
inline constexpr std::string_view kFileVersion = "1";
inline constexpr std::string_view kWeightKeyPrefix = "gossamer.weight.";

/// The JSON text of a packed weight: format, pattern, dtype, shape, transposed, version.
std::string format_info_json(const FormatInfo& info);

/// The inverse. Throws Error(kMalformedData) that names the weight and the key at fault.
FormatInfo parse_format_info(std::string_view json, std::string_view weight_name);

/// The names of the packed weights of a file, ascending. Throws Error(kMalformedData) where the
/// file's version is unknown.
std::vector<std::string> packed_names(const SafetensorsFile& file);

/// What the file says about a packed weight. Throws Error(kInvalidArgument) where there is none of
/// that name, Error(kMalformedData) where its text is wrong.
FormatInfo packed_info(const SafetensorsFile& file, std::string_view name);

/// The file's entries that hold the arrays of a packed weight. Throws Error(kMalformedData) where
/// one is missing, or where a plain tensor has the weight's name.
std::vector<const SafetensorsEntry*> packed_entries(const SafetensorsFile& file,
                                                    std::string_view name);

/// Reads and validates a packed weight. Throws as packed_info and from_format_arrays do.
PackedWeight read_packed(const SafetensorsFile& file, std::string_view name,
                         const PackedAllocator& allocator = {});

/// Appends a packed weight, whose layout must be a format, to a file that is being written.
void write_packed(SafetensorsWriter& writer, const std::string& name, const PackedView& packed);

/// Header bytes that write_packed can take at most for a weight of that name.
std::int64_t packed_header_bytes(std::string_view name);

}  // namespace gossamer
