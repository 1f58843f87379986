// SPDX-License-Identifier: BSD-3-Clause
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "fake_kernels.h"
#include "plan/cache.h"

namespace gossamer {
namespace {

namespace fs = std::filesystem;
using test::constant;
using test::fake_dense;
using test::fake_weight;
using test::fakes;

class PlanCache : public ::testing::Test {
 protected:
  void SetUp() override {
    test::reset_fakes();
    std::string name = (fs::temp_directory_path() / "gossamer-plan-XXXXXX").string();
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder_ = name;
    options_.cache = file().string();
    options_.seconds_budget = 0.02;
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path file() const { return folder_ / "plans.json"; }

  Plan plan(const PackedWeight& weight = fake_weight()) const {
    return plan_linear(weight, {}, host_machine(), dense_, options_);
  }

  std::string text() const {
    std::ostringstream out;
    out << std::ifstream(file()).rdbuf();
    return out.str();
  }

  void write(const std::string& contents) const { std::ofstream(file()) << contents; }

  fs::path folder_;
  DensePeer dense_ = fake_dense(constant(100e-6));
  PlanOptions options_;
};

TEST_F(PlanCache, TheSecondPlanComesFromTheFileUnchanged) {
  const Plan first = plan();
  EXPECT_FALSE(first.from_cache);
  const int calls = fakes()[0].calls + fakes()[1].calls + fakes()[2].calls;
  const Plan second = plan();
  EXPECT_TRUE(second.from_cache);
  EXPECT_EQ(fakes()[0].calls + fakes()[1].calls + fakes()[2].calls, calls) << "nothing is timed";
  EXPECT_EQ(second.sparse, first.sparse);
  EXPECT_EQ(second.layout, first.layout);
  EXPECT_EQ(second.reason, first.reason);
  for (std::size_t b = 0; b < first.choices.size(); ++b) {
    EXPECT_EQ(second.choices[b].kernel, first.choices[b].kernel);
    EXPECT_EQ(second.choices[b].tokens, first.choices[b].tokens);
    EXPECT_DOUBLE_EQ(second.choices[b].milliseconds, first.choices[b].milliseconds);
    EXPECT_DOUBLE_EQ(second.choices[b].dense_milliseconds, first.choices[b].dense_milliseconds);
    EXPECT_EQ(second.choices[b].reason, first.choices[b].reason);
  }
}

TEST_F(PlanCache, TwoLayoutsAreKept) {
  const LinearDesc desc = describe(fake_weight().view());
  Plan two;
  two.sparse = true;
  two.layout = Layout::kBitmask;
  two.second = Layout::kKcsr64;
  for (std::size_t b = 0; b < two.choices.size(); ++b) {
    two.choices[b].kernel = b < 2 ? "fake_bitmask" : "fake_kcsr64_fast";
  }
  plan::write_cached_plan(file(), "key", two);
  const std::optional<Plan> kept = plan::read_cached_plan(file(), "key", desc, host_machine());
  ASSERT_TRUE(kept.has_value());
  EXPECT_EQ(kept->layout, two.layout);
  EXPECT_EQ(kept->second, two.second);
  // A row of a layout that the plan does not hold.
  two.second.reset();
  plan::write_cached_plan(file(), "key", two);
  EXPECT_FALSE(plan::read_cached_plan(file(), "key", desc, host_machine()).has_value());
  two.second = two.layout;
  plan::write_cached_plan(file(), "key", two);
  EXPECT_FALSE(plan::read_cached_plan(file(), "key", desc, host_machine()).has_value());
}

TEST_F(PlanCache, PlainVerdictsAreKeptToo) {
  dense_ = fake_dense(constant(5e-6));
  EXPECT_FALSE(plan().sparse);
  const Plan again = plan();
  EXPECT_TRUE(again.from_cache);
  EXPECT_FALSE(again.sparse);
}

TEST_F(PlanCache, OffKeepsNothing) {
  options_.cache = "off";
  plan();
  EXPECT_FALSE(plan().from_cache);
  EXPECT_TRUE(fs::is_empty(folder_));
}

TEST_F(PlanCache, AModelNeitherReadsNorWrites) {
  options_.mode = PlanMode::kModel;
  plan();
  EXPECT_FALSE(fs::exists(file()));
}

TEST_F(PlanCache, ADirectoryHoldsTheNamedFile) {
  options_.cache = folder_.string();
  plan();
  EXPECT_TRUE(fs::exists(folder_ / "plans-v1.json"));
}

TEST_F(PlanCache, EveryFieldOfTheKeyMatters) {
  const LinearDesc desc = describe(fake_weight());
  const Machine& machine = host_machine();
  std::vector<std::string> keys;
  const auto add = [&](const LinearDesc& d, const Machine& m, const DensePeer& peer,
                       const PlanOptions& o, const std::string& forced = "") {
    keys.push_back(plan::cache_key(d, m, peer, o, forced));
  };
  const auto with_desc = [&](auto change) {
    LinearDesc d = desc;
    change(d);
    add(d, machine, dense_, options_);
  };
  const auto with_machine = [&](auto change) {
    Machine m = machine;
    change(m);
    add(desc, m, dense_, options_);
  };
  const auto with_options = [&](auto change) {
    PlanOptions o = options_;
    change(o);
    add(desc, machine, dense_, o);
  };
  add(desc, machine, dense_, options_);
  with_desc([](LinearDesc& d) { d.batch = 2; });
  with_desc([](LinearDesc& d) { d.out += 1; });
  with_desc([](LinearDesc& d) { d.in += 1; });
  with_desc([](LinearDesc& d) { d.pattern = Pattern::nm(2, 4); });
  with_desc([](LinearDesc& d) { d.density += 0.02; });
  with_desc([](LinearDesc& d) { d.weight_dtype = DType::kFloat16; });
  with_desc([](LinearDesc& d) { d.activation_dtype = DType::kFloat16; });
  with_desc([](LinearDesc& d) { d.epilogue.bias = true; });
  with_desc([](LinearDesc& d) { d.epilogue.residual = true; });
  with_desc([](LinearDesc& d) { d.epilogue.activation = Activation::kRelu; });
  with_machine([](Machine& m) { m.name += "x"; });
  with_machine([](Machine& m) { m.processor += "x"; });
  with_machine([](Machine& m) { m.isa ^= kIsaAvx2; });
  with_machine([](Machine& m) { m.cores += 1; });
  with_machine([](Machine& m) { m.l2_bytes += 1; });
  with_options([](PlanOptions& o) { o.parallel.threads = 2; });
  with_options([](PlanOptions& o) { o.memory = MemoryMode::kSpeed; });
  with_options([](PlanOptions& o) { o.call_overhead = 3e-6; });
  with_options([](PlanOptions& o) { o.seconds_budget = 1.0; });
  add(desc, machine, dense_, options_, "fake_bitmask");
  DensePeer other = dense_;
  other.name = "another";
  add(desc, machine, other, options_);
  add(desc, machine, {}, options_);
  register_linear_kernel([] {
    LinearKernel kernel = test::fake_kernel<0>();
    kernel.name = "test_changes_the_table";
    kernel.refuses = [](const LinearDesc&) { return std::string("never computes"); };
    return kernel;
  }());
  add(desc, machine, dense_, options_);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) EXPECT_NE(keys[i], keys[j]) << i << " and " << j;
  }
}

TEST_F(PlanCache, DensitiesThatAgreeInTwoDigitsShareAVerdict) {
  const auto key = [&](double density) {
    LinearDesc desc = describe(fake_weight());
    desc.pattern = Pattern::unstructured(1.0 - density);
    desc.density = density;
    return plan::cache_key(desc, host_machine(), dense_, options_, "");
  };
  EXPECT_EQ(key(0.0988), key(0.0991));
  EXPECT_EQ(key(0.504), key(0.496));
  EXPECT_NE(key(0.50), key(0.51));
  EXPECT_NE(key(0.010), key(0.015)) << "half as many non-zeros again is another weight";
}

TEST_F(PlanCache, FilesWithoutSenseAreIgnoredAndRewritten) {
  plan();
  const std::string good = text();
  std::vector<std::string> broken{"",
                                  "not json",
                                  good.substr(0, good.size() / 2),
                                  "[]",
                                  "{\"version\": 3, \"plans\": {}}",
                                  "{\"version\": 2}",
                                  "{\"version\": 2, \"plans\": []}",
                                  std::string(100000, '['),
                                  std::string("\0\xff\xfe", 3)};
  const auto replaced = [&](const std::string& from, const std::string& to) {
    std::string changed = good;
    for (std::size_t at = 0; (at = changed.find(from, at)) != std::string::npos;) {
      changed.replace(at, from.size(), to);
      at += to.size();
    }
    EXPECT_NE(changed, good) << from;
    broken.push_back(changed);
  };
  replaced("\"kernel\": \"fake_", "\"kernel\": \"gone_");       // rows that do not exist
  replaced("\"tokens\": ", "\"tokens\": \"many\", \"was\": ");  // another type
  replaced("\"choices\"", "\"chosen\"");                        // a missing field
  replaced("\"sparse\": true", "\"sparse\": false");            // contradicts its choices
  replaced("\"layout\": \"", "\"layout\": \"un");               // an unknown layout
  for (const std::string& contents : broken) {
    write(contents);
    EXPECT_FALSE(plan().from_cache) << contents.substr(0, 60);
    EXPECT_TRUE(plan().from_cache) << "was not rewritten: " << contents.substr(0, 60);
  }
}

TEST_F(PlanCache, ADirectoryThatCannotBeWrittenIsNoError) {
  write("a file where the directory should be");
  options_.cache = (file() / "plans.json").string();
  EXPECT_TRUE(plan().sparse);
  EXPECT_FALSE(plan().from_cache);
}

TEST_F(PlanCache, ProcessesThatWriteAtOnceNeitherCorruptItNorLoseAnEntry) {
  constexpr int kProcesses = 4;
  constexpr int kPlans = 8;
  std::vector<pid_t> children;
  for (int child = 0; child < kProcesses; ++child) {
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      PlanOptions options = options_;
      options.seconds_budget = 0.001;
      for (int i = 0; i < kPlans; ++i) {
        const PackedWeight weight = fake_weight(10 + child * kPlans + i);
        plan_linear(weight, {}, host_machine(), dense_, options);
      }
      _exit(0);
    }
    children.push_back(pid);
  }
  // While they write, every state of the file is one that parses: a plan of it or none.
  const LinearDesc desc = describe(fake_weight());
  for (int i = 0; i < 50; ++i) {
    const std::string now = text();
    EXPECT_TRUE(now.empty() || (now.front() == '{' && now.back() == '}')) << now.size();
    EXPECT_FALSE(plan::read_cached_plan(file(), "no such key", desc, host_machine()).has_value());
    usleep(500);
  }
  for (const pid_t pid : children) {
    int status = -1;
    ASSERT_EQ(waitpid(pid, &status, 0), pid);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator{}), 1)
      << "temporary files stay behind";
  for (int i = 0; i < kProcesses * kPlans; ++i) {
    PlanOptions options = options_;
    options.seconds_budget = 0.001;
    EXPECT_TRUE(plan_linear(fake_weight(10 + i), {}, host_machine(), dense_, options).from_cache)
        << i;
  }
  EXPECT_FALSE(plan().from_cache);
  EXPECT_TRUE(plan().from_cache);
}

TEST_F(PlanCache, TheEnvironmentNamesTheDirectory) {
  const auto set = [](const char* name, const char* value) { setenv(name, value, 1); };
  set("HOME", "/home/someone");
  set("XDG_CACHE_HOME", "/xdg");
  set("GOSSAMER_CACHE", "/own");
  EXPECT_EQ(plan::cache_file(""), "/own/plans-v1.json");
  set("GOSSAMER_CACHE", "off");
  EXPECT_EQ(plan::cache_file(""), "");
  EXPECT_EQ(plan::cache_file("/given/file.json"), "/given/file.json");
  unsetenv("GOSSAMER_CACHE");
  EXPECT_EQ(plan::cache_file(""), "/xdg/gossamer/plans-v1.json");
  unsetenv("XDG_CACHE_HOME");
  EXPECT_EQ(plan::cache_file(""), "/home/someone/.cache/gossamer/plans-v1.json");
  unsetenv("HOME");
  EXPECT_EQ(plan::cache_file(""), "");
  EXPECT_EQ(plan::cache_file("off"), "");
}

}  // namespace
}  // namespace gossamer
