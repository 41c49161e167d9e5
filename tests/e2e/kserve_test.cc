// The KServe API under load, against misbehaving callers, and during shutdown, with real processes. tests/conformance
// tests the answers of each call, with clients that others made.
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <thread>

#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "proto/inference.grpc.pb.h"
#include "tests/e2e/raw_stream.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using inference::ModelStreamInferResponse;

constexpr char kModel[] = "tests/testdata/jargon-moe";
constexpr int64_t kDim = 128;
constexpr int64_t kGoldenRows = 512;
// For fp32 compared with the recorded activations.
constexpr Tolerance kTolerance = {1e-4, 1e-5};

HostMatrix Golden(const std::string& what) {
  return LoadMatrix({absl::StrCat(kModel, "/golden.safetensors"), "model.layers.1.mlp." + what}).value();
}

ModelInferRequest RequestFor(ConstMatrixView rows, const std::string& id = "") {
  ModelInferRequest request;
  request.set_model_name("m.1");
  request.set_id(id);
  auto& input = *request.add_inputs();
  input.set_name("hidden_states");
  input.set_datatype("FP32");
  input.add_shape(rows.num_rows);
  input.add_shape(kDim);
  request.add_raw_input_contents(rows.data, rows.num_rows * kDim * sizeof(float));
  return request;
}

ModelInferRequest ZeroRows(int64_t num_rows, const std::string& id = "") {
  const std::vector<float> rows(num_rows * kDim);
  return RequestFor({reinterpret_cast<const std::byte*>(rows.data()), DType::kF32, num_rows, kDim}, id);
}

void ExpectRows(const ModelInferResponse& response, ConstMatrixView expected) {
  ASSERT_EQ(response.raw_output_contents_size(), 1);
  ASSERT_EQ(response.raw_output_contents(0).size(), expected.num_rows * kDim * sizeof(float));
  const ConstMatrixView rows{reinterpret_cast<const std::byte*>(response.raw_output_contents(0).data()), DType::kF32,
                             expected.num_rows, kDim};
  EXPECT_TRUE(Compare(rows, expected, kTolerance).within_tolerance());
}

class KserveTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto server =
        ServerProcess::Start({absl::StrCat("--model=m=", kModel), "--local_workers=2", "--compute_dtype=fp32"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = server->release();
  }
  static void TearDownTestSuite() {
    EXPECT_EQ(server_->Stop(), 0);
    delete server_;
  }

  void SetUp() override {
    ASSERT_NE(server_, nullptr);
    channel_ = grpc::CreateChannel(server_->grpc_address(), grpc::InsecureChannelCredentials());
    stub_ = GRPCInferenceService::NewStub(channel_);
  }
  // After every test the server must still answer correctly, and hold nothing of requests that were given up.
  void TearDown() override {
    const HostMatrix input = Golden("input"), output = Golden("output");
    grpc::ClientContext context;
    ModelInferResponse response;
    const grpc::Status status = stub_->ModelInfer(&context, RequestFor(input.view()), &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    ExpectRows(response, output.view());
    const auto client = server_->Connect();
    while (client->GetStatus()->queued_rows() > 0) std::this_thread::yield();
  }

  uint64_t NumInferences() {
    grpc::ClientContext context;
    inference::ModelStatisticsRequest request;
    request.set_name("m.1");
    inference::ModelStatisticsResponse response;
    EXPECT_TRUE(stub_->ModelStatistics(&context, request, &response).ok());
    return response.model_stats(0).inference_count();
  }

  static ServerProcess* server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<GRPCInferenceService::Stub> stub_;
};

ServerProcess* KserveTest::server_ = nullptr;

// Sends `count` requests of golden rows, some of them wrong, while it reads the answers.
void RunStream(GRPCInferenceService::Stub& stub, int count, uint32_t seed) {
  const HostMatrix input = Golden("input"), output = Golden("output");
  grpc::ClientContext context;
  const auto stream = stub.ModelStreamInfer(&context);
  const auto rows_of = [seed](int i) { return 1 + (seed + i) % 60; };
  const auto first_of = [&](int i) { return (seed * 31 + i * 7) % (kGoldenRows - rows_of(i)); };
  const auto is_wrong = [](int i) { return i % 10 == 3; };
  std::thread writer([&] {
    for (int i = 0; i < count; ++i) {
      ModelInferRequest request = RequestFor(input.view().Rows(first_of(i), rows_of(i)), std::to_string(i));
      if (is_wrong(i)) request.mutable_inputs(0)->set_datatype("INT8");
      EXPECT_TRUE(stream->Write(request));
    }
    stream->WritesDone();
  });
  std::set<int> seen;
  ModelStreamInferResponse response;
  while (stream->Read(&response)) {
    const int i = std::atoi(response.infer_response().id().c_str());
    EXPECT_TRUE(seen.insert(i).second) << i << " was answered twice";
    EXPECT_EQ(!response.error_message().empty(), is_wrong(i)) << response.error_message();
    if (!is_wrong(i)) ExpectRows(response.infer_response(), output.view().Rows(first_of(i), rows_of(i)));
  }
  writer.join();
  EXPECT_EQ(seen.size(), count);
  const grpc::Status status = stream->Finish();
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(KserveTest, ManyStreamsWithManyRequestsInFlight) {
  std::vector<std::thread> streams;
  for (uint32_t i = 0; i < 4; ++i) streams.emplace_back([this, i] { RunStream(*stub_, 400, i); });
  for (std::thread& stream : streams) stream.join();
}

// Unread answers do not pile up without end: the stream is not read any more, until its answers are.
TEST_F(KserveTest, AStreamWhoseAnswersAreNotReadIsNotReadEither) {
  constexpr int kCount = 2000;
  constexpr uint64_t kHeld = 256;
  // How many answers the transport's windows and buffers take beyond that; answers are 64 KiB.
  constexpr uint64_t kInTransport = 200;
  const uint64_t before = NumInferences();
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  std::thread writer([&] {
    for (int i = 0; i < kCount; ++i) EXPECT_TRUE(stream->Write(ZeroRows(128, std::to_string(i))));
    stream->WritesDone();
  });
  while (NumInferences() - before < kHeld) std::this_thread::yield();
  for (int i = 0; i < 300; ++i) ASSERT_LE(NumInferences() - before, kHeld + kInTransport);
  int answered = 0;
  ModelStreamInferResponse response;
  while (stream->Read(&response)) answered += response.error_message().empty();
  writer.join();
  EXPECT_EQ(answered, kCount);
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(KserveTest, CancelledStreamsLeaveNothingBehind) {
  for (int i = 0; i < 100; ++i) {
    grpc::ClientContext context;
    const auto stream = stub_->ModelStreamInfer(&context);
    for (int request = 0; request < i % 20; ++request) stream->Write(ZeroRows(500));
    ModelStreamInferResponse response;
    if (i % 20 > 0 && i % 3 == 0) {
      EXPECT_TRUE(stream->Read(&response));
    }
    context.TryCancel();
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  }
}

TEST_F(KserveTest, TimeoutsEndQueuedRequestsAndOnlyThem) {
  grpc::ClientContext busy_context;
  const auto busy = stub_->ModelStreamInfer(&busy_context);
  constexpr int kNumBusy = 100;
  std::thread writer([&] {
    for (int i = 0; i < kNumBusy; ++i) EXPECT_TRUE(busy->Write(ZeroRows(4096)));
    busy->WritesDone();
  });
  int expired = 0;
  for (int i = 0; i < 50; ++i) {
    grpc::ClientContext context;
    ModelInferRequest request = ZeroRows(2000, "timed");
    (*request.mutable_parameters())["timeout"].set_int64_param(1 + i * 1000);
    ModelInferResponse response;
    const grpc::Status status = stub_->ModelInfer(&context, request, &response);
    if (status.ok()) {
      EXPECT_EQ(response.id(), "timed");
    } else {
      ++expired;
      EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << status.error_message();
    }
  }
  EXPECT_GT(expired, 0);
  ModelStreamInferResponse response;
  int answered = 0;
  while (busy->Read(&response)) answered += response.error_message().empty();
  EXPECT_EQ(answered, kNumBusy);
  writer.join();
}

// Every message is answered on the stream, however broken, and the stream goes on.
TEST_F(KserveTest, MutatedMessagesAreAnsweredAndTheStreamGoesOn) {
  std::mt19937 random(6);
  const std::string valid = ZeroRows(3, "id").SerializeAsString();
  RawStream stream(channel_, "/inference.GRPCInferenceService/ModelStreamInfer");
  int refused = 0;
  for (int i = 0; i < 5000; ++i) {
    ASSERT_TRUE(stream.Write(Mutate(valid, i, random))) << i;
    ModelStreamInferResponse response;
    ASSERT_TRUE(stream.Read(&response)) << i;
    refused += !response.error_message().empty();
  }
  EXPECT_GT(refused, 500);
  EXPECT_TRUE(stream.Finish().ok());
}

// Five rows wait for one more to fill a batch. Six rows are refused meanwhile.
TEST(KserveOverload, IsRefusedWithAWord) {
  auto server = ServerProcess::Start({absl::StrCat("--model=m=", kModel), "--local_workers=1", "--max_queued_rows=10",
                                      "--max_batch_rows=6", "--max_queue_delay_us=60000000"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto channel = grpc::CreateChannel((*server)->grpc_address(), grpc::InsecureChannelCredentials());
  const auto stub = GRPCInferenceService::NewStub(channel);
  grpc::ClientContext context;
  const auto stream = stub->ModelStreamInfer(&context);
  ModelStreamInferResponse response;
  EXPECT_TRUE(stream->Write(ZeroRows(5, "waits")) && stream->Write(ZeroRows(6, "large")) && stream->Read(&response));
  EXPECT_EQ(response.error_message().rfind("RESOURCE_EXHAUSTED: queue full", 0), 0) << response.error_message();
  EXPECT_EQ(response.infer_response().id(), "large");
  {
    grpc::ClientContext unary;
    ModelInferResponse refused;
    EXPECT_EQ(stub->ModelInfer(&unary, ZeroRows(6), &refused).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_EQ(unary.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 1);
  }
  EXPECT_TRUE(stream->Write(ZeroRows(1, "small")));
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.error_message(), "");
  }
}

// SIGTERM answers the requests in flight on a stream, refuses later ones, and does not wait for the stream's end.
TEST(KserveDrain, AnswersWhatIsInFlight) {
  constexpr int kCount = 40;
  auto server = ServerProcess::Start({absl::StrCat("--model=m=", kModel), "--local_workers=2"});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto channel = grpc::CreateChannel((*server)->grpc_address(), grpc::InsecureChannelCredentials());
  const auto stub = GRPCInferenceService::NewStub(channel);
  grpc::ClientContext context;
  const auto stream = stub->ModelStreamInfer(&context);
  for (int i = 0; i < kCount; ++i) ASSERT_TRUE(stream->Write(ZeroRows(200, std::to_string(i))));
  ModelStreamInferResponse response;
  ASSERT_TRUE(stream->Read(&response));
  (*server)->process().Signal(SIGTERM);
  int answered = 1;
  for (; answered < kCount && stream->Read(&response); ++answered) {
    const bool is_late = response.error_message().rfind("UNAVAILABLE: the server is draining", 0) == 0;
    EXPECT_TRUE(response.error_message().empty() || is_late) << response.error_message();
  }
  EXPECT_EQ(answered, kCount);
  EXPECT_EQ((*server)->process().Wait(), 0);
}

}  // namespace
}  // namespace switchyard
