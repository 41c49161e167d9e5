#include "server/api/calls/memory_owner.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

TEST(MemoryOwnerTest, ProcessesOfThisHostAreOneCaller) {
  for (const char* peer : {"unix:", "unix:/run/switchyard", "unix-abstract:switchyard", "ipv4:127.0.0.1:4711",
                           "ipv4:127.1.2.3:1", "ipv6:[::1]:4711", "ipv6:%5B::1%5D:4711"}) {
    EXPECT_EQ(HostOf(peer), "this host") << peer;
  }
}

TEST(MemoryOwnerTest, OtherHostsAreToldApartWithoutTheirPorts) {
  EXPECT_EQ(HostOf("ipv4:10.0.0.7:4711"), "ipv4:10.0.0.7");
  EXPECT_EQ(HostOf("ipv4:10.0.0.7:4712"), HostOf("ipv4:10.0.0.7:1"));
  EXPECT_NE(HostOf("ipv4:10.0.0.7:4711"), HostOf("ipv4:10.0.0.70:4711"));
  EXPECT_EQ(HostOf("ipv6:%5B2001:db8::7%5D:4711"), "ipv6:%5B2001:db8::7%5D");
  EXPECT_EQ(HostOf("ipv6:%5B::1:2%5D:4711"), "ipv6:%5B::1:2%5D");  // not the loopback
}

}  // namespace
}  // namespace switchyard
