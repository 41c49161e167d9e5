#include "client/client.h"

#include <gmock/gmock.h>
#include <grpcpp/server_context.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "client/fake_front.h"
#include "client/forward_codec.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

HostMatrix Counting(int64_t num_rows, int64_t num_cols) {
  HostMatrix matrix = HostMatrix::Allocate(DType::kF32, num_rows, num_cols);
  for (int64_t i = 0; i < num_rows * num_cols; ++i) matrix.view().as<float>()[i] = static_cast<float>(i % 1024);
  return matrix;
}

std::unique_ptr<Client> MustConnect(const std::string& target, ClientOptions options = {}) {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(target, options);
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

ForwardArgs TinyArgs(const HostMatrix& rows) { return {.model = "tiny", .layer = "1", .rows = rows.view()}; }

// A gate at which handlers wait, so that no test has to guess how long something takes.
class Barrier {
 public:
  void Open() {
    MutexLock lock(&mu_);
    open_ = true;
    cv_.SignalAll();
  }
  void Wait() {
    MutexLock lock(&mu_);
    while (!open_) cv_.Wait(&mu_);
  }

 private:
  Mutex mu_;
  CondVar cv_;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
};

TEST(ClientConnect, NamesABadTargetOrOption) {
  for (const char* target : {"", "localhost", ":80", "localhost:http", "localhost:0", "localhost:65536", "unix:"}) {
    const absl::Status status = Client::Connect(target, {}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << target;
    EXPECT_THAT(status.message(), HasSubstr("expected HOST:PORT"));
  }
  EXPECT_TRUE(Client::Connect("unix:/run/front.sock", {}).ok());
  EXPECT_TRUE(Client::Connect("[::1]:8001", {}).ok());
  EXPECT_THAT(Client::Connect("h:1", {.max_attempts = 6}).status().message(), HasSubstr("max_attempts"));
  EXPECT_THAT(Client::Connect("h:1", {.timeout = absl::ZeroDuration()}).status().message(), HasSubstr("timeout"));
  EXPECT_THAT(Client::Connect("h:1", {.max_message_bytes = 0}).status().message(), HasSubstr("max_message_bytes"));
  EXPECT_THAT(Client::Connect("h:1", {.tls_ca = "/absent"}).status().message(), HasSubstr("tls_ca=/absent"));
  EXPECT_THAT(Client::Connect("h:1", {.tls_cert = "/absent"}).status().message(), HasSubstr("tls_key is needed"));
  EXPECT_THAT(Client::Connect("h:1", {.tls = true, .token_file = "/absent"}).status().message(),
              HasSubstr("token_file=/absent"));
}

TEST(ClientConnect, ATokenDoesNotCrossTheNetworkInClear) {
  const std::string path = ::testing::TempDir() + "/token";
  std::ofstream(path) << "secret\n";
  EXPECT_THAT(Client::Connect("h:1", {.token_file = path}).status().message(), HasSubstr("in clear"));
  EXPECT_TRUE(Client::Connect("h:1", {.tls = true, .token_file = path}).ok());
  for (const char* here : {"127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/run/front.sock"}) {
    EXPECT_TRUE(Client::Connect(here, {.token_file = path}).ok()) << here;
  }
}

TEST(ClientForward, ReturnsRowsRoutingAndStats) {
  FakeFront front;
  auto client = MustConnect(front.target());
  const HostMatrix rows = Counting(3, 4);
  ForwardArgs args = TinyArgs(rows);
  args.return_routing = true;
  args.request_id = "job-17";
  const absl::StatusOr<ForwardResult> result = client->Forward(args);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->rows.dtype, DType::kF32);
  ASSERT_EQ(result->rows.num_rows, 3);
  ASSERT_EQ(result->rows.num_cols, 4);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(result->rows.view().as<float>()[i], 2.0f * i);
  EXPECT_EQ(result->routing.num_rows, 3);
  EXPECT_EQ(result->routing.top_k, 2);
  EXPECT_THAT(result->routing.expert_idx, ElementsAre(0, 1, 1, 2, 2, 3));
  EXPECT_THAT(result->routing.weight, ElementsAre(0.75f, 0.25f, 0.75f, 0.25f, 0.75f, 0.25f));
  EXPECT_EQ(result->stats.rows_crossed(), 3);
  EXPECT_THAT(front.request_ids(), ElementsAre("job-17"));
}

TEST(ClientForward, MakesUpDistinctRequestIds) {
  FakeFront front;
  auto client = MustConnect(front.target());
  const HostMatrix rows = Counting(1, 4);
  ASSERT_TRUE(client->Forward(TinyArgs(rows)).ok());
  ASSERT_TRUE(client->Forward(TinyArgs(rows)).ok());
  const std::vector<std::string> ids = front.request_ids();
  ASSERT_EQ(ids.size(), 2u);
  EXPECT_FALSE(ids[0].empty());
  EXPECT_NE(ids[0], ids[1]);
}

TEST(ClientForward, RefusesARequestIdThatMetadataCannotCarry) {
  FakeFront front;
  auto client = MustConnect(front.target());
  const HostMatrix rows = Counting(1, 4);
  for (const std::string& id : {std::string("line\nbreak"), std::string("caf\xc3\xa9"), std::string(129, 'x')}) {
    ForwardArgs args = TinyArgs(rows);
    args.request_id = id;
    const absl::Status status = client->Forward(args).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(status.message(), HasSubstr("request_id"));
  }
  EXPECT_EQ(front.num_forwards(), 0);
}

TEST(ClientForward, KeepsCodeMessageAndDetails) {
  FakeFront front;
  auto client = MustConnect(front.target());
  const HostMatrix rows = Counting(1, 4);
  for (int code = 1; code <= 16; ++code) {
    if (code == static_cast<int>(grpc::StatusCode::UNAVAILABLE)) continue;  // it has its own tests
    front.SetHandler([code](auto*, const auto&, auto*) {
      return grpc::Status(static_cast<grpc::StatusCode>(code), "why it failed", std::string("raw\0bytes", 9));
    });
    const absl::Status status = client->Forward(TinyArgs(rows)).status();
    EXPECT_EQ(static_cast<int>(status.code()), code);
    EXPECT_EQ(status.message(), "why it failed");
    ASSERT_TRUE(status.GetPayload(kStatusDetailsUrl).has_value()) << code;
    EXPECT_EQ(*status.GetPayload(kStatusDetailsUrl), std::string("raw\0bytes", 9));
  }
  EXPECT_EQ(front.num_forwards(), 15) << "only UNAVAILABLE is tried again";
}

TEST(ClientForward, ADeadlineEndsTheCallWhileTheServerStillWorks) {
  Barrier release;
  FakeFront front;
  front.SetHandler([&](auto* context, const auto& request, auto* response) {
    release.Wait();
    return FakeFront::Double(context, request, response);
  });
  auto client = MustConnect(front.target());
  const HostMatrix rows = Counting(1, 4);
  ForwardArgs args = TinyArgs(rows);
  args.timeout = absl::Milliseconds(50);
  EXPECT_TRUE(absl::IsDeadlineExceeded(client->Forward(args).status()));
  release.Open();
}

TEST(ClientForward, SendsAnUnavailableCallAgain) {
  FakeFront front;
  std::atomic<int> failures_left{2};
  front.SetHandler([&](grpc::ServerContext* context, const auto& request, auto* response) {
    if (failures_left.fetch_sub(1) > 0) {
      context->AddTrailingMetadata("grpc-retry-pushback-ms", "1");
      return grpc::Status(grpc::StatusCode::UNAVAILABLE, "a worker is lost");
    }
    return FakeFront::Double(context, request, response);
  });
  auto client = MustConnect(front.target(), {.max_attempts = 3});
  // These rows exceed gRPC's default retry buffer, beyond which gRPC would silently not retry.
  const HostMatrix rows = Counting(100'000, 4);
  const absl::StatusOr<ForwardResult> result = client->Forward(TinyArgs(rows));
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->rows.view().as<float>()[1023], 2046.0f);
  EXPECT_EQ(front.num_forwards(), 3);
}

TEST(ClientForward, GivesUpAfterMaxAttempts) {
  FakeFront front;
  front.SetHandler([](grpc::ServerContext* context, const auto&, auto*) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms", "1");
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  });
  const HostMatrix rows = Counting(1, 4);
  for (int max_attempts : {1, 2, 5}) {
    const int before = front.num_forwards();
    auto client = MustConnect(front.target(), {.max_attempts = max_attempts});
    const absl::Status status = client->Forward(TinyArgs(rows)).status();
    EXPECT_EQ(status, absl::UnavailableError("draining"));
    EXPECT_EQ(front.num_forwards() - before, max_attempts);
  }
}

