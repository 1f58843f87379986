// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gossamer {

/// Instruction-set bits. A kernel names those it needs; a machine has some.
enum Isa : std::uint32_t {
  kIsaGeneric = 0,
  kIsaAvx2 = 1u << 0,    ///< AVX2, FMA, F16C, BMI2
  kIsaAvx512 = 1u << 1,  ///< AVX-512 F, BW, DQ, VL
  kIsaAvx512Vbmi2 = 1u << 2,
  kIsaAvx512Vnni = 1u << 3,
  kIsaAvx512Bf16 = 1u << 4,
  kIsaAvx512Fp16 = 1u << 5,
  kIsaAvxVnni = 1u << 6,
  kIsaAmxBf16 = 1u << 7,
  kIsaAmxInt8 = 1u << 8,
};

/// What the processor offers. Sizes are bytes, of one core where the cache is private.
struct Machine {
  std::string name;       ///< short, for benchmark lines: "zen3-avx2", "sapphirerapids-amx"
  std::string processor;  ///< as the processor calls itself
  std::uint32_t isa = 0;  ///< Isa bits that the processor has, the OS saves and the user allows
  std::uint32_t isa_detected = 0;  ///< the same before GOSSAMER_MAX_ISA was applied
  std::int64_t l1d_bytes = 0;
  std::int64_t l2_bytes = 0;
  std::int64_t l3_bytes = 0;
  int cores = 1;  ///< physical cores this process may run on

  bool has(std::uint32_t bits) const { return (isa & bits) == bits; }
};

/// The machine this process runs on, found once. GOSSAMER_MAX_ISA=generic|avx2|avx512|amx lowers
/// it; any other value throws Error.
const Machine& host_machine();

/// The names of the bits, lowest first: {"avx2", "avx512", "avx512_vbmi2", …}.
std::vector<std::string_view> isa_names(std::uint32_t bits);

}  // namespace gossamer
