// ForwardStream with real processes: against recorded layers, under load, against misbehaving callers, and during
// shutdown.
#include "client/forward_stream.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "base/notification.h"
#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "proto/inference.grpc.pb.h"
#include "proto/switchyard.grpc.pb.h"
#include "tests/e2e/raw_stream.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

// For fp32 compared with the recorded activations.
constexpr Tolerance kTolerance = {1e-4, 1e-5};

std::string Folder(const std::string& model) { return "tests/testdata/" + model; }

// A recorded layer; `path` is its module's path in the checkpoint.
struct GoldenLayer {
  std::string model, layer;
  HostMatrix input, output;
};

GoldenLayer LoadGolden(const std::string& model, const std::string& layer, const std::string& path) {
  const auto load = [&](const std::string& what) {
    return LoadMatrix({Folder(model) + "/golden.safetensors", absl::StrCat(path, ".", what)}).value();
  };
  return {model, layer, load("input"), load("output")};
}

GoldenLayer OneLayer() { return LoadGolden("jargon-moe", "1", "model.layers.1.mlp"); }

std::vector<GoldenLayer> GoldenLayers() {
  std::vector<GoldenLayer> layers;
  layers.push_back(OneLayer());
  layers.push_back(LoadGolden("jargon-moe", "2", "model.layers.2.mlp"));
  return layers;
}

class ForwardStreamE2e : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto server = ServerProcess::Start(
        {"--model=jargon-moe=" + Folder("jargon-moe"), "--local_workers=2", "--compute_dtype=fp32"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = server->release();
  }
  static void TearDownTestSuite() {
    EXPECT_EQ(server_->Stop(), 0);
    delete server_;
  }

  void SetUp() override {
    ASSERT_NE(server_, nullptr);
    client_ = server_->Connect();
    channel_ = grpc::CreateChannel(server_->grpc_address(), grpc::InsecureChannelCredentials());
  }
  // After every test the server must still answer correctly, and hold nothing of requests that were given up.
  void TearDown() override {
    const GoldenLayer golden = OneLayer();
    const auto result = client_->Forward({.model = golden.model, .layer = golden.layer, .rows = golden.input.view()});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(Compare(result->rows.view(), golden.output.view(), kTolerance).within_tolerance());
    while (client_->GetStatus()->queued_rows() > 0) std::this_thread::yield();
  }

  std::unique_ptr<ForwardStream> Open(const ForwardStreamOptions& options = {}) {
    return *client_->OpenStream(options);
  }

  uint64_t NumAnswered() {
    grpc::ClientContext context;
    inference::ModelStatisticsRequest request;
    request.set_name("jargon-moe.1");
    inference::ModelStatisticsResponse response;
    const auto stub = inference::GRPCInferenceService::NewStub(channel_);
    EXPECT_TRUE(stub->ModelStatistics(&context, request, &response).ok());
    return response.model_stats(0).inference_count();
  }

  static ServerProcess* server_;
  std::unique_ptr<Client> client_;
  std::shared_ptr<grpc::Channel> channel_;
};

ServerProcess* ForwardStreamE2e::server_ = nullptr;

ForwardArgs ArgsFor(const GoldenLayer& golden, int64_t first, int64_t count) {
  return {.model = golden.model, .layer = golden.layer, .rows = golden.input.view().Rows(first, count)};
}

// Submits `count` requests of recorded rows of all layers, one in ten of them wrong, and checks every answer.
void RunStream(ForwardStream& stream, const std::vector<GoldenLayer>& layers, int count, uint32_t seed) {
  std::atomic<int> num_right{0}, num_refused{0}, num_wrong{0};
  std::mt19937 random(seed);
  for (int i = 0; i < count; ++i) {
    const GoldenLayer& golden = layers[random() % layers.size()];
    const int64_t num_rows = 1 + random() % 40;
    const int64_t first = random() % (golden.input.num_rows - num_rows);
    ForwardArgs args = ArgsFor(golden, first, num_rows);
    const bool is_wrong = random() % 10 == 0;
    if (is_wrong) args.layer = "77";
    const ConstMatrixView expected = golden.output.view().Rows(first, num_rows);
    stream.Submit(args, [&, expected, is_wrong](const absl::StatusOr<ForwardResult>& result) {
      if (is_wrong) {
        absl::IsNotFound(result.status()) ? ++num_refused : ++num_wrong;
      } else {
        const bool agrees = result.ok() && Compare(result->rows.view(), expected, kTolerance).within_tolerance();
        agrees ? ++num_right : ++num_wrong;
      }
    });
  }
  EXPECT_TRUE(stream.Close().ok());
  EXPECT_EQ(num_wrong, 0);
  EXPECT_EQ(num_right + num_refused, count);
  EXPECT_GT(num_refused, 0);
}

