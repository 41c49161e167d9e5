#include "worker/loading/expert_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <set>
#include <thread>
#include <unordered_set>

#include "base/mutex.h"
#include "moe/weights/writer/checkpoint_writer.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

constexpr int kNumExperts = 40;

// Records which experts were loaded and by which threads. Fails at `failing_slot`.
class RecordingEngine final : public ExpertEngine {
 public:
  explicit RecordingEngine(int load_threads, int failing_slot = -1)
      : load_threads_(load_threads), failing_slot_(failing_slot) {}

  DType compute_dtype() const override { return DType::kF32; }
  absl::Status AddLayer(const LayerSpec&, int) override { return absl::OkStatus(); }
  int load_threads() const override { return load_threads_; }
  absl::Status LoadExpert(LayerId, int slot, const ExpertWeights& weights) override {
    if (before_reading) before_reading();
    MutexLock lock(&mu_);
    slots_.push_back(slot);
    if (slot == failing_slot_) return absl::ResourceExhaustedError("full");
    // The views must stay valid until this returns, although other threads read and release experts meanwhile.
    first_elements_[slot] = weights.up.matrix.as<float>()[0];
    ++num_loads_;
    // Every call waits until load_threads_ threads have called.
    threads_.insert(std::this_thread::get_id());
    changed_.SignalAll();
    while (static_cast<int>(threads_.size()) < load_threads_) changed_.Wait(&mu_);
    return absl::OkStatus();
  }
  int64_t weight_bytes() const override { return 0; }
  absl::StatusOr<std::byte*> ScratchBytes(Scratch, size_t) override { return nullptr; }
  DeviceStream stream() const override { return nullptr; }
  absl::Status GatherSendRows(const RankPlanView&, ConstMatrixView, MatrixView) override { return absl::OkStatus(); }
  absl::Status RunExperts(LayerId, const RankPlanView&, ConstMatrixView, MatrixView) override {
    return absl::OkStatus();
  }
  absl::Status Combine(const RankPlanView&, ConstMatrixView, MatrixView) override { return absl::OkStatus(); }

  std::function<void()> before_reading;  // set before loading

  int num_loads() {
    MutexLock lock(&mu_);
    return num_loads_;
  }
  size_t num_threads() {
    MutexLock lock(&mu_);
    return threads_.size();
  }
  // Slots in the order in which they were loaded.
  std::vector<int> slots() {
    MutexLock lock(&mu_);
    return slots_;
  }
  float first_element(int slot) {
    MutexLock lock(&mu_);
    return first_elements_[slot];
  }

 private:
  const int load_threads_;
  const int failing_slot_;
  Mutex mu_;
  CondVar changed_;
  std::vector<int> slots_ ABSL_GUARDED_BY(mu_);
  int num_loads_ ABSL_GUARDED_BY(mu_) = 0;
  std::unordered_set<std::thread::id> threads_ ABSL_GUARDED_BY(mu_);
  float first_elements_[kNumExperts] ABSL_GUARDED_BY(mu_) = {};
};

std::unique_ptr<WeightSource> Source() {
  return OpenWeightSource("synthetic:dim=8,hidden=8,experts=40,topk=2,act=silu,glu=1,bias=0,dtype=fp32").value();
}

std::vector<ExpertToLoad> AllExperts() {
  std::vector<ExpertToLoad> experts;
  for (int i = 0; i < kNumExperts; ++i) experts.push_back({0, i, kNumExperts - 1 - i});
  return experts;
}

TEST(ExpertLoaderTest, EveryExpertReachesItsSlotWithHoweverManyThreads) {
  for (const int num_threads : {1, 2, 7}) {
    const auto source = Source();
    RecordingEngine engine(num_threads);
    std::set<int> told;
    const absl::Status loaded = LoadExperts(*source, engine, AllExperts(), [&](const ExpertToLoad& expert, uint64_t) {
      told.insert(expert.slot);
      return absl::OkStatus();
    });
    ASSERT_TRUE(loaded.ok()) << loaded;
    EXPECT_EQ(engine.num_loads(), kNumExperts);
    EXPECT_EQ(static_cast<int>(engine.num_threads()), num_threads);
    EXPECT_EQ(told.size(), kNumExperts);
    for (int slot = 0; slot < kNumExperts; ++slot) {
      const auto weights = source->ReadExpert(0, kNumExperts - 1 - slot);
      EXPECT_EQ(engine.first_element(slot), weights->up.matrix.as<float>()[0]);
    }
  }
}

