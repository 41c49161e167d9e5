// Ranks as processes, one of which is killed again and again while they exchange. The survivors must notice promptly
// and form a group with its replacement. The parent stays single-threaded, so that it may fork at any time.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "moe/base/clock.h"
#include "moe/base/unique_fd.h"
#include "moe/exchange/gloo/gloo_communicator.h"

namespace switchyard {
namespace {

constexpr int kNumRanks = 3;
constexpr int64_t kDetectionUs = 1'000'000;
constexpr int kPatienceMs = 20'000;  // before the test calls a child hung

// Packets over a Unix socket: message boundaries come for free.
bool Send(int fd, const std::string& message) {
  return send(fd, message.data(), message.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(message.size());
}

std::optional<std::string> Receive(int fd) {
  std::array<char, 8192> buffer;
  pollfd readable{.fd = fd, .events = POLLIN, .revents = 0};
  if (poll(&readable, 1, kPatienceMs) != 1) return std::nullopt;
  const ssize_t received = recv(fd, buffer.data(), buffer.size(), 0);
  if (received <= 0) return std::nullopt;
  return std::string(buffer.data(), received);
}

// The child's half: joins a group, says "ready", exchanges until that fails, says how, and starts again.
absl::Status JoinGroup(Communicator& communicator, int fd) {
  std::vector<std::string> addresses;
  for (int rank = 0; rank < kNumRanks; ++rank) {
    std::optional<std::string> address = Receive(fd);
    if (!address) _exit(0);
    addresses.push_back(*address);
  }
  SY_RETURN_IF_ERROR(communicator.Connect(addresses));
  return CheckExchange(communicator);
}

absl::Status ExchangeUntilFailure(Communicator& communicator, size_t block_bytes) {
  const std::vector<size_t> sizes(kNumRanks, block_bytes);
  const std::vector<std::byte> sent(kNumRanks * block_bytes, std::byte(communicator.rank()));
  std::vector<std::byte> received(kNumRanks * block_bytes);
  while (true) {
    SY_RETURN_IF_ERROR(communicator.AllToAllV(sent.data(), sizes, received.data(), sizes, nullptr));
    for (int peer = 0; peer < kNumRanks; ++peer) {
      if (received[peer * block_bytes] != std::byte(peer)) return absl::DataLossError("wrong byte");
    }
  }
}

[[noreturn]] void RunChild(int rank, int fd) {
  signal(SIGPIPE, SIG_IGN);
  // Where Gloo waits for the dead one to come, only this timeout or Abort() ends the wait.
  const auto factory = CreateGlooFactory({.connect_timeout = std::chrono::seconds(3)});
  // Small blocks are mostly between transfers when the peer dies, large ones in the middle of one.
  for (size_t block_bytes = 64;; block_bytes = block_bytes < (4 << 20) ? block_bytes * 16 : 64) {
    auto communicator = factory->Prepare(rank, kNumRanks);
    if (!communicator.ok() || !Send(fd, (*communicator)->address())) _exit(1);
    absl::Status status = JoinGroup(**communicator, fd);
    if (!Send(fd, status.ok() ? "ready" : status.ToString())) _exit(1);
    if (status.ok()) status = ExchangeUntilFailure(**communicator, block_bytes);
    if (!Send(fd, status.ToString())) _exit(1);
  }
}

// The parent's half.
struct Child {
  pid_t pid = -1;
  UniqueFd channel;
};

Child StartChild(int rank) {
  int fds[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    close(fds[0]);
    RunChild(rank, fds[1]);
  }
  close(fds[1]);
  Child child;
  child.pid = pid;
  child.channel.reset(fds[0]);
  return child;
}

void KillChild(Child& child) {
  kill(child.pid, SIGKILL);
  EXPECT_EQ(waitpid(child.pid, nullptr, 0), child.pid);
}

class GlooProcessesTest : public testing::Test {
 protected:
  void SetUp() override {
    for (int rank = 0; rank < kNumRanks; ++rank) children_.push_back(StartChild(rank));
  }
  void TearDown() override {
    for (Child& child : children_) KillChild(child);
  }

  void FormGroup() {
    std::vector<std::string> addresses;
    for (Child& child : children_) {
      std::optional<std::string> address = Receive(child.channel.get());
      ASSERT_TRUE(address.has_value());
      addresses.push_back(*address);
    }
    for (Child& child : children_) {
      for (const std::string& address : addresses) ASSERT_TRUE(Send(child.channel.get(), address));
    }
    for (Child& child : children_) ASSERT_EQ(Receive(child.channel.get()), "ready");
  }

  // Kills one rank; each survivor must report UNAVAILABLE.
  void KillAndExpectErrors(int victim) {
    const SteadyTime killed_at = Clock::Real().Now();
    KillChild(children_[victim]);
    for (int rank = 0; rank < kNumRanks; ++rank) {
      if (rank == victim) continue;
      const std::optional<std::string> error = Receive(children_[rank].channel.get());
      ASSERT_TRUE(error.has_value()) << "rank " << rank << " hangs";
      EXPECT_EQ(error->find("UNAVAILABLE: "), 0) << *error;
      EXPECT_NE(error->find(absl::StrCat("on rank ", rank, ": rank ")), std::string::npos) << *error;
    }
    EXPECT_LT(MicrosBetween(killed_at, Clock::Real().Now()), kDetectionUs);
    children_[victim] = StartChild(victim);
  }

  std::vector<Child> children_;
};

TEST_F(GlooProcessesTest, SurvivorsOfAKilledRankFormANewGroup) {
  for (int round = 0; round < 30; ++round) {
    SCOPED_TRACE(round);
    ASSERT_NO_FATAL_FAILURE(FormGroup());
    ASSERT_NO_FATAL_FAILURE(KillAndExpectErrors(/*victim=*/round % kNumRanks));
  }
  ASSERT_NO_FATAL_FAILURE(FormGroup());
}

TEST_F(GlooProcessesTest, RankKilledBeforeItConnectsFailsTheOthers) {
  std::vector<std::string> addresses;
  for (Child& child : children_) addresses.push_back(Receive(child.channel.get()).value_or(""));
  KillChild(children_[1]);
  for (const int rank : {0, 2}) {
    for (const std::string& address : addresses) ASSERT_TRUE(Send(children_[rank].channel.get(), address));
  }
  for (const int rank : {0, 2}) {
    const std::optional<std::string> error = Receive(children_[rank].channel.get());
    ASSERT_TRUE(error.has_value()) << "rank " << rank << " hangs";
    EXPECT_EQ(error->find("UNAVAILABLE: "), 0) << *error;
    Receive(children_[rank].channel.get());  // the same again: there is nothing to exchange
  }
  children_[1] = StartChild(1);
  ASSERT_NO_FATAL_FAILURE(FormGroup());
}

}  // namespace
}  // namespace switchyard
