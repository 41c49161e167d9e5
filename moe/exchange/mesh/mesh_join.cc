#include "moe/exchange/mesh/mesh_join.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

namespace switchyard {
namespace {

using std::chrono::milliseconds;

constexpr uint64_t kCallMagic = 0x4c4c4143'48534d53;
constexpr uint64_t kAnswerMagic = 0x52574e41'48534d53;
constexpr milliseconds kRetryPause(10);
constexpr milliseconds kAcceptPause(20);  // after the system ran out of descriptors or memory
constexpr size_t kMaxVisitors = 64;
constexpr int kMaxGifts = 4;

// Takes equal time for all nonces.
bool SameNonce(const MeshNonce& a, const MeshNonce& b) {
  unsigned difference = 0;
  for (size_t i = 0; i < a.size(); ++i) difference |= static_cast<unsigned>(a[i] ^ b[i]);
  return difference == 0;
}

// Sends the whole greeting or fails: the socket is new, so it has room for that. Descriptors go along.
bool SendGreeting(int fd, const MeshGreeting& greeting, std::span<const int> gifts) {
  iovec part{const_cast<MeshGreeting*>(&greeting), sizeof(greeting)};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxGifts * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (!gifts.empty()) {
    message.msg_control = control.data();
    message.msg_controllen = CMSG_SPACE(gifts.size_bytes());
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(gifts.size_bytes());
    std::memcpy(CMSG_DATA(header), gifts.data(), gifts.size_bytes());
  }
  return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == static_cast<ssize_t>(sizeof(greeting));
}

// Takes the descriptors that came with a message.
void TakeDescriptors(msghdr& message, std::vector<UniqueFd>& taken) {
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t num_fds = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t idx = 0; idx < num_fds; ++idx) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + idx * sizeof(int), sizeof(fd));
      taken.emplace_back(fd);
    }
  }
}

void SetNoDelay(int fd) {
  const int yes = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
}

}  // namespace

MeshJoin::MeshJoin(const MeshOptions& options, int rank, const std::vector<MeshAddress>& peers, int listener,
                   std::span<const int> gifts)
    : options_(options),
      rank_(rank),
      peers_(peers),
      listener_(listener),
      gifts_(gifts),
      calls_(peers.size()),
      incoming_(peers.size()),
      gifts_from_(peers.size()) {}

std::vector<UniqueFd> MeshJoin::TakeOutgoing() {
  std::vector<UniqueFd> outgoing(calls_.size());
  for (size_t peer = 0; peer < calls_.size(); ++peer) outgoing[peer] = std::move(calls_[peer].fd);
  return outgoing;
}

bool MeshJoin::IsComplete() const {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    if (calls_[peer].state != Call::State::kDone || !incoming_[peer].valid()) return false;
  }
  return true;
}

absl::Status MeshJoin::LateError() const {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    const Call& call = calls_[peer];
    if (call.state != Call::State::kDone) {
      return absl::UnavailableError(absl::StrCat("rank ", peer, " ", call.problem));
    }
    if (!incoming_[peer].valid()) return absl::UnavailableError(absl::StrCat("rank ", peer, " has not connected"));
  }
  return absl::UnavailableError("no time was left");
}

absl::Status MeshJoin::Run(int wake_fd) {
  const SteadyTime deadline = Clock::Real().Now() + options_.connect_timeout;
  while (!IsComplete()) SY_RETURN_IF_ERROR(Step(wake_fd, deadline));
  return absl::OkStatus();
}

