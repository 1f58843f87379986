// SPDX-License-Identifier: BSD-3-Clause
#include "gossamer/safetensors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gossamer/error.h"
#include "gossamer/mask.h"
#include "gossamer/packed_io.h"

namespace gossamer {
namespace {

namespace fs = std::filesystem;

/// A directory of its own for each test.
class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "gossamer-test-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::size_t file_count() const {
    return static_cast<std::size_t>(
        std::distance(fs::directory_iterator(folder_), fs::directory_iterator()));
  }

  fs::path folder_;
};

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& values) {
  return std::as_bytes(std::span(values));
}

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

void write_text(const fs::path& path, std::string_view text) {
  std::ofstream file(path, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
}

/// A file of this header and data.
std::string framed(std::string_view header, std::string_view data) {
  std::string text(8, '\0');
  const std::uint64_t length = header.size();
  std::memcpy(text.data(), &length, 8);
  return text.append(header).append(data);
}

/// The error that `body` throws; fails the test where it throws none.
Error error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error was thrown";
  return Error(ErrorCode::kInvalidArgument, "");
}

struct Attack {
  std::string file;
  std::string message;
};

/// The rows of tests/attacks/README.md.
std::vector<Attack> attacks() {
  std::ifstream table(fs::path(GOSSAMER_ATTACKS) / "README.md");
  std::vector<Attack> rows;
  for (std::string line; std::getline(table, line);) {
    if (!line.starts_with("| `")) continue;
    const std::size_t file_end = line.find('`', 3);
    const std::size_t message_end = line.rfind('`');
    const std::size_t message_begin = line.rfind('`', message_end - 1) + 1;
    rows.push_back(
        {line.substr(3, file_end - 3), line.substr(message_begin, message_end - message_begin)});
  }
  return rows;
}

TEST_F(Safetensors, RefusesEveryAttackWithItsMessage) {
  const auto rows = attacks();
  std::size_t on_disk = 0;
  for (const auto& entry : fs::recursive_directory_iterator(GOSSAMER_ATTACKS)) {
    on_disk += entry.path().extension() == ".safetensors" ? 1u : 0u;
  }
  EXPECT_EQ(rows.size(), on_disk) << "README.md does not list every file";
  ASSERT_GT(rows.size(), 100u);
  for (const auto& [name, message] : rows) {
    const std::string file = (fs::path(GOSSAMER_ATTACKS) / name).string();
    if (name.starts_with("packed/")) {
      const auto opened = SafetensorsFile::open(file);
      const Error error = error_of([&] {
        for (const auto& weight : packed_names(opened)) read_packed(opened, weight);
      });
      EXPECT_EQ(error.code(), ErrorCode::kMalformedData) << name;
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos)
          << name << ": " << error.what();
    } else {
      const Error error = error_of([&] { SafetensorsFile::open(file); });
      EXPECT_EQ(error.code(), ErrorCode::kMalformedData) << name;
      EXPECT_NE(std::string(error.what()).find(message), std::string::npos)
          << name << ": " << error.what();
    }
  }
}

TEST_F(Safetensors, RefusesMalformedPatterns) {
  std::ifstream list(fs::path(GOSSAMER_ATTACKS) / "patterns.txt");
  int count = 0;
  for (std::string line; std::getline(list, line); ++count) {
    const Error error = error_of([&] { Pattern::parse(line); });
    EXPECT_EQ(error.code(), ErrorCode::kInvalidArgument) << line;
  }
  EXPECT_GT(count, 40);
  error_of([] { Pattern::parse(""); });
  error_of([] { Pattern::parse(std::string_view("2:4\0", 4)); });
  error_of([] { Pattern::parse(std::string(1 << 20, '9')); });
}

