#include <cstdint>

#include "moe/exchange/direct/direct_kernel.h"
#include "moe/gpu/cuda_status.h"

namespace switchyard {
namespace {

constexpr int kThreads = 512;

// ---- Memory that several GPUs share ---------------------------------------------------------------------------------

__device__ uint64_t LoadAcquire(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}

__device__ void StoreRelease(uint64_t* to, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}

__device__ uint64_t Nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// ---- One lane -------------------------------------------------------------------------------------------------------

// The part of a block that a lane moves. Shares begin at multiples of 16 bytes, so that they are as aligned as the
// block.
struct Share {
  uint64_t begin, end;
  __device__ Share(uint64_t block_bytes, int lane, int num_lanes)
      : begin(Cut(block_bytes, lane, num_lanes)), end(Cut(block_bytes, lane + 1, num_lanes)) {}
  static __device__ uint64_t Cut(uint64_t block_bytes, int lane, int num_lanes) {
    return lane == num_lanes ? block_bytes : block_bytes / num_lanes * lane / 16 * 16;
  }
};

// The whole block of threads copies. Reads go past the L1, which does not know of peers' writes.
template <typename Word>
__device__ void Copy(const std::byte* from_bytes, std::byte* to_bytes, uint64_t num_bytes) {
  constexpr int kAhead = 4;  // loads in flight
  const Word* const from = reinterpret_cast<const Word*>(from_bytes);
  Word* const to = reinterpret_cast<Word*>(to_bytes);
  const uint64_t num_words = num_bytes / sizeof(Word);
  for (uint64_t at = threadIdx.x; at < num_words; at += kAhead * kThreads) {
    Word words[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (at + i * kThreads < num_words) words[i] = __ldcg(from + at + i * kThreads);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (at + i * kThreads < num_words) to[at + i * kThreads] = words[i];
    }
  }
}

__device__ bool GiveUp(const DirectExchange& exchange, uint32_t failure, int peer) {
  volatile DirectState* const state = exchange.state;
  state->peer = peer;
  __threadfence_system();
  state->failure = failure;
  return false;
}

// One thread waits until the count has come so far. False when it gives up.
__device__ bool Await(const DirectExchange& exchange, const uint64_t* count, uint64_t wanted, int peer) {
  constexpr int kLooks = 256;  // between two looks over the bus
  uint64_t since = 0;
  while (true) {
    for (int look = 0; look < kLooks; ++look) {
      if (LoadAcquire(count) >= wanted) return true;
    }
    const volatile DirectState* const state = exchange.state;
    if (state->is_aborted != 0) return GiveUp(exchange, DirectState::kAborted, peer);
    const uint64_t now = Nanoseconds();
    if (since == 0) since = now;
    if (now - since > exchange.timeout_ns) return GiveUp(exchange, DirectState::kSilent, peer);
  }
}

__device__ bool CheckNote(const DirectExchange& exchange, const DirectInbox::Note& note, uint64_t block_bytes,
                          int peer) {
  const volatile DirectInbox::Note* const found = &note;
  const uint64_t number = found->exchange, bytes = found->block_bytes;
  if (number == exchange.number && bytes == block_bytes) return true;
  volatile DirectState* const state = exchange.state;
  state->found.exchange = number;
  state->found.block_bytes = bytes;
  state->expected.exchange = exchange.number;
  state->expected.block_bytes = block_bytes;
  return GiveUp(exchange, DirectState::kWrongBlock, peer);
}

template <typename Word>
__device__ void SendShare(const DirectExchange& exchange, int peer, int lane, int num_lanes) {
  __shared__ bool may_go_on;
  const DirectWindow& window = exchange.window;
  const DirectBlock& block = exchange.blocks[peer];
  std::byte* const own = exchange.windows[exchange.rank];
  std::byte* const theirs = exchange.windows[peer];
  const auto* const freed = reinterpret_cast<const DirectCount*>(own + window.freed(peer, lane));
  auto* const progress = reinterpret_cast<DirectProgress*>(own + window.progress(peer, lane));
  auto* const inbox = reinterpret_cast<DirectInbox*>(theirs + window.inbox(exchange.rank, lane));
  const Share share(block.send_bytes, lane, num_lanes);
  uint64_t piece = progress->sent;
  for (uint64_t at = share.begin; at < share.end; at += kSlotBytes, ++piece) {
    if (threadIdx.x == 0) {
      may_go_on = piece < kSlotsPerLane || Await(exchange, &freed->pieces, piece + 1 - kSlotsPerLane, peer);
    }
    __syncthreads();
    if (!may_go_on) return;
    Copy<Word>(block.send + at, theirs + window.slot(exchange.rank, lane, piece), min(kSlotBytes, share.end - at));
    __syncthreads();
    if (threadIdx.x == 0) {
      inbox->notes[piece % kSlotsPerLane] = {exchange.number, block.send_bytes};
      __threadfence_system();
      StoreRelease(&inbox->written, piece + 1);
    }
  }
  if (threadIdx.x == 0) progress->sent = piece;
}

template <typename Word>
__device__ void ReceiveShare(const DirectExchange& exchange, int peer, int lane, int num_lanes) {
  __shared__ bool may_go_on;
  const DirectWindow& window = exchange.window;
  const DirectBlock& block = exchange.blocks[peer];
  std::byte* const own = exchange.windows[exchange.rank];
  auto* const freed = reinterpret_cast<DirectCount*>(exchange.windows[peer] + window.freed(exchange.rank, lane));
  auto* const progress = reinterpret_cast<DirectProgress*>(own + window.progress(peer, lane));
  const auto* const inbox = reinterpret_cast<const DirectInbox*>(own + window.inbox(peer, lane));
  const Share share(block.recv_bytes, lane, num_lanes);
  uint64_t piece = progress->received;
  for (uint64_t at = share.begin; at < share.end; at += kSlotBytes, ++piece) {
    if (threadIdx.x == 0) {
      may_go_on = Await(exchange, &inbox->written, piece + 1, peer) &&
                  CheckNote(exchange, inbox->notes[piece % kSlotsPerLane], block.recv_bytes, peer);
    }
    __syncthreads();
    if (!may_go_on) return;
    Copy<Word>(own + window.slot(peer, lane, piece), block.recv + at, min(kSlotBytes, share.end - at));
    __syncthreads();
    if (threadIdx.x == 0) StoreRelease(&freed->pieces, piece + 1);
  }
  if (threadIdx.x == 0) progress->received = piece;
}

// Block (lane, peer, 0) sends, block (lane, peer, 1) receives. A rank's block for itself is copied by the former.
template <typename Word>
__global__ void __launch_bounds__(kThreads) ExchangeKernel(const __grid_constant__ DirectExchange exchange) {
  const int lane = static_cast<int>(blockIdx.x), peer = static_cast<int>(blockIdx.y);
  const bool sends = blockIdx.z == 0;
  const DirectBlock& block = exchange.blocks[peer];
  const int num_lanes = exchange.window.LanesFor(sends ? block.send_bytes : block.recv_bytes);
  if (lane >= num_lanes) return;
  if (peer == exchange.rank) {
    const Share share(block.send_bytes, lane, num_lanes);
    if (sends) Copy<Word>(block.send + share.begin, block.recv + share.begin, share.end - share.begin);
  } else if (sends) {
    SendShare<Word>(exchange, peer, lane, num_lanes);
  } else {
    ReceiveShare<Word>(exchange, peer, lane, num_lanes);
  }
}

// The largest word, of up to 16 bytes, in whose multiples all blocks begin and end.
uint64_t WordBytes(const DirectExchange& exchange) {
  uint64_t all = 16;
  for (int peer = 0; peer < exchange.window.size; ++peer) {
    const DirectBlock& block = exchange.blocks[peer];
    if (block.send_bytes > 0) all |= reinterpret_cast<uintptr_t>(block.send) | block.send_bytes;
    if (block.recv_bytes > 0) all |= reinterpret_cast<uintptr_t>(block.recv) | block.recv_bytes;
  }
  return all & -all;
}

}  // namespace

absl::Status EnqueueDirectExchange(const DirectExchange& exchange, cudaStream_t stream) {
  int num_lanes = 0;
  for (int peer = 0; peer < exchange.window.size; ++peer) {
    const DirectBlock& block = exchange.blocks[peer];
    num_lanes = std::max(num_lanes, exchange.window.LanesFor(std::max(block.send_bytes, block.recv_bytes)));
  }
  if (num_lanes == 0) return absl::OkStatus();
  const dim3 grid(num_lanes, exchange.window.size, 2);
  switch (WordBytes(exchange)) {
    case 16:
      ExchangeKernel<uint4><<<grid, kThreads, 0, stream>>>(exchange);
      break;
    case 8:
    case 4:
      ExchangeKernel<uint32_t><<<grid, kThreads, 0, stream>>>(exchange);
      break;
    default:
      ExchangeKernel<uint8_t><<<grid, kThreads, 0, stream>>>(exchange);
  }
  return CudaStatus(cudaGetLastError(), "the exchange's kernel");
}

}  // namespace switchyard
