// Tests how ranks meet: strangers of every kind at their sockets, dropped connections, peers that are gone.
#include <gmock/gmock.h>
#include <grp.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <thread>

#include "base/clock.h"
#include "moe/exchange/mesh/mesh_address.h"
#include "moe/exchange/mesh/peer_mesh.h"
#include "moe/exchange/testing.h"

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using testing::AnyOf;
using testing::HasSubstr;

constexpr int64_t kPromptUs = 1'000'000;

using Meshes = std::vector<std::unique_ptr<PeerMesh>>;

Meshes ListenAll(int size, const MeshOptions& options) {
  Meshes meshes;
  for (int rank = 0; rank < size; ++rank) {
    auto mesh = PeerMesh::Listen(rank, size, options);
    EXPECT_TRUE(mesh.ok()) << mesh.status();
    meshes.push_back(*std::move(mesh));
  }
  return meshes;
}

std::vector<std::string> AddressesOf(const Meshes& meshes) {
  std::vector<std::string> addresses;
  for (const auto& mesh : meshes) addresses.push_back(mesh->address());
  return addresses;
}

void JoinAll(const Meshes& meshes) {
  const std::vector<std::string> addresses = AddressesOf(meshes);
  OnEveryRank(static_cast<int>(meshes.size()), [&](int rank) {
    const absl::Status joined = meshes[rank]->Join(addresses);
    EXPECT_TRUE(joined.ok()) << "rank " << rank << ": " << joined;
  });
}

// A connection to a rank's socket, as anybody can make one.
UniqueFd ConnectTo(const std::string& socket_address) {
  sockaddr_storage address{};
  std::memcpy(&address, socket_address.data(), socket_address.size());
  UniqueFd fd(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int connected =
      connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(socket_address.size()));
  EXPECT_EQ(connected, 0) << strerror(errno);
  return fd;
}

// A listening socket that is no rank's, of the same family.
UniqueFd ListenLike(const std::string& socket_address, std::string* own_address) {
  sockaddr_storage address{};
  std::memcpy(&address, socket_address.data(), socket_address.size());
  socklen_t num_bytes = sizeof(sa_family_t);
  if (address.ss_family != AF_UNIX) {
    reinterpret_cast<sockaddr_in*>(&address)->sin_port = 0;
    num_bytes = socket_address.size();
  }
  UniqueFd fd(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), num_bytes), 0) << strerror(errno);
  EXPECT_EQ(listen(fd.get(), 8), 0);
  num_bytes = sizeof(address);
  EXPECT_EQ(getsockname(fd.get(), reinterpret_cast<sockaddr*>(&address), &num_bytes), 0);
  *own_address = std::string(reinterpret_cast<const char*>(&address), num_bytes);
  return fd;
}

class MeshTest : public testing::TestWithParam<sa_family_t> {
 protected:
  MeshOptions Options() const { return {.family = GetParam()}; }
  MeshAddress Parse(const std::string& blob, int rank, int size) const {
    const auto address = ParseMeshAddress(blob, rank, size, GetParam());
    EXPECT_TRUE(address.ok()) << address.status();
    return *address;
  }
};

INSTANTIATE_TEST_SUITE_P(Families, MeshTest, testing::Values(AF_UNIX, AF_INET),
                         [](const auto& info) { return info.param == AF_UNIX ? "Unix" : "Tcp"; });

TEST_P(MeshTest, EveryRankReachesEveryOther) {
  const Meshes meshes = ListenAll(5, Options());
  JoinAll(meshes);
  for (int from = 0; from < 5; ++from) {
    for (int to = 0; to < 5; ++to) {
      if (from == to) continue;
      const char sent = static_cast<char>('a' + from * 5 + to);
      ASSERT_EQ(send(meshes[from]->to(to), &sent, 1, 0), 1);
      char received = 0;
      while (recv(meshes[to]->from(from), &received, 1, 0) < 0 && errno == EAGAIN) sched_yield();
      EXPECT_EQ(received, sent);
    }
  }
}

TEST_P(MeshTest, StrangersCostNothing) {
  const Meshes meshes = ListenAll(3, Options());
  std::vector<UniqueFd> strangers;
  std::mt19937 random(1);
  for (const std::string& blob : AddressesOf(meshes)) {
    const MeshAddress address = Parse(blob, static_cast<int>(strangers.size() / 100), 3);
    for (int idx = 0; idx < 100; ++idx) {
      strangers.push_back(ConnectTo(address.socket_address));
      std::string words(random() % 200, '\0');  // nothing, part of a greeting, or more than one
      for (char& letter : words) letter = static_cast<char>(random());
      send(strangers.back().get(), words.data(), words.size(), MSG_NOSIGNAL);
      if (idx % 3 == 0) strangers.back().reset();
    }
  }
  const SteadyTime begin = Clock::Real().Now();
  JoinAll(meshes);
  EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), kPromptUs);
}

// The peer is there and answers, but was told another rank's secret: of an earlier epoch, say.
TEST_P(MeshTest, AnotherEpochsNonceDoesNotPass) {
  MeshOptions options = Options();
  options.connect_timeout = milliseconds(100);
  const Meshes meshes = ListenAll(2, options);
  MeshAddress stale = Parse(meshes[1]->address(), 1, 2);
  stale.nonce[15] ^= 1;
  const std::vector<std::string> told_to_0 = {meshes[0]->address(), EncodeMeshAddress(stale)};
  OnEveryRank(2, [&](int rank) {
    const absl::Status failed = meshes[rank]->Join(rank == 0 ? told_to_0 : AddressesOf(meshes));
    EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
  });
}

