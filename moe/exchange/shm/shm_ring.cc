#include "moe/exchange/shm/shm_ring.h"

#include <algorithm>
#include <cstring>

#include "base/ceil_div.h"
#include "moe/exchange/shm/shm_area.h"

namespace switchyard {
namespace {

// The most that is copied before the other end is told, so that both ends copy at the same time.
size_t MaxMove(size_t ring_bytes) { return ring_bytes / 4; }

// How many bytes lie between the two counters; nothing for counters that cannot be.
struct Distance {
  bool is_possible = false;
  size_t num_bytes = 0;
};
Distance Between(uint64_t consumed, uint64_t written, size_t ring_bytes) {
  const uint64_t num_bytes = written - consumed;
  return {num_bytes <= ring_bytes && num_bytes % kShmLine == 0, static_cast<size_t>(num_bytes)};
}

}  // namespace

// ---- Writer ---------------------------------------------------------------------------------------------------------

void RingWriter::Begin(uint64_t exchange, std::span<const std::byte> block) {
  header_ = {exchange, block.size()};
  has_header_ = !block.empty();
  left_ = block;
  lines_left_ = CeilDiv(block.size(), kShmLine);
}

bool RingWriter::CanMove() const {
  return !is_done() && written_ - shared_consumed_->load(std::memory_order_seq_cst) != ring_bytes_;
}

RingMove RingWriter::Move() {
  if (is_done()) return RingMove::kNone;
  const Distance used = Between(shared_consumed_->load(std::memory_order_acquire), written_, ring_bytes_);
  if (!used.is_possible) return RingMove::kBroken;
  size_t room = ring_bytes_ - used.num_bytes;
  if (room == 0) return RingMove::kNone;
  if (has_header_) {
    std::memcpy(ring_ + written_ % ring_bytes_, &header_, sizeof(header_));
    has_header_ = false;
    written_ += kShmLine;
    room -= kShmLine;
  }
  const size_t at = written_ % ring_bytes_;
  const size_t num_bytes =
      std::min({room, lines_left_ * kShmLine, ring_bytes_ - at, MaxMove(ring_bytes_)}) / kShmLine * kShmLine;
  const size_t num_real = std::min(num_bytes, left_.size());  // the last line may not be full
  if (num_real > 0) std::memcpy(ring_ + at, left_.data(), num_real);
  left_ = left_.subspan(num_real);
  lines_left_ -= num_bytes / kShmLine;
  written_ += num_bytes;
  shared_written_->store(written_, std::memory_order_seq_cst);
  return RingMove::kMoved;
}

// ---- Reader ---------------------------------------------------------------------------------------------------------

void RingReader::Begin(uint64_t exchange, std::span<std::byte> block) {
  header_ = {exchange, block.size()};
  has_header_ = !block.empty();
  left_ = block;
  lines_left_ = CeilDiv(block.size(), kShmLine);
}

bool RingReader::CanMove() const { return !is_done() && shared_written_->load(std::memory_order_seq_cst) != consumed_; }

RingMove RingReader::Move() {
  if (is_done()) return RingMove::kNone;
  const uint64_t before = consumed_;
  const Distance there = Between(consumed_, shared_written_->load(std::memory_order_acquire), ring_bytes_);
  if (!there.is_possible) return RingMove::kBroken;
  if (there.num_bytes == 0) return RingMove::kNone;
  size_t available = there.num_bytes;
  if (has_header_) {
    std::memcpy(&found_, ring_ + consumed_ % ring_bytes_, sizeof(found_));
    if (found_ != header_) return RingMove::kWrongBlock;
    has_header_ = false;
    consumed_ += kShmLine;
    available -= kShmLine;
  }
  const size_t at = consumed_ % ring_bytes_;
  const size_t num_bytes = std::min({available, lines_left_ * kShmLine, ring_bytes_ - at, MaxMove(ring_bytes_)});
  const size_t num_real = std::min(num_bytes, left_.size());
  if (num_real > 0) std::memcpy(left_.data(), ring_ + at, num_real);
  left_ = left_.subspan(num_real);
  lines_left_ -= num_bytes / kShmLine;
  consumed_ += num_bytes;
  shared_consumed_->store(consumed_, std::memory_order_seq_cst);
  // Read after the store, so that either the writer sees the room or this sees that it had none
  // (ShmCommunicator::Sleep).
  const bool was_full = shared_written_->load(std::memory_order_seq_cst) - before == ring_bytes_;
  return was_full ? RingMove::kMovedFull : RingMove::kMoved;
}

}  // namespace switchyard
