#include "moe/exchange/direct/large_blocks.h"

#include <cuda.h>

#include <algorithm>

#include "moe/gpu/cuda_status.h"
#include "moe/gpu/driver.h"

namespace switchyard {
namespace {

absl::Status WaitForCount(cudaStream_t stream, const std::byte* count, uint64_t at_least) {
  SY_CU(cuStreamWaitValue64, stream, reinterpret_cast<CUdeviceptr>(count), at_least, CU_STREAM_WAIT_VALUE_GEQ);
  return absl::OkStatus();
}

// Everything that was enqueued before is visible to those who see the count.
absl::Status WriteCount(cudaStream_t stream, std::byte* count, uint64_t value) {
  SY_CU(cuStreamWriteValue64, stream, reinterpret_cast<CUdeviceptr>(count), value, CU_STREAM_WRITE_VALUE_DEFAULT);
  return absl::OkStatus();
}

absl::Status Copy(cudaStream_t stream, std::byte* to, std::span<const std::byte> from) {
  SY_CUDA(cudaMemcpyAsync(to, from.data(), from.size(), cudaMemcpyDeviceToDevice, stream));
  return absl::OkStatus();
}

// Work enqueued on `later` after this call starts after all work enqueued on `earlier` before it.
absl::Status Order(cudaStream_t earlier, const CudaEvent& event, cudaStream_t later) {
  SY_CUDA(cudaEventRecord(event.get(), earlier));
  SY_CUDA(cudaStreamWaitEvent(later, event.get()));
  return absl::OkStatus();
}

template <typename Byte>
std::span<Byte> PieceOf(std::span<Byte> block, uint64_t idx, uint64_t piece_bytes) {
  if (!IsLarge(block.size()) || idx * piece_bytes >= block.size()) return {};
  return block.subspan(idx * piece_bytes, std::min(piece_bytes, block.size() - idx * piece_bytes));
}

}  // namespace

absl::StatusOr<LargeBlocks> LargeBlocks::Create(DirectWindow window, int rank, std::vector<std::byte*> windows) {
  LargeBlocks blocks(window, rank, std::move(windows));
  for (CudaStream* const stream : {&blocks.send_, &blocks.receive_, &blocks.release_}) {
    SY_ASSIGN_OR_RETURN(*stream, CudaStream::Create());
  }
  for (CudaEvent* const event : {&blocks.begun_, &blocks.sent_all_, &blocks.received_all_}) {
    SY_ASSIGN_OR_RETURN(*event, CudaEvent::Create());
  }
  return blocks;
}

absl::Status LargeBlocks::Enqueue(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv,
                                  cudaStream_t stream) {
  bool has_any = false;
  for (int peer = 0; peer < window_.size; ++peer) {
    has_any = has_any || IsLarge(send[peer].size()) || IsLarge(recv[peer].size());
  }
  if (!has_any) return absl::OkStatus();
  SY_RETURN_IF_ERROR(Order(stream, begun_, send_.get()));
  SY_CUDA(cudaStreamWaitEvent(receive_.get(), begun_.get()));
  const absl::Status enqueued = EnqueuePieces(send, recv);
  // Also after a failure, so that the caller's stream ends after these.
  SY_RETURN_IF_ERROR(Order(send_.get(), sent_all_, stream));
  SY_RETURN_IF_ERROR(Order(receive_.get(), received_all_, stream));
  return enqueued;
}

// Each rank begins with the next one, so that not all send to rank 0 first. All ranks go through the pieces in the same
// order, so that no two wait for each other.
absl::Status LargeBlocks::EnqueuePieces(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv) {
  if (IsLarge(send[rank_].size())) {
    SY_RETURN_IF_ERROR(Copy(receive_.get(), recv[rank_].data(), send[rank_]));
  }
  bool is_over = false;
  for (uint64_t idx = 0; !is_over; ++idx) {
    is_over = true;
    for (int distance = 1; distance < window_.size; ++distance) {
      const int to = (rank_ + distance) % window_.size, from = (rank_ + window_.size - distance) % window_.size;
      const auto sent = PieceOf(send[to], idx, window_.large_slot_bytes());
      const auto received = PieceOf(recv[from], idx, window_.large_slot_bytes());
      if (!sent.empty()) SY_RETURN_IF_ERROR(Send(to, sent));
      if (!received.empty()) SY_RETURN_IF_ERROR(Receive(from, received));
      is_over = is_over && sent.empty() && received.empty();
    }
  }
  return absl::OkStatus();
}

absl::Status LargeBlocks::Send(int peer, std::span<const std::byte> piece) {
  const uint64_t number = sent_[peer]++;
  if (number >= kLargeSlots) {
    SY_RETURN_IF_ERROR(
        WaitForCount(send_.get(), windows_[rank_] + window_.large_freed(peer), number + 1 - kLargeSlots));
  }
  SY_RETURN_IF_ERROR(Copy(send_.get(), windows_[peer] + window_.large_slot(rank_, number), piece));
  return WriteCount(send_.get(), windows_[peer] + window_.large_written(rank_), number + 1);
}

absl::Status LargeBlocks::Receive(int peer, std::span<std::byte> piece) {
  const uint64_t number = received_[peer]++;
  SY_RETURN_IF_ERROR(WaitForCount(receive_.get(), windows_[rank_] + window_.large_written(peer), number + 1));
  const std::byte* const slot = windows_[rank_] + window_.large_slot(peer, number);
  SY_RETURN_IF_ERROR(Copy(receive_.get(), piece.data(), {slot, piece.size()}));
  return WriteCount(receive_.get(), windows_[peer] + window_.large_freed(rank_), number + 1);
}

absl::Status LargeBlocks::Release() {
  constexpr int kByteOfHugeCount = 0x7f;
  const size_t begin = window_.large_written(0);
  SY_CUDA(cudaMemsetAsync(windows_[rank_] + begin, kByteOfHugeCount, window_.control_bytes() - begin, release_.get()));
  return absl::OkStatus();
}

}  // namespace switchyard
