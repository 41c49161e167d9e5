// Tests what only Gloo's communicator has (communicator_test.cc tests the common promises): address blobs, timeouts.
#include "moe/exchange/gloo/gloo_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <random>
#include <thread>

#include "base/clock.h"
#include "base/heartbeat.h"
#include "base/notification.h"
#include "moe/exchange/gloo/gloo_address.h"
#include "moe/exchange/testing.h"

#if defined(__SANITIZE_ADDRESS__)
// Gloo leaks an address list when it cannot bind.
extern "C" const char* __lsan_default_suppressions() { return "leak:gloo::transport::tcp::CreateDeviceAttr"; }
#endif

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

const GlooAddress kAddress{.rank = 1, .pair_addresses = {"to rank 0", "", "to rank 2"}};

TEST(GlooAddressTest, RoundTrip) {
  const auto parsed = ParseGlooAddress(EncodeGlooAddress(kAddress), 1, 3);
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  EXPECT_EQ(parsed->rank, 1);
  EXPECT_EQ(parsed->pair_addresses, kAddress.pair_addresses);
}

TEST(GlooAddressTest, OtherRankOrSizeIsRefused) {
  const std::string blob = EncodeGlooAddress(kAddress);
  EXPECT_THAT(ParseGlooAddress(blob, 0, 3).status().message(), HasSubstr("expected rank 0 of 3, got 1 of 3"));
  EXPECT_FALSE(ParseGlooAddress(blob, 1, 4).ok());
}