TEST_F(ForwardStreamE2e, ThousandsInFlightOfAllLayers) {
  const std::vector<GoldenLayer> layers = GoldenLayers();
  const auto stream = Open();
  RunStream(*stream, layers, 4000, 1);
}

TEST_F(ForwardStreamE2e, ManyStreamsAtOnce) {
  const std::vector<GoldenLayer> layers = GoldenLayers();
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] { RunStream(*Open(), layers, 500, 10 + i); });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_F(ForwardStreamE2e, RoutingTimingAndBalanceLossWhenAskedFor) {
  const GoldenLayer golden = OneLayer();
  const auto stream = Open();
  ForwardArgs args = ArgsFor(golden, 0, 5);
  const auto plain = stream->Forward(args);
  ASSERT_TRUE(plain.ok()) << plain.status();
  EXPECT_EQ(plain->stats.num_steps(), 0);
  EXPECT_EQ(plain->routing.num_rows, 0);
  EXPECT_FALSE(plain->balance_loss.has_value());
  args.return_stats = args.return_routing = args.return_balance_loss = true;
  const auto full = stream->Forward(args);
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->stats.num_steps(), 1);
  EXPECT_EQ(full->routing.num_rows, 5);
  EXPECT_GT(full->balance_loss.value_or(0), 0);
  // Answers to calls have stats unless the request turns them off.
  args.return_stats = std::nullopt;
  EXPECT_EQ(client_->Forward(args)->stats.num_steps(), 1);
  args.return_stats = false;
  EXPECT_EQ(client_->Forward(args)->stats.num_steps(), 0);
}

TEST_F(ForwardStreamE2e, ErrorsLeaveTheStreamOpen) {
  const GoldenLayer golden = OneLayer();
  const auto stream = Open();
  const auto expect_error = [&](const ForwardArgs& args, absl::StatusCode code, const std::string& text) {
    const absl::Status status = stream->Forward(args).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(status.message(), HasSubstr(text));
    EXPECT_TRUE(stream->Forward(ArgsFor(golden, 0, 1)).ok());
  };
  ForwardArgs args = ArgsFor(golden, 0, 4);
  args.model = "nobody";
  expect_error(args, absl::StatusCode::kNotFound, "nobody");
  args = ArgsFor(golden, 0, 4);
  args.rows.num_cols = 100;
  expect_error(args, absl::StatusCode::kInvalidArgument, "rows: 1600 bytes");
  args = ArgsFor(golden, 0, 4);
  args.top_k = -1;
  expect_error(args, absl::StatusCode::kInvalidArgument, "top_k");
  EXPECT_TRUE(stream->Close().ok());
}

v1::ForwardStreamRequest Message(const GoldenLayer& golden, uint64_t id, int64_t first, int64_t num_rows) {
  v1::ForwardStreamRequest message;
  message.set_id(id);
  v1::ForwardRequest& request = *message.mutable_forward();
  request.set_model(golden.model);
  request.set_layer(golden.layer);
  request.set_dtype(v1::DATA_TYPE_FP32);
  request.set_num_rows(num_rows);
  const ConstMatrixView rows = golden.input.view().Rows(first, num_rows);
  request.set_rows(rows.data, rows.size_bytes());
  return message;
}