absl::Status MeshJoin::Step(int wake_fd, SteadyTime deadline) {
  const SteadyTime now = Clock::Real().Now();
  if (now >= deadline) return LateError();
  SY_RETURN_IF_ERROR(StartCalls(now));
  visitors_.remove_if([&](const Visitor& visitor) { return now >= visitor.deadline; });
  std::vector<pollfd> polled = {{wake_fd, POLLIN, 0}, {now >= accept_after_ ? listener_ : -1, POLLIN, 0}};
  for (const Call& call : calls_) {
    const bool is_waiting = call.state == Call::State::kConnecting || call.state == Call::State::kAwaitingAnswer;
    polled.push_back({is_waiting ? call.fd.get() : -1,
                      call.state == Call::State::kConnecting ? int16_t{POLLOUT} : int16_t{POLLIN}, 0});
  }
  for (const Visitor& visitor : visitors_) polled.push_back({visitor.fd.get(), POLLIN, 0});
  if (poll(polled.data(), polled.size(), PollTimeoutMs(now, deadline)) < 0 && errno != EINTR) {
    return ErrnoStatus(errno, "poll");
  }
  if (polled[0].revents != 0) return absl::AbortedError("connecting was aborted");
  for (int peer = 0; peer < size(); ++peer) {
    if (polled[2 + peer].revents != 0) SY_RETURN_IF_ERROR(OnCallReady(peer));
  }
  size_t idx = 2 + calls_.size();
  for (auto visitor = visitors_.begin(); visitor != visitors_.end(); ++idx) {
    const Reading reading = polled[idx].revents == 0 ? Reading::kMore : Read(*visitor);
    if (reading == Reading::kWhole) Admit(*visitor);
    visitor = reading == Reading::kMore ? std::next(visitor) : visitors_.erase(visitor);
  }
  if (polled[1].revents != 0) AcceptVisitors();
  return absl::OkStatus();
}

int MeshJoin::PollTimeoutMs(SteadyTime now, SteadyTime deadline) const {
  SteadyTime next = deadline;
  for (const Call& call : calls_) {
    if (call.state == Call::State::kPaused && call.retry_at > now) next = std::min(next, call.retry_at);
  }
  if (accept_after_ > now) next = std::min(next, accept_after_);
  if (!visitors_.empty()) next = std::min(next, visitors_.front().deadline);
  return static_cast<int>(std::max<int64_t>(0, std::chrono::ceil<milliseconds>(next - now).count()));
}

// ---- Calls to peers -------------------------------------------------------------------------------------------------

absl::Status MeshJoin::StartCalls(SteadyTime now) {
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_ || calls_[peer].state != Call::State::kPaused || calls_[peer].retry_at > now) continue;
    SY_RETURN_IF_ERROR(StartCall(peer));
  }
  return absl::OkStatus();
}

absl::Status MeshJoin::StartCall(int peer) {
  const std::string& bytes = peers_[peer].socket_address;
  sockaddr_storage address{};
  std::memcpy(&address, bytes.data(), std::min(bytes.size(), sizeof(address)));
  Call& call = calls_[peer];
  call.fd = UniqueFd(socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!call.fd.valid()) return ErrnoStatus(errno, "socket");
  call.state = Call::State::kConnecting;
  call.num_received = 0;
  const int result =
      connect(call.fd.get(), reinterpret_cast<const sockaddr*>(&address), static_cast<socklen_t>(bytes.size()));
  if (result != 0 && errno == EINPROGRESS) return absl::OkStatus();
  return OnConnectResult(peer, result == 0 ? 0 : errno);
}

absl::Status MeshJoin::OnConnectResult(int peer, int error) {
  if (error == 0) {
    Greet(peer);
  } else if (error == ECONNREFUSED) {
    // The peer listened before anybody was told its address, so it does not listen any more.
    return absl::UnavailableError(absl::StrCat("rank ", peer, " is gone: its socket refuses connections"));
  } else {
    Retry(peer, absl::StrCat("cannot be reached: ", ErrnoStatus(error, "connect").message()));
  }
  return absl::OkStatus();
}

void MeshJoin::Greet(int peer) {
  Call& call = calls_[peer];
  if (options_.family == AF_UNIX && !IsOwnUser(call.fd.get())) {
    return Retry(peer, "has lost its socket to a process of another user");
  }
  if (options_.family != AF_UNIX) SetNoDelay(call.fd.get());
  const MeshGreeting greeting{.magic = kCallMagic,
                              .from = static_cast<uint32_t>(rank_),
                              .to = static_cast<uint32_t>(peer),
                              .size = static_cast<uint32_t>(size()),
                              .nonce = peers_[peer].nonce};
  if (!SendGreeting(call.fd.get(), greeting, gifts_)) return Retry(peer, "dropped the connection");
  call.state = Call::State::kAwaitingAnswer;
}

void MeshJoin::Retry(int peer, std::string problem) {
  Call& call = calls_[peer];
  call.fd.reset();
  call.state = Call::State::kPaused;
  call.retry_at = Clock::Real().Now() + kRetryPause;
  call.problem = std::move(problem);
}

