// The blocks that a rank sends, or receives, in one exchange: where each is and how long.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/status.h"

namespace switchyard {

// Byte is std::byte or const std::byte.
template <typename Byte>
class Blocks {
 public:
  Blocks(Byte* data, std::span<const size_t> sizes) : sizes_(sizes) {
    for (const size_t size : sizes) {
      blocks_.push_back(data);
      if (size > 0) data += size;
    }
  }
  std::span<Byte> operator[](int rank) const { return {blocks_[rank], sizes_[rank]}; }

 private:
  const std::span<const size_t> sizes_;
  std::vector<Byte*> blocks_;
};

// InvalidArgument unless there is a count per rank, and this rank agrees with itself.
inline absl::Status CheckBlockSizes(int rank, int size, std::span<const size_t> send_bytes,
                                    std::span<const size_t> recv_bytes) {
  if (static_cast<int>(send_bytes.size()) != size || static_cast<int>(recv_bytes.size()) != size) {
    return absl::InvalidArgumentError(absl::StrCat("expected ", size, " counts, got ", send_bytes.size(),
                                                   " to send and ", recv_bytes.size(), " to receive"));
  }
  if (send_bytes[rank] != recv_bytes[rank]) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", rank, " sends itself ", send_bytes[rank], " bytes but expects ", recv_bytes[rank]));
  }
  return absl::OkStatus();
}

// The header in front of a block on its way. The receiver checks it against what it expects, so that ranks that
// disagree end with an error instead of taking one block for another.
struct BlockHeader {
  uint64_t exchange = 0;  // the sender's number of this exchange
  uint64_t num_bytes = 0;

  bool operator==(const BlockHeader&) const = default;
};

inline absl::Status WrongBlock(int sender, int receiver, const BlockHeader& sent, const BlockHeader& expected) {
  return absl::InvalidArgumentError(sent.exchange == expected.exchange
                                        ? absl::StrCat("rank ", sender, " sends rank ", receiver, " ", sent.num_bytes,
                                                       " bytes, which expects ", expected.num_bytes)
                                        : absl::StrCat("rank ", sender, " sends rank ", receiver,
                                                       " a block of exchange ", sent.exchange,
                                                       ", which expects exchange ", expected.exchange));
}

}  // namespace switchyard