// Tests the server's own timeout: no client library is there to enforce it.
TEST_F(ForwardStreamE2e, TimeoutsEndRequestsAndOnlyThem) {
  const GoldenLayer golden = OneLayer();
  grpc::ClientContext context;
  const auto stub = v1::Switchyard::NewStub(channel_);
  const auto stream = stub->ForwardStream(&context);
  std::thread writer([&] {
    for (int i = 0; i < 200; ++i) {
      v1::ForwardStreamRequest message = Message(golden, i, 0, 512);
      message.mutable_forward()->set_timeout_us(i % 2 == 0 ? 1 + i * 50 : 0);
      EXPECT_TRUE(stream->Write(message));
    }
    stream->WritesDone();
  });
  v1::ForwardStreamResponse response;
  int answered = 0, expired = 0;
  while (stream->Read(&response)) {
    ++answered;
    if (!response.has_error()) continue;
    ++expired;
    EXPECT_EQ(response.id() % 2, 0);
    EXPECT_EQ(response.error().code(), grpc::StatusCode::DEADLINE_EXCEEDED);
    EXPECT_THAT(response.error().message(), HasSubstr("timeout: not answered within"));
  }
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(answered, 200);
  EXPECT_GT(expired, 0);
  const auto refused = [&](v1::ForwardRequest request) {
    request.set_timeout_us(-1);
    grpc::ClientContext unary_context;
    v1::ForwardResponse ignored;
    return stub->Forward(&unary_context, request, &ignored).error_message();
  };
  EXPECT_EQ(refused(Message(golden, 0, 0, 1).forward()), "timeout_us: expected 0 or more, found -1");
}

TEST_F(ForwardStreamE2e, CancelledRequestsEndAndTheOthersDoNot) {
  const GoldenLayer golden = OneLayer();
  constexpr int kCount = 400;
  const auto stream = Open();
  std::atomic<int> num_cancelled{0}, num_ok{0}, num_other{0};
  std::vector<uint64_t> ids;
  for (int i = 0; i < kCount; ++i) {
    ids.push_back(
        stream->Submit(ArgsFor(golden, 0, 200), [&, is_kept = i % 2 == 0](const absl::StatusOr<ForwardResult>& result) {
          if (result.ok()) {
            ++num_ok;
          } else if (absl::IsCancelled(result.status()) && !is_kept) {
            ++num_cancelled;
          } else {
            ++num_other;
          }
        }));
  }
  for (int i = kCount - 1; i >= 0; i -= 2) stream->Cancel(ids[i]);
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(num_other, 0);
  EXPECT_EQ(num_ok + num_cancelled, kCount);
  EXPECT_GE(num_ok, kCount / 2);
  EXPECT_GT(num_cancelled, 0);
}

// Tests the server's part of cancelling, with ids that a caller uses twice.
TEST_F(ForwardStreamE2e, ACancelMessageEndsWhatHasItsId) {
  const GoldenLayer golden = OneLayer();
  grpc::ClientContext context;
  const auto stub = v1::Switchyard::NewStub(channel_);
  const auto stream = stub->ForwardStream(&context);
  std::thread writer([&] {
    for (int i = 0; i < 100; ++i) EXPECT_TRUE(stream->Write(Message(golden, 7 + i / 98, 0, 512)));
    v1::ForwardStreamRequest cancel;
    cancel.set_cancel(true);
    for (uint64_t id : {1000, 7}) {  // the first is the id of no request, the second of most
      cancel.set_id(id);
      EXPECT_TRUE(stream->Write(cancel));
    }
    stream->WritesDone();
  });
  int cancelled = 0, answered = 0;
  v1::ForwardStreamResponse response;
  while (stream->Read(&response)) {
    ++answered;
    if (!response.has_error()) continue;
    ++cancelled;
    EXPECT_EQ(response.id(), 7);
    EXPECT_EQ(response.error().code(), grpc::StatusCode::CANCELLED);
  }
  writer.join();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(answered, 100);
  EXPECT_GT(cancelled, 0);
}