TEST_P(MeshTest, ADroppedConnectionIsTriedAgain) {
  MeshOptions options = Options();
  options.connect_timeout = milliseconds(200);
  const Meshes meshes = ListenAll(2, options);
  MeshAddress fake = Parse(meshes[1]->address(), 1, 2);
  const UniqueFd listener = ListenLike(fake.socket_address, &fake.socket_address);
  // An autobound Unix socket has an abstract name, too.
  std::thread dropping([&] {
    for (int idx = 0; idx < 3; ++idx) {
      const UniqueFd dropped(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
      EXPECT_TRUE(dropped.valid());
    }
  });
  const std::vector<std::string> addresses = {meshes[0]->address(), EncodeMeshAddress(fake)};
  const absl::Status failed = meshes[0]->Join(addresses);
  dropping.join();  // three calls came
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(failed.message(), HasSubstr("rank 1"));
}

TEST_P(MeshTest, APeerThatIsGoneIsNoticedAtOnce) {
  Meshes meshes = ListenAll(3, Options());
  const std::vector<std::string> addresses = AddressesOf(meshes);
  meshes[1].reset();
  const SteadyTime begin = Clock::Real().Now();
  OnEveryRank(3, [&](int rank) {
    if (rank == 1) return;
    const absl::Status failed = meshes[rank]->Join(addresses);
    EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
    // The survivor that notices first gives up, and the other may notice that instead.
    EXPECT_THAT(failed.message(), AnyOf(HasSubstr("rank 1 "), HasSubstr(absl::StrCat("rank ", 2 - rank, " "))));
  });
  EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), kPromptUs);
}

TEST_P(MeshTest, APeerThatNeverComesIsNamed) {
  MeshOptions options = Options();
  options.connect_timeout = milliseconds(100);
  const Meshes meshes = ListenAll(2, options);
  const absl::Status failed = meshes[0]->Join(AddressesOf(meshes));
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(failed.message(), HasSubstr("rank 1 does not answer"));
}

TEST(UnixMeshTest, AnotherUserIsTurnedAwayWhateverItKnows) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root, to become another user";
  MeshOptions options{.family = AF_UNIX};
  options.connect_timeout = milliseconds(300);
  const Meshes meshes = ListenAll(2, options);
  constexpr int kCannotBeAnother = 2;
  // The child is rank 1 in all but its user.
  const pid_t child = fork();
  if (child == 0) {
    if (setgroups(0, nullptr) != 0 || setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0) {
      _exit(kCannotBeAnother);
    }
    _exit(meshes[1]->Join(AddressesOf(meshes)).ok() ? 1 : 0);
  }
  const absl::Status failed = meshes[0]->Join(AddressesOf(meshes));
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  if (WEXITSTATUS(status) == kCannotBeAnother) GTEST_SKIP() << "this system lets root become no other user";
  EXPECT_EQ(status, 0);
}

TEST(UnixMeshTest, RanksOfOtherHostsAreRefused) {
  const Meshes meshes = ListenAll(2, {.family = AF_UNIX});
  MeshAddress elsewhere = *ParseMeshAddress(meshes[1]->address(), 1, 2, AF_UNIX);
  elsewhere.host_identity += "x";
  const std::vector<std::string> addresses = {meshes[0]->address(), EncodeMeshAddress(elsewhere)};
  const absl::Status refused = meshes[0]->Join(addresses);
  EXPECT_EQ(refused.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(refused.message(), HasSubstr("rank 1 is on another host"));
}

TEST(TcpMeshTest, ItListensOnAddressesOnly) {
  EXPECT_TRUE(PeerMesh::Listen(0, 2, {.family = AF_INET, .bind_host = "::1"}).ok());
  EXPECT_EQ(PeerMesh::Listen(0, 2, {.family = AF_INET, .bind_host = "eth9"}).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PeerMesh::Listen(0, 2, {.family = AF_INET, .bind_host = "203.0.113.7"}).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST(MeshAddressTest, EveryTruncationAndExtensionIsRefused) {
  const auto mesh = PeerMesh::Listen(1, 3, {.family = AF_UNIX});
  ASSERT_TRUE(mesh.ok());
  const std::string blob = (*mesh)->address();
  EXPECT_TRUE(ParseMeshAddress(blob, 1, 3, AF_UNIX).ok());
  EXPECT_FALSE(ParseMeshAddress(blob, 0, 3, AF_UNIX).ok());
  EXPECT_FALSE(ParseMeshAddress(blob, 1, 4, AF_UNIX).ok());
  EXPECT_FALSE(ParseMeshAddress(blob, 1, 3, AF_INET).ok());
  EXPECT_FALSE(ParseMeshAddress(blob + "x", 1, 3, AF_UNIX).ok());
  for (size_t length = 0; length < blob.size(); ++length) {
    EXPECT_FALSE(ParseMeshAddress(blob.substr(0, length), 1, 3, AF_UNIX).ok()) << length;
  }
}

TEST(MeshAddressTest, RandomMutationsAreRefusedOrWellFormed) {
  std::mt19937 random(17);
  for (const sa_family_t family : {AF_UNIX, AF_INET}) {
    const auto mesh = PeerMesh::Listen(1, 3, {.family = family});
    ASSERT_TRUE(mesh.ok());
    for (int round = 0; round < 100'000; ++round) {
      std::string mutated = (*mesh)->address();
      for (uint32_t change = 0; change <= random() % 3; ++change) mutated[random() % mutated.size()] = random();
      const auto parsed = ParseMeshAddress(mutated, 1, 3, family);
      if (!parsed.ok()) continue;
      ASSERT_LE(parsed->socket_address.size(), sizeof(sockaddr_storage));
    }
  }
}

}  // namespace
}  // namespace switchyard
