// The group's thread with a real scheduler behind it and workers that the test plays.
#include "server/group/group.h"

#include <gtest/gtest.h>

#include "base/notification.h"
#include "server/steps/scheduler.h"

namespace switchyard {
namespace {

// Answers what the front sends the way a worker does, from a thread that is not the group's.
class PlayedWorker final : public WorkerChannel, public std::enable_shared_from_this<PlayedWorker> {
 public:
  // `cannot_load` is a model that it fails to load.
  explicit PlayedWorker(Group* group, int64_t cannot_load = -1) : group_(group), cannot_load_(cannot_load) {}
  ~PlayedWorker() override { Stop(); }

  void Join(int pid) {
    thread_ = std::thread([this] { Loop(); });
    worker::Hello hello;
    hello.set_local_index(-1);
    hello.set_pid(pid);
    group_->Joined(shared_from_this(), hello);
  }
  void Die() {
    Stop();
    group_->Left(shared_from_this(), "died");
  }

  void Send(worker::FrontMessage message) override {
    MutexLock lock(&mu_);
    inbox_.push_back(std::move(message));
    changed_.SignalAll();
  }
  void Close(const absl::Status&) override {}

  int welcomes() {
    MutexLock lock(&mu_);
    return welcomes_;
  }

 private:
  void Stop() {
    {
      MutexLock lock(&mu_);
      stop_ = true;
      changed_.SignalAll();
    }
    if (thread_.joinable()) thread_.join();
  }

  void Loop() {
    while (true) {
      worker::FrontMessage message;
      {
        MutexLock lock(&mu_);
        while (inbox_.empty() && !stop_) changed_.Wait(&mu_);
        if (stop_) return;
        message = std::move(inbox_.front());
        inbox_.pop_front();
        welcomes_ += message.has_welcome();
      }
      Answer(message);
    }
  }

  void Answer(const worker::FrontMessage& message) {
    worker::WorkerMessage answer;
    if (message.has_welcome()) {
      for (const auto& model : message.welcome().models()) Load(model);
      return;
    }
    if (message.has_load_model()) return Load(message.load_model().model());
    if (message.has_unload_model()) {
      answer.mutable_model_unloaded()->set_model_id(message.unload_model().model_id());
    } else if (message.has_prepare_group()) {
      answer.mutable_group_address()->set_epoch(message.prepare_group().epoch());
    } else if (message.has_connect_group()) {
      answer.mutable_group_ready()->set_epoch(message.connect_group().epoch());
    } else if (message.has_ping()) {
      answer.mutable_pong();
    } else {
      return;
    }
    group_->Said(shared_from_this(), std::move(answer));
  }

  void Load(const worker::ModelShare& model) {
    worker::WorkerMessage answer;
    if (model.model_id() == cannot_load_) {
      answer.mutable_model_failed()->set_model_id(model.model_id());
      answer.mutable_model_failed()->set_message("no files");
    } else {
      answer.mutable_model_loaded()->set_model_id(model.model_id());
      answer.mutable_model_loaded()->set_weight_bytes(1);
    }
    group_->Said(shared_from_this(), std::move(answer));
  }

