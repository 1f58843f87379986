// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/machine.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "gossamer/error.h"

namespace gossamer {
namespace {

#if defined(__x86_64__)
TEST(Machine, AgreesWithTheCompilersDetection) {
  __builtin_cpu_init();
  const std::uint32_t isa = host_machine().isa_detected;
  const auto has = [&](std::uint32_t bits) { return (isa & bits) == bits; };
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  EXPECT_EQ(has(kIsaAvx2), avx2);
  EXPECT_EQ(has(kIsaAvx512), avx512);
  EXPECT_EQ(has(kIsaAvx512Vbmi2), avx512 && __builtin_cpu_supports("avx512vbmi2"));
  EXPECT_EQ(has(kIsaAvx512Vnni), avx512 && __builtin_cpu_supports("avx512vnni"));
  EXPECT_EQ(has(kIsaAvx512Bf16), avx512 && __builtin_cpu_supports("avx512bf16"));
}
#endif

TEST(Machine, WiderBitsComeWithNarrowerOnes) {
  const std::uint32_t isa = host_machine().isa_detected;
  if ((isa & (kIsaAvx512Vbmi2 | kIsaAvx512Vnni | kIsaAvx512Bf16 | kIsaAvx512Fp16)) != 0) {
    EXPECT_NE(isa & kIsaAvx512, 0u);
  }
  EXPECT_TRUE(isa == kIsaGeneric || (isa & kIsaAvx2) != 0);
}

TEST(Machine, DescribesTheProcessor) {
  const Machine& machine = host_machine();
  EXPECT_FALSE(machine.processor.empty());
  EXPECT_NE(machine.name.find('-'), std::string::npos) << machine.name;
  EXPECT_GE(machine.cores, 1);
  EXPECT_GE(machine.l1d_bytes, 4 << 10);
  EXPECT_LE(machine.l1d_bytes, 1 << 20);
  EXPECT_GE(machine.l2_bytes, machine.l1d_bytes);
}

TEST(Machine, IsaNamesListsBitsFromTheLowest) {
  EXPECT_TRUE(isa_names(kIsaGeneric).empty());
  const std::vector<std::string_view> expected{"avx2", "avx512_vbmi2", "amx_int8"};
  EXPECT_EQ(isa_names(kIsaAmxInt8 | kIsaAvx2 | kIsaAvx512Vbmi2), expected);
}

// The machine is found once a process, so that other values of the variable need other processes:
// this test's program again, with only the (otherwise disabled) reporter.
std::string report_with(const std::string& assignment) {
  const std::string command =
      "env " + assignment + " \"$(readlink -f /proc/" + std::to_string(getpid()) +
      "/exe)\" --gtest_also_run_disabled_tests --gtest_filter=MachineReport.DISABLED_Print";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(popen(command.c_str(), "r"), pclose);
  std::string text;
  char buffer[256];
  while (pipe && std::fgets(buffer, sizeof(buffer), pipe.get()) != nullptr) text += buffer;
  const std::size_t begin = text.find("report:");
  return begin == std::string::npos ? text : text.substr(begin, text.find('\n', begin) - begin);
}

TEST(MachineReport, DISABLED_Print) {
  try {
    const Machine& machine = host_machine();
    std::printf("report:%s %u %u\n", machine.name.c_str(), machine.isa, machine.isa_detected);
  } catch (const Error& error) {
    std::printf("report:error %s\n", error.what());
  }
}

std::string expected_report(std::string_view suffix, std::uint32_t allowed) {
  const Machine& host = host_machine();
  const std::string base = host.name.substr(0, host.name.rfind('-'));
  return "report:" + base + "-" + std::string(suffix) + " " +
         std::to_string(host.isa_detected & allowed) + " " + std::to_string(host.isa_detected);
}

TEST(Machine, EnvironmentLowersTheInstructionSet) {
  const std::uint32_t detected = host_machine().isa_detected;
  constexpr std::uint32_t kAvx2 = kIsaAvx2 | kIsaAvxVnni;
  constexpr std::uint32_t kAvx512 =
      kAvx2 | kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Vnni | kIsaAvx512Bf16 | kIsaAvx512Fp16;
  EXPECT_EQ(report_with("GOSSAMER_MAX_ISA=generic"), expected_report("generic", 0));
  const std::string_view avx2 = (detected & kIsaAvx2) != 0 ? "avx2" : "generic";
  EXPECT_EQ(report_with("GOSSAMER_MAX_ISA=avx2"), expected_report(avx2, kAvx2));
  const std::string_view avx512 = (detected & kIsaAvx512) != 0 ? "avx512" : avx2;
  EXPECT_EQ(report_with("GOSSAMER_MAX_ISA=avx512"), expected_report(avx512, kAvx512));
  const bool amx = (detected & (kIsaAmxBf16 | kIsaAmxInt8)) != 0;
  const std::string all = expected_report(amx ? "amx" : avx512, ~0u);
  EXPECT_EQ(report_with("GOSSAMER_MAX_ISA=amx"), all);
  EXPECT_EQ(report_with("GOSSAMER_MAX_ISA="), all);
}

TEST(Machine, UnknownInstructionSetIsRefusedWithTheAcceptedOnes) {
  const std::string report = report_with("GOSSAMER_MAX_ISA=sse9");
  EXPECT_NE(report.find("report:error"), std::string::npos) << report;
  for (const char* word : {"GOSSAMER_MAX_ISA", "'sse9'", "generic, avx2, avx512, amx"}) {
    EXPECT_NE(report.find(word), std::string::npos) << report;
  }
}

}  // namespace
}  // namespace gossamer
