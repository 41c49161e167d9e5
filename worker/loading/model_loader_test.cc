#include "worker/loading/model_loader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <set>
#include <thread>

#include "base/notification.h"
#include "moe/experts/cpu/cpu_engine.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

constexpr int64_t kMemoryLimit = 1 << 20;

// The test's thread acts as the step thread: it runs tasks when a test asks for it.
class ModelLoaderTest : public testing::Test {
 protected:
  ModelLoaderTest() {
    ModelLoaderOptions options;
    options.memory_limit = kMemoryLimit;
    options.make_engine = [this](DType dtype) -> absl::StatusOr<std::unique_ptr<ExpertEngine>> {
      EXPECT_EQ(std::this_thread::get_id(), step_thread_);
      return CreateCpuEngine({.compute_dtype = dtype, .num_threads = 1});
    };
    options.on_step_thread = [this](std::function<void()> task) {
      MutexLock lock(&mu_);
      tasks_.push_back(std::move(task));
      changed_.SignalAll();
    };
    options.progress = [this](const LoadProgress& so_far) {
      MutexLock lock(&mu_);
      progress_.push_back(so_far);
    };
    options.done = [this](LoadOutcome outcome) {
      MutexLock lock(&mu_);
      outcomes_.push_back(std::move(outcome));
      changed_.SignalAll();
    };
    loader_ = std::make_unique<ModelLoader>(std::move(options));
  }

  static worker::ModelShare Share(int64_t id, const std::string& spec = "dim=8,hidden=8,experts=4,topk=2,layers=2") {
    worker::ModelShare share;
    share.set_name(absl::StrCat("m", id));
    share.set_location(absl::StrCat("synthetic:", spec));
    auto source = OpenWeightSource(share.location());
    if (source.ok()) {
      share.set_fingerprint((*source)->spec().fingerprint);
      for (size_t i = 0; i < (*source)->spec().layers.size(); ++i) {
        worker::LayerShare& layer = *share.add_layers();
        for (const int expert : {0, 2}) layer.add_expert_idx(expert);
      }
    }
    share.set_compute_dtype("fp32");
    share.set_model_id(id);
    share.set_first_layer_id(static_cast<int32_t>(10 * id));
    share.set_max_batch_rows(16);
    return share;
  }

  // Runs tasks until `count` loads have ended.
  void RunUntilEnded(size_t count) {
    while (true) {
      std::function<void()> task;
      {
        MutexLock lock(&mu_);
        while (tasks_.empty() && outcomes_.size() < count) changed_.Wait(&mu_);
        if (outcomes_.size() >= count) return;
        task = std::move(tasks_.front());
        tasks_.pop_front();
      }
      task();
    }
  }
  void WaitForTask() {
    MutexLock lock(&mu_);
    while (tasks_.empty()) changed_.Wait(&mu_);
  }

  const std::thread::id step_thread_ = std::this_thread::get_id();
  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  std::vector<LoadProgress> progress_;  // read once the loader is done
  std::vector<LoadOutcome> outcomes_;
  std::unique_ptr<ModelLoader> loader_;
};

TEST_F(ModelLoaderTest, WeightsThatCannotFitAreRefusedBeforeTheyAreRead) {
  // 2 layers of 2 experts with 3 matrices of 256 x 256 floats: 3 MiB.
  loader_->Load({Share(1, "dim=256,hidden=256,experts=4,topk=2,layers=2"), Share(2)});
  RunUntilEnded(2);
  EXPECT_TRUE(absl::IsResourceExhausted(outcomes_[0].status)) << outcomes_[0].status;
  EXPECT_THAT(std::string(outcomes_[0].status.message()), HasSubstr("the memory that this process may use"));
  EXPECT_TRUE(outcomes_[1].status.ok()) << outcomes_[1].status;
}

