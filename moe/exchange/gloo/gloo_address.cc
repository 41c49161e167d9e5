#include "moe/exchange/gloo/gloo_address.h"

#include <cstdint>
#include <utility>

#include "moe/exchange/blob.h"

namespace switchyard {
namespace {

constexpr uint32_t kMagic = 0x4c475953;  // "SYGL" in memory

absl::Status BadBlob(int rank, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat("Gloo address of rank ", rank, ": ", problem));
}

absl::Status CheckHeader(BlobReader& reader, int rank, int size) {
  uint32_t magic = 0, blob_rank = 0, blob_size = 0;
  if (!reader.ReadU32(magic) || !reader.ReadU32(blob_rank) || !reader.ReadU32(blob_size)) {
    return BadBlob(rank, "shorter than its header");
  }
  if (magic != kMagic) return BadBlob(rank, "does not start with SYGL");
  if (blob_rank != static_cast<uint32_t>(rank) || blob_size != static_cast<uint32_t>(size)) {
    return BadBlob(rank, absl::StrCat("expected rank ", rank, " of ", size, ", got ", blob_rank, " of ", blob_size));
  }
  return absl::OkStatus();
}

}  // namespace

std::string EncodeGlooAddress(const GlooAddress& address) {
  std::string blob;
  AppendU32(kMagic, blob);
  AppendU32(address.rank, blob);
  AppendU32(address.pair_addresses.size(), blob);
  for (const std::string& bytes : address.pair_addresses) AppendBytes(bytes, blob);
  return blob;
}

absl::StatusOr<GlooAddress> ParseGlooAddress(std::string_view blob, int rank, int size) {
  BlobReader reader(blob);
  SY_RETURN_IF_ERROR(CheckHeader(reader, rank, size));
  GlooAddress address{.rank = rank, .pair_addresses = {}};
  for (int peer = 0; peer < size; ++peer) {
    std::string bytes;
    if (!reader.ReadBytes(bytes)) return BadBlob(rank, absl::StrCat("ends within the entry for rank ", peer));
    if (bytes.empty() != (peer == rank)) {
      return BadBlob(rank, absl::StrCat("entry for rank ", peer, " has ", bytes.size(), " bytes"));
    }
    address.pair_addresses.push_back(std::move(bytes));
  }
  if (!reader.empty()) return BadBlob(rank, "has bytes after its last entry");
  return address;
}

}  // namespace switchyard
