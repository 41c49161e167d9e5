// Tests the group's thread with a real scheduler behind it; the tests play the workers.
#include "server/group/group.h"

#include <gtest/gtest.h>

#include "base/notification.h"
#include "moe/gating/gate.h"
#include "server/group/group_events.h"
#include "server/steps/scheduler.h"

namespace switchyard {
namespace {

// Answers the front's messages as a worker does, from a thread that is not the group's.
class PlayedWorker final : public WorkerChannel, public std::enable_shared_from_this<PlayedWorker> {
 public:
  // `cannot_load` is the id of a model that the worker fails to load.
  explicit PlayedWorker(Group* group, int64_t cannot_load = -1) : group_(group), cannot_load_(cannot_load) {}
  ~PlayedWorker() override { Stop(); }

  void Join(int pid) {
    thread_ = std::thread([this] { Loop(); });
    worker::Hello hello;
    hello.set_local_index(-1);
    hello.set_pid(pid);
    hello.add_exchanges("tcp");
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
    } else if (message.has_step()) {
      return RunStep(message.step());
    } else if (message.has_ping()) {
      answer.mutable_pong()->set_number(message.ping().number());
    } else {
      return;
    }
    group_->Said(shared_from_this(), std::move(answer));
  }

  // Answers with the rows that it got.
  void RunStep(const worker::StepRequest& step) {
    const std::span<const std::byte> rows = std::as_bytes(std::span(step.rows()));
    group_->StepDone(this, {Epoch{step.epoch()}, StepId{step.step_id()}, {}, absl::OkStatus()},
                     {rows.first(4), rows.subspan(4)});
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

constexpr std::chrono::hours kForever(24);

// Sends every row to expert 0.
class FirstExpertGate final : public Gate {
 public:
  bool Accepts(DType) const override { return true; }
  absl::Status Route(ConstMatrixView rows, int64_t first_row, int, Routing* routing, ScoreStats*) override {
    for (int64_t row = first_row; row < first_row + rows.num_rows; ++row) {
      routing->expert_idx[row * routing->top_k] = 0;
      routing->weight[row * routing->top_k] = 1;
    }
    return absl::OkStatus();
  }
};

GroupModel Model(int64_t id, int num_ranks) {
  GroupModel model = {ModelId{id}, "m", std::vector<worker::ModelShare>(num_ranks), nullptr};
  for (worker::ModelShare& share : model.shares) share.set_model_id(id);
  model.choose_compute_dtype = [](const std::vector<std::string>&) { return "fp32"; };
  return model;
}

GroupOptions Options(int num_ranks) {
  GroupOptions options;
  options.membership.num_ranks = num_ranks;
  options.membership.worker_timeout = std::chrono::seconds(60);
  options.membership.ping_interval = std::chrono::milliseconds(10);
  options.on_first_load_failed = [](const absl::Status& why) { FAIL() << why; };
  return options;
}

// A group with its scheduler and links with one slot, put together as in WorkerGroup.
struct TestGroup {
  explicit TestGroup(const GroupOptions& options) {
    std::vector<LinkBuffers*> links;
    for (int rank = 0; rank < options.membership.num_ranks; ++rank) {
      buffers.push_back(*LinkBuffers::Create(LinkLayout::For(1, 64, 4096, 64)));
      links.push_back(buffers.back().get());
    }
    const SchedulerOptions scheduling = {.num_ranks = options.membership.num_ranks, .num_slots = 1};
    scheduler =
        std::make_unique<Scheduler>(scheduling, links, &metrics, Clock::Real(),
                                    [this](Epoch epoch, int rank, const absl::Status&) { FailStep(epoch, rank); });
    group = std::make_unique<Group>(options, &events, links, scheduler.get(), &metrics);
  }

  void FailStep(Epoch epoch, int rank) {
    events.Post([epoch, rank](Group& group) { group.OnStepFailed(epoch, rank, "peer"); });
  }

  Metrics metrics;
  std::vector<std::unique_ptr<LinkBuffers>> buffers;
  GroupEvents events;
  std::unique_ptr<Scheduler> scheduler;
  std::unique_ptr<Group> group;
};

TEST(Group, ReformsAfterALossAndTellsWhatHappened) {
  TestGroup made(Options(2));
  Group& group = *made.group;
  EXPECT_EQ(group.info().ranks[0].state, "absent");
  group.AddNeededModel(Model(1, 2));

  auto survivor = std::make_shared<PlayedWorker>(&group), victim = std::make_shared<PlayedWorker>(&group);
  survivor->Join(1);
  victim->Join(2);
  ASSERT_TRUE(group.WaitUntilServing(kForever));
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

  made.FailStep(Epoch{2}, 0);
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
  GroupOptions options = Options(1);
  Notification abandoned, gone;
  options.on_model_abandoned = [&](ModelId id, const absl::Status& why) {
    EXPECT_EQ(id, ModelId{1});
    EXPECT_FALSE(why.ok());
    abandoned.Notify();
  };
  TestGroup made(options);
  Group& group = *made.group;
  group.AddNeededModel(Model(1, 1));
  auto victim = std::make_shared<PlayedWorker>(&group);
  victim->Join(1);
  ASSERT_TRUE(group.WaitUntilServing(kForever));

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

TEST(Group, ResultsOfWorkersElsewhereDoNotWaitForTheGroupsThread) {
  TestGroup made(Options(1));
  made.group->AddNeededModel(Model(1, 1));
  auto worker = std::make_shared<PlayedWorker>(made.group.get());
  worker->Join(1);
  ASSERT_TRUE(made.group->WaitUntilServing(kForever));

  const auto model = std::make_shared<ServedModel>();
  LayerSpec spec;
  spec.hidden_dim = 4;
  spec.num_experts = 1;
  spec.gate.top_k = 1;
  std::vector<std::unique_ptr<Gate>> gates;
  gates.push_back(std::make_unique<FirstExpertGate>());
  model->layers.push_back(std::unique_ptr<ServedLayer>(
      new ServedLayer{LayerId{0}, "m", spec, std::move(gates), {FirstPlacement(Placement::Even(1, 1))}}));
  made.metrics.AddLayer(*model->layers[0]);
  const std::vector<float> row = {1, 2, 3, 4};
  Notification answered, release;
  absl::Status status;
  const auto request = std::make_shared<Request>();
  request->ask.layer = ShareLayer(model, 0);
  request->ask.num_rows = 1;
  request->progress.rows = ChunkedRows({std::as_bytes(std::span(row))}, nullptr);
  request->ask.done = [&](absl::Status result) {
    status = std::move(result);
    answered.Notify();
  };

  made.events.Post([&](Group&) { release.WaitForNotification(); });
  made.scheduler->Enqueue(request);
  answered.WaitForNotification();
  EXPECT_TRUE(status.ok()) << status;
  ASSERT_EQ(request->outcome.output.size(), 1u);
  EXPECT_EQ(std::memcmp(request->outcome.output[0].bytes.data(), row.data(), row.size() * sizeof(float)), 0);
  release.Notify();
  worker->Die();
}

// Keeps what it is sent.
struct SilentWorker final : WorkerChannel {
  void Send(worker::FrontMessage message) override { sent.push_back(std::move(message)); }
  void Close(const absl::Status&) override {}
  std::vector<worker::FrontMessage> sent;
};

TEST(Group, WithoutAThreadItsOwnerRunsWhatIsDue) {
  FakeClock clock;
  GroupOptions options = Options(1);
  options.clock = &clock;
  options.threads = Threads::kNone;
  TestGroup made(options);
  Group& group = *made.group;
  EXPECT_EQ(group.next_due(), clock.Now() + options.membership.ping_interval);
  const auto worker = std::make_shared<SilentWorker>();
  worker::Hello hello;
  hello.set_local_index(-1);
  hello.add_exchanges("tcp");
  group.Joined(worker, hello);
  EXPECT_LE(group.next_due(), clock.Now());
  EXPECT_TRUE(worker->sent.empty());
  group.RunDue();
  ASSERT_EQ(worker->sent.size(), 2u) << "a Welcome and a PrepareGroup";
  EXPECT_TRUE(worker->sent[0].has_welcome());
  clock.Advance(options.membership.ping_interval);
  EXPECT_LE(group.next_due(), clock.Now());
  group.RunDue();
  ASSERT_EQ(worker->sent.size(), 3u);
  EXPECT_TRUE(worker->sent[2].has_ping());
  group.Drain();  // waits for no thread
  EXPECT_TRUE(worker->sent.back().has_drain());
}

TEST(GroupEvents, WhatComesAfterTheEndIsDropped) {
  GroupEvents events;
  events.Post([](Group&) {});
  EXPECT_EQ(events.Take(SteadyTime::max()).size(), 1u);
  events.Post([](Group&) {});
  events.Close();
  events.Post([](Group&) {});
  EXPECT_TRUE(events.Take(SteadyTime::max()).empty());
}

}  // namespace
}  // namespace switchyard