  Group* const group_;
  const int64_t cannot_load_;
  Mutex mu_;
  CondVar changed_;
  std::deque<worker::FrontMessage> inbox_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  int welcomes_ ABSL_GUARDED_BY(mu_) = 0;
  std::thread thread_;
};

GroupModel Model(int64_t id, int num_ranks) {
  GroupModel model = {ModelId{id}, "m", std::vector<worker::ModelShare>(num_ranks), nullptr};
  for (worker::ModelShare& share : model.shares) share.set_model_id(id);
  model.choose_compute_dtype = [](const std::vector<std::string>&) { return "fp32"; };
  return model;
}

TEST(Group, ReformsAfterALossAndTellsWhatHappened) {
  Metrics metrics;
  auto buffers = *LinkBuffers::Create(LinkLayout::For(1, 64, 64, 64));
  const std::vector<LinkBuffers*> links = {buffers.get(), buffers.get()};
  Scheduler scheduler({.batcher = {}, .num_ranks = 2, .num_slots = 1}, links, &metrics, Clock::Real(),
                      [](Epoch, int, const absl::Status&) {});
  GroupOptions options;
  options.membership.num_ranks = 2;
  options.membership.worker_timeout = std::chrono::seconds(60);
  options.tick = std::chrono::milliseconds(10);
  Group group(options, links, &scheduler, &metrics, [](const absl::Status& why) { FAIL() << why; });
  EXPECT_EQ(group.info().ranks[0].state, "absent");
  group.AddNeededModel(Model(1, 2));

  auto survivor = std::make_shared<PlayedWorker>(&group), victim = std::make_shared<PlayedWorker>(&group);
  survivor->Join(1);
  victim->Join(2);
  ASSERT_TRUE(group.WaitUntilServing(absl::InfiniteDuration()));
  EXPECT_EQ(group.info().epoch, Epoch{1});
  EXPECT_EQ(group.info().ranks[1].state, "serving");

  victim->Die();
  auto replacement = std::make_shared<PlayedWorker>(&group);
  replacement->Join(3);
  while (group.info().epoch != Epoch{2} || !group.info().serving) std::this_thread::yield();
  EXPECT_EQ(group.info().recoveries, 1);
  EXPECT_EQ(group.info().ranks[1].pid, 3);
  EXPECT_EQ(group.info().ranks[1].restarts, 1);
  EXPECT_EQ(survivor->welcomes(), 1);

  group.StepFailed(Epoch{2}, 0, absl::UnavailableError("peer"));
  while (group.info().epoch != Epoch{3} || !group.info().serving) std::this_thread::yield();
  EXPECT_EQ(group.info().recoveries, 2);

  Notification loaded, gone;
  group.AddModel(Model(2, 2), [&](const absl::Status& status) {
    EXPECT_TRUE(status.ok()) << status;
    loaded.Notify();
  });
  loaded.WaitForNotification();
  group.RemoveModel(ModelId{1}, [&] { gone.Notify(); });
  gone.WaitForNotification();
  group.Drain();
}

TEST(Group, AReleasedModelThatCannotBeHadAnyMoreDoesNotHoldItUp) {
  Metrics metrics;
  auto buffers = *LinkBuffers::Create(LinkLayout::For(1, 64, 64, 64));
  const std::vector<LinkBuffers*> links = {buffers.get()};
  Scheduler scheduler({.batcher = {}, .num_ranks = 1, .num_slots = 1}, links, &metrics, Clock::Real(),
                      [](Epoch, int, const absl::Status&) {});
  GroupOptions options;
  options.membership.worker_timeout = std::chrono::seconds(60);
  options.tick = std::chrono::milliseconds(10);
  Notification abandoned, gone;
  options.on_model_abandoned = [&](ModelId id, const absl::Status& why) {
    EXPECT_EQ(id, ModelId{1});
    EXPECT_FALSE(why.ok());
    abandoned.Notify();
  };
  Group group(options, links, &scheduler, &metrics, [](const absl::Status& why) { FAIL() << why; });
  group.AddNeededModel(Model(1, 1));
  auto victim = std::make_shared<PlayedWorker>(&group);
  victim->Join(1);
  ASSERT_TRUE(group.WaitUntilServing(absl::InfiniteDuration()));

  group.ReleaseModel(ModelId{1});
  victim->Die();
  auto replacement = std::make_shared<PlayedWorker>(&group, /*cannot_load=*/1);
  replacement->Join(2);
  abandoned.WaitForNotification();
  while (group.info().epoch != Epoch{2} || !group.info().serving) std::this_thread::yield();
  EXPECT_EQ(group.info().ranks[0].pid, 2);
  group.RemoveModel(ModelId{1}, [&] { gone.Notify(); });
  gone.WaitForNotification();
  replacement->Die();
}

}  // namespace
}  // namespace switchyard
