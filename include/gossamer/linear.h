// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "gossamer/activation.h"
#include "gossamer/dtype.h"
#include "gossamer/machine.h"
#include "gossamer/packed_weight.h"
#include "gossamer/parallel.h"
#include "gossamer/pattern.h"

namespace gossamer {

/// What is fused behind the product.
struct Epilogue {
  bool bias = false;
  bool residual = false;
  Activation activation = Activation::kNone;
  /// X is int8 with a scale a token, Y is float32. Plans count what quantize_tokens takes.
  bool quantized = false;
  friend bool operator==(const Epilogue&, const Epilogue&) = default;
};

/// What is to be computed: Y = act(X·Wᵀ + bias + residual), X [tokens, in], W [out, in] packed.
struct LinearDesc {
  std::int64_t batch = 1;
  std::int64_t out = 0;
  std::int64_t in = 0;
  Pattern pattern;
  double density = 1.0;  ///< kept positions / (batch·out·in)
  DType weight_dtype = DType::kFloat32;
  DType activation_dtype = DType::kFloat32;
  Epilogue epilogue;
};

/// The descriptor of a packed weight.
LinearDesc describe(const PackedView& weight, const Epilogue& epilogue = {});

/// One call. Elements of X, bias, residual and Y have the activation dtype; strides count elements;
/// the last dimension of X, Y and residual is contiguous. With batch > 1, X is [batch, tokens, in]
/// and Y [batch, tokens, out], bias [batch, out]. Y may not overlap the inputs (residual excepted).
///
/// Quantized calls: the weight is int8, X is int8 and x_scale is given. Then Y = act(x_scale[t] ·
/// weight_scale[r] · Σ x·w + bias + residual), and bias, residual and Y are float32. The sum is
/// exact for at most 65536 inputs. With y_scale above 0, Y is int8 instead, ready to be the X of
/// the next quantized call: Y / y_scale to nearest, at most 127 either way; NaN becomes 0.
struct LinearArgs {
  PackedView weight;
  std::int64_t tokens = 0;
  const void* x = nullptr;
  std::int64_t x_stride = 0;
  std::int64_t x_batch_stride = 0;
  void* y = nullptr;
  std::int64_t y_stride = 0;
  std::int64_t y_batch_stride = 0;
  const void* bias = nullptr;      ///< [out] or null
  const void* residual = nullptr;  ///< [tokens, out] or null
  std::int64_t residual_stride = 0;
  std::int64_t residual_batch_stride = 0;
  Activation activation = Activation::kNone;
  const float* x_scale = nullptr;       ///< [batch, tokens]: X is int8; null: X is not
  const float* weight_scale = nullptr;  ///< [batch, out] of a quantized call; null: 1
  float y_scale = 0.0f;                 ///< of a quantized call's int8 Y; 0: Y is float32
  ParallelFor parallel{};
};

/// One row of the kernel table: a function for one operation, layout, dtype and instruction set.
struct LinearKernel {
  std::string_view name;  ///< "avx2_spmm_kcsr128_f32_nv8"; the same in file, test and benchmark
  std::uint32_t needs = kIsaGeneric;
  Layout layout = Layout::kBitmask;
  DType weight_dtype = DType::kFloat32;
  DType activation_dtype = DType::kFloat32;
  /// A sentence why this row cannot compute the descriptor, empty where it can.
  std::string (*refuses)(const LinearDesc& desc) = nullptr;
  /// Predicted seconds of one call.
  double (*seconds)(const LinearDesc& desc, const Machine& machine, std::int64_t tokens,
                    int threads) = nullptr;
  void (*run)(const LinearArgs& args) = nullptr;
};

/// Adds a row; the objects that hold kernels do so when they are loaded. A second row of the same
/// name throws Error(kInvalidArgument).
void register_linear_kernel(const LinearKernel& kernel);

/// All rows, ordered by name. The single source for dispatch, tests, benchmarks and `doctor`.
std::span<const LinearKernel> linear_kernels();

/// The row of that name, or null.
const LinearKernel* find_linear_kernel(std::string_view name);

/// Why `kernel` cannot run `desc` on `machine`; empty where it can.
std::string why_not(const LinearKernel& kernel, const LinearDesc& desc, const Machine& machine);

/// FNV-1a of a kernel's name: what a packed weight's header holds. `kDenseKernel` stands for the
/// dense row, which the door supplies.
std::uint32_t kernel_hash(std::string_view name);
inline constexpr std::string_view kDenseKernel = "dense";

/// Token buckets: 1, 2–4, 5–8, 9–32, 33–128, 129–512, 513–2048, more.
inline constexpr int kTokenBuckets = PackedHeader::kTokenBuckets;
inline constexpr std::array<std::int64_t, kTokenBuckets - 1> kTokenBucketEnds{1,   4,   8,   32,
                                                                              128, 512, 2048};
int token_bucket(std::int64_t tokens);

/// How a plan is found.
enum class PlanMode {
  kMeasure,  ///< rows within 2x of the cost model's best are timed, interleaved with dense
  kModel,    ///< the cost model alone; deterministic
};

/// What a plan may hold in memory.
enum class MemoryMode {
  kDefault,  ///< one layout, or two where few and many tokens want different ones; a layer that
             ///< would be slower than dense at some token count stays plain
  kSpeed,    ///< a dense copy may be kept too, and runs where it is faster
  kLow,      ///< one layout of at most 1.15 times the bytes of the weight's format
};

/// The kernel of one bucket, with the numbers behind the choice.
struct PlanChoice {
  std::string kernel;               ///< a row's name or "dense"
  std::int64_t tokens = 0;          ///< the token count that was timed or modelled
  double milliseconds = 0.0;        ///< of the chosen row at that count
  double dense_milliseconds = 0.0;  ///< 0 where dense was neither timed nor modelled
  std::string reason;               ///< one sentence
};

struct Plan {
  bool sparse = false;  ///< false: the layer should stay plain
  Layout layout = Layout::kBitmask;
  /// What the choices need beside it: the buckets whose kernel is of this layout run there. At most
  /// 1.15 times the bytes of the weight's format, as `layout` is then.
  std::optional<Layout> second;
  std::array<PlanChoice, kTokenBuckets> choices;
  std::string reason;  ///< why sparse, or why plain
  bool from_cache = false;
};

/// What the dense peer needs to be timed: a call that computes dense Y for `tokens` tokens, warm,
/// and its cost in seconds at `tokens` where only a model is wanted (both may be empty). `name`
/// says which implementation it is ("torch-2.13.0"): cached verdicts of another one are not used.
struct DensePeer {
  std::function<void(std::int64_t tokens)> run;
  std::function<double(std::int64_t tokens)> seconds;
  std::string name = {};
};

struct PlanOptions {
  PlanMode mode = PlanMode::kMeasure;
  MemoryMode memory = MemoryMode::kDefault;
  ParallelFor parallel{};
  /// Only this row ("" = free choice). GOSSAMER_KERNEL sets it from outside. A forced row makes the
  /// plan sparse whatever dense does.
  std::string kernel;
  /// Where verdicts are kept between processes: a file, "" for the user's cache directory
  /// ($GOSSAMER_CACHE, $XDG_CACHE_HOME/gossamer or ~/.cache/gossamer), "off" for none.
  std::string cache;
  /// An upper bound on the time spent measuring one shape. Time that calls waited for other work is
  /// not charged, up to three budgets or half a second, whichever is more.
  double seconds_budget = 0.5;
  /// The door's cost of one call beyond dense's, added to every sparse time (seconds).
  double call_overhead = 0.0;
};

/// Chooses layouts and kernels for a weight given in any layout. Rows that need another layout are
/// timed on a converted copy.
Plan plan_linear(const PackedView& weight, const Epilogue& epilogue, const Machine& machine,
                 const DensePeer& dense, const PlanOptions& options);

/// Writes the plan's choices into a packed weight of the plan's layouts (convert() makes them). Of
/// a second layout that is not filled yet only the first one's header is written.
void store_plan(PackedWeight& weight, const Plan& plan);

/// The row that `run_linear` will call for `tokens`: the header's choice if this machine can run
/// it, otherwise the cost model's best for the layout. Null where the choice is "dense".
const LinearKernel* choose_kernel(const PackedView& weight, std::int64_t tokens, int threads);

/// Y = act(X·Wᵀ + bias + residual) by the chosen kernel (dense choices included: by the best sparse
/// row, since only a door can run dense). Throws Error(kUnsupported) where no row computes it.
void run_linear(const LinearArgs& args);

/// Plain loops over the kept positions in every layout, what every kernel is tested against:
/// products and sums in float64, rounded once to the activation dtype (the weight's own; float32
/// where that is float8 or int8, or the call is quantized). What is pruned is not read, so NaN and
/// Inf in X pass it by. Serial.
void reference_linear(const LinearArgs& args);

}  // namespace gossamer
