#include "base/process/port_connections.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "base/unique_fd.h"

namespace switchyard {
namespace {

// A limit of 160 descriptors, of which 20 are kept from clients.
class PortConnectionsTest : public testing::Test {
 protected:
  PortConnectionsTest() {
    EXPECT_EQ(getrlimit(RLIMIT_NOFILE, &before_), 0);
    SetLimit(160);
  }
  ~PortConnectionsTest() override { setrlimit(RLIMIT_NOFILE, &before_); }

  void SetLimit(rlim_t descriptors) {
    const rlimit limit = {descriptors, before_.rlim_max};
    EXPECT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
  }

  // Takes connections until the port has room for no more.
  std::vector<UniqueFd> Fill(PortConnections& port) {
    std::vector<UniqueFd> taken;
    while (true) {
      UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      if (!port.HasRoomFor(fd.get())) return taken;
      port.Add(fd.get());
      taken.push_back(std::move(fd));
    }
  }

  rlimit before_ = {};
};

TEST_F(PortConnectionsTest, ClientsLeaveRoomForProbesAndThoseForWorkersAndThoseForTheProcess) {
  PortConnections clients(PortKind::kClients), http(PortKind::kHttp), workers(PortKind::kWorkers);
  const auto taken_by_clients = Fill(clients);
  EXPECT_GT(taken_by_clients.size(), 100);
  EXPECT_FALSE(clients.HasRoom());
  EXPECT_TRUE(http.HasRoom());
  EXPECT_EQ(Fill(http).size(), 10) << "and they are free again";
  const auto taken_by_http = Fill(http);
  EXPECT_FALSE(http.HasRoom());
  const auto taken_by_workers = Fill(workers);
  EXPECT_EQ(taken_by_workers.size(), 5);
  EXPECT_TRUE(UniqueFd(open("/dev/null", O_RDONLY | O_CLOEXEC)).valid()) << "the process's own";
  EXPECT_FALSE(clients.HasRoom());
}

TEST_F(PortConnectionsTest, RoomComesBackWhenConnectionsEndOrTheLimitRises) {
  PortConnections clients(PortKind::kClients);
  auto taken = Fill(clients);
  SetLimit(200);
  EXPECT_TRUE(clients.HasRoom());
  SetLimit(100);
  EXPECT_FALSE(clients.HasRoom());
  SetLimit(160);
  EXPECT_FALSE(clients.HasRoom());
  taken.pop_back();
  EXPECT_TRUE(clients.HasRoom());
}

TEST_F(PortConnectionsTest, CountsWhatIsOpenWhoeverClosesIt) {
  PortConnections workers(PortKind::kWorkers, /*max_connections=*/3);
  std::vector<UniqueFd> taken = Fill(workers);
  EXPECT_EQ(taken.size(), 3);
  workers.Refuse();
  const int number = taken[1].get();
  taken[1].reset();
  const UniqueFd other(open("/dev/null", O_RDONLY | O_CLOEXEC));
  EXPECT_EQ(other.get(), number) << "the number of a connection that has ended";
  EXPECT_EQ(workers.counts().open, 2);
  EXPECT_EQ(workers.counts().refused, 1);
  EXPECT_TRUE(workers.HasRoom());
  const auto all = PortConnections::OfAllPorts();
  ASSERT_EQ(all.size(), 1);
  EXPECT_EQ(all[0].port, "worker");
}

}  // namespace
}  // namespace switchyard