TEST_F(Safetensors, ReadsWhatTheFormatAllows) {
  // Scalars, empty tensors, an empty name, escapes, trailing spaces, entries out of order, sub-byte
  // types.
  const std::string header = R"({"__metadata__":{"k\u0041":"ü"},)"
                             R"("b":{"dtype":"F4","shape":[2,2],"data_offsets":[4,6]},)"
                             R"("":{"dtype":"I8","shape":[2,0,3],"data_offsets":[4,4]},)"
                             R"("s":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}    )";
  write_text(path("a"), framed(header, std::string_view("\0\0\x80\x3f\x12\x34", 6)));
  const auto file = SafetensorsFile::open(path("a"));
  ASSERT_EQ(file.entries().size(), 3u);
  EXPECT_EQ(file.entries()[0].name, "s");
  EXPECT_EQ(file.entries()[1].name, "");
  EXPECT_EQ(file.entries()[2].name, "b");
  EXPECT_EQ(file.metadata().at("kA"), "ü");
  EXPECT_EQ(file.find("missing"), nullptr);
  ASSERT_NE(file.find(""), nullptr);
  EXPECT_TRUE(file.bytes(*file.find("")).empty());
  float one = 0;
  std::memcpy(&one, file.bytes(*file.find("s")).data(), 4);
  EXPECT_EQ(one, 1.0f);
  file.release(*file.find("s"));
  std::memcpy(&one, file.bytes(*file.find("s")).data(), 4);
  EXPECT_EQ(one, 1.0f);
  error_of([&] { file.bytes({"x", "I8", {7}, 0, 7}); });
}

TEST_F(Safetensors, ReadsAFileWithoutTensors) {
  write_text(path("a"), framed("{}", ""));
  EXPECT_TRUE(SafetensorsFile::open(path("a")).entries().empty());
}

TEST_F(Safetensors, EveryTruncationOfAFileIsRefused) {
  const std::string good =
      framed(R"({"a":{"dtype":"I8","shape":[3],"data_offsets":[0,3]}})", "abc");
  write_text(path("good"), good);
  EXPECT_NO_THROW(SafetensorsFile::open(path("good")));
  for (std::size_t length = 0; length < good.size(); ++length) {
    write_text(path("cut"), good.substr(0, length));
    EXPECT_EQ(error_of([&] { SafetensorsFile::open(path("cut")); }).code(),
              ErrorCode::kMalformedData)
        << length;
  }
}

TEST_F(Safetensors, NamesWhatCannotBeOpened) {
  const Error missing = error_of([&] { SafetensorsFile::open(path("missing")); });
  EXPECT_EQ(missing.code(), ErrorCode::kIo);
  EXPECT_NE(std::string(missing.what()).find("No such file"), std::string::npos);
  const Error folder = error_of([&] { SafetensorsFile::open(folder_.string()); });
  EXPECT_EQ(folder.code(), ErrorCode::kIo);
  EXPECT_NE(std::string(folder.what()).find("directory"), std::string::npos);
  EXPECT_EQ(error_of([] { SafetensorsFile::open("/dev/null"); }).code(), ErrorCode::kIo);
}

