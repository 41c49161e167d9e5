#include "moe/exchange/direct/direct_window.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace switchyard {
namespace {

struct Range {
  size_t begin, end;
};

// Everything in a window, as byte ranges.
std::vector<Range> AllParts(const DirectWindow& window) {
  std::vector<Range> parts;
  const auto add = [&](size_t begin, size_t num_bytes) { parts.push_back({begin, begin + num_bytes}); };
  for (int peer = 0; peer < window.size; ++peer) {
    for (int lane = 0; lane < window.num_lanes; ++lane) {
      add(window.inbox(peer, lane), sizeof(DirectInbox));
      add(window.freed(peer, lane), sizeof(DirectCount));
      add(window.progress(peer, lane), sizeof(DirectProgress));
      for (uint64_t piece = 0; piece < kSlotsPerLane; ++piece) add(window.slot(peer, lane, piece), kSlotBytes);
    }
    add(window.large_written(peer), sizeof(DirectCount));
    add(window.large_freed(peer), sizeof(DirectCount));
    for (uint64_t piece = 0; piece < kLargeSlots; ++piece) {
      add(window.large_slot(peer, piece), window.large_slot_bytes());
    }
  }
  return parts;
}

TEST(DirectWindow, PartsLieApartWithinTheWindow) {
  for (const int size : {1, 2, 3, 8, 17}) {
    const DirectWindow window = DirectWindow::Of(size);
    std::vector<Range> parts = AllParts(window);
    std::sort(parts.begin(), parts.end(), [](const Range& a, const Range& b) { return a.begin < b.begin; });
    for (size_t i = 0; i < parts.size(); ++i) {
      EXPECT_EQ(parts[i].begin % kLineBytes, 0);
      EXPECT_LE(parts[i].end, i + 1 < parts.size() ? parts[i + 1].begin : window.total_bytes());
    }
  }
}

TEST(DirectWindow, ControlComesFirstSoThatItCanBeCleared) {
  const DirectWindow window = DirectWindow::Of(4);
  EXPECT_LE(window.large_freed(3) + sizeof(DirectCount), window.control_bytes());
  EXPECT_EQ(window.slot(0, 0, 0), window.control_bytes());
}

TEST(DirectWindow, PiecesTakeTurnsInTheSlotsOfALane) {
  const DirectWindow window = DirectWindow::Of(2);
  EXPECT_EQ(window.slot(1, 3, 0), window.slot(1, 3, kSlotsPerLane));
  EXPECT_EQ(window.slot(1, 3, 1) - window.slot(1, 3, 0), kSlotBytes);
}

TEST(DirectWindow, ABlockHasAsManyLanesAsPay) {
  const DirectWindow window = DirectWindow::Of(2);
  EXPECT_EQ(window.LanesFor(0), 0);
  EXPECT_EQ(window.LanesFor(1), 1);
  EXPECT_EQ(window.LanesFor(kMinShareBytes), 1);
  EXPECT_EQ(window.LanesFor(kMinShareBytes + 1), 2);
  EXPECT_EQ(window.LanesFor(uint64_t{1} << 40), window.num_lanes);
}

// Blocks of an exchange wait for each other, so all of them must run at once.
TEST(DirectWindow, AllLanesOfAnExchangeFitAGpu) {
  constexpr int kMaxBlocks = 2 * 108;  // two for each multiprocessor of the smallest GPU
  for (int size = 2; size <= kMaxDirectRanks; ++size) {
    EXPECT_LE(2 * (size - 1) * DirectWindow::Of(size).num_lanes, kMaxBlocks) << size;
    EXPECT_GE(DirectWindow::Of(size).num_lanes, 1) << size;
  }
}

}  // namespace
}  // namespace switchyard
