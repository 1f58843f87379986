// SPDX-License-Identifier: BSD-3-Clause
#include "cuda/sm90/tensor_map.h"

#include <string>

#include "cuda/common/runtime.h"

namespace gossamer::cuda::sm90 {
namespace {

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                            const cuuint64_t*, const cuuint32_t*, const cuuint32_t*,
                            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                            CUtensorMapFloatOOBfill);

CUtensorMapDataType data_type(DType dtype) {
  if (dtype == DType::kFloat16) return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  if (dtype == DType::kBFloat16) return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  return CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

/// The driver's function, asked of the runtime so that nothing links against the driver.
Encode encode_function() {
  static const Encode function = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result{};
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                           cudaEnableDefault, &result),
          "the driver's cuTensorMapEncodeTiled");
    if (result != cudaDriverEntryPointSuccess) {
      throw Error(ErrorCode::kUnsupported,
                  "this driver has no cuTensorMapEncodeTiled; kernels for compute capability 9.0 "
                  "need a driver for CUDA 12 or newer: update it");
    }
    return reinterpret_cast<Encode>(entry);
  }();
  return function;
}

}  // namespace

bool tma_can_reach(const void* data, DType dtype, std::int64_t columns, std::int64_t stride) {
  constexpr std::int64_t kAlignment = 16;
  const std::int64_t row = stride * dtype_bytes(dtype);
  return reinterpret_cast<std::uintptr_t>(data) % kAlignment == 0 && row % kAlignment == 0 &&
         columns > 0 && stride >= columns && row < (std::int64_t{1} << 40);
}

CUtensorMap make_tensor_map(const TensorBox& box) {
  constexpr std::int64_t kBoxBytes = 128;
  CUtensorMap map{};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(box.columns),
                               static_cast<cuuint64_t>(box.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(box.stride * dtype_bytes(box.dtype))};
  const cuuint32_t boxes[2] = {static_cast<cuuint32_t>(kBoxBytes / dtype_bytes(box.dtype)),
                               static_cast<cuuint32_t>(box.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult status =
      encode_function()(&map, data_type(box.dtype), 2, const_cast<void*>(box.data), sizes, strides,
                        boxes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorCode::kUnsupported,
                "cuTensorMapEncodeTiled refuses a matrix of " + std::to_string(box.rows) + " by " +
                    std::to_string(box.columns) + ", stride " + std::to_string(box.stride) +
                    " (CUresult " + std::to_string(static_cast<int>(status)) + ")");
  }
  return map;
}

CUtensorMap make_tiles_map(const TilesBox& box) {
  using Element = std::uint64_t;
  constexpr cuuint32_t kLineElements = kTileLine / sizeof(Element);
  CUtensorMap map{};
  const auto lines = static_cast<cuuint32_t>(box.tile_bytes / kTileLine);
  const auto input_tiles = static_cast<cuuint64_t>(box.input_tiles);
  const cuuint64_t sizes[3] = {kLineElements, lines * input_tiles,
                               static_cast<cuuint64_t>(box.row_tiles)};
  const cuuint64_t strides[2] = {kTileLine, lines * input_tiles * kTileLine};
  const cuuint32_t boxes[3] = {kLineElements, lines, static_cast<cuuint32_t>(box.box_row_tiles)};
  const cuuint32_t steps[3] = {1, 1, 1};
  const CUresult status = encode_function()(
      &map, CU_TENSOR_MAP_DATA_TYPE_UINT64, 3, const_cast<void*>(box.tiles), sizes, strides, boxes,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw Error(ErrorCode::kUnsupported, "cuTensorMapEncodeTiled refuses a packed weight of " +
                                             std::to_string(box.row_tiles) + " by " +
                                             std::to_string(box.input_tiles) + " tiles (CUresult " +
                                             std::to_string(static_cast<int>(status)) + ")");
  }
  return map;
}

}  // namespace gossamer::cuda::sm90
