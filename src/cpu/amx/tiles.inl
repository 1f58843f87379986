// SPDX-License-Identifier: BSD-3-Clause
// The tile registers of AMX: eight of 16 rows of 64 bytes. Included inside an anonymous namespace.
// Every operation names its registers as template arguments, because the instructions do.
//
// The products, for rows i and columns j of 32 bits:
//
//   dot_bf16   C[i][j] += Σ A[i][2k + h] · B[k][2j + h]    float32 sums of bfloat16, h = 0, 1
//   dot_int8   C[i][j] += Σ A[i][4k + h] · B[k][4j + h]    32-bit sums of signed bytes, h = 0 to 3

struct Tiles {
  /// All eight registers at their full size, zero.
  static void configure() {
    struct alignas(64) Configuration {
      std::uint8_t palette = 1;
      std::uint8_t start_row = 0;
      std::uint8_t reserved[14] = {};
      std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    };
    static_assert(sizeof(Configuration) == 64);
    const Configuration configuration;
    asm volatile("ldtilecfg %0" ::"m"(configuration));
  }

  /// Back to the state in which the operating system saves nothing.
  static void release() { asm volatile("tilerelease"); }

  template <int tile>
  static void zero() {
    asm volatile("tilezero %%tmm%c0" ::"i"(tile));
  }

  template <int tile>
  static void load(const void* from, std::int64_t row_bytes) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(row_bytes), "i"(tile) : "memory");
  }

  template <int tile>
  static void store(void* to, std::int64_t row_bytes) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(row_bytes), "i"(tile) : "memory");
  }

  template <int sum, int left, int right>
  static void dot_bf16() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(left), "i"(right));
  }

  template <int sum, int left, int right>
  static void dot_int8() {
    asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sum), "i"(left), "i"(right));
  }
};