// Unread answers do not pile up without end, and no other caller waits for them.
TEST_F(ForwardStreamE2e, AStreamWhoseAnswersAreNotReadIsNotReadEither) {
  constexpr int kCount = 2000;
  constexpr uint64_t kHeld = 256;
  // How many answers the transport's windows and buffers take beyond that; answers are 64 KiB.
  constexpr uint64_t kInTransport = 200;
  const GoldenLayer golden = OneLayer();
  const uint64_t before = NumAnswered();
  grpc::ClientContext context;
  const auto stub = v1::Switchyard::NewStub(channel_);
  const auto stream = stub->ForwardStream(&context);
  std::thread writer([&] {
    const v1::ForwardStreamRequest message = Message(golden, 1, 0, 128);
    for (int i = 0; i < kCount; ++i) EXPECT_TRUE(stream->Write(message));
    stream->WritesDone();
  });
  while (NumAnswered() - before < kHeld) std::this_thread::yield();
  for (int i = 0; i < 300; ++i) ASSERT_LE(NumAnswered() - before, kHeld + kInTransport);
  const uint64_t held = NumAnswered() - before;
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(client_->Forward({.model = golden.model, .layer = "2", .rows = golden.input.view()}).ok());
  }
  EXPECT_LE(NumAnswered() - before, held + kInTransport);
  int answered = 0;
  v1::ForwardStreamResponse response;
  while (stream->Read(&response)) answered += response.has_response();
  writer.join();
  EXPECT_EQ(answered, kCount);
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(ForwardStreamE2e, BrokenStreamsLeaveNothingBehind) {
  const GoldenLayer golden = OneLayer();
  std::atomic<int> num_ended{0};
  int num_submitted = 0;
  for (int i = 0; i < 100; ++i) {
    const auto stream = Open();
    Notification first;
    for (int request = 0; request < i % 20; ++request) {
      stream->Submit(ArgsFor(golden, 0, 500), [&, request](const absl::StatusOr<ForwardResult>& result) {
        EXPECT_TRUE(result.ok() || absl::IsCancelled(result.status())) << result.status();
        ++num_ended;
        if (request == 0) first.Notify();
      });
      ++num_submitted;
    }
    if (i % 20 > 0 && i % 3 == 0) first.WaitForNotification();
  }
  EXPECT_EQ(num_ended, num_submitted);
}

