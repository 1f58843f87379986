// SPDX-License-Identifier: BSD-3-Clause
// Bits of a mask, and the instructions that move values to and from the places of its set bits.
// Included inside an anonymous namespace by translation units that may use VBMI2.
//
// Destinations are zeroed first: on Zen 5 these instructions wait for the old value of their
// destination even where they do not use it.

/// The first `bytes` bytes of a row's bits, at most a word; the rest zero.
template <typename Word>
inline Word load_bits(const std::uint8_t* bits, std::int64_t bytes) {
  Word word = 0;
  if (bytes >= static_cast<std::int64_t>(sizeof(Word))) {
    __builtin_memcpy(&word, bits, sizeof(Word));
  } else {
    for (std::int64_t i = 0; i < bytes; ++i) word |= static_cast<Word>(bits[i]) << (8 * i);
  }
  return word;
}

/// Consecutive words to the places of the set bits, zeros elsewhere.
inline __m512i expand_words(__mmask32 mask, __m512i values) {
  __m512i wide;
  asm("vpxord %0, %0, %0\n\tvpexpandw %2, %0%{%1%}%{z%}" : "=&v"(wide) : "Yk"(mask), "v"(values));
  return wide;
}
inline __m512i expand_bytes(__mmask64 mask, __m512i values) {
  __m512i wide;
  asm("vpxord %0, %0, %0\n\tvpexpandb %2, %0%{%1%}%{z%}" : "=&v"(wide) : "Yk"(mask), "v"(values));
  return wide;
}

/// The elements at the set bits, one behind the other.
inline __m512i compress_doublewords(__mmask16 mask, __m512i values) {
  __m512i packed;
  asm("vpxord %0, %0, %0\n\tvpcompressd %2, %0%{%1%}%{z%}"
      : "=&v"(packed)
      : "Yk"(mask), "v"(values));
  return packed;
}
inline __m512i compress_bytes(__mmask64 mask, __m512i values) {
  __m512i packed;
  asm("vpxord %0, %0, %0\n\tvpcompressb %2, %0%{%1%}%{z%}"
      : "=&v"(packed)
      : "Yk"(mask), "v"(values));
  return packed;
}
inline __m128i compress_sixteen_bytes(__mmask16 mask, __m128i values) {
  __m128i packed;
  asm("vpxord %0, %0, %0\n\tvpcompressb %2, %0%{%1%}%{z%}"
      : "=&v"(packed)
      : "Yk"(mask), "v"(values));
  return packed;
}
