// Messages that a worker of another build, or a faulty one, may send: mutated messages on the link's socket, and
// mutated control messages for the group's state machine. Each is refused, ignored or taken at its word, and the group
// still forms afterwards.
#include <gtest/gtest.h>
#include <sys/socket.h>

#include "base/logging/logging.h"
#include "moe/link/step_socket.h"
#include "server/group/membership/load_display.h"
#include "server/group/membership/membership.h"
#include "server/group/worker_message.h"
#include "tests/fuzz/mutator.h"

namespace switchyard {
namespace {

// ---- The link's socket

// The bytes that one end of a socket receives when `send` writes to the other end.
template <typename SendFn>
std::string Recorded(const SendFn& send) {
  SocketPair sockets = *MakeSocketPair();
  EXPECT_TRUE(send(sockets.front.get()).ok());
  std::string bytes(4096, '\0');
  const ssize_t count = recv(sockets.worker.get(), bytes.data(), bytes.size(), 0);
  bytes.resize(std::max<ssize_t>(count, 0));
  return bytes;
}

std::vector<std::string> LinkCorpus() {
  const ResultMessage failed{Epoch{3}, StepId{9}, {1, 2, 3}, absl::InternalError("peer gone")};
  const ResultMessage fine{Epoch{4}, StepId{10}, {4, 5, 6}, absl::OkStatus()};
  return {Recorded([&](int socket) { return SendResult(socket, failed); }),
          Recorded([&](int socket) { return SendResult(socket, fine); }), Recorded([](int socket) {
            return SendStep(socket, {Epoch{3}, StepId{9}, LayerId{5}, 1, 4, 77});
          }),
          Recorded([](int socket) { return SendSetup(socket, LinkLayout::For(3, 4096, 4096, 4096), socket); })};
}

// Sends the bytes as one message of the socket and receives them with `receive`, which must return something sensible.
template <typename ReceiveFn>
bool IsTaken(const SocketPair& sockets, const std::string& bytes, const ReceiveFn& receive) {
  EXPECT_EQ(send(sockets.front.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  const absl::Status status = receive(sockets.worker.get());
  EXPECT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status;
  return status.ok();
}

TEST(WorkerProtocolFuzz, MutatedLinkMessagesAreRefusedOrTakenWhole) {
  Mutator mutator(20260803, LinkCorpus());
  SocketPair sockets = *MakeSocketPair();
  const int64_t iterations = FuzzIterations(50'000);
  int64_t results = 0, steps = 0;
  for (int64_t i = 0; i < iterations; ++i) {
    std::string bytes = mutator.Next();
    if (bytes.empty()) continue;  // an empty message would mean the end of the stream to the receiver
    bytes.resize(std::min<size_t>(bytes.size(), 16 << 10));
    results += IsTaken(sockets, bytes, [](int socket) {
      const auto result = ReceiveResult(socket);
      if (result.ok()) {
        EXPECT_LE(result->status.message().size(), 512u);
      }
      return result.status();
    });
    steps += IsTaken(sockets, bytes, [](int socket) { return ReceiveStep(socket).status(); });
    IsTaken(sockets, bytes, [](int socket) {
      const auto setup = ReceiveSetup(socket);
      EXPECT_FALSE(setup.ok()) << "it came without a descriptor";
      return setup.status();
    });
    ASSERT_FALSE(testing::Test::HasFailure()) << "input " << i;
  }
  EXPECT_GT(results, iterations / 50);
  EXPECT_GT(steps, iterations / 50);
}

// ---- The control stream

// A worker's stream that remembers only whether it was closed.
class MutedChannel final : public WorkerChannel {
 public:
  void Send(worker::FrontMessage message) override { EXPECT_LT(message.ByteSizeLong(), size_t{1} << 20); }
  void Close(const absl::Status&) override {}
};

std::string Serialized(const std::function<void(worker::WorkerMessage*)>& fill) {
  worker::WorkerMessage message;
  fill(&message);
  return message.SerializeAsString();
}

worker::Hello GoodHello() {
  worker::Hello hello;
  hello.set_version("1");
  hello.set_build("b");
  hello.set_local_index(-1);
  hello.add_compute_dtypes("fp32");
  hello.add_exchanges("shm");
  hello.add_exchanges("tcp");
  hello.set_host_identity("host");
  return hello;
}

std::vector<std::string> ControlCorpus() {
  const auto model_progress = [](worker::WorkerMessage* message) {
    auto& progress = *message->mutable_load_progress();
    for (int i = 0; i < 2; ++i) {
      progress.add_models()->set_bytes_done(30);
      progress.mutable_models(i)->set_bytes_total(80);
      progress.mutable_models(i)->set_model_id(i + 1);
    }
  };
  return {Serialized([](auto* message) { *message->mutable_hello() = GoodHello(); }),
          Serialized(model_progress),
          Serialized([](auto* message) {
            message->mutable_model_loaded()->set_weight_bytes(80);
            message->mutable_model_loaded()->set_model_id(1);
          }),
          Serialized([](auto* message) {
            message->mutable_model_failed()->set_code(5);
            message->mutable_model_failed()->set_model_id(2);
          }),
          Serialized([](auto* message) { message->mutable_model_unloaded()->set_model_id(2); }),
          Serialized([](auto* message) {
            message->mutable_group_address()->set_epoch(1);
            message->mutable_group_address()->set_address("address");
          }),
          Serialized([](auto* message) { message->mutable_group_ready()->set_epoch(1); }),
          Serialized([](auto* message) { message->mutable_group_failed()->set_epoch(1); }),
          Serialized([](auto* message) { message->mutable_pong()->set_number(1); })};
}

class ControlFuzz : public testing::Test, public MembershipListener {
 protected:
  static constexpr int kNumRanks = 3;

  void SetUp() override {
    level_ = spdlog::get_level();
    spdlog::set_level(spdlog::level::off);  // otherwise each refusal would log a line
    google::protobuf::SetLogHandler(nullptr);
    MembershipOptions options;
    options.num_ranks = kNumRanks;
    options.version = "1";
    options.build = "b";
    options.show_load = [this](const std::vector<ModelLoad>& models, SteadyTime now) { display_.Update(models, now); };
    membership_ = std::make_unique<Membership>(options, this);
    Add(1, /*is_needed=*/true);
    Add(2, /*is_needed=*/false);
  }
  void Add(int64_t id, bool is_needed) {
    GroupModel model = {ModelId{id}, "model", std::vector<worker::ModelShare>(kNumRanks), nullptr};
    for (worker::ModelShare& share : model.shares) share.set_model_id(id);
    model.choose_compute_dtype = [](const std::vector<std::string>&) { return "fp32"; };
    membership_->AddModel(std::move(model), is_needed, clock_.Now());
  }
  void TearDown() override { spdlog::set_level(level_); }

  void OnGroupFormed(Epoch epoch) override { EXPECT_EQ(epoch, membership_->epoch()); }
  void OnGroupLost(Epoch, const std::string&) override {}
  void OnWorkerGivenUp(int rank, int) override { EXPECT_LT(rank, kNumRanks); }
  void OnLoadFailed(int, const absl::Status& why) override { EXPECT_FALSE(why.ok()); }
  void OnModelLoaded(ModelId id) override { EXPECT_EQ(id, ModelId{2}); }
  void OnModelFailed(ModelId id, const absl::Status& why) override {
    EXPECT_EQ(id, ModelId{2});
    EXPECT_FALSE(why.ok());
  }
  void OnModelAbandoned(ModelId id, const absl::Status& why) override {
    EXPECT_EQ(id, ModelId{1});
    EXPECT_FALSE(why.ok());
  }
  void OnModelGone(ModelId) override {}

  // Does what the service does with a message, whether the worker has joined or not.
  void Receive(const std::shared_ptr<MutedChannel>& channel, const worker::WorkerMessage& message) {
    if (message.has_hello()) {
      num_joined_ += membership_->Join(channel, message.hello(), clock_.Now()).ok();
    } else {
      membership_->OnMessage(channel.get(), message, clock_.Now());
    }
  }

  // Real workers must be able to form the group.
  void ExpectFormsWithRealWorkers() {
    std::vector<std::shared_ptr<MutedChannel>> workers;
    for (const auto& rank : membership_->ranks()) {
      if (rank.channel != nullptr) membership_->Leave(rank.channel.get(), "over", clock_.Now());
    }
    for (int i = 0; i < kNumRanks; ++i) {
      workers.push_back(std::make_shared<MutedChannel>());
      ASSERT_TRUE(membership_->Join(workers.back(), GoodHello(), clock_.Now()).ok());
      SayTo(workers.back(), [](auto* message) { message->mutable_model_loaded()->set_model_id(1); });
      SayTo(workers.back(), [](auto* message) { message->mutable_model_loaded()->set_model_id(2); });
    }
    clock_.Advance(std::chrono::seconds(1));
    membership_->Tick(clock_.Now());
    const int64_t epoch = membership_->epoch().value;
    for (const auto& each : workers) {
      SayTo(each, [&](auto* message) { message->mutable_group_address()->set_epoch(epoch); });
    }
    for (const auto& each : workers) {
      SayTo(each, [&](auto* message) { message->mutable_group_ready()->set_epoch(epoch); });
    }
    EXPECT_TRUE(membership_->is_serving());
  }
  void SayTo(const std::shared_ptr<MutedChannel>& from, const std::function<void(worker::WorkerMessage*)>& fill) {
    worker::WorkerMessage message;
    fill(&message);
    membership_->OnMessage(from.get(), message, clock_.Now());
  }

  FakeClock clock_;
  LoadDisplay display_{{.draw = nullptr, .log = [](const std::string&) {}}};
  std::unique_ptr<Membership> membership_;
  int64_t num_joined_ = 0;
  spdlog::level::level_enum level_ = spdlog::level::info;
};

TEST_F(ControlFuzz, MutatedControlMessagesLeaveTheGroupSound) {
  Mutator mutator(20260804, ControlCorpus());
  std::vector<std::shared_ptr<MutedChannel>> channels(2 * kNumRanks);
  for (auto& channel : channels) channel = std::make_shared<MutedChannel>();
  const int64_t iterations = FuzzIterations(50'000);
  Epoch last_epoch;
  for (int64_t i = 0; i < iterations; ++i) {
    auto& channel = channels[mutator.Below(channels.size())];
    const auto received = DecodeWorkerMessage(mutator.Cut(mutator.Next()));
    if (received.ok()) Receive(channel, received->message);
    if (mutator.Below(16) == 0) {
      membership_->Leave(channel.get(), "gone", clock_.Now());
      channel = std::make_shared<MutedChannel>();
    }
    if (mutator.Below(8) == 0) {
      clock_.Advance(std::chrono::milliseconds(100));
      membership_->Tick(clock_.Now());
    }
    EXPECT_GE(membership_->epoch().value, last_epoch.value) << "epochs only grow";
    last_epoch = membership_->epoch();
    ASSERT_FALSE(HasFailure()) << "input " << i;
  }
  EXPECT_GT(num_joined_, iterations / 1000);
  EXPECT_GT(last_epoch.value, 0) << "no group was ever begun";
  ExpectFormsWithRealWorkers();
}

}  // namespace
}  // namespace switchyard
