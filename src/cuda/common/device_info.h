// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace gossamer::cuda {

/// What a plan has to know of a GPU.
struct DeviceInfo {
  int index = 0;
  std::string name;
  int compute_major = 0;
  int compute_minor = 0;
  int multiprocessors = 0;
  std::int64_t memory_bytes = 0;
  std::int64_t l2_bytes = 0;
  double memory_bytes_per_second = 0.0;            ///< what a stream of reads was seen to reach
  std::int64_t shared_memory_per_block_bytes = 0;  ///< with opt-in
};

/// Asks the driver about device `index`. Throws std::runtime_error with CUDA's own words.
DeviceInfo device_info(int index);

/// The same, asked once a device: what a launcher may call every time.
const DeviceInfo& known_device(int index);

}  // namespace gossamer::cuda
