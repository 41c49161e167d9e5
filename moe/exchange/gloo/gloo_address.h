// The address blob of a Gloo rank: for each peer, the address of the socket that this rank opened for it.
//
// Gloo opens one listening socket per peer, so a rank has size - 1 addresses. The blob frames them. Its bytes come from
// other processes, so the parser checks everything. All integers are little-endian 32-bit:
//   "SYGL" | rank | size | size × (num_bytes | bytes…), where a rank's own entry is empty.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace switchyard {

struct GlooAddress {
  int rank = 0;
  std::vector<std::string> pair_addresses;  // [size], by peer; opaque except to Gloo
};

std::string EncodeGlooAddress(const GlooAddress& address);

// InvalidArgument for anything but a well-formed blob of rank `rank` in a group of `size`.
absl::StatusOr<GlooAddress> ParseGlooAddress(std::string_view blob, int rank, int size);

}  // namespace switchyard