// Every message is answered on the stream, however broken, and the stream goes on.
TEST_F(ForwardStreamE2e, MutatedMessagesAreAnsweredAndTheStreamGoesOn) {
  std::mt19937 random(6);
  const GoldenLayer golden = OneLayer();
  const std::string valid = Message(golden, 3, 0, 3).SerializeAsString();
  // Sent behind each message. A message that mutated into a cancel is not answered; its marker is, so the test does not
  // wait for ever.
  const std::string marker = Message(golden, ~uint64_t{0}, 0, 1).SerializeAsString();
  RawStream stream(channel_, "/switchyard.v1.Switchyard/ForwardStream");
  int refused = 0;
  for (int i = 0; i < 3000; ++i) {
    ASSERT_TRUE(stream.Write(Mutate(valid, i, random))) << i;
    ASSERT_TRUE(stream.Write(marker)) << i;
    v1::ForwardStreamResponse response;
    do {
      ASSERT_TRUE(stream.Read(&response)) << i;
      refused += response.has_error();
    } while (response.id() != ~uint64_t{0});
  }
  EXPECT_GT(refused, 500);
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(ForwardStreamE2e, TheExampleRuns) {
  auto example =
      ChildProcess::Start("client/examples/layer_by_layer", {server_->grpc_address(), "jargon-moe", "8", "20"});
  ASSERT_TRUE(example.ok()) << example.status();
  EXPECT_THAT((*example)->ReadLine(), HasSubstr("160 tokens of 8 sequences through "));
  EXPECT_EQ((*example)->Wait(), 0) << (*example)->Log();
  auto stranger = ChildProcess::Start("client/examples/layer_by_layer", {server_->grpc_address(), "nobody", "1", "1"});
  ASSERT_TRUE(stranger.ok()) << stranger.status();
  EXPECT_EQ((*stranger)->Wait(), 1);
  EXPECT_THAT((*stranger)->Log(), HasSubstr("no model 'nobody' is served"));
}

// Five rows wait for one more to fill a batch. Six rows are refused meanwhile.
TEST(ForwardStreamOverload, IsRefusedWithAWord) {
  auto server =
      ServerProcess::Start({"--model=jargon-moe=" + Folder("jargon-moe"), "--local_workers=1", "--max_batch_rows=6",
                            "--max_queue_delay_us=60000000", "--max_queued_rows=10", "--max_request_bytes=10240"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  const auto stream = *client->OpenStream({});
  const GoldenLayer golden = OneLayer();
  Notification answered;
  stream->Submit(ArgsFor(golden, 0, 5), [&](const absl::StatusOr<ForwardResult>& result) {
    EXPECT_TRUE(result.ok()) << result.status();
    answered.Notify();
  });
  const absl::Status refused = stream->Forward(ArgsFor(golden, 0, 6)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_EQ(RetryAfter(refused), absl::Milliseconds(50));
  const absl::Status never = stream->Forward(ArgsFor(golden, 0, 11)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(never)) << never;
  EXPECT_EQ(RetryAfter(never), absl::ZeroDuration()) << "it would never fit";
  // Too large, but by less than the room that a message has beside its rows.
  const absl::Status large = stream->Forward(ArgsFor(golden, 0, 21)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(large));
  EXPECT_THAT(large.message(), HasSubstr("--max_request_bytes"));
  EXPECT_TRUE(stream->Forward(ArgsFor(golden, 0, 1)).ok());
  answered.WaitForNotification();
  // Too large by more: gRPC ends the stream, and says why.
  const absl::Status huge = stream->Forward(ArgsFor(golden, 0, 512)).status();
  EXPECT_TRUE(absl::IsResourceExhausted(huge)) << huge;
  EXPECT_EQ(stream->Close(), huge);
}

constexpr int kInFlight = 32;

// Keeps a fixed number of requests in flight, each answer's callback sending the next, until they are refused.
class Load {
 public:
  explicit Load(ForwardStream* stream) : stream_(stream) {}

  void Start() {
    for (int i = 0; i < kInFlight; ++i) Next();
  }
  int num_right() const { return num_right_; }
  int num_draining() const { return num_draining_; }
  int num_unsent() const { return num_unsent_; }
  int num_other() const { return num_other_; }

 private:
  void Next() {
    stream_->Submit(ArgsFor(golden_, 0, 100), [this](const absl::StatusOr<ForwardResult>& result) {
      if (result.ok()) {
        const auto expected = golden_.output.view().Rows(0, 100);
        Compare(result->rows.view(), expected, kTolerance).within_tolerance() ? ++num_right_ : ++num_other_;
        return Next();
      }
      const bool is_retriable = absl::IsUnavailable(result.status());
      if (is_retriable && absl::StrContains(std::string(result.status().message()), "draining")) {
        ++num_draining_;
      } else {
        is_retriable ? ++num_unsent_ : ++num_other_;
      }
    });
  }

  ForwardStream* const stream_;
  const GoldenLayer golden_ = OneLayer();
  std::atomic<int> num_right_{0}, num_draining_{0}, num_unsent_{0}, num_other_{0};
};

// SIGTERM answers the requests in flight on streams, refuses later ones, and does not wait for the streams' end.
TEST(ForwardStreamDrain, UnderLoadLosesNothing) {
  auto server =
      ServerProcess::Start({"--model=jargon-moe=" + Folder("jargon-moe"), "--local_workers=2", "--compute_dtype=fp32"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  std::vector<std::unique_ptr<ForwardStream>> streams;
  std::vector<std::unique_ptr<Load>> loads;
  for (int i = 0; i < 4; ++i) {
    streams.push_back(*client->OpenStream({}));
    loads.push_back(std::make_unique<Load>(streams.back().get()));
    loads.back()->Start();
  }
  while (loads[0]->num_right() < 200) std::this_thread::yield();
  EXPECT_EQ((*server)->Stop(), 0);
  for (int i = 0; i < 4; ++i) {
    streams[i]->Close().IgnoreError();
    EXPECT_EQ(loads[i]->num_other(), 0);
    EXPECT_EQ(loads[i]->num_draining() + loads[i]->num_unsent(), kInFlight) << "each ended once, by a refusal";
    EXPECT_EQ(loads[i]->num_unsent(), 0) << "the server answers what it has read before it ends the stream";
  }
}

}  // namespace
}  // namespace switchyard
