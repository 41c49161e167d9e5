// Wrong requests, wrong flags and wrong checkpoints: the error names the thing that is wrong, and no other request is
// harmed.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <thread>

#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "proto/switchyard.grpc.pb.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr char kModel[] = "tests/testdata/jargon-moe";
constexpr int64_t kDim = 128;

// One server serves all requests of this file, so the next request must be answered whatever an earlier test sent.
class BadRequestTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto server = ServerProcess::Start(
        {absl::StrCat("--model=m=", kModel), "--local_workers=2", "--compute_dtype=fp32", "--max_queued_rows=1000000"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = server->release();
  }
  static void TearDownTestSuite() {
    EXPECT_EQ(server_->Stop(), 0);
    delete server_;
  }

  void SetUp() override {
    ASSERT_NE(server_, nullptr);
    grpc::ChannelArguments arguments;
    arguments.SetMaxReceiveMessageSize(-1);
    channel_ = grpc::CreateCustomChannel(server_->grpc_address(), grpc::InsecureChannelCredentials(), arguments);
    stub_ = v1::Switchyard::NewStub(channel_);
  }
  // After every test the server must still answer correctly.
  void TearDown() override {
    const HostMatrix input = *LoadMatrix({absl::StrCat(kModel, "/golden.safetensors"), "model.layers.1.mlp.input"});
    const HostMatrix output = *LoadMatrix({absl::StrCat(kModel, "/golden.safetensors"), "model.layers.1.mlp.output"});
    const auto result = server_->Connect()->Forward({.model = "m", .layer = "1", .rows = input.view()});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(Compare(result->rows.view(), output.view(), {1e-4, 1e-5}).within_tolerance());
  }

  static v1::ForwardRequest Valid(int64_t num_rows = 2) {
    v1::ForwardRequest request;
    request.set_model("m");
    request.set_layer("1");
    request.set_dtype(v1::DATA_TYPE_FP32);
    request.set_num_rows(num_rows);
    request.set_rows(std::string(num_rows * kDim * sizeof(float), '\0'));
    return request;
  }

  grpc::Status Call(const v1::ForwardRequest& request, v1::ForwardResponse* response = nullptr) {
    v1::ForwardResponse ignored;
    grpc::ClientContext context;
    return stub_->Forward(&context, request, response == nullptr ? &ignored : response);
  }

  void ExpectError(const v1::ForwardRequest& request, grpc::StatusCode code, const std::string& text) {
    const grpc::Status status = Call(request);
    EXPECT_EQ(status.error_code(), code) << status.error_message();
    EXPECT_NE(status.error_message().find(text), std::string::npos) << status.error_message();
  }

  static ServerProcess* server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Switchyard::Stub> stub_;
};

ServerProcess* BadRequestTest::server_ = nullptr;

TEST_F(BadRequestTest, EveryWrongFieldIsNamed) {
  EXPECT_TRUE(Call(Valid()).ok());
  v1::ForwardRequest request = Valid();
  request.set_model("nope");
  ExpectError(request, grpc::StatusCode::NOT_FOUND, "no model 'nope' is served here; there are: m");
  request = Valid();
  request.set_layer("4");
  ExpectError(request, grpc::StatusCode::NOT_FOUND, "no MoE layer '4'; it has: 0, 1, 2, 3");
  request = Valid();
  request.set_dtype(v1::DATA_TYPE_UNSPECIFIED);
  ExpectError(request, grpc::StatusCode::INVALID_ARGUMENT, "dtype: 0");
  request.set_dtype(static_cast<v1::DataType>(77));
  ExpectError(request, grpc::StatusCode::INVALID_ARGUMENT, "dtype: 77");
  request = Valid();
  request.set_num_rows(0);
  ExpectError(request, grpc::StatusCode::INVALID_ARGUMENT, "num_rows: expected at least 1, found 0");
  request.set_num_rows(-3);
  ExpectError(request, grpc::StatusCode::INVALID_ARGUMENT, "found -3");
  request.set_num_rows(std::numeric_limits<int64_t>::max());
  ExpectError(request, grpc::StatusCode::INVALID_ARGUMENT, "rows: 1024 bytes, expected 9223372036854775807 rows");
  request = Valid();
  request.set_priority(-1);
  ExpectError(request, grpc::StatusCode::INVALID_ARGUMENT, "priority: expected 0 or more, found -1");
  request = Valid();
  request.set_queue_timeout_us(-7);
  ExpectError(request, grpc::StatusCode::INVALID_ARGUMENT, "queue_timeout_us: expected 0 or more, found -7");
  request = Valid();
  request.mutable_rows()->pop_back();
  ExpectError(request, grpc::StatusCode::INVALID_ARGUMENT, "rows: 1023 bytes, expected 2 rows × 128 fp32");
  ExpectError(v1::ForwardRequest(), grpc::StatusCode::NOT_FOUND, "no model ''");
}

