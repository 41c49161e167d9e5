#include "moe/exchange/mesh/peer_mesh.h"

#include <netdb.h>
#include <netinet/in.h>
#include <sys/eventfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/escaping.h"
#include "moe/exchange/mesh/mesh_join.h"

namespace switchyard {
namespace {

std::string Bytes(const void* address, size_t num_bytes) {
  return std::string(static_cast<const char*>(address), num_bytes);
}

// An abstract name, which leaves no file behind. It is random, so that no other process has it.
absl::StatusOr<std::string> UnixAddress() {
  SY_ASSIGN_OR_RETURN(const MeshNonce nonce, NewMeshNonce());
  const std::string name =
      absl::StrCat("switchyard-", absl::BytesToHexString({reinterpret_cast<const char*>(nonce.data()), nonce.size()}));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  return Bytes(&address, offsetof(sockaddr_un, sun_path) + 1 + name.size());
}

absl::StatusOr<std::string> TcpAddress(const std::string& host) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICHOST;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found); error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on '", host, "': expected an IPv4 or IPv6 address: ", gai_strerror(error)));
  }
  std::string bytes = Bytes(found->ai_addr, found->ai_addrlen);
  freeaddrinfo(found);
  return bytes;
}

absl::StatusOr<UniqueFd> ListenOn(const std::string& bytes, const std::string& host) {
  sockaddr_storage address{};
  std::memcpy(&address, bytes.data(), bytes.size());
  UniqueFd fd(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid() ||
      bind(fd.get(), reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(bytes.size())) != 0 ||
      listen(fd.get(), SOMAXCONN) != 0) {
    return absl::UnavailableError(ErrnoStatus(errno, absl::StrCat("the exchange cannot listen on ", host)).message());
  }
  return fd;
}

absl::StatusOr<std::string> BoundAddress(int fd) {
  sockaddr_storage address{};
  socklen_t num_bytes = sizeof(address);
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &num_bytes) != 0) {
    return ErrnoStatus(errno, "getsockname");
  }
  return Bytes(&address, num_bytes);
}

}  // namespace

absl::StatusOr<std::unique_ptr<PeerMesh>> PeerMesh::Listen(int rank, int size, const MeshOptions& options) {
  if (size < 1 || rank < 0 || rank >= size) {
    return absl::InvalidArgumentError(absl::StrCat("no rank ", rank, " in a group of ", size));
  }
  std::unique_ptr<PeerMesh> mesh(new PeerMesh(options, {.rank = rank, .size = size}));
  SY_RETURN_IF_ERROR(mesh->Open());
  return mesh;
}

absl::Status PeerMesh::Open() {
  wake_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_.valid()) return ErrnoStatus(errno, "eventfd");
  SY_ASSIGN_OR_RETURN(own_.nonce, NewMeshNonce());
  if (options_.family == AF_UNIX) own_.host_identity = HostIdentity();
  if (own_.size > 1) {
    const bool is_unix = options_.family == AF_UNIX;
    SY_ASSIGN_OR_RETURN(const std::string wanted, is_unix ? UnixAddress() : TcpAddress(options_.bind_host));
    MutexLock lock(&mu_);
    SY_ASSIGN_OR_RETURN(listener_, ListenOn(wanted, is_unix ? "a Unix socket" : options_.bind_host));
    SY_ASSIGN_OR_RETURN(own_.socket_address, BoundAddress(listener_.get()));
  }
  address_ = EncodeMeshAddress(own_);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<MeshAddress>> PeerMesh::ParsePeers(std::span<const std::string> addresses) const {
  if (static_cast<int>(addresses.size()) != size()) {
    return absl::InvalidArgumentError(absl::StrCat("expected ", size(), " addresses, got ", addresses.size()));
  }
  if (addresses[rank()] != address_) {
    return absl::InvalidArgumentError(absl::StrCat("address ", rank(), " is not this rank's own"));
  }
  std::vector<MeshAddress> peers;
  for (int peer = 0; peer < size(); ++peer) {
    SY_ASSIGN_OR_RETURN(MeshAddress address, ParseMeshAddress(addresses[peer], peer, size(), options_.family));
    if (address.host_identity != own_.host_identity) {
      return absl::FailedPreconditionError(absl::StrCat(
          "rank ", peer, " is on another host, or of another user, than rank ", rank(), ": they share no memory"));
    }
    peers.push_back(std::move(address));
  }
  return peers;
}

absl::Status PeerMesh::Join(std::span<const std::string> addresses, std::span<const int> gifts) {
  SY_ASSIGN_OR_RETURN(const std::vector<MeshAddress> peers, ParsePeers(addresses));
  int listener = -1;
  {
    MutexLock lock(&mu_);
    if (is_joining_) return absl::FailedPreconditionError("this communicator is connected already");
    is_joining_ = true;
    listener = listener_.get();
  }
  MeshJoin join(options_, rank(), peers, listener, gifts);
  const absl::Status joined = is_shut_down_ ? absl::AbortedError("connecting was aborted") : join.Run(wake_.get());
  {
    // From now on every call to this rank is refused, so that peers that still want to connect know at once.
    MutexLock lock(&mu_);
    listener_.reset();
  }
  SY_RETURN_IF_ERROR(joined);
  return TakeOver(join.TakeOutgoing(), join.TakeIncoming(), join.TakeGifts());
}

absl::Status PeerMesh::TakeOver(std::vector<UniqueFd> to, std::vector<UniqueFd> from,
                                std::vector<std::vector<UniqueFd>> gifts) {
  gifts_ = std::move(gifts);
  MutexLock lock(&mu_);
  if (is_shut_down_) return absl::AbortedError("connecting was aborted");
  to_ = std::move(to);
  from_ = std::move(from);
  return absl::OkStatus();
}

void PeerMesh::ShutDown() {
  is_shut_down_ = true;
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(wake_.get(), &one, sizeof(one));  // fails only when it is readable
  MutexLock lock(&mu_);
  for (const UniqueFd& fd : to_) {
    if (fd.valid()) shutdown(fd.get(), SHUT_RDWR);
  }
  for (const UniqueFd& fd : from_) {
    if (fd.valid()) shutdown(fd.get(), SHUT_RDWR);
  }
  if (!is_joining_) listener_.reset();
}

}  // namespace switchyard
