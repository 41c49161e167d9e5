#include "rpc/peer_user.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>

#include "base/unique_fd.h"

namespace switchyard {
namespace {

constexpr char kHeader[] =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n";
constexpr char kPeer[] = "ipv4:127.0.0.1:40000";
constexpr int kPort = 8003;

std::string Row(const std::string& local, const std::string& remote, const std::string& state, int user, int inode) {
  return absl::StrCat("   0: ", local, " ", remote, " ", state, " 00000000:00000000 00:00000000 00000000 ", user, " 0 ",
                      inode, " 1 00000000a4580d71 20 4 30 10 -1\n");
}

// 127.0.0.1:40000 and 127.0.0.1:8003 on a little-endian machine.
constexpr char kPeerEnd[] = "0100007F:9C40", kOurEnd[] = "0100007F:1F43";
constexpr char kPeerEnd6[] = "0000000000000000FFFF00000100007F:9C40",
               kOurEnd6[] = "0000000000000000FFFF00000100007F:1F43";

TEST(PeerUser, IsThatOfTheRowOfThePeersEnd) {
  const std::string tables =
      absl::StrCat(kHeader, Row(kOurEnd, kPeerEnd, "01", 7, 11), Row(kPeerEnd, kOurEnd, "01", 1000, 12),
                   Row("0100007F:9C40", "0100007F:0016", "01", 9, 13));
  EXPECT_EQ(UserOfPeerIn(tables, kHeader, kPeer, kPort).value(), 1000u);
}

TEST(PeerUser, AnIpv6SocketMayConnectOverIpv4) {
  EXPECT_EQ(UserOfPeerIn("", Row(kPeerEnd6, kOurEnd6, "01", 1000, 12), kPeer, kPort).value(), 1000u);
  const std::string own =
      Row("00000000000000000000000001000000:9C40", "00000000000000000000000001000000:1F43", "01", 5, 1);
  EXPECT_EQ(UserOfPeerIn("", own, "ipv6:[::1]:40000", kPort).value(), 5u);
  EXPECT_EQ(UserOfPeerIn("", own, "ipv6:%5B::1%5D:40000", kPort).value(), 5u);
}

TEST(PeerUser, ASocketThatWasClosedIsNotRoots) {
  EXPECT_FALSE(UserOfPeerIn(Row(kPeerEnd, kOurEnd, "01", 0, 0), "", kPeer, kPort).ok()) << "no process has it";
  EXPECT_FALSE(UserOfPeerIn(Row(kPeerEnd, kOurEnd, "05", 0, 12), "", kPeer, kPort).ok()) << "FIN_WAIT2";
}

TEST(PeerUser, TwoUsersAtOneAddressAreNeither) {
  const std::string two =
      absl::StrCat(Row(kPeerEnd, kOurEnd, "01", 1000, 12), Row(kPeerEnd, "0200007F:1F43", "01", 7, 13));
  EXPECT_FALSE(UserOfPeerIn(two, "", kPeer, kPort).ok());
}

TEST(PeerUser, OnlyLoopbackIsLookedUp) {
  const std::string row = Row("0101A8C0:9C40", kOurEnd, "01", 1000, 12);  // 192.168.1.1
  for (const char* peer :
       {"ipv4:192.168.1.1:40000", "ipv4:127.0.0.1", "unix:/a", "", "ipv6:::1:9", "ipv4:127.0.0.1:x"}) {
    EXPECT_FALSE(UserOfPeerIn(row, "", peer, kPort).ok()) << peer;
  }
}

TEST(PeerUser, GarbledLinesAreSkipped) {
  const std::string good = Row(kPeerEnd, kOurEnd, "01", 1000, 12);
  for (size_t i = 0; i < good.size(); ++i) (void)UserOfPeerIn(good.substr(0, i), good.substr(i), kPeer, kPort);
  EXPECT_EQ(UserOfPeerIn("a b c\n1 2:3:4 G:1 5 6 7 8 9 0 1\n" + good, "", kPeer, kPort).value(), 1000u);
}

// A connection from this process to itself.
struct Connection {
  Connection() {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    auto* const any = reinterpret_cast<sockaddr*>(&address);
    socklen_t size = sizeof(address);
    listener.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(bind(listener.get(), any, size), 0);
    EXPECT_EQ(listen(listener.get(), 1), 0);
    EXPECT_EQ(getsockname(listener.get(), any, &size), 0);
    port = ntohs(address.sin_port);
    peer_end.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(connect(peer_end.get(), any, size), 0);
    our_end.reset(accept(listener.get(), any, &size));
    peer = absl::StrCat("ipv4:127.0.0.1:", ntohs(address.sin_port));
  }

  UniqueFd listener, peer_end, our_end;
  int port = 0;
  std::string peer;
};

TEST(PeerUser, TheKernelKnowsThisProcess) {
  Connection connection;
  EXPECT_EQ(UserOfPeer(connection.peer, connection.port).value(), geteuid());
  if (geteuid() != 65534) {
    EXPECT_EQ(CheckPeerIsOwnUser(connection.peer, connection.port), absl::OkStatus());
  }
  connection.peer_end.reset();
  EXPECT_FALSE(UserOfPeer(connection.peer, connection.port).ok());
}

TEST(PeerUser, AnotherUserIsRefused) {
  if (geteuid() != 0 || seteuid(4242) != 0) GTEST_SKIP() << "only root, and not in every sandbox, can be another user";
  const Connection connection;  // its sockets are of user 4242
  ASSERT_EQ(seteuid(0), 0);
  EXPECT_EQ(UserOfPeer(connection.peer, connection.port).value(), 4242u);
  const absl::Status status = CheckPeerIsOwnUser(connection.peer, connection.port);
  EXPECT_EQ(status.message(), "it is of user 4242 and this process of user 0");
}

}  // namespace
}  // namespace switchyard
