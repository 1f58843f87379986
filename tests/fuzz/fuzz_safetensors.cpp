// SPDX-License-Identifier: BSD-3-Clause
// The file reader, packed weights included: any bytes are refused with an Error, or every tensor
// lies inside the file and every packed weight can be unpacked.
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "gossamer/error.h"
#include "gossamer/packed_io.h"

namespace {

using namespace gossamer;

// Offsets that pass are safe to read: touch the ends of every tensor.
unsigned touch(const SafetensorsFile& file) {
  unsigned sum = 0;
  for (const SafetensorsEntry& entry : file.entries()) {
    const auto bytes = file.bytes(entry);
    if (!bytes.empty())
      sum += std::to_integer<unsigned>(bytes.front()) + std::to_integer<unsigned>(bytes.back());
    if (file.find(entry.name) != &entry) std::abort();
    file.release(entry);
  }
  return sum;
}

void read_weights(const SafetensorsFile& file) {
  for (const std::string& name : packed_names(file)) {
    try {
      const PackedWeight packed = read_packed(file, name);
      const PackedView view = packed.view();
      // A few bytes may stand for a huge empty weight.
      if (view.in() > 0 && view.batch() * view.out() > (1 << 20) / view.in()) continue;
      const std::int64_t count = view.batch() * view.out() * view.in();
      std::vector<std::byte> dense(static_cast<std::size_t>(count * dtype_bytes(view.dtype())));
      unpack(view, contiguous_view(static_cast<void*>(dense.data()), view.dtype(), view.out(),
                                   view.in(), view.batch()));
    } catch (const Error&) {
      continue;
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const int fd = ::memfd_create("fuzz", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  if (::ftruncate(fd, 0) != 0 || ::pwrite(fd, data, size, 0) != static_cast<ssize_t>(size))
    return -1;
  try {
    const auto file = SafetensorsFile::open(path);
    static volatile unsigned sink;
    sink = touch(file);
    read_weights(file);
  } catch (const Error&) {
    return 0;
  }
  return 0;
}
