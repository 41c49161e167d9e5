// The two ends of a ring in shared memory through which blocks stream from one rank to another: a line with the block's
// header, then the block, filled up to whole lines. A block may be larger than the ring.
//
// Both ends are made for one exchange after another with Begin, and then Move as much as they can without waiting. The
// other end's counter is read once per Move and checked, so that a broken peer is an error and never a wrong access.
//
// Thread-safety: one thread per end.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>

#include "moe/exchange/mesh/blocks.h"

namespace switchyard {

enum class RingMove {
  kNone,        // there was no room, or nothing to take
  kMoved,       // the counter has grown
  kMovedFull,   // likewise, and the ring was full before: the writer may be waiting
  kWrongBlock,  // the header is not what was expected; see RingReader::found()
  kBroken,      // the other end's counter is impossible
};

class RingWriter {
 public:
  RingWriter() = default;
  // `written` is this end's counter, `consumed` the other's.
  RingWriter(std::byte* ring, size_t ring_bytes, std::atomic<uint64_t>* written, const std::atomic<uint64_t>* consumed)
      : ring_(ring), ring_bytes_(ring_bytes), shared_written_(written), shared_consumed_(consumed) {}

  // The next block. One without bytes is not sent.
  void Begin(uint64_t exchange, std::span<const std::byte> block);
  bool is_done() const { return !has_header_ && lines_left_ == 0; }
  // Whether Move would move or report a broken peer.
  bool CanMove() const;
  RingMove Move();

 private:
  std::byte* ring_ = nullptr;
  size_t ring_bytes_ = 0;
  std::atomic<uint64_t>* shared_written_ = nullptr;
  const std::atomic<uint64_t>* shared_consumed_ = nullptr;
  uint64_t written_ = 0;

  BlockHeader header_;
  bool has_header_ = false;  // still to be sent
  std::span<const std::byte> left_;
  size_t lines_left_ = 0;  // of left_
};

class RingReader {
 public:
  RingReader() = default;
  RingReader(const std::byte* ring, size_t ring_bytes, const std::atomic<uint64_t>* written,
             std::atomic<uint64_t>* consumed)
      : ring_(ring), ring_bytes_(ring_bytes), shared_written_(written), shared_consumed_(consumed) {}

  void Begin(uint64_t exchange, std::span<std::byte> block);
  bool is_done() const { return !has_header_ && lines_left_ == 0; }
  bool CanMove() const;
  RingMove Move();

  const BlockHeader& expected() const { return header_; }
  const BlockHeader& found() const { return found_; }

 private:
  const std::byte* ring_ = nullptr;
  size_t ring_bytes_ = 0;
  const std::atomic<uint64_t>* shared_written_ = nullptr;
  std::atomic<uint64_t>* shared_consumed_ = nullptr;
  uint64_t consumed_ = 0;

  BlockHeader header_;
  BlockHeader found_;
  bool has_header_ = false;  // still to come
  std::span<std::byte> left_;
  size_t lines_left_ = 0;
};

}  // namespace switchyard
