#include "moe/exchange/communicator.h"

#include <vector>

namespace switchyard {
namespace {

// Byte `idx` of the block that `source` sends `destination` in the round of `base` bytes. It is a hash, so that a block
// that went to the wrong place, was shifted or was left over from an earlier round does not match.
std::byte PatternByte(int source, int destination, size_t base, size_t idx) {
  uint64_t x = idx + (base << 20) + (static_cast<uint64_t>(source) << 44) + (static_cast<uint64_t>(destination) << 54);
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ull;
  return static_cast<std::byte>(x >> 56);
}

// The two directions of a pair have different sizes, so that swapped counts are noticed too.
size_t BlockBytes(int source, int destination, size_t base) { return base + 3 * source + destination; }

std::vector<size_t> BlockSizes(const Communicator& communicator, size_t base, bool sending) {
  std::vector<size_t> sizes;
  const int rank = communicator.rank();
  for (int peer = 0; peer < communicator.size(); ++peer) {
    sizes.push_back(sending ? BlockBytes(rank, peer, base) : BlockBytes(peer, rank, base));
  }
  return sizes;
}

std::vector<std::byte> SendPattern(int rank, std::span<const size_t> sizes, size_t base) {
  std::vector<std::byte> bytes;
  for (int peer = 0; peer < static_cast<int>(sizes.size()); ++peer) {
    for (size_t idx = 0; idx < sizes[peer]; ++idx) bytes.push_back(PatternByte(rank, peer, base, idx));
  }
  return bytes;
}

absl::Status CheckReceived(int rank, std::span<const size_t> sizes, size_t base, std::span<const std::byte> received) {
  size_t at = 0;
  for (int peer = 0; peer < static_cast<int>(sizes.size()); ++peer) {
    for (size_t idx = 0; idx < sizes[peer]; ++idx, ++at) {
      const std::byte expected = PatternByte(peer, rank, base, idx);
      if (received[at] == expected) continue;
      return absl::DataLossError(absl::StrCat("exchange check on rank ", rank, ": byte ", idx, " of ", sizes[peer],
                                              " from rank ", peer, " is ", static_cast<int>(received[at]),
                                              ", expected ", static_cast<int>(expected)));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRound(Communicator& communicator, size_t base) {
  const std::vector<size_t> send_sizes = BlockSizes(communicator, base, /*sending=*/true);
  const std::vector<size_t> recv_sizes = BlockSizes(communicator, base, /*sending=*/false);
  const std::vector<std::byte> sent = SendPattern(communicator.rank(), send_sizes, base);
  size_t recv_total = 0;
  for (const size_t size : recv_sizes) recv_total += size;
  std::vector<std::byte> received(recv_total);
  SY_RETURN_IF_ERROR(communicator.HostAllToAllV(sent.data(), send_sizes, received.data(), recv_sizes));
  return CheckReceived(communicator.rank(), recv_sizes, base, received);
}

}  // namespace

absl::Status CheckExchange(Communicator& communicator) {
  for (const size_t base : {size_t{0}, size_t{1021}, size_t{65536}}) {
    SY_RETURN_IF_ERROR(CheckRound(communicator, base));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
