// Tests what only shared memory's communicator has (communicator_test.cc tests the common promises): the ring, lying
// peers, timeouts, large groups.
#include "moe/exchange/shm/shm_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <random>
#include <vector>

#include "base/clock.h"
#include "base/notification.h"
#include "moe/exchange/shm/shm_area.h"
#include "moe/exchange/shm/shm_ring.h"
#include "moe/exchange/testing.h"

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using testing::HasSubstr;

constexpr size_t kRingBytes = 4096;

// Both ends of a ring, and the memory between them.
struct Ring {
  std::vector<std::byte> memory = std::vector<std::byte>(kRingBytes);
  std::atomic<uint64_t> written{0};
  std::atomic<uint64_t> consumed{0};
  RingWriter writer{memory.data(), kRingBytes, &written, &consumed};
  RingReader reader{memory.data(), kRingBytes, &written, &consumed};
};

std::vector<std::byte> RandomBytes(size_t num_bytes, std::mt19937& random) {
  std::vector<std::byte> bytes(num_bytes);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// The writer runs ahead of the reader by as many blocks as fit.
TEST(ShmRingTest, BlocksOfAllSizesArriveByteExact) {
  std::mt19937 random(5);
  Ring ring;
  std::deque<std::vector<std::byte>> on_the_way;
  uint64_t num_sent = 0, num_received = 0;
  std::vector<std::byte> received;
  while (num_received < 2000) {
    if (ring.writer.is_done()) {
      const size_t num_bytes = 1 + random() % (random() % 8 == 0 ? 20'000 : 300);
      on_the_way.push_back(RandomBytes(num_bytes, random));
      ring.writer.Begin(++num_sent, on_the_way.back());
    }
    if (random() % 2 == 0) {
      const bool could = ring.writer.CanMove();
      EXPECT_EQ(ring.writer.Move() != RingMove::kNone, could);
    }
    if (on_the_way.empty() || random() % 2 == 0) continue;
    if (ring.reader.is_done()) {
      received.assign(on_the_way.front().size(), std::byte{0});
      ring.reader.Begin(++num_received, received);
    }
    const bool could = ring.reader.CanMove();
    EXPECT_EQ(ring.reader.Move() != RingMove::kNone, could);
    if (!ring.reader.is_done()) continue;
    ASSERT_EQ(received, on_the_way.front());
    on_the_way.pop_front();
  }
}

TEST(ShmRingTest, AFullRingIsReportedToTheReader) {
  Ring ring;
  const std::vector<std::byte> sent(3 * kRingBytes);
  std::vector<std::byte> received(sent.size());
  ring.writer.Begin(1, sent);
  while (ring.writer.Move() == RingMove::kMoved) {
  }
  EXPECT_FALSE(ring.writer.CanMove());
  ring.reader.Begin(1, received);
  EXPECT_EQ(ring.reader.Move(), RingMove::kMovedFull);
  EXPECT_EQ(ring.reader.Move(), RingMove::kMoved);
  EXPECT_TRUE(ring.writer.CanMove());
}

TEST(ShmRingTest, OtherBlocksThanExpectedAreNamed) {
  Ring ring;
  const std::vector<std::byte> sent(100);
  std::vector<std::byte> received(200);
  ring.writer.Begin(7, sent);
  ASSERT_EQ(ring.writer.Move(), RingMove::kMoved);
  ring.reader.Begin(7, received);
  EXPECT_EQ(ring.reader.Move(), RingMove::kWrongBlock);
  EXPECT_EQ(ring.reader.found(), (BlockHeader{7, 100}));
}

// Under AddressSanitizer this also shows that no counter leads outside the ring or the caller's buffer.
TEST(ShmRingTest, CountersOfABrokenPeerAreErrorsOrHarmless) {
  std::mt19937_64 random(9);
  for (int round = 0; round < 20'000; ++round) {
    Ring ring;
    const std::vector<std::byte> sent(random() % 9000);
    std::vector<std::byte> received(sent.size());
    ring.writer.Begin(1, sent);
    ring.reader.Begin(1, received);
    for (int move = 0; move < 8; ++move) {
      const uint64_t lie = random() >> (random() % 64);
      if (random() % 3 == 0) ring.consumed = lie;
      ring.writer.CanMove();
      ring.writer.Move();
      if (random() % 3 == 0) ring.written = lie;
      ring.reader.CanMove();
      ring.reader.Move();
    }
  }
  Ring ring;
  const std::vector<std::byte> sent(10);
  ring.writer.Begin(1, sent);
  ring.consumed = 64;
  EXPECT_EQ(ring.writer.Move(), RingMove::kBroken);
}

TEST(ShmAreaTest, PartsDoNotOverlap) {
  constexpr int kSize = 70;
  std::vector<std::byte> memory(ShmArea::TotalBytes(kSize, kRingBytes));
  const ShmArea area(memory.data(), kSize, kRingBytes);
  uint64_t value = 0;
  area.sleep_word() = value++;
  for (int peer = 0; peer < kSize; ++peer) {
    area.written(peer) = value++;
    area.consumed(peer) = value++;
    std::fill_n(area.ring(peer), kRingBytes, static_cast<std::byte>(peer));
  }
  value = 0;
  EXPECT_EQ(area.sleep_word(), value++);
  for (int peer = 0; peer < kSize; ++peer) {
    EXPECT_EQ(area.written(peer), value++);
    EXPECT_EQ(area.consumed(peer), value++);
    EXPECT_EQ(area.ring(peer)[kRingBytes - 1], static_cast<std::byte>(peer));
  }
}

absl::Status Exchange(Communicator& communicator, size_t bytes_to_each) {
  const std::vector<size_t> sizes(communicator.size(), bytes_to_each);
  std::vector<std::byte> sent(communicator.size() * bytes_to_each), received(sent.size());
  return communicator.AllToAllV(sent.data(), sizes, received.data(), sizes, nullptr);
}

TEST(ShmCommunicatorTest, SilentPeerTimesOut) {
  const auto factory = CreateShmFactory({.exchange_timeout = milliseconds(100)});
  const auto group = FormGroup(*factory, 2);
  const absl::Status failed = Exchange(*group[0], 1);
  EXPECT_EQ(failed.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(failed.message(), HasSubstr("rank 1 is silent"));
}

TEST(ShmCommunicatorTest, RanksThatDisagreeAreBothNamed) {
  const auto factory = CreateShmFactory();
  const auto group = FormGroup(*factory, 2);
  std::array<absl::Status, 2> failed;
  OnEveryRank(2, [&](int rank) { failed[rank] = Exchange(*group[rank], rank == 0 ? 100 : 200); });
  EXPECT_THAT((failed[0].code() == absl::StatusCode::kInvalidArgument ? failed[0] : failed[1]).message(),
              HasSubstr(", which expects "));
  for (const absl::Status& each : failed) EXPECT_FALSE(each.ok());
}

TEST(ShmCommunicatorTest, AMissedExchangeIsNamed) {
  const auto factory = CreateShmFactory();
  const auto group = FormGroup(*factory, 2);
  OnEveryRank(2, [&](int rank) {
    if (rank == 0) {
      EXPECT_TRUE(Exchange(*group[0], 0).ok());  // an exchange of nothing, which rank 1 does not take part in
    }
    EXPECT_FALSE(Exchange(*group[rank], 10).ok());
  });
}

// Rank 0 waits for rank 2 when rank 1 leaves, which does not matter to it before the next exchange.
TEST(ShmCommunicatorTest, APeerThatLeftEarlierFailsTheNextExchange) {
  const auto factory = CreateShmFactory({.spin = std::chrono::microseconds(0), .exchange_timeout = milliseconds(5000)});
  const std::vector<size_t> none(3, 0), from_1 = {0, 1, 0}, from_2 = {0, 0, 1}, to_0 = {1, 0, 0};
  for (int round = 0; round < 10; ++round) {
    auto group = FormGroup(*factory, 3);
    Notification left, failed;
    std::byte sent{1}, received{0};
    OnEveryRank(3, [&](int rank) {
      if (rank == 1) {
        group[1].reset();
        return left.Notify();
      }
      if (rank == 2) {
        left.WaitForNotification();
        EXPECT_TRUE(group[2]->AllToAllV(&sent, to_0, nullptr, none, nullptr).ok());
        return failed.WaitForNotification();
      }
      EXPECT_TRUE(group[0]->AllToAllV(nullptr, none, &received, from_2, nullptr).ok());
      const SteadyTime begin = Clock::Real().Now();
      EXPECT_THAT(group[0]->AllToAllV(nullptr, none, &received, from_1, nullptr).message(),
                  HasSubstr("rank 1 is gone"));
      EXPECT_LT(MicrosBetween(begin, Clock::Real().Now()), 1'000'000);
      failed.Notify();
    });
  }
}

// 64 KiB for a ring is the least, so that the area of a large group is larger than asked for.
TEST(ShmCommunicatorTest, LargeGroupsHaveSmallRings) {
  const auto factory = CreateShmFactory({.max_area_bytes = 1 << 20});
  const auto group = FormGroup(*factory, 24);
  OnEveryRank(24, [&](int rank) {
    const absl::Status checked = CheckExchange(*group[rank]);
    EXPECT_TRUE(checked.ok()) << checked;
  });
}

}  // namespace
}  // namespace switchyard
