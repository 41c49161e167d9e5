// Strangers at the worker port, who have no token.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <fstream>

#include "absl/strings/match.h"
#include "rpc/deadline.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

// A step's output has 64 MiB, so the port takes messages of this size from a worker.
constexpr char kModel[] =
    "--model=m=synthetic:dim=4096,hidden=64,experts=2,topk=1,act=silu,glu=1,bias=0,dtype=fp32,layers=1";
constexpr int64_t kDim = 4096;
constexpr size_t kMessageBytes = 60 << 20;
constexpr int kStrangers = 24;

// The most memory that the process has had, in KiB.
int64_t PeakMemoryKb(pid_t pid) {
  std::ifstream status(absl::StrCat("/proc/", pid, "/status"));
  std::string word;
  int64_t kb = 0;
  while (status >> word) {
    if (word == "VmHWM:") status >> kb;
  }
  return kb;
}

// A call with a connection of its own that sends one large message.
class Stranger {
 public:
  Stranger(const std::string& address, const grpc::ByteBuffer& message) {
    grpc::ChannelArguments args;
    args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    args.SetMaxSendMessageSize(-1);
    stub_ = std::make_unique<grpc::GenericStub>(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args));
    context_.set_deadline(DeadlineAfter(absl::Seconds(20)));
    context_.set_wait_for_ready(true);
    call_ = stub_->PrepareCall(&context_, "/switchyard.worker.WorkerHub/Join", &queue_);
    call_->StartCall(this);
    Await();
    call_->Write(message, this);
  }

  // How the call ends.
  grpc::Status Finish() {
    Await();
    grpc::Status status;
    call_->Finish(&status, this);
    Await();
    return status;
  }

 private:
  void Await() {
    void* tag = nullptr;
    bool ok = false;
    queue_.Next(&tag, &ok);
  }

  grpc::CompletionQueue queue_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::GenericStub> stub_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

TEST(Strangers, TheirMessagesTakeNoMemoryAndAWorkerStillJoins) {
  const std::string token = absl::StrCat("--worker_token_file=", testing::TempDir(), "/token");
  std::ofstream(testing::TempDir() + "/token") << "the-right-one-of-enough-length\n";
  auto front = ChildProcess::Start(kServerProgram, {"--port=0", "--http_port=0", kModel, "--await_workers=1",
                                                    "--worker_port=0", "--max_batch_rows=4096", "--warmup=off", token});
  ASSERT_TRUE(front.ok()) << front.status();
  const auto address = WaitForWorkerPort(**front);
  ASSERT_TRUE(address.ok()) << address.status();
  const int64_t before_kb = PeakMemoryKb((*front)->pid());
  ASSERT_GT(before_kb, 0);
  const grpc::Slice slice(std::string(kMessageBytes, '\n'));
  const grpc::ByteBuffer message(&slice, 1);
  std::vector<std::unique_ptr<Stranger>> strangers;
  while (strangers.size() < kStrangers) strangers.push_back(std::make_unique<Stranger>(*address, message));
  for (const auto& stranger : strangers) EXPECT_EQ(stranger->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_LT(PeakMemoryKb((*front)->pid()) - before_kb, 64 << 10);

  const auto worker = ChildProcess::Start(kWorkerProgram, {absl::StrCat("--front=", *address), "--device=cpu", token});
  ASSERT_TRUE(worker.ok()) << worker.status();
  const auto server = ServerProcess::WaitUntilReady(*std::move(front));
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE(absl::StrContains((*server)->Get("/metrics"), "switchyard_worker_refusals_total{reason=\"token\"} 24"));
  const HostMatrix rows = HostMatrix::Allocate(DType::kF32, 1, kDim);
  const auto answer =
      (*server)->Connect()->Forward({.model = "m", .layer = "0", .rows = rows.view(), .timeout = absl::Seconds(20)});
  EXPECT_TRUE(answer.ok()) << answer.status();
}

}  // namespace
}  // namespace switchyard
