// SPDX-License-Identifier: BSD-3-Clause
#include <fmt/format.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "gossamer/linear.h"
#include "gossamer/machine.h"
#include "plan/memory.h"
#include "torch/ops.h"

namespace gossamer::door {
namespace {

using nlohmann::json;

/// What a packed layer's eager call costs beyond F.linear: the tensor subclass and the stable ABI's
/// boxing. 1.8 µs on a Zen 5 with torch 2.13; tests/python/test_ops_overhead.py holds it below 3.
constexpr double kCallOverheadSeconds = 1.8e-6;
/// What a quantized layer's call costs beyond that, work aside: memory for inputs and scales.
constexpr double kQuantizedOverheadSeconds = 2.1e-6;

/// Seconds that measuring may take: half a second, and more for a weight whose single calls are
/// long, or only small token counts would be timed.
double seconds_budget(const PackedView& weight) {
  constexpr double kLeast = 0.5;
  constexpr double kMost = 2.0;
  constexpr double kOfPosition = 60e-9;
  const auto positions = static_cast<double>(weight.batch() * weight.out() * weight.in());
  return std::min(kLeast + kOfPosition * positions / torch_threads().threads, kMost);
}

PlanMode parse_mode(const std::string& mode) {
  if (mode == "measure") return PlanMode::kMeasure;
  if (mode == "model") return PlanMode::kModel;
  refuse(fmt::format("plan mode '{}': \"measure\" and \"model\" are accepted", mode));
}

MemoryMode parse_memory(const std::string& memory) {
  if (memory == "default") return MemoryMode::kDefault;
  if (memory == "speed") return MemoryMode::kSpeed;
  if (memory == "low") return MemoryMode::kLow;
  refuse(fmt::format("memory mode '{}': \"default\", \"speed\" and \"low\" are accepted", memory));
}

Tensor detach(const Tensor& tensor) {
  StableIValue stack = torch::stable::detail::from(tensor);
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::detach", "", &stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack);
}

/// Numbers in [-1, 1) that depend on nothing and disturb no generator; timing needs values that are
/// neither zero nor denormal.
Tensor noise(std::span<const std::int64_t> sizes, DType dtype) {
  Tensor values = empty(sizes, DType::kFloat32);
  auto* const data = static_cast<float*>(values.mutable_data_ptr());
  std::uint32_t state = 0x9e3779b9u;
  for (std::int64_t i = 0; i < values.numel(); ++i) {
    state = state * 1664525u + 1013904223u;
    data[i] = static_cast<float>(state >> 8) * 0x1p-23f - 1.0f;
  }
  if (dtype == DType::kFloat32) return values;
  return torch::stable::to(values, [&] {
    switch (dtype) {
      case DType::kFloat64:
        return ScalarType::Double;
      case DType::kFloat16:
        return ScalarType::Half;
      case DType::kBFloat16:
        return ScalarType::BFloat16;
      default:
        refuse(fmt::format(
            "a layer with {} weights cannot be timed against dense; plan it with mode=\"model\"",
            dtype_name(dtype)));
    }
  }());
}

/// torch's own linear on the same weight, as the planner's opponent.
class DenseLayer {
 public:
  DenseLayer(const Tensor& dense, const PackedView& weight, bool bias, Activation activation)
      : dense_(detach(dense)),
        dtype_(dtype_of(dense, "dense")),
        weight_(weight),
        activation_(activation) {
    if (!bias) return;
    std::array<std::int64_t, 2> sizes{weight.batch(), weight.out()};
    bias_ = noise(std::span(sizes).subspan(weight.batch() == 1 ? 1 : 0), dtype_);
  }

  void run(std::int64_t tokens) {
    auto found = inputs_.find(tokens);
    if (found == inputs_.end()) {
      std::array<std::int64_t, 3> sizes{weight_.batch(), tokens, weight_.in()};
      Tensor x = noise(std::span(sizes).subspan(weight_.batch() == 1 ? 1 : 0), dtype_);
      found = inputs_.emplace(tokens, std::move(x)).first;
    }
    dense_linear(found->second, dense_, bias_, activation_, std::nullopt);
  }

