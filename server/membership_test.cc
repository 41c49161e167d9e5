#include "server/membership.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

using std::chrono::milliseconds;

// A worker as the front sees it: remembers what it was sent.
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
    options.token = "secret";
    options.version = "1";
    options.build = "b";
    options.check_compute_dtypes = [](const worker::Hello& hello) {
      return hello.compute_dtypes_size() > 0 ? absl::OkStatus() : absl::FailedPreconditionError("has nothing");
    };
    options.make_welcome = [](int rank) {
      worker::Welcome welcome;
      welcome.set_rank(rank);
      return welcome;
    };
    membership_ = std::make_unique<Membership>(options, this);
  }

  static worker::Hello MakeHello(int local_index = -1) {
    worker::Hello hello;
    hello.set_version("1");
    hello.set_build("b");
    hello.set_token("secret");
    hello.set_local_index(local_index);
    hello.add_compute_dtypes("fp32");
    hello.set_exchange("gloo");
    hello.set_pid(1000 + local_index);
    return hello;
  }

  std::shared_ptr<FakeWorker> JoinWorker(int local_index = -1) {
    auto fake = std::make_shared<FakeWorker>();
    EXPECT_TRUE(membership_->Join(fake, MakeHello(local_index), clock_.Now()).ok());
    return fake;
  }

  void Say(const std::shared_ptr<FakeWorker>& from, const worker::WorkerMessage& message) {
    membership_->OnMessage(from.get(), message, clock_.Now());
  }
  void SayLoaded(const std::shared_ptr<FakeWorker>& from) {
    worker::WorkerMessage message;
    message.mutable_loaded()->set_weight_bytes(10);
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
    message.mutable_pong();
    Say(from, message);
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

  FakeClock clock_;
  std::unique_ptr<Membership> membership_;
  std::vector<int64_t> formed_, lost_;
  std::vector<std::pair<int, int>> given_up_;
  std::vector<absl::Status> load_failures_;
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

TEST_F(MembershipTest, AFormationThatHangsIsGivenUp) {
  Start(2);
  const auto a = JoinWorker(), b = JoinWorker();
  SayLoaded(a);
  SayLoaded(b);
  for (int i = 0; i < 160; ++i) {
    clock_.Advance(milliseconds(100));
    SayPong(a);
    SayPong(b);
    membership_->Tick(clock_.Now());
  }
  EXPECT_EQ(membership_->epoch(), Epoch{2});
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
  hello.set_token("guess!");
  expect_refused(hello, "token");
  hello = MakeHello();
  hello.set_version("2");
  expect_refused(hello, "its version is '2', this front needs '1'");
  hello = MakeHello();
  hello.set_build("c");
  expect_refused(hello, "its build is 'c'");
  hello = MakeHello();
  hello.clear_compute_dtypes();
  hello.set_device("abacus");
  expect_refused(hello, "the engine of its device abacus: has nothing");
  expect_refused(MakeHello(0), "another front started it");
  JoinWorker();
  expect_refused(MakeHello(), "taken");
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
  // While there is no group there is none to end.
  const auto third = JoinWorker();
  membership_->Leave(third.get(), "gone too", clock_.Now());
  EXPECT_EQ(first->CountOf(worker::FrontMessage::kEndGroup), 1);
}

TEST_F(MembershipTest, RanksOfOneGroupUseOneExchange) {
  Start(2);
  JoinWorker();
  worker::Hello hello = MakeHello();
  hello.set_exchange("nccl");
  EXPECT_TRUE(
      absl::IsFailedPrecondition(membership_->Join(std::make_shared<FakeWorker>(), hello, clock_.Now()).status()));
}

TEST_F(MembershipTest, ALocalFrontTakesOnlyItsOwnWorkers) {
  Start(1, true);
  EXPECT_TRUE(absl::IsFailedPrecondition(
      membership_->Join(std::make_shared<FakeWorker>(), MakeHello(-1), clock_.Now()).status()));
  const auto old_worker = JoinWorker(0), new_worker = JoinWorker(0);
  EXPECT_TRUE(old_worker->closed.has_value()) << "a restarted worker takes its own rank over";
  membership_->Leave(old_worker.get(), "late news", clock_.Now());
  EXPECT_EQ(membership_->ranks()[0].state, Membership::RankState::kLoading);
}

TEST_F(MembershipTest, MessagesOfAWorkerThatWasGivenUpAreIgnored) {
  Start(1);
  const auto worker = JoinWorker();
  membership_->Leave(worker.get(), "gone", clock_.Now());
  SayLoaded(worker);
  EXPECT_EQ(membership_->ranks()[0].state, Membership::RankState::kAbsent);
}

TEST_F(MembershipTest, ALoadFailureIsTold) {
  Start(1);
  const auto worker = JoinWorker();
  worker::WorkerMessage message;
  message.mutable_load_failed()->set_code(static_cast<int>(absl::StatusCode::kNotFound));
  message.mutable_load_failed()->set_message("no tensor x");
  Say(worker, message);
  ASSERT_EQ(load_failures_.size(), 1u);
  EXPECT_EQ(load_failures_[0], absl::NotFoundError("no tensor x"));
  message.mutable_load_failed()->set_code(0);
  Say(worker, message);
  EXPECT_FALSE(load_failures_[1].ok()) << "it failed, whatever its code says";
}

}  // namespace
}  // namespace switchyard