TEST_F(ModelLoaderTest, ASharesNumbersAreCheckedBeforeMemoryIsTaken) {
  std::vector<worker::ModelShare> shares(5, Share(1));
  for (size_t i = 0; i < shares.size(); ++i) shares[i].set_model_id(static_cast<int64_t>(i) + 1);
  shares[0].set_max_batch_rows(int64_t{1} << 40);
  shares[1].set_max_batch_rows(-1);
  shares[2].set_first_layer_id(-7);
  for (int i = 0; i < 1000; ++i) shares[3].mutable_layers(0)->add_expert_idx(0);
  shares[4].mutable_layers(1)->add_expert_idx(4);
  loader_->Load(shares);
  RunUntilEnded(shares.size());
  for (const LoadOutcome& outcome : outcomes_) {
    EXPECT_TRUE(absl::IsInvalidArgument(outcome.status)) << outcome.status;
    EXPECT_EQ(outcome.part, nullptr);
  }
  EXPECT_THAT(std::string(outcomes_[0].status.message()), HasSubstr("expected 1 to 1048576 rows"));
  EXPECT_THAT(std::string(outcomes_[3].status.message()), HasSubstr("expert 0 was assigned twice"));
  EXPECT_THAT(std::string(outcomes_[4].status.message()), HasSubstr("expert 4 of 4 was assigned"));
}

TEST_F(ModelLoaderTest, EveryExpertHasADigestOfItsOwn) {
  loader_->Load({Share(1), Share(2), Share(3, "dim=8,hidden=8,experts=4,topk=2,layers=2,seed=9")});
  RunUntilEnded(3);
  std::set<uint64_t> digests;
  for (const LoadOutcome& outcome : outcomes_) {
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    for (const ModelPart::Layer& layer : outcome.part->layers) {
      digests.insert(layer.digests.begin(), layer.digests.end());
    }
  }
  EXPECT_EQ(digests.size(), 8u) << "two models are equal; each has 2 layers of 2 experts here";
  EXPECT_EQ(outcomes_[0].part->layers[1].digests, outcomes_[1].part->layers[1].digests);
}

TEST_F(ModelLoaderTest, LoadsOneAfterTheOtherAndTellsHowFarItIs) {
  loader_->Load({Share(1), Share(2)});
  RunUntilEnded(2);
  RankExperts experts;
  for (LoadOutcome& outcome : outcomes_) {
    ASSERT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_GT(outcome.part->engine->weight_bytes(), 0);
    experts.Add(std::move(outcome.part));
  }
  loader_ = nullptr;
  ASSERT_FALSE(progress_.empty());
  EXPECT_EQ(progress_.front().models.size(), 2u) << "all are open before the first is loaded";
  EXPECT_EQ(progress_.front().bytes_done(), 0);
  EXPECT_EQ(progress_.back().bytes_done(), progress_.back().bytes_total());
  EXPECT_EQ(experts.Find(LayerId{11}).part->share.name(), "m1");
  EXPECT_EQ(experts.Find(LayerId{20}).engine_layer, LayerId{0});
  for (const int32_t none : {0, 9, 12, 22}) EXPECT_EQ(experts.Find(LayerId{none}).part, nullptr) << none;
  EXPECT_EQ(experts.Remove(ModelId{1})->share.name(), "m1");
  EXPECT_EQ(experts.Remove(ModelId{1}), nullptr);
  EXPECT_EQ(experts.Find(LayerId{11}).part, nullptr);
}

TEST_F(ModelLoaderTest, AModelThatTakesLongKeepsNoOtherWaiting) {
  loader_->Load({Share(1)});
  WaitForTask();  // it waits for the step thread
  std::function<void()> first;
  {
    MutexLock lock(&mu_);
    first = std::move(tasks_.front());
    tasks_.pop_front();
  }
  loader_->Load({Share(2)});
  RunUntilEnded(1);
  EXPECT_EQ(outcomes_[0].id, ModelId{2});
  Notification is_free;
  loader_->Free(std::move(outcomes_[0].part), [&] { is_free.Notify(); });
  is_free.WaitForNotification();
  first();
  RunUntilEnded(2);
  EXPECT_EQ(outcomes_[1].id, ModelId{1});
  EXPECT_TRUE(outcomes_[1].status.ok()) << outcomes_[1].status;
}

TEST_F(ModelLoaderTest, OneThatFailsLeavesTheOthers) {
  worker::ModelShare changed = Share(2), unknown = Share(3, "dim=none");
  changed.set_fingerprint(changed.fingerprint() + 1);
  loader_->Load({unknown, changed, Share(4)});
  RunUntilEnded(3);
  EXPECT_EQ(outcomes_[0].id, ModelId{3});
  EXPECT_THAT(std::string(outcomes_[0].status.message()), HasSubstr("model m3: "));
  EXPECT_THAT(std::string(outcomes_[1].status.message()), HasSubstr("model m2: "));
  EXPECT_THAT(std::string(outcomes_[1].status.message()), HasSubstr("is not what the front serves"));
  EXPECT_TRUE(outcomes_[2].status.ok()) << outcomes_[2].status;
}

