#include "moe/exchange/mesh/mesh_address.h"

#include <netinet/in.h>
#include <sys/random.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fstream>

#include "base/unique_fd.h"
#include "moe/exchange/blob.h"

namespace switchyard {
namespace {

constexpr uint32_t kMagic = 0x414d5953;  // "SYMA" in memory
constexpr size_t kMaxIdentityBytes = 512;

absl::Status BadBlob(int rank, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat("exchange address of rank ", rank, ": ", problem));
}

bool FitsFamily(const std::string& bytes, sa_family_t family) {
  sa_family_t found = AF_UNSPEC;
  if (bytes.size() < sizeof(found)) return false;
  std::memcpy(&found, bytes.data(), sizeof(found));
  switch (found) {
    case AF_UNIX:
      // The name of an abstract socket begins with a zero and has at least one more byte.
      return family == AF_UNIX && bytes.size() > offsetof(sockaddr_un, sun_path) + 1 &&
             bytes.size() <= sizeof(sockaddr_un) && bytes[offsetof(sockaddr_un, sun_path)] == '\0';
    case AF_INET:
      return family == AF_INET && bytes.size() == sizeof(sockaddr_in);
    case AF_INET6:
      return family == AF_INET && bytes.size() == sizeof(sockaddr_in6);
    default:
      return false;
  }
}

std::string ReadLink(const char* path) {
  std::array<char, 256> target;
  const ssize_t num_bytes = readlink(path, target.data(), target.size());
  return num_bytes > 0 ? std::string(target.data(), num_bytes) : std::string();
}

}  // namespace

std::string EncodeMeshAddress(const MeshAddress& address) {
  std::string blob;
  AppendU32(kMagic, blob);
  AppendU32(address.rank, blob);
  AppendU32(address.size, blob);
  blob.append(reinterpret_cast<const char*>(address.nonce.data()), address.nonce.size());
  AppendBytes(address.host_identity, blob);
  AppendBytes(address.socket_address, blob);
  return blob;
}

absl::StatusOr<MeshAddress> ParseMeshAddress(std::string_view blob, int rank, int size, sa_family_t family) {
  BlobReader reader(blob);
  uint32_t magic = 0, blob_rank = 0, blob_size = 0;
  if (!reader.ReadU32(magic) || !reader.ReadU32(blob_rank) || !reader.ReadU32(blob_size)) {
    return BadBlob(rank, "shorter than its header");
  }
  if (magic != kMagic) return BadBlob(rank, "does not start with SYMA");
  if (blob_rank != static_cast<uint32_t>(rank) || blob_size != static_cast<uint32_t>(size)) {
    return BadBlob(rank, absl::StrCat("expected rank ", rank, " of ", size, ", got ", blob_rank, " of ", blob_size));
  }
  MeshAddress address{.rank = rank, .size = size};
  if (!reader.ReadRaw(address.nonce.data(), address.nonce.size()) || !reader.ReadBytes(address.host_identity) ||
      !reader.ReadBytes(address.socket_address) || !reader.empty()) {
    return BadBlob(rank, "its parts and its length do not fit");
  }
  if (address.host_identity.size() > kMaxIdentityBytes) return BadBlob(rank, "its host identity is too long");
  if (address.socket_address.empty() && size == 1) return address;
  if (!FitsFamily(address.socket_address, family)) return BadBlob(rank, "its socket is of another kind");
  return address;
}

absl::StatusOr<MeshNonce> NewMeshNonce() {
  MeshNonce nonce;
  // Up to 256 bytes come whole or not at all.
  while (getrandom(nonce.data(), nonce.size(), 0) != static_cast<ssize_t>(nonce.size())) {
    if (errno != EINTR) return ErrnoStatus(errno, "getrandom");
  }
  return nonce;
}

std::string HostIdentity() {
  std::string boot;
  std::ifstream("/proc/sys/kernel/random/boot_id") >> boot;
  const std::string network = ReadLink("/proc/self/ns/net"), users = ReadLink("/proc/self/ns/user");
  if (boot.empty() || network.empty() || users.empty()) return "";
  return absl::StrCat(boot, " ", network, " ", users, " uid:", geteuid());
}

}  // namespace switchyard