TEST_F(Safetensors, WrittenFilesReadBackAligned) {
  std::mt19937 random(1);
  const std::vector<std::pair<std::string, int>> words{{"F64", 8}, {"F32", 4},  {"BF16", 2},
                                                       {"U8", 1},  {"BOOL", 1}, {"I64", 8}};
  struct Tensor {
    std::string name;
    std::string dtype;
    std::vector<std::int64_t> shape;
    std::string bytes;
  };
  std::vector<Tensor> tensors;
  for (int i = 0; i < 60; ++i) {
    const auto& [dtype, width] = words[random() % words.size()];
    const std::int64_t rows = random() % 4;
    const std::int64_t cols = random() % 7;
    std::string bytes(static_cast<std::size_t>(rows * cols * width), '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    tensors.push_back({"t\"\n" + std::to_string(i), dtype, {rows, cols}, bytes});
  }
  std::int64_t capacity = SafetensorsWriter::header_bytes("keyvalue", 0);
  for (const auto& tensor : tensors) capacity += SafetensorsWriter::header_bytes(tensor.name, 2);
  SafetensorsWriter writer(path("a"), capacity);
  writer.set_metadata("key", "value");
  for (const auto& tensor : tensors) {
    writer.add(tensor.name, tensor.dtype, tensor.shape, std::as_bytes(std::span(tensor.bytes)));
  }
  writer.finish();
  EXPECT_EQ(file_count(), 1u);

  const auto file = SafetensorsFile::open(path("a"));
  EXPECT_EQ(file.metadata().at("key"), "value");
  ASSERT_EQ(file.entries().size(), tensors.size());
  for (const auto& tensor : tensors) {
    const auto* entry = file.find(tensor.name);
    ASSERT_NE(entry, nullptr);
    EXPECT_EQ(entry->shape, tensor.shape);
    EXPECT_EQ(entry->dtype, tensor.dtype);
    const auto bytes = file.bytes(*entry);
    ASSERT_EQ(bytes.size(), tensor.bytes.size());
    EXPECT_TRUE(bytes.empty() || std::memcmp(bytes.data(), tensor.bytes.data(), bytes.size()) == 0);
    for (const auto& [dtype, width] : words) {
      if (dtype == tensor.dtype) {
        EXPECT_EQ(reinterpret_cast<std::uintptr_t>(bytes.data()) % static_cast<unsigned>(width), 0u)
            << dtype;
      }
    }
  }
}

TEST_F(Safetensors, WriterRefusesWhatAFileCannotHold) {
  const std::vector<float> values{1, 2};
  SafetensorsWriter writer(path("a"), SafetensorsWriter::header_bytes("a", 1));
  error_of([&] { writer.add("a", "F32", {3}, bytes_of(values)); });
  error_of([&] { writer.add("a", "F31", {2}, bytes_of(values)); });
  error_of([&] { writer.add("__metadata__", "F32", {2}, bytes_of(values)); });
  error_of([&] { writer.add("\xff", "F32", {2}, bytes_of(values)); });
  writer.add("a", "F32", {2}, bytes_of(values));
  error_of([&] { writer.add("a", "F32", {2}, bytes_of(values)); });
  const Error full = error_of([&] {
    for (int i = 0; i < 100; ++i) writer.add("b" + std::to_string(i), "F32", {2}, bytes_of(values));
  });
  EXPECT_NE(std::string(full.what()).find("header_capacity"), std::string::npos);
  error_of([&] { SafetensorsWriter(path("b"), -1); });
  error_of([&] { SafetensorsWriter(path("b"), 100'000'000); });
}

TEST_F(Safetensors, AnUnfinishedWriterLeavesTheOldFile) {
  write_text(path("a"), "old");
  {
    SafetensorsWriter writer(path("a"), 1000);
    writer.add("a", "U8", {3}, bytes_of(std::vector<char>{'a', 'b', 'c'}));
  }
  EXPECT_EQ(read_text(path("a")), "old");
  EXPECT_EQ(file_count(), 1u);
}

TEST_F(Safetensors, WriterKeepsPermissionsAndFollowsLinks) {
  write_text(path("real"), "old");
  ASSERT_EQ(::chmod(path("real").c_str(), 0640), 0);
  fs::create_symlink("real", path("link"));
  SafetensorsWriter writer(path("link"), 100);
  writer.finish();
  EXPECT_TRUE(fs::is_symlink(path("link")));
  struct stat status{};
  ASSERT_EQ(::stat(path("real").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777u, 0640u);
  EXPECT_TRUE(SafetensorsFile::open(path("real")).entries().empty());
  EXPECT_EQ(file_count(), 2u);
}

TEST_F(Safetensors, WriterNamesBadTargets) {
  EXPECT_EQ(error_of([&] { SafetensorsWriter(path("no/such/a"), 100); }).code(), ErrorCode::kIo);
  EXPECT_EQ(error_of([&] { SafetensorsWriter(folder_.string(), 100); }).code(), ErrorCode::kIo);
  EXPECT_EQ(error_of([&] { SafetensorsWriter("/dev/null", 100); }).code(), ErrorCode::kIo);
  EXPECT_EQ(error_of([&] { SafetensorsWriter(path("x") + "/", 100); }).code(), ErrorCode::kIo);
}

TEST_F(Safetensors, AFullDiskIsAnErrorAndTheOldFileStays) {
  write_text(path("a"), "old");
  // The file size limit stands in for a full disk: the same write(2) fails, with EFBIG.
  struct rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const struct rlimit small{1 << 20, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::vector<char> values(std::size_t{2} << 20);
  for (const std::size_t odd : {0u, 1u}) {  // in place, and waiting in the scratch file
    const Error error = error_of([&] {
      SafetensorsWriter writer(path("a"), 1000);
      writer.add("a", "U8", {static_cast<std::int64_t>(values.size() - odd)},
                 bytes_of(values).subspan(odd));
      writer.finish();
    });
    EXPECT_EQ(error.code(), ErrorCode::kIo);
    EXPECT_NE(std::string(error.what()).find("File too large"), std::string::npos) << error.what();
  }
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_text(path("a")), "old");
  EXPECT_EQ(file_count(), 1u);
}

TEST_F(Safetensors, PackedWeightsComeBackBitEqual) {
  struct Case {
    const char* pattern;
    DType dtype;
    std::int64_t batch, out, in;
    bool transposed;
  };
  const std::vector<Case> cases{
      {"unstructured:0.7", DType::kFloat32, 1, 13, 29, false},
      {"unstructured:0.7", DType::kFloat64, 3, 5, 17, true},
      {"2:4", DType::kFloat32, 1, 7, 30, false},
      {"4:8", DType::kFloat32, 2, 3, 40, false},
      {"block:4x8:0.5", DType::kFloat32, 1, 10, 33, false},
      {"block:4x4:0.5", DType::kFloat64, 2, 8, 16, true},
      {"fanin:0.8", DType::kFloat32, 1, 9, 31, false},
      {"fanin:0.8", DType::kFloat32, 2, 4, 12, false},
      {"2:4", DType::kFloat32, 1, 0, 8, false},
      {"unstructured:0.5", DType::kFloat32, 1, 4, 0, false},
  };
  std::mt19937 random(2);
  std::int64_t capacity = 0;
  std::vector<PackedWeight> weights;
  std::vector<std::string> names;
  for (const Case& c : cases) {
    const auto pattern = Pattern::parse(c.pattern);
    const auto count = static_cast<std::size_t>(c.batch * c.out * c.in);
    std::vector<double> doubles(count);
    std::vector<float> floats(count);
    for (std::size_t i = 0; i < count; ++i) {
      floats[i] = static_cast<float>(random() % 2000) - 999.5f;
      doubles[i] = static_cast<double>(floats[i]);
    }
    const void* data = c.dtype == DType::kFloat64 ? static_cast<const void*>(doubles.data())
                                                  : static_cast<const void*>(floats.data());
    std::vector<std::uint8_t> mask(count);
    const auto values = contiguous_view(data, c.dtype, c.out, c.in, c.batch);
    const auto view =
        contiguous_view(static_cast<void*>(mask.data()), DType::kBool, c.out, c.in, c.batch);
    magnitude_mask(values, pattern, Scope::kTensor, view);
    const auto kept = read_only(view);
    PackOptions options;
    options.transposed = c.transposed;
    weights.push_back(pack(values, &kept, pattern, format_for(pattern), options));
    names.push_back("w.\"" + std::to_string(names.size()));
    capacity += packed_header_bytes(names.back());
  }
  SafetensorsWriter writer(path("a"), capacity);
  for (std::size_t i = 0; i < weights.size(); ++i) write_packed(writer, names[i], weights[i]);
  writer.finish();

  const auto file = SafetensorsFile::open(path("a"));
  EXPECT_EQ(packed_names(file).size(), cases.size());
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const PackedWeight back = read_packed(file, names[i]);
    ASSERT_EQ(back.size_bytes(), weights[i].size_bytes()) << cases[i].pattern;
    EXPECT_EQ(
        std::memcmp(back.data(), weights[i].data(), static_cast<std::size_t>(back.size_bytes())), 0)
        << cases[i].pattern;
  }
  EXPECT_EQ(error_of([&] { read_packed(file, "missing"); }).code(), ErrorCode::kInvalidArgument);
}

// Put together by tests/fuzz/make_seeds.py from what docs/formats.md says about memory.
TEST_F(Safetensors, DocumentedBlocksInMemoryAreValid) {
  int count = 0;
  for (const auto& entry : fs::directory_iterator(GOSSAMER_SEEDS "/fuzz_packed")) {
    const std::string bytes = read_text(entry.path());
    const std::unique_ptr<std::byte, decltype(&std::free)> block(
        static_cast<std::byte*>(std::aligned_alloc(64, bytes.size())), &std::free);
    std::memcpy(block.get(), bytes.data(), bytes.size());
    const auto view = PackedView::open(block.get(), static_cast<std::int64_t>(bytes.size()));
    EXPECT_NO_THROW(validate(view)) << entry.path();
    ++count;
  }
  EXPECT_EQ(count, 5);
}

TEST_F(Safetensors, DtypeWordsGoBothWays) {
  for (int i = 0; i <= static_cast<int>(DType::kInt64); ++i) {
    const auto dtype = static_cast<DType>(i);
    ASSERT_FALSE(safetensors_word(dtype).empty()) << i;
    EXPECT_EQ(dtype_of_word(safetensors_word(dtype)), dtype);
  }
  EXPECT_EQ(dtype_of_word("C64"), std::nullopt);
}

}  // namespace
}  // namespace gossamer
