#include "server/config/options.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

ServerOptions Valid() {
  ServerOptions options;
  options.models = {{"m", "/models/m"}};
  options.local_workers = 2;
  return options;
}

void ExpectRefused(const ServerOptions& options, const std::string& flag) {
  const absl::Status status = ValidateOptions(options);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_NE(std::string(status.message()).find(flag), std::string::npos) << status;
}

TEST(ServerOptions, DefaultsWithAModelAndWorkersAreValid) { EXPECT_TRUE(ValidateOptions(Valid()).ok()); }

TEST(ServerOptions, ErrorsNameTheFlag) {
  ServerOptions options = Valid();
  options.models.clear();
  ExpectRefused(options, "--model");
  options = Valid();
  options.models.push_back({"m", "elsewhere"});
  ExpectRefused(options, "given twice");
  options = Valid();
  options.await_workers = 1;
  ExpectRefused(options, "--await_workers");
  options = Valid();
  options.local_workers = 0;
  ExpectRefused(options, "--local_workers");
  options = Valid();
  options.max_batch_rows = 0;
  ExpectRefused(options, "--max_batch_rows=0: expected 1 to");
  options = Valid();
  options.port = 65536;
  ExpectRefused(options, "--port=65536");
  options = Valid();
  options.max_queued_bytes = 1;
  ExpectRefused(options, "--max_queued_bytes");
  options = Valid();
  options.step_timeout_ms = 99;
  ExpectRefused(options, "--step_timeout_ms=99: expected 100 to");
}

TEST(ServerOptions, TextsThatProtobufCannotSendAreRefused) {
  ServerOptions options = Valid();
  options.models = {{"m\xff", "/models/m"}};
  ExpectRefused(options, "--model=m\\xff=/models/m: expected UTF-8");
  options.models = {{"m", "/models/\xc0\xaf"}};
  ExpectRefused(options, "--model=m=/models/\\xc0\\xaf: expected UTF-8");
  options = Valid();
  options.model_repository = "/tmp/\xff";
  ExpectRefused(options, "--model_repository=/tmp/\\xff: expected UTF-8");
  options = Valid();
  options.trace_file = "/tmp/\xff";
  ExpectRefused(options, "--trace_file=/tmp/\\xff: expected UTF-8");
  options = Valid();
  options.models = {{"modèle", "/models/m"}};
  EXPECT_TRUE(ValidateOptions(options).ok());
}

TEST(ServerOptions, HostsAreHosts) {
  for (const char* host : {"::", "[::]", "0.0.0.0", "::1", "localhost"}) {
    ServerOptions options = Valid();
    options.host = host;
    EXPECT_TRUE(ValidateOptions(options).ok()) << host;
  }
  for (const char* host : {"", "127.0.0.1:8001", "unix:/run/x", "a b"}) {
    ServerOptions options = Valid();
    options.host = host;
    ExpectRefused(options, absl::StrCat("--host=", host, ": expected"));
    options = Valid();
    options.worker_host = host;
    ExpectRefused(options, absl::StrCat("--worker_host=", host, ": expected"));
  }
}

TEST(ServerOptions, PreparingTakesAShareOfTheCores) {
  ServerOptions options = Valid();
  options.device = "cuda";
  EXPECT_EQ(PreparingThreads(options, 16), 8);
  EXPECT_EQ(PreparingThreads(options, 1), 1);
  options.device = "cpu";
  EXPECT_EQ(PreparingThreads(options, 16), 4);
  EXPECT_EQ(PreparingThreads(options, 2), 1);
  options.local_workers = 0;  // they compute elsewhere
  options.await_workers = 2;
  EXPECT_EQ(PreparingThreads(options, 16), 8);
  options.gate_threads = 3;
  EXPECT_EQ(PreparingThreads(options, 16), 3);
}

TEST(ServerOptions, TheExchangeFitsTheDevice) {
  ServerOptions options = Valid();
  for (const char* exchange : {"auto", "shm", "tcp", "gloo", "direct", "nccl"}) {
    options.exchange = exchange;
    EXPECT_TRUE(ValidateOptions(options).ok()) << exchange;  // --device=auto may be either
  }
  options.device = "cpu";
  ExpectRefused(options, "--exchange=nccl is for workers on GPUs");
  options.exchange = "direct";
  ExpectRefused(options, "--exchange=direct is for workers on GPUs");
  options.device = "cuda";
  options.exchange = "shm";
  ExpectRefused(options, "--exchange=shm is for workers on CPUs");
  options.exchange = "rdma";
  ExpectRefused(options, "--exchange=rdma: expected auto, shm, tcp or gloo (CPUs), direct or nccl (GPUs)");
}

TEST(ServerOptions, AWorkerPortOpenToOthersNeedsAToken) {
  ServerOptions options = Valid();
  options.local_workers = 0;
  options.await_workers = 2;
  options.worker_host = "0.0.0.0";
  ExpectRefused(options, "--worker_token_file");
  options.worker_token_file = "secret";
  EXPECT_TRUE(ValidateOptions(options).ok());
}

TEST(ServerOptions, MutualTlsWillDoInThePlaceOfAToken) {
  ServerOptions options = Valid();
  options.local_workers = 0;
  options.await_workers = 2;
  options.worker_host = "0.0.0.0";
  options.worker_tls_cert = "cert";
  ExpectRefused(options, "--worker_tls_");
  options.worker_tls_key = "key";
  options.worker_tls_ca = "ca";
  EXPECT_TRUE(ValidateOptions(options).ok());
}

TEST(ServerOptions, FilesThatBelongTogether) {
  ServerOptions options = Valid();
  options.tls_key = "key";
  ExpectRefused(options, "--tls_key=key: --tls_cert is needed with it");
  options.tls_key = "";
  options.tls_client_ca = "ca";
  ExpectRefused(options, "--tls_client_ca=ca: --tls_cert and --tls_key are needed with it");
}

TEST(ServerOptions, TokensNeedTlsBeyondLoopback) {
  ServerOptions options = Valid();
  options.auth_token_file = "tokens";
  EXPECT_TRUE(ValidateOptions(options).ok());
  options.host = "0.0.0.0";
  ExpectRefused(options, "--auth_token_file=tokens");
  options.tls_cert = "cert";
  options.tls_key = "key";
  EXPECT_TRUE(ValidateOptions(options).ok());
}

TEST(ServerOptions, MemoryOfMessagesFollowsTheQueueUnlessItIsGiven) {
  ServerOptions options = Valid();
  options.max_request_bytes = 10;
  options.max_queued_bytes = 100;
  EXPECT_EQ(options.grpc_memory(int64_t{1} << 40), 140);
  EXPECT_EQ(options.grpc_memory(/*memory_limit=*/400), 100);
  EXPECT_EQ(options.grpc_memory(/*memory_limit=*/40), 20);  // of two requests
  options.grpc_memory_bytes = int64_t{1} << 30;
  EXPECT_EQ(options.grpc_memory(400), int64_t{1} << 30);
  EXPECT_TRUE(ValidateOptions(options).ok());
  options.grpc_memory_bytes = 1;
  ExpectRefused(options, "--grpc_memory_bytes=1");
}

TEST(ModelOption, SplitsAtTheFirstEqualsSign) {
  const auto model = ParseModelOption("bench=synthetic:dim=8,hidden=8");
  EXPECT_EQ(model->name, "bench");
  EXPECT_EQ(model->location, "synthetic:dim=8,hidden=8");
  for (const char* bad : {"", "name", "=dir", "name="}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseModelOption(bad).status())) << bad;
  }
}

}  // namespace
}  // namespace switchyard