TEST(ExpertLoaderTest, TheFirstErrorStopsEveryThread) {
  const auto source = Source();
  RecordingEngine engine(/*load_threads=*/1, /*failing_slot=*/5);
  const absl::Status loaded =
      LoadExperts(*source, engine, AllExperts(), [](const ExpertToLoad&, uint64_t) { return absl::OkStatus(); });
  EXPECT_EQ(loaded.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(loaded.message(), HasSubstr("layer 0, expert 34: full"));
  EXPECT_EQ(engine.num_loads(), 5);
}

TEST(ExpertLoaderTest, NothingToLoadIsFine) {
  const auto source = Source();
  RecordingEngine engine(4);
  EXPECT_TRUE(LoadExperts(*source, engine, {}, [](const ExpertToLoad&, uint64_t) { return absl::OkStatus(); }).ok());
}

// Writes a model of eleven layers of four experts. The experts are in the order of their names in the file, so layer 10
// comes before layer 2.
std::string WriteMixtral() {
  const std::string folder = testing::TempDir() + "/mixtral";
  std::filesystem::create_directories(folder);
  CheckpointOptions options;
  options.num_experts = 4;
  options.num_layers = 11;
  options.dtype = "fp32";
  const absl::Status written = WriteCheckpoint(folder, options);
  EXPECT_TRUE(written.ok()) << written;
  return folder;
}

TEST(ExpertLoaderTest, FilesAreReadFromFrontToBack) {
  const auto source = OpenWeightSource(WriteMixtral());
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<ExpertToLoad> backwards;
  std::vector<const std::byte*> addresses;
  for (int i = kNumExperts - 1; i >= 0; --i) {
    backwards.push_back({i / 4, kNumExperts - 1 - i, i % 4});
    const auto weights = (*source)->ReadExpert(i / 4, i % 4);
    ASSERT_TRUE(weights.ok()) << weights.status();
    addresses.push_back(std::min({weights->up.matrix.data, weights->gate.matrix.data, weights->down.matrix.data}));
    (*source)->ReleaseExpert(i / 4, i % 4);
  }
  RecordingEngine engine(/*load_threads=*/1);
  ASSERT_TRUE(
      LoadExperts(**source, engine, backwards, [](const ExpertToLoad&, uint64_t) { return absl::OkStatus(); }).ok());
  const std::vector<int> slots = engine.slots();
  ASSERT_EQ(slots.size(), kNumExperts);
  for (size_t i = 1; i < slots.size(); ++i) EXPECT_LT(addresses[slots[i - 1]], addresses[slots[i]]) << i;
}

TEST(ExpertLoaderTest, AFileCutShortWhileItIsServedIsAnErrorOfItsExpert) {
  const std::string folder = WriteMixtral();
  const auto source = OpenWeightSource(folder);
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_EQ(truncate((folder + "/model.safetensors").c_str(), 100'000), 0);
  std::vector<ExpertToLoad> experts;
  for (int i = 0; i < kNumExperts; ++i) experts.push_back({i / 4, i, i % 4});
  RecordingEngine engine(/*load_threads=*/1);
  const absl::Status loaded =
      LoadExperts(**source, engine, experts, [](const ExpertToLoad&, uint64_t) { return absl::OkStatus(); });
  EXPECT_EQ(loaded.code(), absl::StatusCode::kDataLoss) << loaded;
  EXPECT_THAT(loaded.message(), HasSubstr("model.safetensors: bytes "));
  EXPECT_THAT(loaded.message(), HasSubstr("layer "));
}

TEST(ExpertLoaderTest, AFileCutShortBetweenReadingAndUseIsAnErrorOfItsExpert) {
  const std::string folder = WriteMixtral();
  const auto source = OpenWeightSource(folder);
  ASSERT_TRUE(source.ok()) << source.status();
  std::vector<ExpertToLoad> experts;
  for (int i = 0; i < kNumExperts; ++i) experts.push_back({i / 4, i, i % 4});
  RecordingEngine engine(/*load_threads=*/1);
  engine.before_reading = [&] { ASSERT_EQ(truncate((folder + "/model.safetensors").c_str(), 1000), 0); };
  const absl::Status loaded =
      LoadExperts(**source, engine, experts, [](const ExpertToLoad&, uint64_t) { return absl::OkStatus(); });
  EXPECT_EQ(loaded.code(), absl::StatusCode::kDataLoss) << loaded;
  EXPECT_THAT(loaded.message(), HasSubstr("model.safetensors: the file became shorter than "));
  EXPECT_THAT(loaded.message(), HasSubstr("layer "));
  EXPECT_EQ(engine.num_loads(), 1);
}

TEST(ExpertLoaderTest, WhoeverIsToldMayEndIt) {
  const auto source = Source();
  RecordingEngine engine(/*load_threads=*/1);
  int told = 0;
  const absl::Status loaded = LoadExperts(*source, engine, AllExperts(), [&](const ExpertToLoad&, uint64_t) {
    return ++told == 3 ? absl::CancelledError("enough") : absl::OkStatus();
  });
  EXPECT_TRUE(absl::IsCancelled(loaded)) << loaded;
  EXPECT_EQ(engine.num_loads(), 3);
}

}  // namespace
}  // namespace switchyard
