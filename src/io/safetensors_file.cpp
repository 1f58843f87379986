// SPDX-License-Identifier: BSD-3-Clause
// Reading: the file is mapped, the header checked whole before any tensor is touched. The sizes are
// those of the moment of opening; a file that another process cuts short while it is mapped is out
// of scope (the system answers such a read with SIGBUS).
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "gossamer/error.h"
#include "gossamer/safetensors.h"
#include "io/file_descriptor.h"
#include "io/text.h"

namespace gossamer {
namespace {

static_assert(std::endian::native == std::endian::little, "files are little-endian");

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit

[[noreturn]] void refuse(const std::string& path, const std::string& message) {
  throw Error(ErrorCode::kMalformedData, fmt::format("{}: {}", io::shown_name(path), message));
}

class Mapping {
 public:
  Mapping(const io::FileDescriptor& file, std::size_t bytes, const std::string& path)
      : bytes_(bytes) {
    void* start = ::mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
    if (start == MAP_FAILED) io::throw_errno("cannot map", path, errno);
    start_ = static_cast<std::byte*>(start);
    ::madvise(start_, bytes_, MADV_SEQUENTIAL);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() { ::munmap(start_, bytes_); }

  const std::byte* start() const { return start_; }

  // Pages that a neighbour shares are dropped too: the next read brings them back.
  void release(const std::byte* begin, std::size_t bytes) const {
    static const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    const auto offset = static_cast<std::size_t>(begin - start_);
    const std::size_t first = offset / page * page;
    ::madvise(start_ + first, offset + bytes - first, MADV_DONTNEED);
  }

 private:
  std::byte* start_ = nullptr;
  std::size_t bytes_;
};

}  // namespace

struct SafetensorsFile::Impl {
  Impl(const io::FileDescriptor& file, std::size_t bytes, const std::string& path)
      : mapping(file, bytes, path) {}

  Mapping mapping;
  SafetensorsHeader header;
  std::vector<std::size_t> by_name;  // indices of entries in ascending order of name
  const std::byte* data = nullptr;
  std::int64_t data_bytes = 0;
};

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  const io::FileDescriptor file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) io::throw_errno("cannot open", path, errno);
  struct stat status{};
  if (::fstat(file.get(), &status) != 0) io::throw_errno("cannot read", path, errno);
  if (S_ISDIR(status.st_mode)) {
    throw Error(ErrorCode::kIo, fmt::format("cannot read {}: it is a directory; name a file in it",
                                            io::shown_name(path)));
  }
  if (!S_ISREG(status.st_mode)) {
    throw Error(
        ErrorCode::kIo,
        fmt::format("cannot read {}: it is no regular file and cannot be mapped; copy it to one",
                    io::shown_name(path)));
  }
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  if (bytes < kLengthBytes) {
    refuse(path,
           fmt::format("{} bytes are too few for a safetensors file, which begins with an 8-byte "
                       "header length",
                       bytes));
  }
  auto impl = std::make_unique<Impl>(file, bytes, path);
  const std::byte* start = impl->mapping.start();
  std::uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, start, kLengthBytes);
  if (header_bytes > kMaxHeaderBytes) {
    refuse(path,
           fmt::format("header length {} is over the format's limit of {}; this is no safetensors "
                       "file, or a damaged one",
                       header_bytes, kMaxHeaderBytes));
  }
  if (header_bytes > bytes - kLengthBytes) {
    refuse(path,
           fmt::format("header length {} goes past the end of the file of {} bytes; it may be cut "
                       "short, fetch it again",
                       header_bytes, bytes));
  }
  impl->data = start + kLengthBytes + header_bytes;
  impl->data_bytes = static_cast<std::int64_t>(bytes - kLengthBytes - header_bytes);
  const std::string_view json(reinterpret_cast<const char*>(start) + kLengthBytes, header_bytes);
  try {
    impl->header = SafetensorsHeader::parse(json, impl->data_bytes);
  } catch (const Error& error) {
    throw Error(error.code(), fmt::format("{}: {}", io::shown_name(path), error.what()));
  }
  const auto& entries = impl->header.entries;
  impl->by_name.resize(entries.size());
  for (std::size_t i = 0; i < entries.size(); ++i) impl->by_name[i] = i;
  std::sort(impl->by_name.begin(), impl->by_name.end(),
            [&](std::size_t a, std::size_t b) { return entries[a].name < entries[b].name; });
  return SafetensorsFile(std::move(impl));
}

SafetensorsFile::SafetensorsFile(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SafetensorsFile::SafetensorsFile(SafetensorsFile&&) noexcept = default;
SafetensorsFile& SafetensorsFile::operator=(SafetensorsFile&&) noexcept = default;
SafetensorsFile::~SafetensorsFile() = default;

const std::vector<SafetensorsEntry>& SafetensorsFile::entries() const {
  return impl_->header.entries;
}

const std::map<std::string, std::string>& SafetensorsFile::metadata() const {
  return impl_->header.metadata;
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto& entries = impl_->header.entries;
  const auto place = std::lower_bound(
      impl_->by_name.begin(), impl_->by_name.end(), name,
      [&](std::size_t index, std::string_view key) { return entries[index].name < key; });
  if (place == impl_->by_name.end() || entries[*place].name != name) return nullptr;
  return &entries[*place];
}

std::span<const std::byte> SafetensorsFile::bytes(const SafetensorsEntry& entry) const {
  if (entry.begin < 0 || entry.end < entry.begin || entry.end > impl_->data_bytes) {
    throw Error(ErrorCode::kInvalidArgument,
                fmt::format("tensor {}: bytes [{}, {}] are not in this file",
                            io::shown_name(entry.name), entry.begin, entry.end));
  }
  return {impl_->data + entry.begin, static_cast<std::size_t>(entry.end - entry.begin)};
}

void SafetensorsFile::release(const SafetensorsEntry& entry) const {
  const auto range = bytes(entry);
  if (!range.empty()) impl_->mapping.release(range.data(), range.size());
}

}  // namespace gossamer