TEST(ClientForward, RetriesEndAtTheDeadline) {
  FakeFront front;
  front.SetHandler([](grpc::ServerContext* context, const auto&, auto*) {
    context->AddTrailingMetadata("grpc-retry-pushback-ms", "3600000");
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  });
  auto client = MustConnect(front.target(), {.timeout = absl::Milliseconds(100), .max_attempts = 5});
  const HostMatrix rows = Counting(1, 4);
  EXPECT_FALSE(client->Forward(TinyArgs(rows)).ok());
  EXPECT_EQ(front.num_forwards(), 1);
}

TEST(ClientForward, NobodyListeningIsUnavailableAtOnce) {
  std::string target;
  {
    FakeFront front;
    target = front.target();
  }
  auto client = MustConnect(target, {.max_attempts = 1});
  const HostMatrix rows = Counting(1, 4);
  EXPECT_TRUE(absl::IsUnavailable(client->Forward(TinyArgs(rows)).status()));
}

TEST(ClientForward, Carries256MiB) {
  FakeFront front;
  front.SetHandler([](auto*, const v1::ForwardRequest& request, v1::ForwardResponse* response) {
    response->set_dtype(request.dtype());
    response->set_num_rows(request.num_rows());
    response->set_rows(request.rows());
    return grpc::Status::OK;
  });
  auto client = MustConnect(front.target());
  auto rows = std::make_shared<HostMatrix>(Counting(16384, 4096));
  ASSERT_EQ(rows->view().size_bytes(), size_t{256} << 20);
  ForwardArgs args = TinyArgs(*rows);
  args.rows_owner = rows;
  const absl::StatusOr<ForwardResult> result = client->Forward(args);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(std::memcmp(result->rows.buffer.data(), rows->buffer.data(), rows->view().size_bytes()), 0);
}

