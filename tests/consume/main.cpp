// SPDX-License-Identifier: BSD-3-Clause
// A program of somebody else's: packs a 2:4 weight, runs it, checks the result by hand.
#include <gossamer/error.h>
#include <gossamer/linear.h>
#include <gossamer/mask.h>
#include <gossamer/packed_weight.h>

#include <cstdio>
#include <vector>

int main() {
  std::vector<float> weight = {1, 0, 2, 0, 0, 3, 0, 4};
  const gossamer::PackedWeight packed =
      gossamer::pack(gossamer::contiguous_view(weight.data(), gossamer::DType::kFloat32, 2, 4),
                     nullptr, gossamer::Pattern::parse("2:4"), gossamer::Layout::kNm);

  const float x[4] = {1, 10, 100, 1000};
  float y[2] = {0, 0};
  gossamer::LinearArgs args{.weight = packed.view()};
  args.tokens = 1;
  args.x = x;
  args.x_stride = 4;
  args.y = y;
  args.y_stride = 2;
  gossamer::run_linear(args);
  std::printf("y = [%g, %g] on %s\n", y[0], y[1], gossamer::host_machine().name.c_str());
  if (y[0] != 201.0f || y[1] != 4030.0f) return 1;

  try {
    gossamer::Pattern::parse("4:2");
  } catch (const gossamer::Error& error) {
    return error.code() == gossamer::ErrorCode::kInvalidArgument ? 0 : 1;
  }
  return 1;
}
