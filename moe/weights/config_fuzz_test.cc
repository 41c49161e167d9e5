// Random damage to the config.json of a checkpoint of every family: it opens or is refused with an error, and nothing
// is read outside the checkpoint. Seeded; SWITCHYARD_FUZZ_ITERATIONS asks for more than the default.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "moe/weights/checkpoint/testing.h"
#include "moe/weights/checkpoint/text_mutator.h"
#include "moe/weights/weight_source.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kTestdata[] = "tests/testdata";

std::vector<std::string> Tokens() {
  return {"2147483648", "\"model_type\":\"mixtral\"", "\"num_local_experts\":65536", "\"layer_types\":[]",
          "\"num_experts_per_tok\":0"};
}

// A checkpoint's folder whose config.json is in memory; the weights are those of `golden`.
class Checkpoint {
 public:
  explicit Checkpoint(const fs::path& golden)
      : folder_(TempPath("fuzz_" + golden.filename().string())), whole_(ReadFile(golden / "config.json")) {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
    fs::create_symlink(config_.path(), folder_ / "config.json");
    for (const auto& entry : fs::directory_iterator(golden)) {
      const fs::path name = entry.path().filename();
      if (name != "config.json" && name != "golden.safetensors") {
        fs::create_symlink(fs::absolute(entry), folder_ / name);
      }
    }
  }

  const std::string& whole() const { return whole_; }
  absl::Status Open(const std::string& config) {
    config_.Write(config);
    return OpenWeightSource(folder_).status();
  }

 private:
  MemoryFile config_;
  const fs::path folder_;
  const std::string whole_;
};

TEST(ConfigFuzz, DamagedConfigsAreRefusedOrOpen) {
  std::vector<std::unique_ptr<Checkpoint>> checkpoints;
  std::set<fs::path> folders;
  for (const auto& entry : fs::directory_iterator(kTestdata)) {
    if (fs::exists(entry.path() / "config.json")) folders.insert(entry.path());
  }
  for (const fs::path& folder : folders) {
    checkpoints.push_back(std::make_unique<Checkpoint>(folder));
    const absl::Status opened = checkpoints.back()->Open(checkpoints.back()->whole());
    ASSERT_TRUE(opened.ok()) << opened;
  }
  TextMutator mutator(20261129, Tokens());
  const int64_t num_iterations = FuzzIterations(5000);
  int64_t num_opened = 0;
  for (int64_t i = 0; i < num_iterations; ++i) {
    Checkpoint& checkpoint = *checkpoints[i % checkpoints.size()];
    const std::string config = mutator.Damaged(checkpoint.whole());
    const absl::Status opened = checkpoint.Open(config);
    num_opened += opened.ok();
    ASSERT_TRUE(opened.ok() || !opened.message().empty()) << "iteration " << i << ": " << config;
  }
  // Both outcomes must occur, or the damage is too weak or too strong to test anything.
  EXPECT_GT(num_opened, num_iterations / 100);
  EXPECT_LT(num_opened, num_iterations - num_iterations / 100);
}

}  // namespace
}  // namespace switchyard
