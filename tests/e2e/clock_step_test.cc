// Somebody sets the wall clock by an hour, back or forth: no time limit of a running front ends later for it, and none
// earlier.
//
// The programs are the real ones, with a wall clock that this test sets (wall_clock_preload.cc). This test's own clock
// stays, as that of a client on another host would.
#include <arpa/inet.h>
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <future>

#include "absl/strings/match.h"
#include "base/clock.h"
#include "base/unique_fd.h"
#include "proto/switchyard.grpc.pb.h"
#include "rpc/deadline.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr char kPreload[] = "tests/e2e/libwall_clock.so";
constexpr int64_t kDim = 64;
// A call that takes this long waits for the wall clock: the time limits below are of about a second.
constexpr int64_t kHangsUs = 20'000'000;

// Sets the clock of the programs that are started under it.
class WallClock {
 public:
  WallClock() : path_(testing::TempDir() + "/wall_clock") {
    file_ = UniqueFd(open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
    Set(0);
  }

  void Set(int64_t ahead_seconds) {
    ASSERT_EQ(pwrite(file_.get(), &ahead_seconds, sizeof(ahead_seconds), 0), sizeof(ahead_seconds));
  }

  // Starts a program that sees this clock, as do its children.
  absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const std::string& program,
                                                      const std::vector<std::string>& arguments) const {
    std::vector<std::string> all = {
        absl::StrCat("LD_PRELOAD=", std::filesystem::current_path().string(), "/", kPreload),
        absl::StrCat("SWITCHYARD_TEST_WALL_CLOCK=", path_), program};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return ChildProcess::Start("/usr/bin/env", all);
  }

 private:
  const std::string path_;
  UniqueFd file_;
};

bool HasPreload(int pid) {
  std::ifstream maps(absl::StrCat("/proc/", pid, "/maps"));
  for (std::string line; std::getline(maps, line);) {
    if (line.find("libwall_clock.so") != std::string::npos) return true;
  }
  return false;
}

// A request, and when it ended.
struct Answered {
  absl::Status status;
  int64_t after_us = 0;
};

class ClockStepTest : public testing::TestWithParam<int64_t> {
 protected:
  void StartServer(const std::vector<std::string>& flags) {
    std::vector<std::string> all = {
        "--model=m=synthetic:dim=64,hidden=64,experts=4,topk=2,act=silu,glu=1,bias=0,dtype=fp32,layers=1",
        "--local_workers=2", "--device=cpu", "--port=0", "--http_port=0"};
    all.insert(all.end(), flags.begin(), flags.end());
    auto process = clock_.Start(kServerProgram, all);
    ASSERT_TRUE(process.ok()) << process.status();
    auto server = ServerProcess::WaitUntilReady(*std::move(process));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    client_ = server_->Connect({.timeout = absl::Microseconds(kHangsUs), .max_attempts = 1});
    ASSERT_TRUE(HasPreload(server_->process().pid()));
    const auto status = client_->GetStatus();
    ASSERT_TRUE(status.ok()) << status.status();
    for (const v1::Rank& rank : status->ranks()) ASSERT_TRUE(HasPreload(rank.pid()));
  }

  void TearDown() override {
    if (server_ == nullptr) return;
    EXPECT_EQ(server_->Stop(), 0);
  }

  void StepClock() { clock_.Set(GetParam()); }

  std::future<Answered> Send(ForwardArgs args) {
    const HostMatrix rows = HostMatrix::Allocate(DType::kF32, 1, kDim);
    args.model = "m";
    args.layer = "0";
    args.rows = rows.view();
    auto promise = std::make_shared<std::promise<Answered>>();
    client_->ForwardAsync(args, [promise, sent = Clock::Real().Now()](const absl::StatusOr<ForwardResult>& result) {
      promise->set_value({result.status(), MicrosBetween(sent, Clock::Real().Now())});
    });
    return promise->get_future();
  }

  // A blocking call with the request's own timeout, which the C++ client does not send.
  Answered ForwardWithTimeout(absl::Duration timeout) const {
    v1::ForwardRequest request;
    request.set_model("m");
    request.set_layer("0");
    request.set_dtype(v1::DATA_TYPE_FP32);
    request.set_num_rows(1);
    request.set_rows(std::string(kDim * sizeof(float), '\0'));
    request.set_timeout_us(absl::ToInt64Microseconds(timeout));
    const auto channel = grpc::CreateChannel(server_->grpc_address(), grpc::InsecureChannelCredentials());
    grpc::ClientContext context;
    context.set_deadline(DeadlineAfter(absl::Microseconds(kHangsUs)));
    v1::ForwardResponse response;
    const SteadyTime sent = Clock::Real().Now();
    const auto status = v1::Switchyard::NewStub(channel)->Forward(&context, request, &response);
    return {absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message()),
            MicrosBetween(sent, Clock::Real().Now())};
  }

  WallClock clock_;
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<Client> client_;
};

