// The address blob of an NCCL rank: which GPU it is on, which NCCL it runs, and, from rank 0, where the ranks meet.
//
// NCCL needs only rank 0's unique id. The rest lets ranks that NCCL would refuse, or leave hanging, be refused with the
// reason before they try. The bytes come from other processes, so parsing trusts nothing. Integers are little-endian
// 32-bit:
//   "SYNC" | format version | rank | size | NCCL version | GPU UUID (16 bytes) | num_bytes | unique id (num_bytes)
// where num_bytes is 128 for rank 0 of a group of several, and 0 for everybody else.
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

  // How many bytes of unique id a rank must bring.
  static size_t UniqueIdBytes(int rank, int size) { return rank == 0 && size > 1 ? kNcclUniqueIdBytes : 0; }
};

std::string EncodeNcclAddress(const NcclAddress& address);

// InvalidArgument for anything but a well-formed blob of rank `rank` in a group of `size`.
absl::StatusOr<NcclAddress> ParseNcclAddress(std::string_view blob, int rank, int size);

// The addresses of a whole group, in rank order. FailedPrecondition, naming both ranks, when two are on the same GPU or
// run different versions of NCCL.
absl::StatusOr<std::vector<NcclAddress>> ParseNcclGroup(std::span<const std::string> blobs);

}  // namespace switchyard