 private:
  Tensor dense_;
  DType dtype_;  ///< of a quantized weight's opponent it is a floating one
  PackedView weight_;
  Activation activation_;
  std::optional<Tensor> bias_;
  std::map<std::int64_t, Tensor> inputs_;
};

/// Seconds of a call without work, the least of several rounds.
template <typename Call>
double least_call_seconds(const Call& run) {
  using Clock = std::chrono::steady_clock;
  constexpr int kRounds = 9;
  constexpr int kCalls = 64;
  double best = std::numeric_limits<double>::infinity();
  for (int round = 0; round < kRounds; ++round) {
    const auto start = Clock::now();
    for (int call = 0; call < kCalls; ++call) run();
    best = std::min(best, std::chrono::duration<double>(Clock::now() - start).count() / kCalls);
  }
  // Plans are cached under it: whole microseconds, so that the next process finds the same.
  return std::ceil(best * 1e6) * 1e-6;
}

/// Seconds of aten::linear on a layer without work: what the dense peer's times contain and a
/// kernel's do not, though both pay it in a model. Measured once.
double dense_call_seconds() {
  static const double seconds = [] {
    constexpr std::array<std::int64_t, 2> kOne{1, 1};
    const Tensor x = noise(kOne, DType::kFloat32);
    return least_call_seconds(
        [&] { dense_linear(x, x, std::nullopt, Activation::kNone, std::nullopt); });
  }();
  return seconds;
}

/// The same of aten::conv2d. The 3 µs at most that a packed convolution's eager call costs beyond
/// it are not counted: on maps of a few pixels they would outweigh what a layer gains on all
/// others.
double dense_conv_call_seconds() {
  static const double seconds = [] {
    constexpr std::array<std::int64_t, 4> kOne{1, 1, 1, 1};
    const Tensor x = noise(kOne, DType::kFloat32);
    return least_call_seconds(
        [&] { dense_conv2d(x, x, std::nullopt, {}, Activation::kNone, std::nullopt); });
  }();
  return seconds;
}

json to_json(const Plan& plan) {
  json choices = json::array();
  for (const PlanChoice& choice : plan.choices) {
    choices.push_back({{"kernel", choice.kernel},
                       {"tokens", choice.tokens},
                       {"milliseconds", choice.milliseconds},
                       {"dense_milliseconds", choice.dense_milliseconds},
                       {"reason", choice.reason}});
  }
  return {{"sparse", plan.sparse},
          {"layout", layout_name(plan.layout)},
          {"second", plan.second ? json(layout_name(*plan.second)) : json()},
          {"reason", plan.reason},
          {"from_cache", plan.from_cache},
          {"bucket_ends", kTokenBucketEnds},
          {"choices", std::move(choices)}};
}

/// The weight as a plan wants it, of no bytes where it is dense, and the plan's text. A second
/// layout of a large weight is left out, as "unfilled" says: with the dense layer and `weight` it
/// would be too much at a time.
std::tuple<Tensor, std::string> planned(const PackedView& weight, const Plan& plan,
                                        bool quantized) {
  json text = to_json(plan);
  text["unfilled"] = false;
  if (!plan.sparse) {  // the caller goes on with what it has; a copy would lift the peak
    constexpr std::array<std::int64_t, 1> kNothing{0};
    return {empty(kNothing, DType::kUInt8), text.dump()};
  }
  const auto made = [&] {
    if (!plan.second) {
      const bool as_it_is = plan.layout == weight.layout() && weight.header().has_second == 0;
      return as_it_is ? copy_packed(weight)
                      : gossamer::convert(weight, plan.layout, tensor_allocator());
    }
    const std::int64_t bytes =
        plan::layout_bytes(weight, plan.layout) + plan::layout_bytes(weight, *plan.second);
    text["unfilled"] = bytes > plan::trial_bytes(weight, quantized);
    if (bytes > plan::trial_bytes(weight, quantized)) {
      return convert_leaving_room(weight, plan.layout, *plan.second, tensor_allocator());
    }
    return gossamer::convert(weight, plan.layout, *plan.second, tensor_allocator());
  };
  PackedWeight laid_out = made();
  store_plan(laid_out, plan);
  return {to_tensor(laid_out), text.dump()};
}

PlanOptions plan_options(const PackedView& weight, const std::string& mode,
                         const std::string& memory, const std::string& kernel,
                         const std::string& cache) {
  PlanOptions options;
  options.seconds_budget = seconds_budget(weight);
  options.mode = parse_mode(mode);
  options.memory = parse_memory(memory);
  options.parallel = torch_threads();
  options.kernel = kernel;
  options.cache = cache;
  return options;
}

/// torch's own convolution with the same weight, as the planner's opponent.
class DenseConvolution {
 public:
  DenseConvolution(const Tensor& dense, const Conv2dLayer& layer, bool bias, Activation activation)
      : dense_(detach(dense)), layer_(layer), activation_(activation) {
    const std::array<std::int64_t, 1> outputs{dense.size(0)};
    if (bias) bias_ = noise(outputs, DType::kFloat32);
  }