TEST(ClientForward, ReleasesTheOwnerOfTheRows) {
  FakeFront front;
  std::weak_ptr<HostMatrix> watch;
  {
    auto client = MustConnect(front.target());
    auto rows = std::make_shared<HostMatrix>(Counting(64, 4));
    watch = rows;
    ForwardArgs args = TinyArgs(*rows);
    args.rows_owner = std::move(rows);
    ASSERT_TRUE(client->Forward(args).ok());
    EXPECT_FALSE(watch.expired()) << "args still owns them";
  }
  EXPECT_TRUE(watch.expired());
}

TEST(ClientForward, AnswersManyThreadsEachItsOwn) {
  FakeFront front;
  auto client = MustConnect(front.target());
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&client, t] {
      for (int i = 0; i < 20; ++i) {
        HostMatrix rows = Counting(1 + t, 4);
        rows.view().as<float>()[0] = static_cast<float>(t * 100 + i);
        const absl::StatusOr<ForwardResult> result = client->Forward(TinyArgs(rows));
        ASSERT_TRUE(result.ok()) << result.status();
        ASSERT_EQ(result->rows.num_rows, 1 + t);
        ASSERT_EQ(result->rows.view().as<float>()[0], 2.0f * (t * 100 + i));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(ClientForward, DestructionWaitsForAsyncCalls) {
  Barrier release;
  FakeFront front;
  front.SetHandler([&](auto* context, const auto& request, auto* response) {
    release.Wait();
    return FakeFront::Double(context, request, response);
  });
  absl::StatusOr<ForwardResult> got = absl::UnknownError("not yet");
  std::thread releaser;
  {
    const HostMatrix rows = Counting(2, 4);
    auto client = MustConnect(front.target());
    client->ForwardAsync(TinyArgs(rows), [&](absl::StatusOr<ForwardResult> result) { got = std::move(result); });
    releaser = std::thread([&] { release.Open(); });
  }
  releaser.join();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->rows.view().as<float>()[7], 14.0f);
}

TEST(ClientForward, RefusesAnswersThatDoNotFitTheRequest) {
  FakeFront front;
  auto client = MustConnect(front.target());
  const HostMatrix rows = Counting(2, 4);
  const auto message_after = [&](std::function<void(v1::ForwardResponse*)> change) {
    front.SetHandler([change](auto* context, const auto& request, auto* response) {
      const grpc::Status status = FakeFront::Double(context, request, response);
      change(response);
      return status;
    });
    const absl::Status status = client->Forward(TinyArgs(rows)).status();
    EXPECT_TRUE(absl::IsInternal(status)) << status;
    return std::string(status.message());
  };
  EXPECT_EQ(message_after([](auto* r) { r->mutable_rows()->pop_back(); }),
            "response rows: expected 32 bytes, as many as were sent, found 31");
  EXPECT_EQ(message_after([](auto* r) { r->clear_rows(); }), "response rows: missing");
  EXPECT_EQ(message_after([](auto* r) { r->set_num_rows(3); }), "response num_rows: expected 2, found 3");
  EXPECT_EQ(message_after([](auto* r) { r->set_dtype(v1::DATA_TYPE_BF16); }),
            "response dtype: expected fp32, that of the request, found DataType 4");
  EXPECT_EQ(message_after([](auto* r) { r->mutable_routing()->set_top_k(2); }),
            "response routing: expected 4 expert ids and weights, found 0 and 0");
}

TEST(Client, ListsModelsAndStatus) {
  FakeFront front;
  auto client = MustConnect(front.target());
  const absl::StatusOr<v1::ListModelsResponse> models = client->ListModels();
  ASSERT_TRUE(models.ok()) << models.status();
  EXPECT_EQ(models->models(0).layers_size(), 2);
  const absl::StatusOr<v1::GetStatusResponse> status = client->GetStatus();
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->epoch(), 7);
}

