// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <optional>

#include "cpu/conv_bands.h"
#include "cpu/conv_bands_task.h"
#include "cpu/conv_task.h"
#include "cpu/kcsr_task.h"
#include "gossamer/conv.h"

namespace gossamer::cpu {

/// The panel with which bands take the least time; none where panels of `pixel_vectors` vectors of
/// neighbouring pixels take less, as where one pass over the kept values is all that is needed.
/// Does not look at the threads, so that the sums do not depend on them.
std::optional<BandShape> find_bands(const Conv2dArgs& args, const ConvBandsFunctions& bands,
                                    int band_vectors, int pixel_vectors);

/// A convolution as K-blocked CSR over bands.
void run_conv2d_bands(const KcsrFunctions& sums, const ConvFunctions& steps,
                      const ConvBandsFunctions& bands, BandShape shape, const Conv2dArgs& args);

}  // namespace gossamer::cpu