  void run(const Conv2dShape& s) {
    const std::array<std::int64_t, 4> sizes{s.images, s.in_channels, s.height, s.width};
    auto found = inputs_.find(sizes);
    if (found == inputs_.end()) {
      Tensor x = empty_images(sizes, layer_.channels_last, DType::kFloat32);
      torch::stable::copy_(x, noise(sizes, DType::kFloat32));
      found = inputs_.emplace(sizes, std::move(x)).first;
    }
    dense_conv2d(found->second, dense_, bias_, layer_, activation_, std::nullopt);
  }

 private:
  Tensor dense_;
  Conv2dLayer layer_;
  Activation activation_;
  std::optional<Tensor> bias_;
  std::map<std::array<std::int64_t, 4>, Tensor> inputs_;
};

std::vector<std::string> isa_list(std::uint32_t bits) {
  const auto names = isa_names(bits);
  return {names.begin(), names.end()};
}

}  // namespace

std::tuple<Tensor, std::string> plan(const Tensor& packed, const Tensor& dense, bool bias,
                                     std::int64_t activation, const std::string& mode,
                                     const std::string& memory, const std::string& kernel,
                                     const std::string& cache) {
  return guarded([&] {
    const PackedTensor packed_tensor(packed);
    const PackedView& weight = packed_tensor.view();
    // An int8 weight beside floating values is the quantized form of them.
    const bool quantized =
        weight.dtype() == DType::kInt8 && dtype_of(dense, "dense") != DType::kInt8;
    const Epilogue epilogue{.bias = bias,
                            .residual = false,
                            .activation = checked_activation(activation),
                            .quantized = quantized};
    PlanOptions options = plan_options(weight, mode, memory, kernel, cache);
    options.call_overhead = kCallOverheadSeconds + (quantized ? kQuantizedOverheadSeconds : 0.0);
    if (options.mode == PlanMode::kMeasure) options.call_overhead += dense_call_seconds();
    check_dense(dense, weight);
    DenseLayer layer(dense, weight, bias, epilogue.activation);
    DensePeer peer;
    peer.run = [&layer](std::int64_t tokens) { layer.run(tokens); };
    // Otherwise the opponent has the weight's own dtype, which verdicts are kept under anyway.
    if (quantized) peer.name = dtype_name(dtype_of(dense, "dense"));

    const Plan found = plan_linear(weight, epilogue, host_machine(), peer, options);
    return planned(weight, found, quantized);
  });
}

std::tuple<Tensor, std::string> plan_conv2d(const Tensor& packed, const Tensor& dense,
                                            const std::vector<std::int64_t>& stride,
                                            const std::vector<std::int64_t>& padding,
                                            const std::vector<std::int64_t>& dilation,
                                            bool channels_last, bool bias, std::int64_t activation,
                                            const std::string& mode, const std::string& memory,
                                            const std::string& kernel, const std::string& cache) {
  return guarded([&] {
    const PackedTensor packed_tensor(packed);
    const PackedView& weight = packed_tensor.view();
    Conv2dLayer layer = checked_layer({stride, padding, dilation});
    layer.channels_last = channels_last;
    // An int8 weight beside floating values is the quantized form of them.
    const Epilogue epilogue{.bias = bias,
                            .residual = false,
                            .activation = checked_activation(activation),
                            .quantized = weight.dtype() == DType::kInt8};
    PlanOptions options = plan_options(weight, mode, memory, kernel, cache);
    if (options.mode == PlanMode::kMeasure) options.call_overhead = dense_conv_call_seconds();
    check_dense_conv2d(dense, weight);
    DenseConvolution convolution(dense, layer, bias, epilogue.activation);
    Conv2dDensePeer peer;
    peer.run = [&convolution](const Conv2dShape& shape) { convolution.run(shape); };
    if (epilogue.quantized) peer.name = dtype_name(dtype_of(dense, "dense"));

    const Plan found =
        gossamer::plan_conv2d(weight, layer, epilogue, host_machine(), peer, options);
    return planned(weight, found, epilogue.quantized);
  });
}

Tensor with_plan(const Tensor& packed, const std::string& kernels) {
  return guarded([&] {
    const PackedTensor packed_tensor(packed);
    const PackedView& view = packed_tensor.view();
    PackedWeight planned = copy_packed(view);
    Plan stored;
    stored.sparse = true;
    stored.layout = view.layout();
    if (const std::optional<PackedView> second = view.second()) stored.second = second->layout();
    try {
      const json names = json::parse(kernels);
      if (!names.is_array() || names.size() != stored.choices.size()) {
        refuse(fmt::format(
            "kernels has {} entries: a JSON list of {} kernel names, one for each bucket of "
            "token counts, is accepted",
            names.size(), stored.choices.size()));
      }
      for (std::size_t i = 0; i < names.size(); ++i) {
        if (!names[i].is_null()) stored.choices[i].kernel = names[i].get<std::string>();
      }
    } catch (const json::exception& error) {
      refuse(fmt::format("kernels is not a JSON list of kernel names: {}", error.what()));
    }
    store_plan(planned, stored);
    return to_tensor(planned);
  });
}

std::string machine_info() {
  return guarded([&] {
    const Machine& machine = host_machine();
    return json{{"name", machine.name},
                {"processor", machine.processor},
                {"isa", isa_list(machine.isa)},
                {"isa_detected", isa_list(machine.isa_detected)},
                {"l1d_bytes", machine.l1d_bytes},
                {"l2_bytes", machine.l2_bytes},
                {"l3_bytes", machine.l3_bytes},
                {"cores", machine.cores},
                {"threads", torch_threads().threads}}
        .dump();
  });
}

std::string kernel_table() {
  return guarded([&] {
    json rows = json::array();
    for (const LinearKernel& kernel : linear_kernels()) {
      rows.push_back({{"name", kernel.name},
                      {"operation", "linear"},
                      {"needs", isa_list(kernel.needs)},
                      {"layout", layout_name(kernel.layout)},
                      {"weight_dtype", dtype_name(kernel.weight_dtype)},
                      {"activation_dtype", dtype_name(kernel.activation_dtype)},
                      {"runs_here", host_machine().has(kernel.needs)}});
    }
    for (const Conv2dKernel& kernel : conv2d_kernels()) {
      rows.push_back({{"name", kernel.name},
                      {"operation", "conv2d"},
                      {"needs", isa_list(kernel.needs)},
                      {"layout", layout_name(kernel.layout)},
                      {"weight_dtype", dtype_name(kernel.dtype)},
                      {"activation_dtype", dtype_name(kernel.dtype)},
                      {"runs_here", host_machine().has(kernel.needs)}});
    }
    return rows.dump();
  });
}

}  // namespace gossamer::door