TEST_F(BadRequestTest, LargeRequestsWorkUpToTheLimitThatIsNamedBeyond) {
  constexpr int64_t kLimit = int64_t{256} << 20;
  v1::ForwardRequest request = Valid(kLimit / (kDim * sizeof(float)));
  v1::ForwardResponse response;
  const grpc::Status status = Call(request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.rows().size(), static_cast<size_t>(kLimit));
  request = Valid(kLimit / (kDim * sizeof(float)) + 1);
  ExpectError(request, grpc::StatusCode::RESOURCE_EXHAUSTED, "--max_request_bytes is 268435456");
  grpc::ClientContext context;
  EXPECT_FALSE(stub_->Forward(&context, request, &response).ok());
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 0) << "it would never fit";
  request = Valid(2 * kLimit / (kDim * sizeof(float)));
  ExpectError(request, grpc::StatusCode::RESOURCE_EXHAUSTED, "larger than max");
}

TEST_F(BadRequestTest, WhatNeverFitsTheQueueIsRefusedWithoutPushback) {
  v1::ForwardRequest request = Valid(1'000'001);
  request.set_dtype(v1::DATA_TYPE_BF16);
  request.set_rows(std::string(1'000'001 * kDim * 2, '\0'));
  v1::ForwardResponse response;
  grpc::ClientContext context;
  const grpc::Status status = stub_->Forward(&context, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_NE(status.error_message().find("--max_queued_rows=1000000"), std::string::npos) << status.error_message();
  EXPECT_EQ(context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms"), 0u);
}

TEST_F(BadRequestTest, NaNRowsAreAnsweredWithNaNInThoseRowsOnly) {
  HostMatrix input = *LoadMatrix({absl::StrCat(kModel, "/golden.safetensors"), "model.layers.3.mlp.input"});
  const HostMatrix output = *LoadMatrix({absl::StrCat(kModel, "/golden.safetensors"), "model.layers.3.mlp.output"});
  auto* values = input.view().as<float>();
  values[7 * kDim + 5] = std::numeric_limits<float>::quiet_NaN();
  values[400 * kDim] = std::numeric_limits<float>::infinity();
  const auto result = server_->Connect()->Forward({.model = "m", .layer = "3", .rows = input.view()});
  ASSERT_TRUE(result.ok()) << result.status();
  for (int64_t row = 0; row < 512; ++row) {
    if (row == 7) {
      for (int64_t i = 0; i < kDim; ++i) EXPECT_TRUE(std::isnan(result->rows.view().as<float>()[row * kDim + i]));
    } else if (row != 400) {
      const auto comparison = Compare(result->rows.view().Rows(row, 1), output.view().Rows(row, 1), {1e-4, 1e-5});
      ASSERT_TRUE(comparison.within_tolerance()) << "row " << row;
    }
  }
}

TEST_F(BadRequestTest, MutatedMessagesNeverCrash) {
  const std::string valid = Valid(3).SerializeAsString();
  grpc::GenericStub generic(channel_);
  std::mt19937 random(5);
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = valid;
    for (int change = random() % 4; change >= 0; --change) {
      // Changes mostly the small fields, where it matters.
      bytes[random() % (i % 2 == 0 ? 20 : bytes.size())] = static_cast<char>(random());
    }
    if (i % 5 == 0) bytes.resize(random() % bytes.size());
    const grpc::Slice slice(bytes);
    const grpc::ByteBuffer request(&slice, 1);
    grpc::ByteBuffer response;
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    auto call = generic.PrepareUnaryCall(&context, "/switchyard.v1.Switchyard/Forward", request, &queue);
    call->StartCall();
    grpc::Status status;
    call->Finish(&response, &status, nullptr);
    void* tag;
    bool ok;
    ASSERT_TRUE(queue.Next(&tag, &ok));
    EXPECT_NE(status.error_code(), grpc::StatusCode::UNAVAILABLE) << "the server went away";
    refused += !status.ok();
    queue.Shutdown();
    while (queue.Next(&tag, &ok)) {
    }
  }
  EXPECT_GT(refused, 500);
}

TEST_F(BadRequestTest, CancelledCallsLeaveNothingBehind) {
  const v1::ForwardRequest request = Valid(20'000);
  for (int i = 0; i < 50; ++i) {
    v1::ForwardResponse response;
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(i % 10));
    const grpc::Status status = stub_->Forward(&context, request, &response);
    if (!status.ok()) {
      EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << status.error_message();
    }
  }
  const auto client = server_->Connect();
  while (client->GetStatus()->queued_rows() > 0 || client->GetStatus()->queued_bytes() > 0) std::this_thread::yield();
}

TEST_F(BadRequestTest, ProbesAndMetricsAnswer) {
  EXPECT_EQ(server_->Get("/livez"), "live\n");
  EXPECT_EQ(server_->Get("/readyz"), "ready\n");
  EXPECT_EQ(server_->Get("/nothing"), "");
  EXPECT_TRUE(Call(Valid()).ok());
  const std::string metrics = server_->Get("/metrics");
  for (const char* name :
       {"switchyard_stage_seconds_bucket{layer=\"1\",model=\"m\",stage=\"gate\"", "switchyard_rows_crossed_total",
        "switchyard_exchanged_bytes_total", "switchyard_group_epoch 1", "switchyard_expert_rows_total",
        "switchyard_admitted_rows 0", "switchyard_recoveries_total 0",
        "switchyard_requests_total{code=\"OK\",layer=\"1\",model=\"m\"}"}) {
    EXPECT_NE(metrics.find(name), std::string::npos) << name;
  }
}

// ---- Settings that keep a server from starting ----------------------------------------------------------------------

void ExpectStartFails(const std::vector<std::string>& flags, const std::string& text) {
  const auto server = ServerProcess::Start(flags);
  ASSERT_FALSE(server.ok());
  EXPECT_NE(std::string(server.status().message()).find(text), std::string::npos) << server.status();
}

TEST(BadStart, FlagsAreNamed) {
  const std::string model = absl::StrCat("--model=m=", kModel);
  ExpectStartFails({model}, "--local_workers=N");
  ExpectStartFails({"--model=nonsense", "--local_workers=1"}, "expected NAME=DIR");
  ExpectStartFails({model, "--local_workers=1", "--compute_dtype=int8"}, "unknown element type 'int8'");
  ExpectStartFails({model, "--local_workers=1", "--compute_dtype=fp16"}, "fp64, fp32 or bf16");
  ExpectStartFails({model, "--local_workers=1", "--device=cuda:99"}, "--device=cuda:99: this ");
  ExpectStartFails({model, "--local_workers=1", "--worker_binary=/no/worker"}, "worker program /no/worker");
  ExpectStartFails({"--model=m=/no/such/folder", "--local_workers=1"}, "/no/such/folder");
  ExpectStartFails({model, "--await_workers=1", "--worker_host=0.0.0.0"},
                   "or at least --worker_token_file, are needed");
}

TEST(BadStart, APortInUseIsNamed) {
  auto first = ServerProcess::Start({absl::StrCat("--model=m=", kModel), "--local_workers=1"});
  ASSERT_TRUE(first.ok()) << first.status();
  const std::string& address = (*first)->grpc_address();
  const std::string port = address.substr(address.rfind(':') + 1);
  const auto second =
      ChildProcess::Start("server/switchyard_server",
                          {absl::StrCat("--model=m=", kModel), "--local_workers=1", "--http_port=0", "--port=" + port});
  EXPECT_EQ((*second)->Wait(), 1);
  EXPECT_NE((*second)->Log().find("--port: cannot listen on 127.0.0.1:" + port), std::string::npos) << (*second)->Log();
}

TEST(BadStart, ADamagedCheckpointIsRefusedBeforeAnyWorkerLoads) {
  const std::string folder = testing::TempDir() + "/damaged";
  std::filesystem::create_directory(folder);
  std::filesystem::copy(absl::StrCat(kModel, "/config.json"), folder + "/config.json");
  std::ifstream whole(absl::StrCat(kModel, "/model.safetensors"), std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(whole)), std::istreambuf_iterator<char>());
  std::ofstream(folder + "/model.safetensors", std::ios::binary) << bytes.substr(0, bytes.size() / 2);
  const auto server = ServerProcess::Start({absl::StrCat("--model=m=", folder), "--local_workers=1"});
  ASSERT_FALSE(server.ok());
  const std::string message(server.status().message());
  EXPECT_NE(message.find("model.safetensors"), std::string::npos) << message;
  EXPECT_EQ(message.find("started as process"), std::string::npos) << message;
}

}  // namespace
}  // namespace switchyard