void ExpectBetween(int64_t us, int64_t least_us) {
  EXPECT_GE(us, least_us);
  EXPECT_LT(us, kHangsUs / 2);
}

TEST_P(ClockStepTest, MovesNoTimeLimitOfARequest) {
  StartServer({"--max_queue_delay_us=1300000"});
  // The front ends it with a quarter of its time left, before this client does.
  auto limited = Send({.timeout = absl::Milliseconds(1200)});
  auto queued = Send({.queue_timeout = absl::Milliseconds(700)});
  auto patient = Send({});
  const auto has_ended = [&] { return queued.wait_for(std::chrono::seconds(0)) == std::future_status::ready; };
  while (client_->GetStatus()->queued_rows() < 3 && !has_ended()) usleep(1000);
  StepClock();

  const Answered late = queued.get();
  EXPECT_TRUE(absl::StrContains(late.status.message(), "queue timeout: still queued after")) << late.status;
  ExpectBetween(late.after_us, 700'000);
  const Answered ended = limited.get();
  EXPECT_TRUE(absl::StrContains(ended.status.message(), "the call's deadline cannot be met any more")) << ended.status;
  ExpectBetween(ended.after_us, 600'000);
  const Answered answered = patient.get();
  EXPECT_TRUE(answered.status.ok()) << answered.status;
  ExpectBetween(answered.after_us, 1'300'000);
}

TEST_P(ClockStepTest, MovesNeitherTheNoticeOfAStoppedWorkerNorATimeoutMeanwhile) {
  StartServer({"--worker_timeout_ms=1000"});
  const auto before = *client_->GetStatus();
  ASSERT_EQ(kill(before.ranks(1).pid(), SIGSTOP), 0);
  const SteadyTime stopped = Clock::Real().Now();
  auto patient = Send({});  // waits for the stopped worker, then runs again
  while (client_->GetStatus()->steps_in_flight() < 1) usleep(1000);
  StepClock();

  const Answered timed = ForwardWithTimeout(absl::Milliseconds(400));
  EXPECT_TRUE(absl::StrContains(timed.status.message(), "timeout: not answered within 400000 us")) << timed.status;
  ExpectBetween(timed.after_us, 200'000);  // it ends in the queue, in which it may spend half of its time or more
  const Answered answered = patient.get();
  EXPECT_TRUE(answered.status.ok()) << answered.status;
  // A ping may have been answered just before the worker stopped, and another was due just after.
  ExpectBetween(MicrosBetween(stopped, Clock::Real().Now()), 800'000);
  const auto after = *client_->GetStatus();
  EXPECT_EQ(after.ranks(0).pid(), before.ranks(0).pid());
  EXPECT_NE(after.ranks(1).pid(), before.ranks(1).pid());
  EXPECT_TRUE(HasPreload(after.ranks(1).pid()));
}

INSTANTIATE_TEST_SUITE_P(Hour, ClockStepTest, testing::Values(-3600, 3600),
                         [](const auto& info) { return info.param < 0 ? "Back" : "Forth"; });

// A deadline of the wall clock would have passed when gRPC looks at it again, after the first attempt to connect.
TEST(ClockStep, ForthDoesNotMakeAWorkerGiveUpItsFront) {
  // A port that stays taken, and on which nobody listens.
  const UniqueFd taken(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof(address);
  ASSERT_EQ(bind(taken.get(), reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(getsockname(taken.get(), reinterpret_cast<sockaddr*>(&address), &size), 0);

  WallClock clock;
  const SteadyTime started = Clock::Real().Now();
  const auto worker = clock.Start(kWorkerProgram, {absl::StrCat("--front=127.0.0.1:", ntohs(address.sin_port)),
                                                   "--device=cpu", "--join_timeout_ms=1000"});
  ASSERT_TRUE(worker.ok()) << worker.status();
  while (!absl::StrContains((*worker)->Log(), "joining the front")) usleep(1000);
  clock.Set(3600);
  EXPECT_EQ((*worker)->Wait(), 3);
  EXPECT_TRUE(absl::StrContains((*worker)->Log(), "within 1000 ms")) << (*worker)->Log();
  ExpectBetween(MicrosBetween(started, Clock::Real().Now()), 1'000'000);
}

}  // namespace
}  // namespace switchyard
