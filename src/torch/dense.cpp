// SPDX-License-Identifier: BSD-3-Clause
#include "torch/dense.h"

#include <fmt/format.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <string>
#include <utility>

namespace gossamer::door {
namespace {

Tensor call(const char* op, StableIValue* stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(op, "", stack, TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

}  // namespace

Activation checked_activation(std::int64_t activation) {
  if (activation >= 0 && activation < kActivationCount) return static_cast<Activation>(activation);
  refuse(
      fmt::format("activation {}: 0 (none), 1 (relu), 2 (gelu), 3 (gelu by tanh), 4 (silu) and 5 "
                  "(relu2) are accepted",
                  activation));
}

// The shim has a - c·b, but no sum.
Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }

Tensor activated(Tensor y, Activation activation) {
  using torch::stable::detail::from;
  switch (activation) {
    case Activation::kNone:
      return y;
    case Activation::kRelu:
    case Activation::kSilu: {
      StableIValue stack = from(y);
      return call(activation == Activation::kRelu ? "aten::relu" : "aten::silu", &stack);
    }
    case Activation::kRelu2: {
      StableIValue stack = from(activated(std::move(y), Activation::kRelu));
      return call("aten::square", &stack);
    }
    case Activation::kGelu:
    case Activation::kGeluTanh: {
      const std::string approximate = activation == Activation::kGelu ? "none" : "tanh";
      std::array<StableIValue, 2> stack{from(y), from(approximate)};
      return call("aten::gelu", stack.data());
    }
  }
  refuse(fmt::format("activation {} is not known", static_cast<int>(activation)));
}

Tensor dense_linear(const Tensor& x, const Tensor& dense, const std::optional<Tensor>& bias,
                    Activation activation, const std::optional<Tensor>& residual) {
  using torch::stable::detail::from;
  Tensor y;
  if (dense.dim() == 2) {
    std::array<StableIValue, 3> stack{from(x), from(dense), from(bias)};
    y = call("aten::linear", stack.data());
  } else {
    y = torch::stable::matmul(x, torch::stable::transpose(dense, 1, 2));
    if (bias) y = add(y, torch::stable::unsqueeze(*bias, 1));
  }
  if (residual) y = add(y, *residual);
  y = activated(std::move(y), activation);
  return y.is_contiguous() ? y : as_contiguous(y);
}

}  // namespace gossamer::door
