// Logs against readers that do not read and peers that would fill them.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "proto/worker.grpc.pb.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr char kModel[] =
    "--model=m=synthetic:dim=64,hidden=64,experts=4,topk=2,act=silu,glu=1,bias=0,dtype=fp32,layers=1";
constexpr int64_t kDim = 64;
constexpr std::chrono::seconds kPatience(20);

absl::Status ForwardOnce(Client* client) {
  const HostMatrix rows = HostMatrix::Allocate(DType::kF32, 1, kDim);
  return client->Forward({.model = "m", .layer = "0", .rows = rows.view(), .timeout = absl::Seconds(20)}).status();
}

struct Pipe {
  Pipe() {
    int ends[2];
    EXPECT_EQ(pipe2(ends, O_CLOEXEC), 0);
    reader.reset(ends[0]);
    writer.reset(ends[1]);
    EXPECT_GT(fcntl(writer.get(), F_SETPIPE_SZ, 4096), 0);
  }
  UniqueFd reader, writer;
};

TEST(Logging, AnUnreadPipeStopsNeitherCallsNorTheEnd) {
  const Pipe unread;
  auto process = ChildProcess::Start(
      kServerProgram, {"--port=0", "--http_port=0", "--device=cpu", kModel, "--local_workers=1", "--log_level=debug"},
      unread.writer.get());
  ASSERT_TRUE(process.ok()) << process.status();
  auto server = ServerProcess::WaitUntilReady(*std::move(process));
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  for (int i = 0; i < 300; ++i) ASSERT_EQ(ForwardOnce(client.get()), absl::OkStatus()) << i;
  EXPECT_EQ((*server)->Get("/readyz"), "ready\n");
  EXPECT_TRUE(absl::StrContains((*server)->Get("/metrics"), "\nswitchyard_log_lines_dropped_total "));
  (*server)->process().Signal(SIGTERM);
  ASSERT_TRUE((*server)->process().WaitFor(kPatience)) << "SIGTERM does not end it";
  EXPECT_EQ((*server)->process().Wait(), 0);
}

TEST(Logging, AFailedStartSaysWhyAndEndsWithoutAReader) {
  Pipe unread;
  const std::string filler(4096, 'x');
  ASSERT_EQ(write(unread.writer.get(), filler.data(), filler.size()), 4096);
  auto process = ChildProcess::Start(kServerProgram, {"--model=m=/nowhere", "--local_workers=1", "--device=cpu"},
                                     unread.writer.get());
  ASSERT_TRUE(process.ok()) << process.status();
  ASSERT_TRUE((*process)->WaitFor(kPatience));
  EXPECT_EQ((*process)->Wait(), 1);
}

// The address of the worker port, from the log.
std::string WorkerAddress(const ChildProcess& front) {
  constexpr std::string_view kBefore = "workers on ";
  const SteadyTime end = Clock::Real().Now() + kPatience;
  while (Clock::Real().Now() < end) {
    const std::string log = front.Log();
    const size_t begin = log.find(kBefore);
    if (begin != std::string::npos && log.find('\n', begin) != std::string::npos) {
      const size_t address = begin + kBefore.size();
      return log.substr(address, log.find('\n', address) - address);
    }
    usleep(10'000);
  }
  return "";
}

TEST(Logging, StrangersOnTheWorkerPortFillNoDisk) {
  const std::string token = absl::StrCat(getenv("TEST_TMPDIR"), "/token");
  std::ofstream(token) << "the-right-one-of-enough-length\n";
  auto front = ChildProcess::Start(kServerProgram, {"--port=0", "--http_port=0", kModel, "--await_workers=1",
                                                    "--worker_port=0", absl::StrCat("--worker_token_file=", token)});
  ASSERT_TRUE(front.ok()) << front.status();
  const std::string address = WorkerAddress(**front);
  ASSERT_NE(address, "") << (*front)->Log();
  const auto hub = worker::WorkerHub::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
  worker::WorkerMessage message;
  message.mutable_hello()->set_host(std::string(100'000, 'h') + "\n\033[2J");
  const SteadyTime begin = Clock::Real().Now();
  constexpr int kStrangers = 200;
  for (int i = 0; i < kStrangers; ++i) {
    grpc::ClientContext context;
    context.AddMetadata("authorization", "Bearer a-wrong-one");
    const auto stream = hub->Join(&context);
    stream->Write(message);
    worker::FrontMessage none;
    while (stream->Read(&none)) {
    }
    ASSERT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  }
  const int64_t seconds = MicrosBetween(begin, Clock::Real().Now()) / 1'000'000;
  const std::string log = (*front)->Log();
  const std::vector<std::string> lines = absl::StrSplit(log, '\n');
  const auto refusals = std::count_if(lines.begin(), lines.end(), [](const std::string& line) {
    return absl::StrContains(line, "worker refused: its token is not this front's");
  });
  EXPECT_GE(refusals, 1);
  EXPECT_LE(refusals, seconds + 2) << "one in a second";
  EXPECT_LT(log.size(), 2000 + 300 * refusals);
  EXPECT_FALSE(absl::StrContains(log, "\033"));
}

}  // namespace
}  // namespace switchyard
