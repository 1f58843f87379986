// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>

namespace gossamer::cpu {

enum class Purpose { kThread, kShared };  ///< of one thread, or of a call and all its threads

/// At least `floats` floats, 64-byte aligned, uninitialised, the calling thread's own until its
/// next call for the same purpose. The memory grows to the largest request and lives as long as the
/// thread, so that calls do not allocate. Not inline: a program that instantiates a driver of its
/// own shares the library's memory.
float* scratch(std::int64_t floats, Purpose purpose = Purpose::kThread);

}  // namespace gossamer::cpu
