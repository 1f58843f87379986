// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/pattern.h"

#include <bit>
#include <charconv>
#include <cmath>
#include <system_error>
#include <vector>

#include "core/fail.h"
#include "core/pattern_check.h"

namespace gossamer {
namespace {

using detail::fail;
using detail::kMaxPatternSide;

constexpr std::string_view kGrammar =
    "expected unstructured:S, N:M, block:RxC:S, vnm:V:N:M or fanin:S, for example "
    "unstructured:0.9, "
    "2:4, block:64x64:0.8, vnm:64:2:8, fanin:0.9";

/// The text as a message may show it: short and printable.
std::string shown(std::string_view text) {
  constexpr std::size_t kLongest = 60;
  std::string result;
  for (const char c : text.substr(0, kLongest)) {
    result.push_back(c >= ' ' && c <= '~' ? c : '?');
  }
  return text.size() > kLongest ? result + "…" : result;
}

[[noreturn]] void refuse(std::string_view text, std::string_view why) {
  fail(ErrorCode::kInvalidArgument, "pattern '{}': {}; {}", shown(text), why, kGrammar);
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (;;) {
    const std::size_t end = text.find(separator);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

template <typename T>
bool read_number(std::string_view text, T& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc{} && end == text.data() + text.size();
}

std::int32_t read_integer(std::string_view whole, std::string_view part) {
  std::int32_t value = 0;
  if (!read_number(part, value)) {
    refuse(whole, fmt::format("'{}' is not a whole number", shown(part)));
  }
  return value;
}

double read_sparsity(std::string_view whole, std::string_view part) {
  double value = 0.0;
  if (!read_number(part, value)) {
    refuse(whole, fmt::format("'{}' is not a fraction of zeros", shown(part)));
  }
  return value;
}

/// The fraction after `head` parts; without one any number of zeros will do.
double optional_sparsity(std::string_view whole, const std::vector<std::string_view>& parts,
                         std::size_t head) {
  if (parts.size() == head) return 0.0;
  if (parts.size() != head + 1) refuse(whole, "too many or too few parts");
  return read_sparsity(whole, parts[head]);
}

Pattern parse_block(std::string_view text, const std::vector<std::string_view>& parts) {
  if (parts.size() < 2) refuse(text, "the block size RxC is missing");
  const std::vector<std::string_view> sides = split(parts[1], 'x');
  if (sides.size() != 2) refuse(text, fmt::format("'{}' is not a block size RxC", shown(parts[1])));
  return Pattern::block(read_integer(text, sides[0]), read_integer(text, sides[1]),
                        optional_sparsity(text, parts, 2));
}

Pattern parse_fields(std::string_view text) {
  const std::vector<std::string_view> parts = split(text, ':');
  if (parts[0] == "unstructured") return Pattern::unstructured(optional_sparsity(text, parts, 1));
  if (parts[0] == "fanin") return Pattern::fan_in(optional_sparsity(text, parts, 1));
  if (parts[0] == "block") return parse_block(text, parts);
  if (parts[0] == "vnm") {
    if (parts.size() != 4) refuse(text, "vnm takes three numbers V:N:M");
    return Pattern::vnm(read_integer(text, parts[1]), read_integer(text, parts[2]),
                        read_integer(text, parts[3]));
  }
  if (parts[0] == "transposable") {
    refuse(text,
           "it is for pruning (gossamer prune, sparsifiers in Python); a weight that has it "
           "is verified, packed and run as N:M");
  }
  if (parts.size() != 2) refuse(text, "no pattern has this form");
  return Pattern::nm(read_integer(text, parts[0]), read_integer(text, parts[1]));
}

/// A factory's last step: refuse what pattern_fault() finds, by the pattern's own text.
Pattern checked(const Pattern& pattern) {
  const std::string fault = detail::pattern_fault(pattern);
  if (!fault.empty()) refuse(pattern.to_string(), fault);
  return pattern;
}

std::string sparsity_suffix(double sparsity) {
  return sparsity == 0.0 ? std::string() : fmt::format(":{}", sparsity);
}

bool in_side_range(std::int32_t value) { return value >= 1 && value <= kMaxPatternSide; }

/// The sparsity that follows from N and M.
double ratio_sparsity(std::int32_t n, std::int32_t m) { return m == 0 ? 0.0 : 1.0 - double(n) / m; }

std::string nm_fault(const Pattern& p) {
  if (p.m < 1 || p.m > 64 || !std::has_single_bit(static_cast<std::uint32_t>(p.m))) {
    return fmt::format("M is {}, accepted are the powers of two from 1 to 64", p.m);
  }
  if (p.n < 1 || p.n > p.m) return fmt::format("N is {}, accepted is 1 to M = {}", p.n, p.m);
  return {};
}

std::string vnm_fault(const Pattern& p) {
  if (!in_side_range(p.v)) {
    return fmt::format("V is {}, accepted is 1 to {}", p.v, kMaxPatternSide);
  }
  if (p.m < detail::kVnmLiveColumns || p.m > kMaxPatternSide) {
    return fmt::format("M is {}, accepted is {} to {}", p.m, detail::kVnmLiveColumns,
                       kMaxPatternSide);
  }
  if (p.n < 1 || p.n > detail::kVnmLiveColumns) {
    return fmt::format("N is {}, accepted is 1 to {}", p.n, detail::kVnmLiveColumns);
  }
  return {};
}

}  // namespace

std::string detail::pattern_fault(const Pattern& p) {
  using Kind = Pattern::Kind;
  if (p.kind > Kind::kFanIn) return fmt::format("no pattern has the number {}", int(p.kind));
  if (!(p.sparsity >= 0.0 && p.sparsity <= 1.0)) {
    return fmt::format("the fraction of zeros is {}, accepted is 0 to 1", p.sparsity);
  }
  const bool has_nm = p.kind == Kind::kNm || p.kind == Kind::kVnm;
  const bool has_block = p.kind == Kind::kBlock;
  if ((!has_nm && (p.n != 0 || p.m != 0)) || (p.kind != Kind::kVnm && p.v != 0) ||
      (!has_block && (p.block_rows != 0 || p.block_cols != 0))) {
    return "it has numbers that its kind does not use";
  }
  if (has_block && !(in_side_range(p.block_rows) && in_side_range(p.block_cols))) {
    return fmt::format("the block is {}x{}, accepted are sides from 1 to {}", p.block_rows,
                       p.block_cols, kMaxPatternSide);
  }
  if (!has_nm) return {};
  std::string fault = p.kind == Kind::kNm ? nm_fault(p) : vnm_fault(p);
  if (fault.empty() && p.sparsity != ratio_sparsity(p.n, p.m)) {
    return fmt::format("the fraction of zeros is {}, but N and M say {}", p.sparsity,
                       ratio_sparsity(p.n, p.m));
  }
  return fault;
}

Pattern Pattern::parse(std::string_view text) {
  try {
    return parse_fields(text);
  } catch (const Error& error) {
    // The factories quote their own spelling; say the caller's instead where they differ.
    if (std::string_view(error.what()).find(shown(text)) != std::string_view::npos) throw;
    fail(ErrorCode::kInvalidArgument, "pattern '{}': {}", shown(text), error.what());
  }
}

Pattern Pattern::unstructured(double sparsity) {
  Pattern p;
  p.sparsity = sparsity + 0.0;  // −0 becomes 0
  return checked(p);
}

Pattern Pattern::nm(int n, int m) {
  Pattern p;
  p.kind = Kind::kNm;
  p.n = n;
  p.m = m;
  const std::string fault = nm_fault(p);
  if (!fault.empty()) refuse(p.to_string(), fault);
  p.sparsity = ratio_sparsity(n, m);
  return p;
}

Pattern Pattern::block(int rows, int cols, double sparsity) {
  Pattern p;
  p.kind = Kind::kBlock;
  p.block_rows = rows;
  p.block_cols = cols;
  p.sparsity = sparsity + 0.0;
  return checked(p);
}

Pattern Pattern::vnm(int v, int n, int m) {
  Pattern p;
  p.kind = Kind::kVnm;
  p.v = v;
  p.n = n;
  p.m = m;
  const std::string fault = vnm_fault(p);
  if (!fault.empty()) refuse(p.to_string(), fault);
  p.sparsity = ratio_sparsity(n, m);
  return p;
}

Pattern Pattern::fan_in(double sparsity) {
  Pattern p;
  p.kind = Kind::kFanIn;
  p.sparsity = sparsity + 0.0;
  return checked(p);
}

std::string Pattern::to_string() const {
  switch (kind) {
    case Kind::kNm:
      return fmt::format("{}:{}", n, m);
    case Kind::kBlock:
      return fmt::format("block:{}x{}{}", block_rows, block_cols, sparsity_suffix(sparsity));
    case Kind::kVnm:
      return fmt::format("vnm:{}:{}:{}", v, n, m);
    case Kind::kFanIn:
      return "fanin" + sparsity_suffix(sparsity);
    case Kind::kUnstructured:
      break;
  }
  return "unstructured" + sparsity_suffix(sparsity);
}

std::int64_t dropped_count(double sparsity, std::int64_t count) {
  return static_cast<std::int64_t>(std::floor(sparsity * static_cast<double>(count) + 0.5));
}

}  // namespace gossamer
