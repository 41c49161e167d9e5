// The memory that a rank opens to its peers, as host and kernels see it.
//
// Small blocks are moved by a kernel. From each rank to each other there are *lanes*. A block that is sent is cut over
// the lanes, so that several multiprocessors move it. A lane is a ring of slots in the destination's window: the source
// writes a piece of its share into the next slot and counts it as written; the destination copies the piece to where it
// belongs and counts it as freed, in the source's window. Counts only grow, from 0 when the group forms.
//
// Large blocks are moved by the copy engines, in the same way: one ring of larger slots from each rank to each other.
//
//   window of rank d:  Inbox[source][lane]     written by the source: what is in the lane's slots
//                      Count[peer][lane]       written by the peer: which of d's pieces it has freed
//                      Progress[peer][lane]    d's own counts, kept from exchange to exchange
//                      Count[source]           written by the source: the large pieces in its slots
//                      Count[peer]             written by the peer: which of d's large pieces it has freed
//                      slots[source][lane], large slots[source]     written by the source
//
// Ranks agree on all sizes, because they depend on the group's size alone.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace switchyard {

inline constexpr int kMaxDirectRanks = 64;
inline constexpr int kSlotsPerLane = 4;
inline constexpr uint64_t kSlotBytes = 128 << 10;
// A share that is smaller is not worth a multiprocessor of its own.
inline constexpr uint64_t kMinShareBytes = 16 << 10;

// Blocks from this size on are moved by the copy engines.
inline constexpr uint64_t kLargeBlockBytes = 4 << 20;
inline constexpr int kLargeSlots = 4;

constexpr bool IsLarge(uint64_t block_bytes) { return block_bytes >= kLargeBlockBytes; }

// Counters that different ranks write, or that kernels poll, have a line of memory to themselves.
inline constexpr size_t kLineBytes = 128;

struct alignas(kLineBytes) DirectInbox {
  uint64_t written = 0;  // pieces
  // Says of the piece in each slot the number of its exchange, and the bytes of the whole block.
  struct Note {
    uint64_t exchange = 0;
    uint64_t block_bytes = 0;
  } notes[kSlotsPerLane];
};

struct alignas(kLineBytes) DirectCount {
  uint64_t pieces = 0;
};

struct alignas(kLineBytes) DirectProgress {
  uint64_t sent = 0;
  uint64_t received = 0;
};

// Where everything is in a window.
struct DirectWindow {
  int size = 1;
  int num_lanes = 1;  // from one rank to another

  // With many peers each gets fewer multiprocessors, so that all lanes of an exchange run at once.
  static constexpr DirectWindow Of(int size) {
    constexpr int kMaxLanes = 16, kMaxLanesOfAll = 64;
    return {size, std::clamp(kMaxLanesOfAll / std::max(1, size - 1), 1, kMaxLanes)};
  }

  constexpr int LanesFor(uint64_t block_bytes) const {
    return static_cast<int>(std::min<uint64_t>(num_lanes, (block_bytes + kMinShareBytes - 1) / kMinShareBytes));
  }

  constexpr size_t index(int peer, int lane) const { return static_cast<size_t>(peer) * num_lanes + lane; }
  constexpr size_t num_pairs() const { return index(size, 0); }
  constexpr size_t inbox(int source, int lane) const { return index(source, lane) * sizeof(DirectInbox); }
  constexpr size_t freed(int peer, int lane) const {
    return num_pairs() * sizeof(DirectInbox) + index(peer, lane) * sizeof(DirectCount);
  }
  constexpr size_t progress(int peer, int lane) const {
    return freed(size, 0) + index(peer, lane) * sizeof(DirectProgress);
  }
  constexpr size_t large_written(int source) const { return progress(size, 0) + source * sizeof(DirectCount); }
  constexpr size_t large_freed(int peer) const { return large_written(size) + peer * sizeof(DirectCount); }
  constexpr size_t control_bytes() const { return large_freed(size); }
  constexpr size_t slot(int source, int lane, uint64_t piece) const {
    return control_bytes() + (index(source, lane) * kSlotsPerLane + piece % kSlotsPerLane) * kSlotBytes;
  }
  // With many peers each gets smaller slots, so that a window takes some 128 MiB.
  constexpr uint64_t large_slot_bytes() const {
    constexpr uint64_t kMiB = uint64_t{1} << 20;
    return std::clamp(32 / std::max<uint64_t>(1, size - 1), uint64_t{2}, uint64_t{8}) * kMiB;
  }
  constexpr size_t large_slot(int source, uint64_t piece) const {
    return slot(size, 0, 0) + (source * kLargeSlots + piece % kLargeSlots) * large_slot_bytes();
  }
  constexpr size_t total_bytes() const { return large_slot(size, 0); }
};

}  // namespace switchyard
