// The address blob of an NCCL rank: its GPU, its version of NCCL and, from rank 0, NCCL's unique id, where the ranks
// meet.
//
// NCCL needs only rank 0's unique id. The other fields serve to refuse, with the reason and beforehand, ranks that NCCL
// would refuse or leave hanging. The bytes come from other processes, so the parser checks everything. Integers are
// little-endian 32-bit:
//   "SYNC" | format version | rank | size | NCCL version | GPU UUID (16 bytes) | num_bytes | unique id (num_bytes)
// where num_bytes is 128 for rank 0 of a group of several ranks, and 0 for all other ranks.
//
// Needs neither CUDA nor NCCL.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace switchyard {

using GpuUuid = std::array<uint8_t, 16>;

inline constexpr size_t kNcclUniqueIdBytes = 128;

struct NcclAddress {
  int rank = 0;
  int size = 1;
  uint32_t nccl_version = 0;  // NCCL_VERSION_CODE
  GpuUuid gpu{};
  std::string unique_id;

  // Bytes of unique id that the blob of `rank` must have.
  static size_t UniqueIdBytes(int rank, int size) { return rank == 0 && size > 1 ? kNcclUniqueIdBytes : 0; }
};

std::string EncodeNcclAddress(const NcclAddress& address);

// InvalidArgument for anything but a well-formed blob of rank `rank` in a group of `size`.
absl::StatusOr<NcclAddress> ParseNcclAddress(std::string_view blob, int rank, int size);

// The addresses of a whole group, in rank order. FailedPrecondition, naming both ranks, when two are on the same GPU or
// run different versions of NCCL.
absl::StatusOr<std::vector<NcclAddress>> ParseNcclGroup(std::span<const std::string> blobs);

}  // namespace switchyard
