// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/machine.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <set>
#include <utility>

#include "core/fail.h"

#if defined(__x86_64__)
#  include <cpuid.h>
#  include <sys/syscall.h>
#  include <unistd.h>
#endif

namespace gossamer {
namespace {

constexpr std::array<std::pair<std::uint32_t, std::string_view>, 9> kIsaNames{{
    {kIsaAvx2, "avx2"},
    {kIsaAvx512, "avx512"},
    {kIsaAvx512Vbmi2, "avx512_vbmi2"},
    {kIsaAvx512Vnni, "avx512_vnni"},
    {kIsaAvx512Bf16, "avx512_bf16"},
    {kIsaAvx512Fp16, "avx512_fp16"},
    {kIsaAvxVnni, "avx_vnni"},
    {kIsaAmxBf16, "amx_bf16"},
    {kIsaAmxInt8, "amx_int8"},
}};

// The levels of GOSSAMER_MAX_ISA go by register width, so AVX-VNNI (256 bits) belongs to avx2.
constexpr std::uint32_t kAvx2Level = kIsaAvx2 | kIsaAvxVnni;
constexpr std::uint32_t kAvx512Level =
    kAvx2Level | kIsaAvx512 | kIsaAvx512Vbmi2 | kIsaAvx512Vnni | kIsaAvx512Bf16 | kIsaAvx512Fp16;
constexpr std::uint32_t kAmxLevel = kAvx512Level | kIsaAmxBf16 | kIsaAmxInt8;

std::uint32_t allowed_isa() {
  const char* text = std::getenv("GOSSAMER_MAX_ISA");
  if (text == nullptr || *text == '\0') return kAmxLevel;
  const std::string_view level = text;
  if (level == "generic") return kIsaGeneric;
  if (level == "avx2") return kAvx2Level;
  if (level == "avx512") return kAvx512Level;
  if (level == "amx") return kAmxLevel;
  detail::fail(ErrorCode::kInvalidArgument,
               "environment variable GOSSAMER_MAX_ISA is '{}'; accepted are generic, "
               "avx2, avx512, amx; set one of them or unset it",
               level);
}

void store_cache(Machine& machine, int level, std::int64_t bytes) {
  if (level == 1) machine.l1d_bytes = bytes;
  if (level == 2) machine.l2_bytes = bytes;
  if (level == 3) machine.l3_bytes = bytes;
}

#if defined(__x86_64__)
struct CpuidLeaf {
  std::uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf cpuid(std::uint32_t leaf, std::uint32_t subleaf = 0) {
  CpuidLeaf r;
  // Returns 0 and leaves the registers alone where the processor has no such leaf.
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return {};
  return r;
}

bool bit(std::uint32_t word, int index) { return ((word >> index) & 1u) != 0; }

// Register state that the operating system saves at a task switch (XCR0).
std::uint64_t saved_register_state() {
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (std::uint64_t{high} << 32) | low;
}

// Linux hands out tile registers only to processes that ask for them; without the grant the first
// tile instruction raises SIGILL.
bool kernel_grants_amx() {
#  if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr long kTileData = 18;               // XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#  else
  return false;
#  endif
}

std::uint32_t detect_isa() {
  const CpuidLeaf one = cpuid(1);
  if (!bit(one.ecx, 27)) return kIsaGeneric;  // no XGETBV, so no saved vector state either
  const std::uint64_t saved = saved_register_state();
  const bool ymm_saved = (saved & 0x6) == 0x6;
  const bool zmm_saved = (saved & 0xe6) == 0xe6;
  const bool tiles_saved = (saved & 0x60000) == 0x60000;

  const CpuidLeaf seven = cpuid(7);
  const CpuidLeaf seven_one = seven.eax >= 1 ? cpuid(7, 1) : CpuidLeaf{};
  const bool avx2 = bit(one.ecx, 12) && bit(one.ecx, 28) && bit(one.ecx, 29) && bit(seven.ebx, 5) &&
                    bit(seven.ebx, 8);
  if (!ymm_saved || !avx2) return kIsaGeneric;

  std::uint32_t isa = kIsaAvx2;
  if (bit(seven_one.eax, 4)) isa |= kIsaAvxVnni;
  const bool avx512 =
      bit(seven.ebx, 16) && bit(seven.ebx, 17) && bit(seven.ebx, 30) && bit(seven.ebx, 31);
  if (zmm_saved && avx512) {
    isa |= kIsaAvx512;
    if (bit(seven.ecx, 6)) isa |= kIsaAvx512Vbmi2;
    if (bit(seven.ecx, 11)) isa |= kIsaAvx512Vnni;
    if (bit(seven_one.eax, 5)) isa |= kIsaAvx512Bf16;
    if (bit(seven.edx, 23)) isa |= kIsaAvx512Fp16;
  }
  if (tiles_saved && bit(seven.edx, 24) && kernel_grants_amx()) {
    if (bit(seven.edx, 22)) isa |= kIsaAmxBf16;
    if (bit(seven.edx, 25)) isa |= kIsaAmxInt8;
  }
  return isa;
}

std::string cpu_vendor() {
  const CpuidLeaf zero = cpuid(0);
  std::string text(12, '\0');
  std::memcpy(text.data(), &zero.ebx, 4);
  std::memcpy(text.data() + 4, &zero.edx, 4);
  std::memcpy(text.data() + 8, &zero.ecx, 4);
  return text;
}

std::string cpu_brand() {
  if (cpuid(0x80000000).eax < 0x80000004) return cpu_vendor();
  std::string text(48, '\0');
  for (std::uint32_t i = 0; i < 3; ++i) {
    const CpuidLeaf part = cpuid(0x80000002 + i);
    std::memcpy(text.data() + std::size_t{16} * i, &part, 16);
  }
  text.resize(std::strlen(text.c_str()));
  const std::size_t first = text.find_first_not_of(' ');
  const std::size_t last = text.find_last_not_of(' ');
  return first == std::string::npos ? cpu_vendor() : text.substr(first, last - first + 1);
}

struct CpuModels {
  std::string_view vendor;
  std::uint32_t family, first_model, last_model;
  std::string_view name;
};

constexpr std::string_view kAmd = "AuthenticAMD";
constexpr std::string_view kIntel = "GenuineIntel";
constexpr std::array kCpuModels{
    CpuModels{kAmd, 0x17, 0x00, 0x2f, "zen"},
    CpuModels{kAmd, 0x17, 0x30, 0xff, "zen2"},
    CpuModels{kAmd, 0x19, 0x00, 0x0f, "zen3"},
    CpuModels{kAmd, 0x19, 0x10, 0x1f, "zen4"},
    CpuModels{kAmd, 0x19, 0x20, 0x5f, "zen3"},
    CpuModels{kAmd, 0x19, 0x60, 0xaf, "zen4"},
    CpuModels{kAmd, 0x1a, 0x00, 0x4f, "zen5"},
    CpuModels{kAmd, 0x1a, 0x60, 0x7f, "zen5"},
    CpuModels{kIntel, 6, 0x3c, 0x3c, "haswell"},
    CpuModels{kIntel, 6, 0x3f, 0x3f, "haswell"},
    CpuModels{kIntel, 6, 0x45, 0x46, "haswell"},
    CpuModels{kIntel, 6, 0x3d, 0x3d, "broadwell"},
    CpuModels{kIntel, 6, 0x47, 0x47, "broadwell"},
    CpuModels{kIntel, 6, 0x4f, 0x4f, "broadwell"},
    CpuModels{kIntel, 6, 0x56, 0x56, "broadwell"},
    CpuModels{kIntel, 6, 0x4e, 0x4e, "skylake"},
    CpuModels{kIntel, 6, 0x5e, 0x5e, "skylake"},
    CpuModels{kIntel, 6, 0x55, 0x55,
              "skylake"},  // Cascade Lake and Cooper Lake are steppings of it
    CpuModels{kIntel, 6, 0x8e, 0x8e, "skylake"},
    CpuModels{kIntel, 6, 0x9e, 0x9e, "skylake"},
    CpuModels{kIntel, 6, 0xa5, 0xa6, "skylake"},
    CpuModels{kIntel, 6, 0x6a, 0x6a, "icelake"},
    CpuModels{kIntel, 6, 0x6c, 0x6c, "icelake"},
    CpuModels{kIntel, 6, 0x7d, 0x7e, "icelake"},
    CpuModels{kIntel, 6, 0x8c, 0x8d, "tigerlake"},
    CpuModels{kIntel, 6, 0xa7, 0xa7, "rocketlake"},
    CpuModels{kIntel, 6, 0x97, 0x97, "alderlake"},
    CpuModels{kIntel, 6, 0x9a, 0x9a, "alderlake"},
    CpuModels{kIntel, 6, 0xb7, 0xb7, "raptorlake"},
    CpuModels{kIntel, 6, 0xba, 0xba, "raptorlake"},
    CpuModels{kIntel, 6, 0xbf, 0xbf, "raptorlake"},
    CpuModels{kIntel, 6, 0xaa, 0xaa, "meteorlake"},
    CpuModels{kIntel, 6, 0xac, 0xac, "meteorlake"},
    CpuModels{kIntel, 6, 0xbd, 0xbd, "lunarlake"},
    CpuModels{kIntel, 6, 0xb5, 0xb5, "arrowlake"},
    CpuModels{kIntel, 6, 0xc5, 0xc6, "arrowlake"},
    CpuModels{kIntel, 6, 0x8f, 0x8f, "sapphirerapids"},
    CpuModels{kIntel, 6, 0xcf, 0xcf, "emeraldrapids"},
    CpuModels{kIntel, 6, 0xad, 0xae, "graniterapids"},
    CpuModels{kIntel, 6, 0xaf, 0xaf, "sierraforest"},
};

std::string_view microarchitecture() {
  const std::uint32_t signature = cpuid(1).eax;
  std::uint32_t family = (signature >> 8) & 0xf;
  std::uint32_t model = (signature >> 4) & 0xf;
  if (family == 0x6 || family == 0xf) model |= ((signature >> 16) & 0xf) << 4;
  if (family == 0xf) family += (signature >> 20) & 0xff;
  const std::string vendor = cpu_vendor();
  for (const CpuModels& row : kCpuModels) {
    if (row.vendor == vendor && row.family == family && row.first_model <= model &&
        model <= row.last_model) {
      return row.name;
    }
  }
  return "x86_64";
}

// Intel's leaf 4 and AMD's 0x8000001D have one encoding.
void detect_caches_cpuid(Machine& machine) {
  const std::uint32_t leaf = cpu_vendor() == kAmd ? 0x8000001D : 4;
  constexpr std::uint32_t kMaxCaches = 16;
  for (std::uint32_t i = 0; i < kMaxCaches; ++i) {
    const CpuidLeaf r = cpuid(leaf, i);
    const std::uint32_t type = r.eax & 0x1f;
    if (type == 0) return;
    if (type == 2) continue;  // instructions
    const std::int64_t ways = (r.ebx >> 22) + 1;
    const std::int64_t partitions = ((r.ebx >> 12) & 0x3ff) + 1;
    const std::int64_t line = (r.ebx & 0xfff) + 1;
    const std::int64_t sets = std::int64_t{r.ecx} + 1;
    store_cache(machine, static_cast<int>((r.eax >> 5) & 0x7), ways * partitions * line * sets);
  }
}

#else
std::uint32_t detect_isa() { return kIsaGeneric; }
std::string cpu_brand() { return "unknown"; }
#  if defined(__aarch64__)
std::string_view microarchitecture() { return "aarch64"; }
#  else
std::string_view microarchitecture() { return "generic"; }
#  endif
void detect_caches_cpuid(Machine&) {}
#endif

std::string read_word(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  file >> word;
  return word;
}

// What the kernel of the operating system says; for processors and hypervisors whose cpuid is
// silent.
void detect_caches_sys(Machine& machine) {
  constexpr int kMaxCaches = 16;
  for (int i = 0; i < kMaxCaches; ++i) {
    const std::string folder = fmt::format("/sys/devices/system/cpu/cpu0/cache/index{}/", i);
    const std::string level = read_word(folder + "level");
    if (level.empty()) return;
    if (read_word(folder + "type") == "Instruction") continue;
    const std::string size = read_word(folder + "size");  // "48K", "1024K", "32M"
    char* unit = nullptr;
    std::int64_t bytes = std::strtoll(size.c_str(), &unit, 10);
    if (*unit == 'K') bytes <<= 10;
    if (*unit == 'M') bytes <<= 20;
    store_cache(machine, std::atoi(level.c_str()), bytes);
  }
}

// Physical cores among the processors that this process may use. A quota of the control group is
// not looked at: it limits time, not places.
int usable_cores() {
#if defined(__linux__)
  constexpr int kMaxProcessors = 1 << 16;
  const std::size_t bytes = CPU_ALLOC_SIZE(kMaxProcessors);
  const auto release = [](cpu_set_t* set) { CPU_FREE(set); };
  const std::unique_ptr<cpu_set_t, decltype(release)> set(CPU_ALLOC(kMaxProcessors), release);
  if (set == nullptr || sched_getaffinity(0, bytes, set.get()) != 0) return 1;
  std::set<std::pair<std::string, std::string>> cores;
  int unnamed = 0;  // where there is no topology every processor counts as a core
  for (int cpu = 0; cpu < kMaxProcessors; ++cpu) {
    if (!CPU_ISSET_S(static_cast<std::size_t>(cpu), bytes, set.get())) continue;
    const std::string folder = fmt::format("/sys/devices/system/cpu/cpu{}/topology/", cpu);
    std::string core = read_word(folder + "core_id");
    if (core.empty()) {
      ++unnamed;
    } else {
      cores.emplace(read_word(folder + "physical_package_id"), std::move(core));
    }
  }
  return std::max(1, static_cast<int>(cores.size()) + unnamed);
#else
  return 1;
#endif
}

std::string_view widest_isa(std::uint32_t isa) {
  if ((isa & (kIsaAmxBf16 | kIsaAmxInt8)) != 0) return "amx";
  if ((isa & kIsaAvx512) != 0) return "avx512";
  if ((isa & kIsaAvx2) != 0) return "avx2";
  return "generic";
}

Machine detect_machine() {
  Machine machine;
  const std::uint32_t allowed = allowed_isa();
  machine.isa_detected = detect_isa();
  machine.isa = machine.isa_detected & allowed;
  machine.processor = cpu_brand();
  machine.name = fmt::format("{}-{}", microarchitecture(), widest_isa(machine.isa));
  detect_caches_cpuid(machine);
  if (machine.l1d_bytes == 0 || machine.l2_bytes == 0) detect_caches_sys(machine);
  machine.cores = usable_cores();
  return machine;
}

}  // namespace

const Machine& host_machine() {
  static const Machine machine = detect_machine();
  return machine;
}

std::vector<std::string_view> isa_names(std::uint32_t bits) {
  std::vector<std::string_view> names;
  for (const auto& [value, name] : kIsaNames) {
    if ((bits & value) != 0) names.push_back(name);
  }
  return names;
}

}  // namespace gossamer
