#include "server/group/membership/membership.h"

#include <gtest/gtest.h>

#include <limits>

namespace switchyard {
namespace {

using std::chrono::milliseconds;

// A worker as the front sees it: it remembers the messages that it was sent.
class FakeWorker final : public WorkerChannel {
 public:
  void Send(worker::FrontMessage message) override { sent.push_back(std::move(message)); }
  void Close(const absl::Status& why) override { closed = why; }

  int CountOf(worker::FrontMessage::MessageCase kind) const {
    int count = 0;
    for (const auto& message : sent) count += message.message_case() == kind;
    return count;
  }

  std::vector<worker::FrontMessage> sent;
  std::optional<absl::Status> closed;
};

class MembershipTest : public testing::Test, public MembershipListener {
 protected:
  void Start(int num_ranks, bool local = false) {
    MembershipOptions options;
    options.num_ranks = num_ranks;
    options.local = local;
    options.version = "1";
    options.build = "b";
    membership_ = std::make_unique<Membership>(options, this);
    Add(1, /*is_needed=*/true);
  }

  void Add(int64_t id, bool is_needed, const std::string& name = "") {
    GroupModel model = {ModelId{id}, name.empty() ? absl::StrCat("m", id) : name, {}, nullptr};
    model.shares.resize(membership_->ranks().size());
    for (worker::ModelShare& share : model.shares) share.set_model_id(id);
    model.choose_compute_dtype = [](const std::vector<std::string>& available) -> absl::StatusOr<std::string> {
      if (available.empty()) return absl::FailedPreconditionError("has nothing");
      return available[0];
    };
    membership_->AddModel(std::move(model), is_needed, clock_.Now());
  }

  static worker::Hello MakeHello(int local_index = -1) {
    worker::Hello hello;
    hello.set_version("1");
    hello.set_build("b");
    hello.set_local_index(local_index);
    hello.add_compute_dtypes("fp32");
    hello.add_exchanges("shm");
    hello.add_exchanges("tcp");
    hello.set_host_identity("host a");
    hello.set_pid(1000 + local_index);
    return hello;
  }

  std::shared_ptr<FakeWorker> JoinWorker(int local_index = -1) {
    auto fake = std::make_shared<FakeWorker>();
    EXPECT_TRUE(membership_->Join(fake, MakeHello(local_index), clock_.Now()).ok());
    return fake;
  }

  // A process that may have held a rank before.
  absl::StatusOr<int> JoinAs(uint64_t instance, int previous_rank,
                             std::shared_ptr<FakeWorker> fake = std::make_shared<FakeWorker>(),
                             int64_t stream_number = 1) {
    worker::Hello hello = MakeHello();
    hello.set_instance(instance);
    hello.set_previous_rank(previous_rank);
    hello.set_stream_number(stream_number);
    return membership_->Join(std::move(fake), hello, clock_.Now());
  }

  void Say(const std::shared_ptr<FakeWorker>& from, const worker::WorkerMessage& message) {
    membership_->OnMessage(from.get(), message, clock_.Now());
  }
  void SayLoaded(const std::shared_ptr<FakeWorker>& from, int64_t model = 1) {
    worker::WorkerMessage message;
    message.mutable_model_loaded()->set_model_id(model);
    message.mutable_model_loaded()->set_weight_bytes(10);
    Say(from, message);
  }
  void SayFailed(const std::shared_ptr<FakeWorker>& from, int64_t model,
                 absl::StatusCode code = absl::StatusCode::kNotFound) {
    worker::WorkerMessage message;
    message.mutable_model_failed()->set_model_id(model);
    message.mutable_model_failed()->set_code(static_cast<int>(code));
    message.mutable_model_failed()->set_message("no tensor x");
    Say(from, message);
  }
  void SayUnloaded(const std::shared_ptr<FakeWorker>& from, int64_t model) {
    worker::WorkerMessage message;
    message.mutable_model_unloaded()->set_model_id(model);
    Say(from, message);
  }
  void SayAddress(const std::shared_ptr<FakeWorker>& from, int64_t epoch, const std::string& address) {
    worker::WorkerMessage message;
    message.mutable_group_address()->set_epoch(epoch);
    message.mutable_group_address()->set_address(address);
    Say(from, message);
  }
  void SayReady(const std::shared_ptr<FakeWorker>& from, int64_t epoch) {
    worker::WorkerMessage message;
    message.mutable_group_ready()->set_epoch(epoch);
    Say(from, message);
  }
  void SayPong(const std::shared_ptr<FakeWorker>& from) {
    worker::WorkerMessage message;
    int64_t last_ping = 0;
    for (const auto& sent : from->sent) last_ping = sent.has_ping() ? sent.ping().number() : last_ping;
    message.mutable_pong()->set_number(last_ping);
    Say(from, message);
  }
  // The report of a worker's step thread in its pongs. Unless `is_stopped`, it moves from pong to pong.
  struct Thread {
    worker::ThreadProgress::Activity activity = worker::ThreadProgress::IDLE;
    int peer = -1;
    bool is_stopped = false;
    bool is_one_wait = true;  // not one wait after another
    int64_t moves = 0, num_waits = 0;
  };
  void SayPong(const std::shared_ptr<FakeWorker>& from, Thread& thread) {
    if (!thread.is_stopped) ++thread.moves;
    if (!thread.is_one_wait) ++thread.num_waits;
    worker::WorkerMessage message;
    for (const auto& sent : from->sent) {
      if (sent.has_ping()) message.mutable_pong()->set_number(sent.ping().number());
    }
    worker::ThreadProgress& said = *message.mutable_pong()->add_threads();
    said.set_moves(thread.moves);
    said.set_activity(thread.activity);
    said.set_peer(thread.peer);
    said.set_num_waits(thread.num_waits);
    said.set_step_id(7);
    Say(from, message);
  }
  // The worker of each rank answers pings for `duration`. Returns after how long one was given up, or `duration`.
  milliseconds AnswerPings(const std::vector<std::shared_ptr<FakeWorker>>& workers, std::vector<Thread>& threads,
                           milliseconds duration) {
    const size_t given_up = given_up_.size();
    for (milliseconds passed{0}; passed < duration; passed += milliseconds(200)) {
      if (given_up_.size() > given_up) return passed;
      clock_.Advance(milliseconds(200));
      for (size_t i = 0; i < workers.size(); ++i) SayPong(workers[i], threads[i]);
      membership_->Tick(clock_.Now());
    }
    return duration;
  }
  LateStep MakeLateStep(std::vector<int> owing, bool is_very_late = false) {
    return {membership_->epoch(), StepId{7},          "step 7 of layer m.0 with 3 rows",
            std::move(owing),     milliseconds(2600), is_very_late};
  }
  // A group of local workers that serves.
  std::vector<std::shared_ptr<FakeWorker>> StartServing(int num_ranks) {
    Start(num_ranks, /*local=*/true);
    std::vector<std::shared_ptr<FakeWorker>> workers;
    for (int rank = 0; rank < num_ranks; ++rank) workers.push_back(JoinWorker(rank));
    for (const auto& each : workers) SayLoaded(each);
    Form(workers, 1);
    return workers;
  }
  std::vector<int> RanksGivenUp() const {
    std::vector<int> ranks;
    for (const auto& [rank, pid] : given_up_) ranks.push_back(rank);
    return ranks;
  }

