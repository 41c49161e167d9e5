#include "moe/exchange/nccl/nccl_address.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <utility>

#include "absl/strings/escaping.h"

namespace switchyard {
namespace {

static_assert(std::endian::native == std::endian::little);

constexpr uint32_t kMagic = 0x434e5953;  // "SYNC" in memory
constexpr uint32_t kFormatVersion = 1;

void AppendU32(uint32_t value, std::string& out) { out.append(reinterpret_cast<const char*>(&value), sizeof(value)); }

// Reads fixed-size fields from the front. Every read is checked against the bytes left.
class BlobReader {
 public:
  explicit BlobReader(std::string_view rest) : rest_(rest) {}

  bool Read(void* out, size_t num_bytes) {
    if (rest_.size() < num_bytes) return false;
    std::memcpy(out, rest_.data(), num_bytes);
    rest_.remove_prefix(num_bytes);
    return true;
  }
  bool ReadU32(uint32_t& value) { return Read(&value, sizeof(value)); }

  std::string_view rest() const { return rest_; }

 private:
  std::string_view rest_;
};

absl::Status BadBlob(int rank, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat("NCCL address of rank ", rank, ": ", problem));
}

absl::Status CheckHeader(BlobReader& reader, int rank, int size) {
  uint32_t magic = 0, format = 0, blob_rank = 0, blob_size = 0;
  if (!reader.ReadU32(magic) || !reader.ReadU32(format) || !reader.ReadU32(blob_rank) || !reader.ReadU32(blob_size)) {
    return BadBlob(rank, "shorter than its header");
  }
  if (magic != kMagic) return BadBlob(rank, "does not start with SYNC");
  if (format != kFormatVersion) {
    return BadBlob(rank, absl::StrCat("expected format ", kFormatVersion, ", got ", format));
  }
  if (blob_rank != static_cast<uint32_t>(rank) || blob_size != static_cast<uint32_t>(size)) {
    return BadBlob(rank, absl::StrCat("expected rank ", rank, " of ", size, ", got ", blob_rank, " of ", blob_size));
  }
  return absl::OkStatus();
}

// The UUID as nvidia-smi prints it, without the dashes.
std::string UuidText(const GpuUuid& gpu) {
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(gpu.data()), gpu.size()));
}

// "2.28.9"
std::string VersionText(uint32_t version) {
  return absl::StrCat(version / 10000, ".", version / 100 % 100, ".", version % 100);
}

absl::Status CheckTogether(std::span<const NcclAddress> group) {
  std::map<GpuUuid, int> rank_of;
  for (const NcclAddress& address : group) {
    const auto [entry, is_new] = rank_of.emplace(address.gpu, address.rank);
    if (!is_new) {
      return absl::FailedPreconditionError(absl::StrCat("ranks ", entry->second, " and ", address.rank,
                                                        " are on the same GPU (UUID ", UuidText(address.gpu),
                                                        "); NCCL needs one GPU per rank"));
    }
    if (address.nccl_version != group[0].nccl_version) {
      return absl::FailedPreconditionError(absl::StrCat("rank 0 runs NCCL ", VersionText(group[0].nccl_version),
                                                        ", rank ", address.rank, " runs NCCL ",
                                                        VersionText(address.nccl_version)));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string EncodeNcclAddress(const NcclAddress& address) {
  std::string blob;
  AppendU32(kMagic, blob);
  AppendU32(kFormatVersion, blob);
  AppendU32(address.rank, blob);
  AppendU32(address.size, blob);
  AppendU32(address.nccl_version, blob);
  blob.append(reinterpret_cast<const char*>(address.gpu.data()), address.gpu.size());
  AppendU32(address.unique_id.size(), blob);
  return blob + address.unique_id;
}

absl::StatusOr<NcclAddress> ParseNcclAddress(std::string_view blob, int rank, int size) {
  BlobReader reader(blob);
  SY_RETURN_IF_ERROR(CheckHeader(reader, rank, size));
  NcclAddress address{.rank = rank, .size = size};
  uint32_t num_bytes = 0;
  if (!reader.ReadU32(address.nccl_version) || !reader.Read(address.gpu.data(), address.gpu.size()) ||
      !reader.ReadU32(num_bytes)) {
    return BadBlob(rank, "ends before its unique id");
  }
  const size_t expected = NcclAddress::UniqueIdBytes(rank, size);
  if (num_bytes != expected || reader.rest().size() != expected) {
    return BadBlob(rank, absl::StrCat("expected a unique id of ", expected, " bytes, got ", reader.rest().size(),
                                      " bytes said to be ", num_bytes));
  }
  address.unique_id = std::string(reader.rest());
  return address;
}

absl::StatusOr<std::vector<NcclAddress>> ParseNcclGroup(std::span<const std::string> blobs) {
  const int size = static_cast<int>(blobs.size());
  std::vector<NcclAddress> group;
  for (int rank = 0; rank < size; ++rank) {
    SY_ASSIGN_OR_RETURN(NcclAddress address, ParseNcclAddress(blobs[rank], rank, size));
    group.push_back(std::move(address));
  }
  SY_RETURN_IF_ERROR(CheckTogether(group));
  return group;
}

}  // namespace switchyard
