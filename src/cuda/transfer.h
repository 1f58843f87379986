// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstddef>

namespace gossamer::cuda {

/// Copies from the device and waits for it (and for what the stream did before).
void read_device(void* to, const void* from, std::size_t bytes, void* stream);

/// Enqueues zeros.
void clear_device(void* to, std::size_t bytes, void* stream);

/// Enqueues an empty kernel. Kernels launched after it see what was written before it, even those
/// that begin before their predecessor has ended.
void order_device(void* stream);

}  // namespace gossamer::cuda