  // Brings loaded workers through the formation of `epoch`.
  void Form(const std::vector<std::shared_ptr<FakeWorker>>& workers, int64_t epoch) {
    for (const auto& each : workers) SayAddress(each, epoch, "a");
    for (const auto& each : workers) SayReady(each, epoch);
  }

  void OnGroupFormed(Epoch epoch) override { formed_.push_back(epoch.value); }
  void OnGroupLost(Epoch epoch, const std::string&) override { lost_.push_back(epoch.value); }
  void OnWorkerGivenUp(int rank, int pid) override { given_up_.push_back({rank, pid}); }
  void OnLoadFailed(int, const absl::Status& why) override { load_failures_.push_back(why); }
  void OnModelLoaded(ModelId id) override { loaded_.push_back(id.value); }
  void OnModelFailed(ModelId id, const absl::Status& why) override { failed_.push_back({id.value, why}); }
  void OnModelAbandoned(ModelId id, const absl::Status& why) override { abandoned_.push_back({id.value, why}); }
  void OnModelGone(ModelId id) override { gone_.push_back(id.value); }

  FakeClock clock_;
  std::unique_ptr<Membership> membership_;
  std::vector<int64_t> formed_, lost_;
  std::vector<std::pair<int, int>> given_up_;
  std::vector<absl::Status> load_failures_;
  std::vector<int64_t> loaded_, gone_;
  std::vector<std::pair<int64_t, absl::Status>> failed_, abandoned_;
};

TEST_F(MembershipTest, FormsOnceEveryRankHasLoaded) {
  Start(2);
  const auto first = JoinWorker();
  SayLoaded(first);
  EXPECT_EQ(first->CountOf(worker::FrontMessage::kPrepareGroup), 0);
  const auto second = JoinWorker();
  EXPECT_EQ(second->sent[0].welcome().rank(), 1);
  SayLoaded(second);
  EXPECT_EQ(first->CountOf(worker::FrontMessage::kPrepareGroup), 1);
  SayAddress(second, 1, "two");
  SayAddress(first, 1, "one");
  ASSERT_TRUE(first->sent.back().has_connect_group());
  EXPECT_EQ(first->sent.back().connect_group().addresses(0), "one");
  EXPECT_EQ(first->sent.back().connect_group().addresses(1), "two");
  SayReady(first, 1);
  EXPECT_TRUE(formed_.empty());
  SayReady(second, 1);
  EXPECT_EQ(formed_, std::vector<int64_t>{1});
}

TEST_F(MembershipTest, ALostWorkerEndsTheEpochAndItsReplacementStartsTheNext) {
  Start(2);
  const auto survivor = JoinWorker();
  const auto victim = JoinWorker();
  SayLoaded(survivor);
  SayLoaded(victim);
  Form({survivor, victim}, 1);
  membership_->Leave(victim.get(), "killed", clock_.Now());
  EXPECT_EQ(lost_, std::vector<int64_t>{1});
  const auto replacement = JoinWorker();
  EXPECT_EQ(replacement->sent[0].welcome().rank(), 1) << "it takes the free rank";
  SayLoaded(replacement);
  Form({survivor, replacement}, 2);
  EXPECT_EQ(formed_, (std::vector<int64_t>{1, 2}));
  EXPECT_EQ(survivor->CountOf(worker::FrontMessage::kWelcome), 1) << "survivors keep their weights";
  EXPECT_EQ(membership_->ranks()[1].joins, 2);
}

TEST_F(MembershipTest, AFailedStepReformsWithTheSameWorkersAfterAMoment) {
  Start(1);
  const auto worker = JoinWorker();
  SayLoaded(worker);
  Form({worker}, 1);
  membership_->StepFailed(Epoch{0}, 0, "stale", clock_.Now());
  EXPECT_TRUE(lost_.empty()) << "a step of an older epoch says nothing about this one";
  membership_->StepFailed(Epoch{1}, 0, "peer gone", clock_.Now());
  EXPECT_EQ(lost_, std::vector<int64_t>{1});
  membership_->Tick(clock_.Now());
  EXPECT_EQ(worker->CountOf(worker::FrontMessage::kPrepareGroup), 1);
  clock_.Advance(milliseconds(100));
  membership_->Tick(clock_.Now());
  EXPECT_EQ(worker->CountOf(worker::FrontMessage::kPrepareGroup), 2);
  Form({worker}, 2);
  EXPECT_EQ(formed_, (std::vector<int64_t>{1, 2}));
}

TEST_F(MembershipTest, AFailedFormationIsTriedAgainUnderANewEpoch) {
  Start(2);
  const auto a = JoinWorker(), b = JoinWorker();
  SayLoaded(a);
  SayLoaded(b);
  worker::WorkerMessage failed;
  failed.mutable_group_failed()->set_epoch(1);
  Say(a, failed);
  clock_.Advance(milliseconds(100));
  membership_->Tick(clock_.Now());
  SayAddress(a, 1, "late answer of the old epoch");
  Form({a, b}, 2);
  EXPECT_EQ(formed_, std::vector<int64_t>{2});
  EXPECT_TRUE(lost_.empty()) << "it had not served";
}

// ---- Threads that stand still, steps and formations that do not end

TEST_F(MembershipTest, AThreadThatStandsStillCostsItsWorkerWithinThreeSeconds) {
  const auto workers = StartServing(3);
  std::vector<Thread> threads = {{.activity = worker::ThreadProgress::WAITING, .peer = 1},
                                 {.activity = worker::ThreadProgress::WORKING},
                                 {.activity = worker::ThreadProgress::WAITING, .peer = 1}};
  EXPECT_EQ(AnswerPings(workers, threads, milliseconds(60'000)), milliseconds(60'000))
      << "a step may take as long as it likes while its ranks compute and wait";
  threads[1].is_stopped = true;
  EXPECT_LT(AnswerPings(workers, threads, milliseconds(10'000)), milliseconds(3000));
  EXPECT_EQ(RanksGivenUp(), std::vector<int>{1}) << "the ranks that wait for it stay";
  ASSERT_TRUE(workers[1]->closed.has_value());
  EXPECT_NE(std::string(workers[1]->closed->message()).find("its step thread stands still"), std::string::npos);
  EXPECT_EQ(lost_, std::vector<int64_t>{1});
}

TEST_F(MembershipTest, AnIdleThreadThatStandsStillIsNoticedBeforeAStepNeedsIt) {
  const auto workers = StartServing(2);
  std::vector<Thread> threads(2);
  threads[0].is_stopped = true;
  EXPECT_LT(AnswerPings(workers, threads, milliseconds(10'000)), milliseconds(3000));
  EXPECT_EQ(RanksGivenUp(), std::vector<int>{0});
}

TEST_F(MembershipTest, AProcessThatWasPausedIsNotTakenForAStoppedThread) {
  const auto workers = StartServing(1);
  std::vector<Thread> threads(1);
  AnswerPings(workers, threads, milliseconds(400));
  // Ten pings go unanswered. Then the process goes on, and answers all of them before its step thread has moved.
  for (int i = 0; i < 10; ++i) {
    clock_.Advance(milliseconds(200));
    membership_->Tick(clock_.Now());
  }
  threads[0].is_stopped = true;
  for (int i = 0; i < 10; ++i) SayPong(workers[0], threads[0]);
  membership_->Tick(clock_.Now());
  threads[0].is_stopped = false;
  EXPECT_EQ(AnswerPings(workers, threads, milliseconds(5000)), milliseconds(5000));
}

TEST_F(MembershipTest, ALateStepCostsTheRankThatOwesItsResultAndDoesNothing) {
  const auto workers = StartServing(3);
  std::vector<Thread> threads = {{.activity = worker::ThreadProgress::WAITING, .peer = 2},
                                 {.activity = worker::ThreadProgress::WAITING, .peer = 2},
                                 {.activity = worker::ThreadProgress::IDLE}};
  AnswerPings(workers, threads, milliseconds(3000));
  membership_->StepIsLate(MakeLateStep({0, 1, 2}), clock_.Now());
  EXPECT_EQ(RanksGivenUp(), std::vector<int>{2});
  EXPECT_NE(std::string(workers[2]->closed->message())
                .find("step 7 of layer m.0 with 3 rows has not ended after 2600 ms: rank 0 waits for rank 2, rank 1 "
                      "waits for rank 2, rank 2 does nothing"),
            std::string::npos)
      << *workers[2]->closed;
}

TEST_F(MembershipTest, ARankThatComputesGetsMoreTimeBeforeItIsGivenUp) {
  const auto workers = StartServing(2);
  std::vector<Thread> threads = {{.activity = worker::ThreadProgress::WAITING, .peer = 1},
                                 {.activity = worker::ThreadProgress::WORKING}};
  AnswerPings(workers, threads, milliseconds(3000));
  membership_->StepIsLate(MakeLateStep({0, 1}), clock_.Now());
  EXPECT_TRUE(given_up_.empty());
  EXPECT_TRUE(lost_.empty());
  membership_->StepIsLate(MakeLateStep({0, 1}, /*is_very_late=*/true), clock_.Now());
  EXPECT_EQ(RanksGivenUp(), std::vector<int>{1});
}

TEST_F(MembershipTest, RanksThatWaitForEachOtherFormAnewAndKeepTheirWeights) {
  const auto workers = StartServing(3);
  std::vector<Thread> threads = {{.activity = worker::ThreadProgress::WAITING, .peer = 1},
                                 {.activity = worker::ThreadProgress::WAITING, .peer = 0},
                                 {.activity = worker::ThreadProgress::WAITING, .peer = 0, .is_one_wait = false}};
  AnswerPings(workers, threads, milliseconds(3000));
  membership_->StepIsLate(MakeLateStep({0, 1, 2}), clock_.Now());
  EXPECT_TRUE(lost_.empty()) << "rank 2 gets on: one wait of it follows another";
  threads[2].is_one_wait = true;
  AnswerPings(workers, threads, milliseconds(3000));
  membership_->StepIsLate(MakeLateStep({0, 1, 2}), clock_.Now());
  EXPECT_EQ(lost_, std::vector<int64_t>{1});
  EXPECT_TRUE(given_up_.empty());
  AnswerPings(workers, threads, milliseconds(400));
  Form(workers, 2);
  EXPECT_EQ(formed_, (std::vector<int64_t>{1, 2}));
}

TEST_F(MembershipTest, ALateStepOfAnEarlierEpochMeansNothing) {
  const auto workers = StartServing(1);
  LateStep step = MakeLateStep({0});
  step.epoch = Epoch{0};
  membership_->StepIsLate(step, clock_.Now());
  EXPECT_TRUE(lost_.empty());
}

TEST_F(MembershipTest, TheRankThatOwesItsAddressIsGivenUp) {
  Start(2, /*local=*/true);
  const auto a = JoinWorker(0), b = JoinWorker(1);
  SayLoaded(a);
  SayLoaded(b);
  SayAddress(a, 1, "a");
  std::vector<Thread> threads = {{}, {.activity = worker::ThreadProgress::CONNECTING, .is_stopped = true}};
  EXPECT_LT(AnswerPings({a, b}, threads, milliseconds(60'000)), milliseconds(11'000));
  EXPECT_EQ(RanksGivenUp(), std::vector<int>{1});
}

TEST_F(MembershipTest, ARankThatStillComputesAnOldStepMayOweItsAddress) {
  Start(2, /*local=*/true);
  const auto a = JoinWorker(0), b = JoinWorker(1);
  SayLoaded(a);
  SayLoaded(b);
  SayAddress(a, 1, "a");
  std::vector<Thread> threads = {{}, {.activity = worker::ThreadProgress::WORKING}};
  AnswerPings({a, b}, threads, milliseconds(30'000));
  EXPECT_TRUE(given_up_.empty());
  EXPECT_EQ(membership_->epoch(), Epoch{1});
  SayAddress(b, 1, "b");
  SayReady(a, 1);
  SayReady(b, 1);
  EXPECT_EQ(formed_, std::vector<int64_t>{1});
}

TEST_F(MembershipTest, TheRankThatOwesItsReadyIsGivenUpAndNotTheOneThatConnectsToIt) {
  Start(2, /*local=*/true);
  const auto a = JoinWorker(0), b = JoinWorker(1);
  SayLoaded(a);
  SayLoaded(b);
  SayAddress(a, 1, "a");
  SayAddress(b, 1, "b");
  std::vector<Thread> threads = {{.activity = worker::ThreadProgress::CONNECTING, .peer = 1, .is_stopped = true}, {}};
  EXPECT_LT(AnswerPings({a, b}, threads, milliseconds(60'000)), milliseconds(16'000));
  EXPECT_EQ(RanksGivenUp(), std::vector<int>{1});
}

TEST_F(MembershipTest, RanksThatCannotReachEachOtherAreTriedAgainEverMoreSeldom) {
  Start(2, /*local=*/true);
  const auto a = JoinWorker(0), b = JoinWorker(1);
  SayLoaded(a);
  SayLoaded(b);
  std::vector<Thread> threads = {{.activity = worker::ThreadProgress::CONNECTING, .peer = 1},
                                 {.activity = worker::ThreadProgress::CONNECTING, .peer = 0}};
  std::vector<int64_t> epochs;
  for (int minute = 0; minute < 3; ++minute) {
    for (int i = 0; i < 300; ++i) {
      const int64_t epoch = membership_->epoch().value;
      SayAddress(a, epoch, "a");
      SayAddress(b, epoch, "b");
      if (i % 2 == 0) {
        worker::WorkerMessage failed;
        failed.mutable_group_failed()->set_epoch(epoch);
        failed.mutable_group_failed()->set_message("connecting to rank 1: timed out");
        Say(a, failed);
      }
      AnswerPings({a, b}, threads, milliseconds(200));
    }
    epochs.push_back(membership_->epoch().value);
  }
  EXPECT_TRUE(given_up_.empty());
  EXPECT_LE(epochs[0], 14) << "100 ms, 200 ms, … 10 s";
  EXPECT_LE(epochs[2] - epochs[1], 7);
  EXPECT_GE(epochs[2] - epochs[1], 4) << "it goes on trying";
  // A new worker gets a group without such a pause.
  membership_->Leave(b.get(), "gone", clock_.Now());
  const int64_t before = membership_->epoch().value;
  SayLoaded(JoinWorker(1));
  EXPECT_EQ(membership_->epoch().value, before + 1);
}

TEST_F(MembershipTest, AFormationThatHangsWhileAllWaitIsTriedAgain) {
  Start(2);
  const auto a = JoinWorker(), b = JoinWorker();
  SayLoaded(a);
  SayLoaded(b);
  SayAddress(a, 1, "a");
  SayAddress(b, 1, "b");
  std::vector<Thread> threads = {{.activity = worker::ThreadProgress::CONNECTING, .peer = 1},
                                 {.activity = worker::ThreadProgress::CONNECTING, .peer = 0}};
  AnswerPings({a, b}, threads, milliseconds(16'000));
  EXPECT_EQ(membership_->epoch(), Epoch{2});
  EXPECT_TRUE(given_up_.empty());
}

TEST_F(MembershipTest, AFrontThatDidNotRunForAWhileGivesNoWorkerUp) {
  Start(2, true);
  const auto a = JoinWorker(0), b = JoinWorker(1);
  SayLoaded(a);
  SayLoaded(b);
  membership_->Tick(clock_.Now());
  // The front was stopped for longer than a worker may be silent and a formation may take. The workers' answers are
  // still unread.
  clock_.Advance(std::chrono::seconds(60));
  membership_->Tick(clock_.Now());
  EXPECT_TRUE(given_up_.empty());
  EXPECT_FALSE(a->closed.has_value() || b->closed.has_value());
  Form({a, b}, 1);
  EXPECT_EQ(formed_, std::vector<int64_t>{1});
}

TEST_F(MembershipTest, AnswersToPingsOfLongAgoDoNotKeepAWorker) {
  Start(1, true);
  const auto slow = JoinWorker(0);
  for (int i = 0; i < 20; ++i) {
    clock_.Advance(milliseconds(200));
    worker::WorkerMessage late;
    late.mutable_pong()->set_number(1);
    Say(slow, late);
    membership_->Tick(clock_.Now());
  }
  EXPECT_TRUE(slow->closed.has_value());
}

TEST_F(MembershipTest, ASilentWorkerIsGivenUpAndOneThatAnswersIsNot) {
  Start(2, true);
  const auto silent = JoinWorker(0), lively = JoinWorker(1);
  for (int i = 0; i < 13; ++i) {
    clock_.Advance(milliseconds(200));
    SayPong(lively);
    membership_->Tick(clock_.Now());
  }
  EXPECT_TRUE(silent->closed.has_value());
  EXPECT_FALSE(lively->closed.has_value());
  EXPECT_EQ(given_up_, (std::vector<std::pair<int, int>>{{0, 1000}}));
  EXPECT_GE(lively->CountOf(worker::FrontMessage::kPing), 10);
}

TEST_F(MembershipTest, RefusesStrangersByReason) {
  Start(1);
  auto expect_refused = [&](const worker::Hello& hello, const std::string& reason) {
    const auto joined = membership_->Join(std::make_shared<FakeWorker>(), hello, clock_.Now());
    ASSERT_FALSE(joined.ok());
    EXPECT_NE(std::string(joined.status().message()).find(reason), std::string::npos) << joined.status();
  };
  worker::Hello hello = MakeHello();
  hello.set_version("2");
  expect_refused(hello, "its version is '2', this front needs '1'");
  hello = MakeHello();
  hello.set_build("c");
  expect_refused(hello, "its build is 'c'");
  hello.set_build(std::string(50'000, 'c') + "\033");
  expect_refused(hello, "its build is 'ccc");
  EXPECT_LT(membership_->Join(std::make_shared<FakeWorker>(), hello, clock_.Now()).status().message().size(), 1000u);
  hello = MakeHello();
  hello.clear_compute_dtypes();
  hello.set_device("abacus");
  expect_refused(hello, "the engine of its device abacus: has nothing");
  expect_refused(MakeHello(0), "another front started it");
  JoinWorker();
  expect_refused(MakeHello(), "taken");
}

// ---- Workers that come back

TEST_F(MembershipTest, AWorkerThatComesBackGetsItsRankIfItIsFree) {
  Start(3);
  EXPECT_EQ(*JoinAs(7, 2), 2) << "it held the rank under an earlier front";
  EXPECT_EQ(*JoinAs(8, 2), 0) << "another holds it";
  EXPECT_EQ(*JoinAs(9, 1), 1);
}

TEST_F(MembershipTest, ANewcomerLeavesRanksToWorkersThatMayComeBack) {
  Start(3);
  const auto cut = std::make_shared<FakeWorker>();
  EXPECT_EQ(*JoinAs(7, -1, cut), 0);
  membership_->Leave(cut.get(), "its stream ended", clock_.Now());
  EXPECT_EQ(*JoinAs(8, -1), 1) << "there is a choice";
  EXPECT_EQ(*JoinAs(7, 0), 0);
  EXPECT_EQ(*JoinAs(9, -1), 2);
  const auto full = JoinAs(10, 0);
  EXPECT_TRUE(absl::IsUnavailable(full.status())) << full.status() << ": a rank may become free";
}

TEST_F(MembershipTest, ANewcomerTakesALostRankWhenThereIsNoOther) {
  Start(1);
  const auto lost = std::make_shared<FakeWorker>();
  EXPECT_EQ(*JoinAs(7, -1, lost), 0);
  membership_->Leave(lost.get(), "its stream ended", clock_.Now());
  EXPECT_EQ(*JoinAs(8, -1), 0);
  EXPECT_TRUE(absl::IsUnavailable(JoinAs(7, 0).status()));
}

TEST_F(MembershipTest, ANewStreamOfTheSameProcessReplacesTheOldOne) {
  Start(2);
  const auto old_stream = std::make_shared<FakeWorker>(), other = std::make_shared<FakeWorker>();
  EXPECT_EQ(*JoinAs(7, -1, old_stream), 0);
  EXPECT_EQ(*JoinAs(8, -1, other), 1);
  for (const auto& each : {old_stream, other}) SayLoaded(each);
  Form({old_stream, other}, 1);
  const auto new_stream = std::make_shared<FakeWorker>();
  EXPECT_EQ(*JoinAs(7, 0, new_stream), 0) << "the front has not noticed the cut";
  EXPECT_EQ(lost_, std::vector<int64_t>{1});
  ASSERT_TRUE(old_stream->closed.has_value());
  EXPECT_TRUE(absl::IsUnavailable(*old_stream->closed));
  membership_->Leave(old_stream.get(), "its stream ended", clock_.Now());
  EXPECT_FALSE(new_stream->closed.has_value()) << "the old stream's end says nothing of the new one";
  SayLoaded(new_stream);
  Form({new_stream, other}, 2);
  EXPECT_EQ(formed_, (std::vector<int64_t>{1, 2}));
}

// After a pause, a front finds all streams that were opened meanwhile, in any order.
TEST_F(MembershipTest, AnEarlierStreamDoesNotReplaceALaterOne) {
  Start(1);
  const auto later = std::make_shared<FakeWorker>();
  EXPECT_EQ(*JoinAs(7, 0, later, /*stream_number=*/3), 0);
  EXPECT_TRUE(absl::IsUnavailable(JoinAs(7, 0, std::make_shared<FakeWorker>(), /*stream_number=*/2).status()));
  EXPECT_FALSE(later->closed.has_value());
}

TEST_F(MembershipTest, NoWorkerTakesTheRankOfAnother) {
  Start(2);
  const auto first = std::make_shared<FakeWorker>(), second = std::make_shared<FakeWorker>();
  EXPECT_EQ(*JoinAs(7, -1, first), 0);
  EXPECT_EQ(*JoinAs(0, -1, second), 1);
  EXPECT_TRUE(absl::IsUnavailable(JoinAs(8, 0).status()));
  EXPECT_TRUE(absl::IsUnavailable(JoinAs(0, 1).status())) << "no instance is nobody's";
  EXPECT_FALSE(first->closed.has_value());
  EXPECT_FALSE(second->closed.has_value());
}

TEST_F(MembershipTest, ARankThatThereIsNotIsIgnored) {
  Start(2);
  EXPECT_EQ(*JoinAs(7, 2), 0);
  EXPECT_EQ(*JoinAs(8, std::numeric_limits<int>::min()), 1);
}

TEST_F(MembershipTest, AWorkerThatCannotLoadIsToldNotToComeBack) {
  Start(1);
  const auto worker = JoinWorker();
  SayFailed(worker, 1);
  ASSERT_TRUE(worker->closed.has_value());
  EXPECT_TRUE(absl::IsFailedPrecondition(*worker->closed)) << *worker->closed;
}

TEST_F(MembershipTest, WhatAWorkerSaysOfItselfIsBounded) {
  Start(1);
  const auto expect_refused = [&](const worker::Hello& hello) {
    const auto joined = membership_->Join(std::make_shared<FakeWorker>(), hello, clock_.Now());
    ASSERT_FALSE(joined.ok());
    EXPECT_LT(joined.status().message().size(), 500u);
  };
  const std::string large(1 << 20, 'x');
  worker::Hello hello = MakeHello();
  hello.set_host(large);
  expect_refused(hello);
  hello = MakeHello();
  hello.add_exchanges(large);
  expect_refused(hello);
  hello = MakeHello();
  for (int i = 0; i < 100; ++i) hello.add_compute_dtypes("fp32");
  expect_refused(hello);
  hello = MakeHello();
  hello.set_version(large);
  expect_refused(hello);
  const auto worker = JoinWorker();
  SayLoaded(worker);
  SayAddress(worker, 1, large);
  ASSERT_TRUE(worker->closed.has_value());
  EXPECT_NE(std::string(worker->closed->message()).find("its address for the other ranks has 1048576 bytes"),
            std::string::npos);
}

// ---- Digests of experts

class DigestTest : public MembershipTest {
 protected:
  // Model 2 has two layers; rank r has expert r, and all have expert 9, which is shared.
  void AddExperts(int num_ranks, bool is_needed) {
    GroupModel model = {ModelId{2}, "m2", {}, nullptr};
    for (int rank = 0; rank < num_ranks; ++rank) {
      worker::ModelShare& share = model.shares.emplace_back();
      share.set_model_id(2);
      for (int layer = 0; layer < 2; ++layer) {
        worker::LayerShare& experts = *share.add_layers();
        experts.add_expert_idx(rank);
        experts.add_expert_idx(9);
      }
    }
    model.layer_names = {"first", "second"};
    model.choose_compute_dtype = [](const std::vector<std::string>& available) { return available[0]; };
    membership_->AddModel(std::move(model), is_needed, clock_.Now());
  }
  // `other` is added to the digest of the second layer's expert in that slot.
  void SayDigests(const std::shared_ptr<FakeWorker>& from, int rank, int slot = 0, uint64_t other = 0) {
    worker::WorkerMessage message;
    message.mutable_model_loaded()->set_model_id(2);
    for (int layer = 0; layer < 2; ++layer) {
      worker::LayerDigests& digests = *message.mutable_model_loaded()->add_layers();
      digests.add_digest(100 * layer + rank);
      digests.add_digest(100 * layer + 9);
    }
    auto& digests = *message.mutable_model_loaded()->mutable_layers(1);
    digests.set_digest(slot, digests.digest(slot) + other);
    Say(from, message);
  }
  static std::string Reason(const std::shared_ptr<FakeWorker>& worker) {
    return worker->closed.has_value() ? std::string(worker->closed->message()) : "";
  }
};

TEST_F(DigestTest, AWorkerThatReadOtherWeightsThanTheOneBeforeItIsGivenUp) {
  Start(2);
  AddExperts(2, /*is_needed=*/true);
  const auto first = JoinWorker(), second = JoinWorker();
  SayLoaded(first);
  SayLoaded(second);
  SayDigests(first, 0);
  SayDigests(second, 1);
  Form({first, second}, 1);
  EXPECT_TRUE(membership_->is_serving());
  membership_->Leave(second.get(), "gone", clock_.Now());
  const auto wrong = JoinWorker();
  SayLoaded(wrong);
  SayDigests(wrong, 1, 0, /*other=*/1);
  EXPECT_NE(Reason(wrong).find("model m2, layer second, expert 1: its weights are not those that rank 1 read before"),
            std::string::npos)
      << Reason(wrong);
  const auto right = JoinWorker();
  SayLoaded(right);
  SayDigests(right, 1);
  EXPECT_EQ(Reason(right), "");
  EXPECT_EQ(membership_->ranks()[1].state, RankState::kReady);
}

TEST_F(DigestTest, ASharedExpertIsTheSameOnAllRanks) {
  Start(2);
  AddExperts(2, /*is_needed=*/true);
  const auto first = JoinWorker(), second = JoinWorker();
  SayDigests(first, 0);
  SayDigests(second, 1, 1, /*other=*/1);
  EXPECT_NE(Reason(second).find("model m2, layer second, expert 9: its weights are not those that rank 0 read;"),
            std::string::npos)
      << Reason(second);
}

// Which of two workers is right is not known until all ranks have agreed; so a wrong one that leaves takes its word
// with it.
TEST_F(DigestTest, AWorkerThatLeavesBeforeAllAgreedBindsNobody) {
  Start(2);
  AddExperts(2, /*is_needed=*/true);
  const auto wrong = JoinWorker();
  SayDigests(wrong, 0, 1, /*other=*/1);
  membership_->Leave(wrong.get(), "gone", clock_.Now());
  const auto first = JoinWorker(), second = JoinWorker();
  SayDigests(first, 0);
  SayDigests(second, 1);
  EXPECT_EQ(Reason(first), "");
  EXPECT_EQ(Reason(second), "");
}

TEST_F(DigestTest, AModelThatIsBeingAddedFailsAndItsWorkersStay) {
  Start(2);
  const auto first = JoinWorker(), second = JoinWorker();
  AddExperts(2, /*is_needed=*/false);
  SayDigests(first, 0);
  SayDigests(second, 1, 1, /*other=*/1);
  EXPECT_EQ(Reason(first), "");
  EXPECT_EQ(Reason(second), "");
  EXPECT_EQ(second->CountOf(worker::FrontMessage::kUnloadModel), 1);
  EXPECT_EQ(first->CountOf(worker::FrontMessage::kUnloadModel), 1);
}

TEST_F(DigestTest, EveryExpertNeedsOne) {
  Start(1);
  AddExperts(1, /*is_needed=*/true);
  const auto worker = JoinWorker();
  SayLoaded(worker, 2);
  EXPECT_NE(Reason(worker).find("it did not report one digest for each of its experts"), std::string::npos);
}

TEST_F(MembershipTest, SurvivorsAreToldAtOnceThatTheirGroupIsOver) {
  Start(2);
  const auto first = JoinWorker(), second = JoinWorker();
  SayLoaded(first);
  SayLoaded(second);
  Form({first, second}, 1);
  EXPECT_EQ(first->CountOf(worker::FrontMessage::kEndGroup), 0);
  membership_->Leave(second.get(), "gone", clock_.Now());
  ASSERT_EQ(first->CountOf(worker::FrontMessage::kEndGroup), 1);
  EXPECT_EQ(first->sent.back().end_group().epoch(), 1);
  // A worker that leaves while there is no group ends no group.
  const auto third = JoinWorker();
  membership_->Leave(third.get(), "gone too", clock_.Now());
  EXPECT_EQ(first->CountOf(worker::FrontMessage::kEndGroup), 1);
}

TEST_F(MembershipTest, RanksOfOneGroupUseOneExchange) {
  Start(2);
  JoinWorker();
  worker::Hello hello = MakeHello();
  hello.clear_exchanges();
  hello.add_exchanges("nccl");
  EXPECT_TRUE(
      absl::IsFailedPrecondition(membership_->Join(std::make_shared<FakeWorker>(), hello, clock_.Now()).status()));
}

TEST_F(MembershipTest, TheExchangeIsChosenAnewForEveryGroup) {
  Start(2);
  const auto first = JoinWorker(), second = JoinWorker();
  SayLoaded(first);
  SayLoaded(second);
  EXPECT_EQ(first->sent.back().prepare_group().exchange(), "shm");
  membership_->Leave(second.get(), "gone", clock_.Now());
  worker::Hello elsewhere = MakeHello();
  elsewhere.set_host_identity("host b");
  const auto third = std::make_shared<FakeWorker>();
  ASSERT_TRUE(membership_->Join(third, elsewhere, clock_.Now()).ok());
  SayLoaded(third);
  for (const auto& each : {first, third}) EXPECT_EQ(each->sent.back().prepare_group().exchange(), "tcp");
}

TEST_F(MembershipTest, ALocalFrontTakesOnlyItsOwnWorkers) {
  Start(1, true);
  EXPECT_TRUE(absl::IsFailedPrecondition(
      membership_->Join(std::make_shared<FakeWorker>(), MakeHello(-1), clock_.Now()).status()));
  const auto old_worker = JoinWorker(0), new_worker = JoinWorker(0);
  EXPECT_TRUE(old_worker->closed.has_value()) << "a restarted worker takes its own rank over";
  membership_->Leave(old_worker.get(), "late news", clock_.Now());
  EXPECT_EQ(membership_->ranks()[0].state, RankState::kLoading);
}

TEST_F(MembershipTest, MessagesOfAWorkerThatWasGivenUpAreIgnored) {
  Start(1);
  const auto worker = JoinWorker();
  membership_->Leave(worker.get(), "gone", clock_.Now());
  SayLoaded(worker);
  EXPECT_EQ(membership_->ranks()[0].state, RankState::kAbsent);
}

TEST_F(MembershipTest, AWorkerThatCannotLoadWhatIsNeededIsGivenUp) {
  Start(1, true);
  const auto worker = JoinWorker(0);
  SayFailed(worker, 1);
  ASSERT_EQ(load_failures_.size(), 1u);
  EXPECT_EQ(load_failures_[0], absl::NotFoundError("no tensor x"));
  EXPECT_TRUE(worker->closed.has_value());
  EXPECT_EQ(given_up_.size(), 1u);
  EXPECT_EQ(membership_->ranks()[0].state, RankState::kAbsent);
  SayFailed(JoinWorker(0), 1, absl::StatusCode::kOk);
  EXPECT_FALSE(load_failures_[1].ok()) << "it failed, whatever its code says";
}

// ---- Models that are added and removed

class MembershipModelsTest : public MembershipTest {
 protected:
  // A serving group of two.
  MembershipModelsTest() {
    Start(2);
    a_ = JoinWorker();
    b_ = JoinWorker();
    SayLoaded(a_);
    SayLoaded(b_);
    Form({a_, b_}, 1);
  }
  bool serving() const { return membership_->is_serving(); }

  std::shared_ptr<FakeWorker> a_, b_;
};

TEST_F(MembershipModelsTest, AModelIsNeededOnceEveryRankHasIt) {
  Add(2, false);
  EXPECT_EQ(a_->sent.back().load_model().model().model_id(), 2);
  EXPECT_EQ(b_->sent.back().load_model().model().compute_dtype(), "fp32");
  SayLoaded(a_, 2);
  EXPECT_TRUE(loaded_.empty());
  SayLoaded(b_, 2);
  EXPECT_EQ(loaded_, std::vector<int64_t>{2});
  EXPECT_TRUE(serving()) << "all the while";
  EXPECT_EQ(membership_->ranks()[1].weight_bytes(), 20);
  membership_->Leave(b_.get(), "gone", clock_.Now());
  const auto c = JoinWorker();
  EXPECT_EQ(c->sent[0].welcome().models_size(), 2);
  SayLoaded(c, 1);
  EXPECT_EQ(membership_->ranks()[1].state, RankState::kLoading);
  SayLoaded(c, 2);
  EXPECT_EQ(membership_->ranks()[1].state, RankState::kReady);
  EXPECT_EQ(loaded_.size(), 1u) << "told once";
}

TEST_F(MembershipModelsTest, AWorkerLostDuringALoadDoesNotLoseIt) {
  Add(2, false);
  SayLoaded(a_, 2);
  membership_->Leave(b_.get(), "killed", clock_.Now());
  const auto c = JoinWorker();
  ASSERT_EQ(c->sent[0].welcome().models_size(), 1);
  EXPECT_EQ(c->sent[0].welcome().models(0).model_id(), 1) << "the needed model comes first";
  SayLoaded(c, 1);
  EXPECT_EQ(c->CountOf(worker::FrontMessage::kLoadModel), 1) << "then the one that may have killed the other, alone";
  Form({a_, c}, 2);
  EXPECT_TRUE(serving()) << "without the model that is not needed yet";
  SayLoaded(c, 2);
  EXPECT_EQ(loaded_, std::vector<int64_t>{2});
}

TEST_F(MembershipModelsTest, AModelThatKillsItsWorkersIsGivenUp) {
  Add(2, false);
  SayLoaded(a_, 2);
  std::shared_ptr<FakeWorker> victim = b_;
  for (int death = 1; death <= 3; ++death) {
    EXPECT_TRUE(failed_.empty());
    EXPECT_EQ(victim->CountOf(worker::FrontMessage::kLoadModel), 1) << "death " << death;
    membership_->Leave(victim.get(), "worker killed by signal 9", clock_.Now());
    victim = JoinWorker();
    SayLoaded(victim, 1);
  }
  ASSERT_EQ(failed_.size(), 1u);
  EXPECT_EQ(failed_[0].first, 2);
  EXPECT_NE(std::string(failed_[0].second.message())
                .find("3 workers in a row died while they loaded nothing but this, the last one of rank 1: worker "
                      "killed by signal 9"),
            std::string::npos)
      << failed_[0].second;
  EXPECT_EQ(victim->CountOf(worker::FrontMessage::kLoadModel), 0) << "it is not tried again";
  EXPECT_EQ(a_->CountOf(worker::FrontMessage::kUnloadModel), 1);
  Form({a_, victim}, membership_->epoch().value);
  EXPECT_TRUE(serving());
}

TEST_F(MembershipModelsTest, OfModelsThatAreLoadedAtOnceOnlyTheKillerIsGivenUp) {
  Add(2, false);
  Add(3, false);
  SayLoaded(a_, 2);
  SayLoaded(a_, 3);
  std::shared_ptr<FakeWorker> victim = b_;
  const auto replace = [&] {
    membership_->Leave(victim.get(), "killed", clock_.Now());
    victim = JoinWorker();
    SayLoaded(victim, 1);
  };
  const auto told = [&] {
    std::vector<int64_t> models;
    for (const auto& sent : victim->sent) {
      if (sent.has_load_model()) models.push_back(sent.load_model().model().model_id());
    }
    return models;
  };
  EXPECT_EQ(told(), (std::vector<int64_t>{2, 3})) << "side by side";
  replace();
  EXPECT_EQ(told(), std::vector<int64_t>{2}) << "each suspect is tried alone";
  Add(4, false);
  EXPECT_EQ(told(), std::vector<int64_t>{2}) << "so nothing else is loaded beside it";
  EXPECT_EQ(a_->sent.back().load_model().model().model_id(), 4) << "but on the other rank";
  SayLoaded(victim, 2);
  EXPECT_EQ(loaded_, std::vector<int64_t>{2});
  EXPECT_EQ(told(), (std::vector<int64_t>{2, 3}));
  for (int death = 1; death <= 3; ++death) {
    replace();
    SayLoaded(victim, 2);  // needed by now
  }
  ASSERT_EQ(failed_.size(), 1u);
  EXPECT_EQ(failed_[0].first, 3);
  SayLoaded(a_, 4);
  SayLoaded(victim, 4);
  EXPECT_EQ(loaded_, (std::vector<int64_t>{2, 4}));
}

TEST_F(MembershipModelsTest, DeathsThatASuccessInterruptsAreNotInARow) {
  Add(2, false);
  std::shared_ptr<FakeWorker> victim = b_;
  const auto replace = [&] {
    membership_->Leave(victim.get(), "killed", clock_.Now());
    victim = JoinWorker();
    SayLoaded(victim, 1);
  };
  replace();
  replace();
  SayLoaded(a_, 2);
  replace();
  EXPECT_TRUE(failed_.empty());
  SayLoaded(victim, 2);
  EXPECT_EQ(loaded_, std::vector<int64_t>{2});
}

TEST_F(MembershipModelsTest, ALoadThatIsCalledOffIsOver) {
  Add(2, false);
  SayLoaded(a_, 2);
  membership_->ReleaseModel(ModelId{2});
  membership_->RemoveModel(ModelId{2});
  EXPECT_EQ(b_->sent.back().unload_model().model_id(), 2);
  SayLoaded(b_, 2);  // it was too late
  SayUnloaded(a_, 2);
  SayUnloaded(b_, 2);
  EXPECT_EQ(gone_, std::vector<int64_t>{2});
  EXPECT_TRUE(loaded_.empty());
  EXPECT_TRUE(serving());
}

TEST_F(MembershipModelsTest, AFailureOnOneRankIsUndoneOnTheOthers) {
  Add(2, false);
  SayLoaded(a_, 2);
  SayFailed(b_, 2);
  ASSERT_EQ(failed_.size(), 1u);
  EXPECT_EQ(failed_[0], std::make_pair(int64_t{2}, absl::NotFoundError("rank 1: no tensor x")));
  EXPECT_EQ(a_->sent.back().unload_model().model_id(), 2);
  EXPECT_EQ(b_->CountOf(worker::FrontMessage::kUnloadModel), 0) << "it has nothing";
  EXPECT_TRUE(serving() && load_failures_.empty());
  membership_->RemoveModel(ModelId{2});
  EXPECT_TRUE(gone_.empty());
  EXPECT_EQ(a_->CountOf(worker::FrontMessage::kUnloadModel), 1) << "told once";
  SayUnloaded(a_, 2);
  EXPECT_EQ(gone_, std::vector<int64_t>{2});
  const auto welcome = [&] {
    membership_->Leave(b_.get(), "gone", clock_.Now());
    return JoinWorker()->sent[0].welcome();
  }();
  EXPECT_EQ(welcome.models_size(), 1);
}

TEST_F(MembershipModelsTest, ARemovedModelIsGoneWhenEveryRankSaysSoOrIsGoneItself) {
  membership_->RemoveModel(ModelId{1});
  EXPECT_TRUE(serving());
  EXPECT_EQ(a_->CountOf(worker::FrontMessage::kUnloadModel), 1);
  SayUnloaded(a_, 1);
  EXPECT_TRUE(gone_.empty());
  membership_->Leave(b_.get(), "killed", clock_.Now());
  EXPECT_EQ(gone_, std::vector<int64_t>{1});
  const auto c = JoinWorker();
  EXPECT_EQ(c->sent[0].welcome().models_size(), 0);
  EXPECT_EQ(membership_->ranks()[1].state, RankState::kReady) << "there is nothing to load";
}

TEST_F(MembershipModelsTest, AModelThatLeavesWhileItIsLoadedLetsTheGroupForm) {
  membership_->Leave(b_.get(), "killed", clock_.Now());
  const auto c = JoinWorker();
  membership_->RemoveModel(ModelId{1});
  EXPECT_EQ(c->sent.back().unload_model().model_id(), 1);
  SayLoaded(c, 1);  // sent before it learned of the removal
  SayUnloaded(c, 1);
  SayUnloaded(a_, 1);
  EXPECT_EQ(gone_, std::vector<int64_t>{1});
  membership_->Tick(clock_.Now());
  Form({a_, c}, 2);
  EXPECT_TRUE(serving());
}

TEST_F(MembershipModelsTest, AWorkerThatCannotComputeAModelBeingAddedFailsIt) {
  membership_->RemoveModel(ModelId{1});
  Add(2, false);
  membership_->Leave(b_.get(), "gone", clock_.Now());
  worker::Hello hello = MakeHello();
  hello.clear_compute_dtypes();
  EXPECT_TRUE(membership_->Join(std::make_shared<FakeWorker>(), hello, clock_.Now()).ok());
  ASSERT_EQ(failed_.size(), 1u);
  EXPECT_NE(std::string(failed_[0].second.message()).find("has nothing"), std::string::npos);
  Add(3, false);
  EXPECT_EQ(failed_.size(), 2u) << "told at once";
}

TEST_F(MembershipModelsTest, AModelThatCannotBeHadAnyMoreGivesWayToItsSuccessor) {
  Add(2, false, "m1");
  membership_->Leave(b_.get(), "killed", clock_.Now());
  const auto c = JoinWorker();
  SayFailed(c, 1);
  ASSERT_EQ(abandoned_.size(), 1u);
  EXPECT_EQ(abandoned_[0], std::make_pair(int64_t{1}, absl::NotFoundError("rank 1: no tensor x")));
  EXPECT_FALSE(c->closed.has_value());
  EXPECT_EQ(a_->CountOf(worker::FrontMessage::kUnloadModel), 1);
  membership_->RemoveModel(ModelId{1});
  SayUnloaded(a_, 1);
  EXPECT_EQ(gone_, std::vector<int64_t>{1});
  Form({a_, c}, 2);
  EXPECT_TRUE(serving()) << "without either";
  SayLoaded(a_, 2);
  SayLoaded(c, 2);
  EXPECT_EQ(loaded_, std::vector<int64_t>{2});
}

// The successor may also be a model that every rank has already and that is being warmed up.
TEST_F(MembershipModelsTest, AModelGivesWayToASuccessorThatIsNeededToo) {
  Add(2, false, "m1");
  SayLoaded(a_, 2);
  SayLoaded(b_, 2);
  ASSERT_EQ(loaded_, std::vector<int64_t>{2});
  membership_->Leave(b_.get(), "killed", clock_.Now());
  const auto c = JoinWorker();
  SayFailed(c, 1);
  ASSERT_EQ(abandoned_.size(), 1u);
  EXPECT_EQ(abandoned_[0].first, 1);
  EXPECT_TRUE(load_failures_.empty());
  SayLoaded(c, 2);
  Form({a_, c}, 2);
  EXPECT_TRUE(serving());
}

TEST_F(MembershipModelsTest, AReleasedModelThatCannotBeHadAnyMoreIsAbandoned) {
  membership_->Leave(b_.get(), "killed", clock_.Now());
  SayFailed(JoinWorker(), 1);
  EXPECT_EQ(load_failures_.size(), 1u) << "requests for it wait for a worker that has it";
  membership_->ReleaseModel(ModelId{1});
  membership_->ReleaseModel(ModelId{9});  // the membership does not know this model
  const auto c = JoinWorker();
  EXPECT_EQ(c->sent[0].welcome().models_size(), 1)
      << "the worker still has to answer for the model that it was asked to load";
  EXPECT_EQ(membership_->ranks()[1].state, RankState::kLoading);
  SayFailed(c, 1);
  EXPECT_EQ(load_failures_.size(), 1u);
  ASSERT_EQ(abandoned_.size(), 1u);
  EXPECT_EQ(abandoned_[0], std::make_pair(int64_t{1}, absl::NotFoundError("rank 1: no tensor x")));
  EXPECT_FALSE(c->closed.has_value());
  EXPECT_EQ(a_->CountOf(worker::FrontMessage::kUnloadModel), 1);
  Form({a_, c}, 2);
  EXPECT_TRUE(serving()) << "without it";
  membership_->RemoveModel(ModelId{1});
  EXPECT_TRUE(gone_.empty());
  SayUnloaded(a_, 1);
  EXPECT_EQ(gone_, std::vector<int64_t>{1});
}

TEST_F(MembershipModelsTest, AReleasedModelIsLoadedWhereItCanBe) {
  membership_->ReleaseModel(ModelId{1});
  EXPECT_TRUE(serving());
  membership_->Leave(b_.get(), "killed", clock_.Now());
  const auto c = JoinWorker();
  SayLoaded(c, 1);
  Form({a_, c}, 2);
  EXPECT_TRUE(serving() && abandoned_.empty());
}

TEST_F(MembershipModelsTest, ProgressCountsAllThatIsToBeHeld) {
  EXPECT_EQ(membership_->ranks()[0].load_fraction(), 1);
  Add(2, false);
  worker::WorkerMessage message;
  worker::ModelProgress& progress = *message.mutable_load_progress()->add_models();
  progress.set_model_id(2);
  progress.set_bytes_done(10);
  progress.set_bytes_total(40);
  Say(a_, message);
  EXPECT_EQ(membership_->ranks()[0].load_fraction(), 0.25);
  SayLoaded(a_, 2);
  EXPECT_EQ(membership_->ranks()[0].load_fraction(), 1);
}

TEST(MembershipWithoutModels, Forms) {
  struct Listener : MembershipListener {
    void OnGroupFormed(Epoch) override { formed = true; }
    void OnGroupLost(Epoch, const std::string&) override {}
    void OnWorkerGivenUp(int, int) override {}
    void OnLoadFailed(int, const absl::Status&) override {}
    void OnModelLoaded(ModelId) override {}
    void OnModelFailed(ModelId, const absl::Status&) override {}
    void OnModelAbandoned(ModelId, const absl::Status&) override {}
    void OnModelGone(ModelId) override {}
    bool formed = false;
  } listener;
  Membership membership({}, &listener);
  const auto worker = std::make_shared<FakeWorker>();
  worker::Hello hello;
  hello.set_local_index(-1);
  hello.add_exchanges("tcp");
  ASSERT_TRUE(membership.Join(worker, hello, {}).ok());
  ASSERT_TRUE(worker->sent.back().has_prepare_group());
  worker::WorkerMessage message;
  message.mutable_group_address()->set_epoch(1);
  membership.OnMessage(worker.get(), message, {});
  message.mutable_group_ready()->set_epoch(1);
  membership.OnMessage(worker.get(), message, {});
  EXPECT_TRUE(listener.formed);
}

}  // namespace
}  // namespace switchyard