TEST_F(ModelLoaderTest, ACancelledLoadEndsWithWhatThereIsToFree) {
  loader_->Load({Share(1), Share(2)});
  WaitForTask();  // the first one's engine is about to be made
  loader_->Cancel(ModelId{1});
  RunUntilEnded(2);
  EXPECT_TRUE(absl::IsCancelled(outcomes_[0].status)) << outcomes_[0].status;
  EXPECT_NE(outcomes_[0].part, nullptr);
  EXPECT_TRUE(outcomes_[1].status.ok()) << outcomes_[1].status;
  bool is_free = false;
  loader_->Free(std::move(outcomes_[0].part), [&] { is_free = true; });
  loader_ = nullptr;
  EXPECT_TRUE(is_free);
}

// ---- Parts that were kept

TEST_F(ModelLoaderTest, AKeptPartIsLoadedWithoutReading) {
  loader_->Load({Share(1)});
  RunUntilEnded(1);
  const std::vector<uint64_t> digests = outcomes_[0].part->layers[1].digests;
  const ExpertEngine* const engine = outcomes_[0].part->engine.get();
  KeptParts kept;
  kept.Keep(std::move(outcomes_[0].part));
  outcomes_.clear();
  worker::ModelShare again = Share(1);
  again.set_name("other");
  again.set_model_id(5);
  again.set_first_layer_id(70);
  loader_->Load({again, Share(2, "dim=8,hidden=8,experts=4,topk=2,layers=2,seed=9")}, &kept);
  RunUntilEnded(2);
  ASSERT_TRUE(outcomes_[0].status.ok()) << outcomes_[0].status;
  EXPECT_TRUE(outcomes_[0].was_kept);
  const ModelPart& part = *outcomes_[0].part;
  EXPECT_EQ(part.engine.get(), engine);
  EXPECT_EQ(part.id(), ModelId{5});
  EXPECT_EQ(part.first_layer(), LayerId{70});
  EXPECT_EQ(part.share.name(), "other");
  EXPECT_EQ(part.layers[1].digests, digests);
  EXPECT_FALSE(outcomes_[1].was_kept);
}

TEST_F(ModelLoaderTest, KeptPartsThatFitNothingAreFreedBeforeOthersAreLoaded) {
  loader_->Load({Share(1), Share(2)});
  RunUntilEnded(2);
  KeptParts kept;
  for (LoadOutcome& outcome : outcomes_) kept.Keep(std::move(outcome.part));
  outcomes_.clear();
  EXPECT_GT(kept.weight_bytes(), 0);
  loader_->Load({Share(1, "dim=8,hidden=8,experts=4,topk=2,layers=2,seed=9")}, &kept);
  WaitForTask();
  EXPECT_GT(kept.weight_bytes(), 0) << "the step thread frees them";
  {
    MutexLock lock(&mu_);
    tasks_.front()();
    tasks_.pop_front();
    EXPECT_TRUE(outcomes_.empty()) << "nothing is loaded before";
  }
  EXPECT_EQ(kept.weight_bytes(), 0);
  RunUntilEnded(1);
  EXPECT_TRUE(outcomes_[0].status.ok()) << outcomes_[0].status;
  EXPECT_FALSE(outcomes_[0].was_kept);
}

TEST_F(ModelLoaderTest, KeptPartsStayWhenTheLoaderEndsFirst) {
  loader_->Load({Share(1)});
  RunUntilEnded(1);
  KeptParts kept;
  kept.Keep(std::move(outcomes_[0].part));
  outcomes_.clear();
  loader_->Load({Share(2, "dim=8,hidden=8,experts=4,topk=2,layers=2,seed=9")}, &kept);
  WaitForTask();
  loader_ = nullptr;
  EXPECT_GT(kept.weight_bytes(), 0);
}

TEST_F(ModelLoaderTest, EndsWhileTheStepThreadIsGone) {
  loader_->Load({Share(1)});
  WaitForTask();
  loader_ = nullptr;
  ASSERT_EQ(outcomes_.size(), 1u);
  EXPECT_TRUE(absl::IsCancelled(outcomes_[0].status));
  MutexLock lock(&mu_);
  tasks_.front()();  // runs too late, and does nothing
}

}  // namespace
}  // namespace switchyard