TEST(GlooAddressTest, EveryTruncationAndExtensionIsRefused) {
  const std::string blob = EncodeGlooAddress(kAddress);
  for (size_t length = 0; length < blob.size(); ++length) {
    EXPECT_EQ(ParseGlooAddress(blob.substr(0, length), 1, 3).status().code(), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(ParseGlooAddress(blob + "x", 1, 3).ok());
}

TEST(GlooAddressTest, RandomMutationsAreRefusedOrWellFormed) {
  const std::string blob = EncodeGlooAddress(kAddress);
  std::mt19937 random(17);
  for (int round = 0; round < 100'000; ++round) {
    std::string mutated = blob;
    for (uint32_t change = 0; change <= random() % 3; ++change) mutated[random() % mutated.size()] = random();
    const auto parsed = ParseGlooAddress(mutated, 1, 3);
    if (!parsed.ok()) continue;
    ASSERT_EQ(parsed->pair_addresses.size(), 3);
    ASSERT_TRUE(parsed->pair_addresses[1].empty());
  }
}

class GlooCommunicatorTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { signal(SIGPIPE, SIG_IGN); }
};

// The result of Connect() on rank 0 of 2 when rank 1's address is `blob`.
absl::Status ConnectTo(const std::string& blob) {
  const auto factory = CreateGlooFactory({.connect_timeout = milliseconds(100)});
  const auto communicator = factory->Prepare(0, 2);
  EXPECT_TRUE(communicator.ok()) << communicator.status();
  const std::vector<std::string> addresses = {(*communicator)->address(), blob};
  return (*communicator)->Connect(addresses);
}

// Exchanges one byte with the other rank of two.
absl::Status ExchangeByte(Communicator& communicator) {
  const std::vector<size_t> one_each = {1, 1};
  const std::vector<std::byte> send(2, std::byte{7});
  std::vector<std::byte> recv(2);
  return communicator.AllToAllV(send.data(), one_each, recv.data(), one_each, nullptr);
}

TEST_F(GlooCommunicatorTest, ARankThatWaitsSaysForWhomAndBeatsWhenNudged) {
  const auto factory = CreateGlooFactory();
  const auto group = FormGroup(*factory, 2);
  Heartbeat heartbeat;
  Notification watched;
  std::thread waiting([&] {
    heartbeat.WatchThisThread();
    watched.Notify();
    EXPECT_EQ(ExchangeByte(*group[0]), absl::OkStatus());
  });
  watched.WaitForNotification();
  while (heartbeat.Look().activity != Heartbeat::Activity::kWaiting) std::this_thread::yield();
  EXPECT_EQ(heartbeat.Look().peer, 1);
  const int64_t num_waits = heartbeat.Look().num_waits;
  for (int nudge = 0; nudge < 3; ++nudge) {
    const int64_t moves = heartbeat.Look().moves;
    group[0]->Nudge();
    while (heartbeat.Look().moves == moves) std::this_thread::yield();
  }
  EXPECT_EQ(heartbeat.Look().num_waits, num_waits) << "it is still the same wait";
  EXPECT_EQ(ExchangeByte(*group[1]), absl::OkStatus()) << "nudges break nothing";
  waiting.join();
  group[0]->Nudge();
  std::thread other([&] { EXPECT_EQ(ExchangeByte(*group[1]), absl::OkStatus()); });
  EXPECT_EQ(ExchangeByte(*group[0]), absl::OkStatus()) << "nor does one that finds nobody waiting";
  other.join();
}

TEST_F(GlooCommunicatorTest, CorruptBlobsAreRefused) {
  for (const std::string& blob : {std::string(), std::string("garbage"), std::string(1000, '\0')}) {
    EXPECT_EQ(ConnectTo(blob).code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(GlooCommunicatorTest, WellFramedNonsenseIsRefused) {
  const auto factory = CreateGlooFactory();
  const auto peer = factory->Prepare(1, 2);
  ASSERT_TRUE(peer.ok());
  GlooAddress address = *ParseGlooAddress((*peer)->address(), 1, 2);
  std::string& pair_address = address.pair_addresses[0];
  pair_address.pop_back();
  EXPECT_EQ(ConnectTo(EncodeGlooAddress(address)).code(), absl::StatusCode::kUnavailable);
  pair_address.assign(pair_address.size() + 1, '\x5a');
  EXPECT_EQ(ConnectTo(EncodeGlooAddress(address)).code(), absl::StatusCode::kUnavailable);
}

TEST_F(GlooCommunicatorTest, PeerThatNeverConnectsTimesOut) {
  const auto factory = CreateGlooFactory({.connect_timeout = milliseconds(100)});
  const auto group = PrepareGroup(*factory, 3);
  const SteadyTime begin = Clock::Real().Now();
  OnEveryRank(2, [&](int rank) {
    const absl::Status failed = group[rank]->Connect(AddressesOf(group));
    EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable) << failed;
  });
  EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), 2'000'000);
}

TEST_F(GlooCommunicatorTest, SilentPeerTimesOut) {
  const auto factory = CreateGlooFactory({.exchange_timeout = milliseconds(100)});
  const auto group = FormGroup(*factory, 2);
  const std::vector<size_t> ones(2, 1);
  std::byte sent[2] = {}, received[2];
  const absl::Status failed = group[0]->AllToAllV(sent, ones, received, ones, nullptr);
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(failed.message(), HasSubstr("rank 1 is silent"));
}

TEST_F(GlooCommunicatorTest, MismatchedCountsTimeOutAndOverrunNothing) {
  const auto factory = CreateGlooFactory({.exchange_timeout = milliseconds(100)});
  const auto group = FormGroup(*factory, 2);
  OnEveryRank(2, [&](int rank) {  // rank 1 sends twice what rank 0 expects
    const std::vector<size_t> sent_bytes(2, rank == 0 ? 100 : 200), recv_bytes(2, rank == 0 ? 100 : 200);
    const std::vector<std::byte> sent(400);
    std::vector<std::byte> received(400, std::byte{7});
    const absl::Status failed = group[rank]->AllToAllV(sent.data(), sent_bytes, received.data(), recv_bytes, nullptr);
    EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable);
    if (rank == 0) {
      EXPECT_EQ(std::count(received.begin() + 200, received.end(), std::byte{7}), 200);
    }
  });
}

TEST_F(GlooCommunicatorTest, OwnAddressTwiceIsRefused) {
  const auto factory = CreateGlooFactory();
  const auto group = PrepareGroup(*factory, 2);
  const std::vector<std::string> addresses(2, group[0]->address());
  EXPECT_EQ(group[0]->Connect(addresses).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(GlooCommunicatorTest, InterfaceOfAnotherHostIsRefused) {
  const absl::Status refused = CreateGlooFactory({.bind_host = "203.0.113.7"})->Prepare(0, 2).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(refused.message(), HasSubstr("203.0.113.7"));
}

TEST_F(GlooCommunicatorTest, OnlyAddressesAreTaken) {
  for (const char* host : {"eth9", "", "no-such-host.invalid"}) {
    EXPECT_EQ(CreateGlooFactory({.bind_host = host})->Prepare(0, 2).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
}

TEST_F(GlooCommunicatorTest, BlocksBeyondTheSlotsReachAreRefused) {
  const auto factory = CreateGlooFactory();
  const auto group = FormGroup(*factory, 1);
  const std::vector<size_t> huge(1, size_t{1} << 40);
  EXPECT_EQ(group[0]->AllToAllV(nullptr, huge, nullptr, huge, nullptr).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace switchyard
