// The ranks are processes, one of which is killed again and again while they exchange. The survivors must notice
// promptly and form a group with its replacement. The parent stays single-threaded, so that it may fork at any time.
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/unique_fd.h"
#include "moe/exchange/gloo/gloo_communicator.h"
#include "moe/exchange/shm/shm_communicator.h"
#include "moe/exchange/tcp/tcp_communicator.h"

namespace switchyard {
namespace {

constexpr int kNumRanks = 3;
constexpr int64_t kDetectionUs = 1'000'000;
constexpr int kPatienceMs = 20'000;  // after this time without a message, a child counts as hung

// Parent and child exchange packets over a Unix socket, which keeps message boundaries.
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

// The traffic that the ranks of a group exchange until one is killed. Over the tests, the killed rank and its peers
// must be caught while sending, while receiving, and between the two.
struct Traffic {
  bool ring = false;  // each rank sends only to the next rank, instead of to all ranks
  size_t block_bytes = 0;

  std::vector<size_t> SizesTo(int rank) const { return Sizes((rank + 1) % kNumRanks); }
  std::vector<size_t> SizesFrom(int rank) const { return Sizes((rank + kNumRanks - 1) % kNumRanks); }

 private:
  std::vector<size_t> Sizes(int ring_peer) const {
    std::vector<size_t> sizes(kNumRanks, ring ? 0 : block_bytes);
    sizes[ring_peer] = block_bytes;
    return sizes;
  }
};

std::string Encode(const Traffic& traffic) {
  return absl::StrCat(traffic.ring ? "ring " : "all ", traffic.block_bytes);
}

Traffic Decode(const std::string& text) {
  return {.ring = text[0] == 'r', .block_bytes = std::stoul(text.substr(text.find(' ')))};
}

std::string ReceiveOrExit(int fd) {
  std::optional<std::string> message = Receive(fd);
  if (!message) _exit(0);
  return *message;
}

// The child's half: joins a group, exchanges (and sends "running" after a few exchanges) until an exchange fails, sends
// the failure, and starts again.
absl::Status JoinGroup(Communicator& communicator, int fd) {
  std::vector<std::string> addresses;
  for (int rank = 0; rank < kNumRanks; ++rank) addresses.push_back(ReceiveOrExit(fd));
  SY_RETURN_IF_ERROR(communicator.Connect(addresses));
  return CheckExchange(communicator);
}

absl::Status ExchangeUntilFailure(Communicator& communicator, const Traffic& traffic, int fd) {
  const std::vector<size_t> send_bytes = traffic.SizesTo(communicator.rank());
  const std::vector<size_t> recv_bytes = traffic.SizesFrom(communicator.rank());
  const std::vector<std::byte> sent(kNumRanks * traffic.block_bytes, std::byte(communicator.rank()));
  std::vector<std::byte> received(kNumRanks * traffic.block_bytes);
  for (int round = 0;; ++round) {
    SY_RETURN_IF_ERROR(communicator.AllToAllV(sent.data(), send_bytes, received.data(), recv_bytes, nullptr));
    size_t at = 0;
    for (int peer = 0; peer < kNumRanks; at += recv_bytes[peer++]) {
      if (recv_bytes[peer] > 0 && received[at] != std::byte(peer)) return absl::DataLossError("wrong byte");
    }
    if (round == 2 && !Send(fd, "running")) _exit(1);
  }
}

enum class Kind { kGloo, kShm, kTcp };

std::unique_ptr<CommunicatorFactory> MakeFactory(Kind kind) {
  // When Gloo waits for a dead rank to connect, only this timeout or Abort() ends the wait.
  if (kind == Kind::kGloo) return CreateGlooFactory({.connect_timeout = std::chrono::seconds(3)});
  return kind == Kind::kShm ? CreateShmFactory() : CreateTcpFactory();
}

[[noreturn]] void RunChild(Kind kind, int rank, int fd) {
  signal(SIGPIPE, SIG_IGN);
  const auto factory = MakeFactory(kind);
  while (true) {
    auto communicator = factory->Prepare(rank, kNumRanks);
    if (!communicator.ok() || !Send(fd, (*communicator)->address())) _exit(1);
    const Traffic traffic = Decode(ReceiveOrExit(fd));
    absl::Status status = JoinGroup(**communicator, fd);
    if (status.ok()) status = ExchangeUntilFailure(**communicator, traffic, fd);
    if (!Send(fd, status.ToString())) _exit(1);
  }
}

// The parent's half.
struct Child {
  pid_t pid = -1;
  UniqueFd channel;
};

Child StartChild(Kind kind, int rank) {
  int fds[2];
  EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds), 0);
  const pid_t pid = fork();
  if (pid == 0) {
    close(fds[0]);
    RunChild(kind, rank, fds[1]);
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

class ProcessesTest : public testing::TestWithParam<Kind> {
 protected:
  void SetUp() override {
    for (int rank = 0; rank < kNumRanks; ++rank) children_.push_back(StartChild(GetParam(), rank));
  }
  void TearDown() override {
    for (Child& child : children_) KillChild(child);
  }

  std::vector<std::string> ReceiveFromAll() {
    std::vector<std::string> messages;
    for (Child& child : children_) messages.push_back(Receive(child.channel.get()).value_or("nothing"));
    return messages;
  }

  void StartGroup(int rank, const std::vector<std::string>& addresses, const Traffic& traffic) {
    ASSERT_TRUE(Send(children_[rank].channel.get(), Encode(traffic)));
    for (const std::string& address : addresses) ASSERT_TRUE(Send(children_[rank].channel.get(), address));
  }

  // Returns when every rank has made a few exchanges.
  void FormGroup(const Traffic& traffic) {
    const std::vector<std::string> addresses = ReceiveFromAll();
    for (int rank = 0; rank < kNumRanks; ++rank) StartGroup(rank, addresses, traffic);
    ASSERT_EQ(ReceiveFromAll(), std::vector<std::string>(kNumRanks, "running"));
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
    children_[victim] = StartChild(GetParam(), victim);
  }

  std::vector<Child> children_;
};

std::string NameOf(const testing::TestParamInfo<Kind>& info) {
  constexpr const char* kNames[] = {"Gloo", "Shm", "Tcp"};
  return kNames[static_cast<int>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Kinds, ProcessesTest, testing::Values(Kind::kGloo, Kind::kShm, Kind::kTcp), NameOf);

TEST_P(ProcessesTest, SurvivorsOfAKilledRankFormANewGroup) {
  int victim = 0;
  for (const bool ring : {false, true}) {
    for (const size_t block_bytes : {64, 4 << 10, 256 << 10, 4 << 20, 16 << 20}) {
      for (int round = 0; round < 3; ++round, victim = (victim + 1) % kNumRanks) {
        SCOPED_TRACE(absl::StrCat("ring ", ring, ", ", block_bytes, " bytes, rank ", victim, " killed"));
        ASSERT_NO_FATAL_FAILURE(FormGroup({.ring = ring, .block_bytes = block_bytes}));
        ASSERT_NO_FATAL_FAILURE(KillAndExpectErrors(victim));
      }
    }
  }
  ASSERT_NO_FATAL_FAILURE(FormGroup({.block_bytes = 1000}));
}

TEST_P(ProcessesTest, RankKilledBeforeItConnectsFailsTheOthers) {
  const std::vector<std::string> addresses = ReceiveFromAll();
  KillChild(children_[1]);
  for (const int rank : {0, 2}) StartGroup(rank, addresses, {.block_bytes = 1000});
  for (const int rank : {0, 2}) {
    const std::optional<std::string> error = Receive(children_[rank].channel.get());
    ASSERT_TRUE(error.has_value()) << "rank " << rank << " hangs";
    EXPECT_EQ(error->find("UNAVAILABLE: "), 0) << *error;
  }
  children_[1] = StartChild(GetParam(), 1);
  ASSERT_NO_FATAL_FAILURE(FormGroup({.block_bytes = 1000}));
}

}  // namespace
}  // namespace switchyard
