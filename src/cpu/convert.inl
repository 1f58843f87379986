// SPDX-License-Identifier: BSD-3-Clause
// A row between dense and packed, portable: no branch depends on the data. Included inside an
// anonymous namespace; the instruction sets replace the loops that they have vectors for.

inline std::int64_t words_of(std::int64_t in) { return (in + 63) / 64; }

inline std::int64_t count_bits(std::uint64_t word) { return __builtin_popcountll(word); }

template <typename Raw>
std::int64_t mark(const std::uint8_t* mask, const void* values, std::uint64_t magnitude,
                  std::int64_t in, std::uint64_t* bits) {
  const auto* const elements = static_cast<const Raw*>(values);
  const auto size = static_cast<Raw>(magnitude);
  std::int64_t count = 0;
  for (std::int64_t first = 0; first < in; first += 64) {
    const std::int64_t width = in - first < 64 ? in - first : 64;
    std::uint64_t word = 0;
    for (std::int64_t i = 0; i < width; ++i) {
      const bool kept = mask != nullptr ? mask[first + i] != 0 : (elements[first + i] & size) != 0;
      word |= static_cast<std::uint64_t>(kept ? 1 : 0) << i;
    }
    bits[first / 64] = word;
    count += count_bits(word);
  }
  return count;
}

template <typename Raw>
void compress(const void* values, std::uint64_t magnitude, const std::uint64_t* kept,
              const std::uint64_t* filled, std::int64_t in, void* to, std::int64_t count) {
  const auto* const elements = static_cast<const Raw*>(values);
  const auto size = static_cast<Raw>(magnitude);
  auto* const stored = static_cast<Raw*>(to);
  std::int64_t done = 0;
  for (std::int64_t i = 0; done < count; ++i) {
    const std::uint64_t place = 1ull << (i % 64);
    const Raw value = i < in && (kept[i / 64] & place) != 0 ? elements[i] : Raw{0};
    // Written whether kept or not: the next one kept writes over it.
    stored[done] = (value & size) != 0 ? value : Raw{0};
    done += (filled[i / 64] & place) != 0 ? 1 : 0;
  }
}

template <typename Raw>
void expand(const void* stored, const std::uint64_t* bits, std::int64_t in, void* values, bool) {
  const auto* from = static_cast<const Raw*>(stored);
  auto* const elements = static_cast<Raw*>(values);
  for (std::int64_t i = 0; i < in; ++i) {
    const bool kept = (bits[i / 64] >> (i % 64) & 1) != 0;
    const Raw value = *from;
    elements[i] = kept ? value : Raw{0};
    from += kept ? 1 : 0;
  }
}

inline void spread(const std::uint64_t* bits, std::int64_t in, std::uint8_t* mask, bool) {
  for (std::int64_t i = 0; i < in; ++i) {
    mask[i] = static_cast<std::uint8_t>(bits[i / 64] >> (i % 64) & 1);
  }
}