absl::Status MeshJoin::OnCallReady(int peer) {
  Call& call = calls_[peer];
  if (call.state == Call::State::kConnecting) {
    int error = 0;
    socklen_t num_bytes = sizeof(error);
    if (getsockopt(call.fd.get(), SOL_SOCKET, SO_ERROR, &error, &num_bytes) != 0) error = errno;
    return OnConnectResult(peer, error);
  }
  const ssize_t received = recv(call.fd.get(), reinterpret_cast<char*>(&call.answer) + call.num_received,
                                sizeof(call.answer) - call.num_received, MSG_DONTWAIT);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return absl::OkStatus();
  if (received <= 0) {
    Retry(peer, "dropped the connection");
    return absl::OkStatus();
  }
  call.num_received += received;
  if (call.num_received < sizeof(call.answer)) return absl::OkStatus();
  const bool is_peer = call.answer.magic == kAnswerMagic && call.answer.from == static_cast<uint32_t>(peer) &&
                       call.answer.to == static_cast<uint32_t>(rank_) &&
                       call.answer.size == static_cast<uint32_t>(size()) &&
                       SameNonce(call.answer.nonce, peers_[rank_].nonce);
  if (is_peer) {
    call.state = Call::State::kDone;
  } else {
    Retry(peer, "has lost its address to another process");
  }
  return absl::OkStatus();
}

// ---- Visitors -------------------------------------------------------------------------------------------------------

void MeshJoin::AcceptVisitors() {
  const SteadyTime now = Clock::Real().Now();
  for (size_t num_accepted = 0; num_accepted < kMaxVisitors; ++num_accepted) {
    UniqueFd fd(accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!fd.valid()) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) accept_after_ = now + kAcceptPause;
      return;  // no more of them, or one that has gone again
    }
    if (options_.family == AF_UNIX ? !IsOwnUser(fd.get()) : (SetNoDelay(fd.get()), false)) continue;
    // A peer greets at once, so that it is not the oldest for long.
    if (visitors_.size() >= kMaxVisitors) visitors_.pop_front();
    visitors_.push_back({.fd = std::move(fd), .deadline = now + options_.greeting_timeout});
  }
}

bool MeshJoin::IsOwnUser(int fd) const {
  ucred peer{};
  socklen_t num_bytes = sizeof(peer);
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &num_bytes) == 0 && peer.uid == geteuid();
}

MeshJoin::Reading MeshJoin::Read(Visitor& visitor) {
  iovec part{reinterpret_cast<char*>(&visitor.greeting) + visitor.num_received,
             sizeof(visitor.greeting) - visitor.num_received};
  alignas(cmsghdr) std::array<char, CMSG_SPACE(kMaxGifts * sizeof(int))> control{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control.data();
  message.msg_controllen = control.size();
  const ssize_t received = recvmsg(visitor.fd.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  if (received < 0 && (errno == EAGAIN || errno == EINTR)) return Reading::kMore;
  if (received <= 0) return Reading::kOver;
  TakeDescriptors(message, visitor.gifts);
  visitor.num_received += received;
  if ((message.msg_flags & MSG_CTRUNC) != 0 || visitor.gifts.size() > kMaxGifts) return Reading::kOver;
  return visitor.num_received == sizeof(visitor.greeting) ? Reading::kWhole : Reading::kMore;
}

bool MeshJoin::IsPeer(const Visitor& visitor) const {
  const MeshGreeting& greeting = visitor.greeting;
  return greeting.magic == kCallMagic && greeting.from < peers_.size() &&
         greeting.from != static_cast<uint32_t>(rank_) && greeting.to == static_cast<uint32_t>(rank_) &&
         greeting.size == peers_.size() && SameNonce(greeting.nonce, peers_[rank_].nonce) &&
         visitor.gifts.size() == gifts_.size();
}

// A peer that comes again has not got the answer to its earlier call.
void MeshJoin::Admit(Visitor& visitor) {
  if (!IsPeer(visitor)) return;
  const uint32_t peer = visitor.greeting.from;
  const MeshGreeting answer{.magic = kAnswerMagic,
                            .from = static_cast<uint32_t>(rank_),
                            .to = peer,
                            .size = visitor.greeting.size,
                            .nonce = peers_[peer].nonce};
  if (!SendGreeting(visitor.fd.get(), answer, {})) return;
  incoming_[peer] = std::move(visitor.fd);
  gifts_from_[peer] = std::move(visitor.gifts);
}

}  // namespace switchyard