TEST(ForwardCodec, WritesWhatGeneratedCodeReads) {
  const HostMatrix rows = Counting(3, 4);
  ForwardArgs args = TinyArgs(rows);
  args.return_routing = true;
  absl::StatusOr<grpc::ByteBuffer> encoded = EncodeForwardRequest(args);
  ASSERT_TRUE(encoded.ok());
  grpc::Slice bytes;
  ASSERT_TRUE(encoded->DumpToSingleSlice(&bytes).ok());
  v1::ForwardRequest request;
  ASSERT_TRUE(request.ParseFromArray(bytes.begin(), static_cast<int>(bytes.size())));
  EXPECT_EQ(request.model(), "tiny");
  EXPECT_EQ(request.layer(), "1");
  EXPECT_EQ(request.dtype(), v1::DATA_TYPE_FP32);
  EXPECT_EQ(request.num_rows(), 3);
  EXPECT_TRUE(request.return_routing());
  ASSERT_EQ(request.rows().size(), 48u);
  EXPECT_EQ(std::memcmp(request.rows().data(), rows.buffer.data(), 48), 0);
}

// Every prefix of a good answer, and every answer with one byte changed, is refused or decodes to the right shape.
TEST(ForwardCodec, SurvivesDamagedAnswers) {
  const HostMatrix rows = Counting(2, 4);
  v1::ForwardRequest request;
  request.set_model("tiny");
  request.set_layer("1");
  request.set_dtype(v1::DATA_TYPE_FP32);
  request.set_num_rows(2);
  request.set_rows(rows.buffer.data(), 32);
  request.set_return_routing(true);
  v1::ForwardResponse response;
  ASSERT_TRUE(FakeFront::Double(nullptr, request, &response).ok());
  const std::string good = response.SerializeAsString();
  const auto decode = [&](const std::string& bytes) {
    const grpc::Slice slice(bytes);
    grpc::ByteBuffer buffer(&slice, 1);
    return DecodeForwardResponse(&buffer, rows.view());
  };
  ASSERT_TRUE(decode(good).ok()) << decode(good).status();
  for (size_t length = 0; length < good.size(); ++length) {
    const absl::StatusOr<ForwardResult> result = decode(good.substr(0, length));
    if (!result.ok()) continue;
    EXPECT_EQ(result->rows.num_rows, 2);
  }
  for (size_t i = 0; i < good.size(); ++i) {
    for (int flip = 1; flip < 256; ++flip) {
      std::string bad = good;
      bad[i] = static_cast<char>(bad[i] ^ flip);
      const absl::StatusOr<ForwardResult> result = decode(bad);
      if (result.ok()) {
        EXPECT_EQ(result->rows.num_rows, 2);
        EXPECT_EQ(result->routing.expert_idx.size(), result->routing.num_rows * result->routing.top_k);
      }
    }
  }
}

}  // namespace
}  // namespace switchyard
