#include "rpc/acceptor.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "base/logging/logging.h"
#include "rpc/address.h"

namespace switchyard {
namespace {

// After the system had no room for a connection, or a port could not be opened again.
constexpr std::chrono::milliseconds kPause(100);
constexpr int kAcceptsInARow = 64;  // of one listening socket, before the others have their turn

// The port of an address of either family, at the same place in both.
in_port_t& PortOf(sockaddr_storage& address) {
  return address.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6&>(address).sin6_port
                                       : reinterpret_cast<sockaddr_in&>(address).sin_port;
}

bool IsWildcard(const sockaddr_storage& address) {
  if (address.ss_family == AF_INET6) {
    return IN6_IS_ADDR_UNSPECIFIED(&reinterpret_cast<const sockaddr_in6&>(address).sin6_addr);
  }
  return reinterpret_cast<const sockaddr_in&>(address).sin_addr.s_addr == htonl(INADDR_ANY);
}

// Errors of a connection that ended before it was accepted; accept(2) says to try again after them.
bool IsOfTheConnection(int error) {
  constexpr int kErrors[] = {EINTR,  ECONNABORTED, EPROTO,     ENETDOWN,    ENOPROTOOPT, EHOSTDOWN,
                             ENONET, EHOSTUNREACH, EOPNOTSUPP, ENETUNREACH, EPERM};
  return std::find(std::begin(kErrors), std::end(kErrors), error) != std::end(kErrors);
}

bool IsOfTheSystem(int error) { return error == EMFILE || error == ENFILE || error == ENOBUFS || error == ENOMEM; }

struct FreeAddresses {
  void operator()(addrinfo* addresses) const { freeaddrinfo(addresses); }
};

void SetOption(int fd, int level, int option, int value) { setsockopt(fd, level, option, &value, sizeof(value)); }

}  // namespace

Acceptor::Acceptor(const PortOptions& options)
    : options_(options), connections_(options.kind, options.max_connections) {}

absl::StatusOr<std::unique_ptr<Acceptor>> Acceptor::Listen(const PortOptions& options) {
  std::unique_ptr<Acceptor> acceptor(new Acceptor(options));
  acceptor->stop_.reset(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!acceptor->stop_.valid()) return ErrnoStatus(errno, "eventfd");
  if (const absl::Status opened = acceptor->OpenAll(); !opened.ok()) {
    return absl::UnavailableError(absl::StrCat(
        options.flag, ": cannot listen on ", JoinHostPort(options.host, options.port), ": ", opened.message(),
        "; is the port in use, or the host not this machine's? (port 0 takes a free one)"));
  }
  return acceptor;
}

absl::Status Acceptor::OpenAll() {
  SY_ASSIGN_OR_RETURN(const std::string host, ParseHost(options_.host, "host"));
  addrinfo hints = {};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(host.c_str(), std::to_string(options_.port).c_str(), &hints, &found);
  if (error != 0) return absl::UnavailableError(gai_strerror(error));
  const std::unique_ptr<addrinfo, FreeAddresses> owner(found);
  return OpenEach(*found);
}

absl::Status Acceptor::OpenEach(const addrinfo& found) {
  absl::Status missing;
  for (const addrinfo* each = &found; each != nullptr; each = each->ai_next) {
    Address address = {};
    std::memcpy(&address.storage, each->ai_addr, each->ai_addrlen);
    address.size = each->ai_addrlen;
    const absl::Status opened = IsWildcard(address.storage) ? OpenWildcard(address) : Open(address);
    // A name may have an address of a family that this system does not use.
    if (absl::IsNotFound(opened)) {
      missing = opened;
    } else if (!opened.ok()) {
      return opened;
    }
  }
  return listeners_.empty() ? missing : absl::OkStatus();
}

// The wildcards of both families mean every address of this machine, as they do for gRPC.
absl::Status Acceptor::OpenWildcard(Address& address) {
  Address both = {};
  auto& any = reinterpret_cast<sockaddr_in6&>(both.storage);
  any.sin6_family = AF_INET6;
  any.sin6_addr = in6addr_any;
  any.sin6_port = PortOf(address.storage);
  both.size = sizeof(any);
  const absl::Status opened = Open(both);
  return absl::IsNotFound(opened) ? Open(address) : opened;
}

// NOT_FOUND when this machine does not have the address.
absl::Status Acceptor::Open(Address& address) {
  if (port_ > 0) PortOf(address.storage) = htons(static_cast<uint16_t>(port_));
  auto listener = OpenSocket(address);
  if (!listener.ok()) return listener.status();
  sockaddr_storage bound = {};
  socklen_t size = sizeof(bound);
  if (getsockname(listener->get(), reinterpret_cast<sockaddr*>(&bound), &size) != 0) return ErrnoStatus(errno, "bind");
  port_ = ntohs(PortOf(bound));
  PortOf(address.storage) = PortOf(bound);
  addresses_.push_back(address);
  listeners_.push_back(*std::move(listener));
  return absl::OkStatus();
}

absl::StatusOr<UniqueFd> Acceptor::OpenSocket(const Address& address) const {
  UniqueFd fd(socket(address.storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) {
    return errno == EAFNOSUPPORT ? absl::NotFoundError("address family not supported") : ErrnoStatus(errno, "socket");
  }
  SetOption(fd.get(), SOL_SOCKET, SO_REUSEADDR, 1);
  if (address.storage.ss_family == AF_INET6) SetOption(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, 0);
  // Accepted connections inherit these.
  SetOption(fd.get(), IPPROTO_TCP, TCP_NODELAY, 1);
  if (options_.unacknowledged_timeout_ms > 0) {
    SetOption(fd.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, options_.unacknowledged_timeout_ms);
  }
  if (bind(fd.get(), reinterpret_cast<const sockaddr*>(&address.storage), address.size) != 0) {
    return errno == EADDRNOTAVAIL ? absl::NotFoundError("not an address of this machine") : ErrnoStatus(errno, "bind");
  }
  if (listen(fd.get(), SOMAXCONN) != 0) return ErrnoStatus(errno, "listen");
  return fd;
}

void Acceptor::Start(HandOnFn hand_on) {
  hand_on_ = std::move(hand_on);
  thread_ = std::thread([this] { Loop(); });
}

void Acceptor::Stop() {
  if (!thread_.joinable()) return;
  eventfd_write(stop_.get(), 1);
  thread_.join();
  is_listening_.store(false);
  listeners_.clear();
}

void Acceptor::Loop() {
  for (eventfd_t stopped; eventfd_read(stop_.get(), &stopped) != 0;) {
    if (!is_listening_.load()) OpenAgain();
    const bool is_pausing = !is_listening_.load() || Clock::Real().Now() < not_before_;
    WaitForConnections(is_pausing ? kPause : std::chrono::milliseconds(-1));
  }
}

// With a timeout, only waits to be stopped.
void Acceptor::WaitForConnections(std::chrono::milliseconds timeout) {
  std::vector<pollfd> polled = {{stop_.get(), POLLIN, 0}};
  if (timeout.count() < 0) {
    for (const UniqueFd& listener : listeners_) polled.push_back({listener.get(), POLLIN, 0});
  }
  poll(polled.data(), polled.size(), static_cast<int>(timeout.count()));
  for (size_t i = 1; i < polled.size() && is_listening_.load(); ++i) {
    if (polled[i].revents != 0) AcceptAll(listeners_[i - 1]);
  }
}

void Acceptor::AcceptAll(const UniqueFd& listener) {
  for (int i = 0; i < kAcceptsInARow; ++i) {
    UniqueFd connection(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (connection.valid()) {
      Admit(std::move(connection));
    } else if (errno == EAGAIN) {
      return;
    } else if (!IsOfTheConnection(errno)) {
      return OnAcceptFailed(errno);
    }
  }
}

void Acceptor::Admit(UniqueFd connection) {
  if (connections_.HasRoomFor(connection.get())) {
    connections_.Add(connection.get());
    return hand_on_(std::move(connection));
  }
  const std::string why = connections_.Refuse();
  LogWithin(&refused_lines_, spdlog::level::warn, "the {} port refuses connections: {}", PortName(options_.kind), why);
}

void Acceptor::OnAcceptFailed(int error) {
  LogWithin(&failed_lines_, spdlog::level::err, "the {} port cannot accept: {}", PortName(options_.kind),
            std::strerror(error));
  if (IsOfTheSystem(error)) {
    not_before_ = Clock::Real().Now() + kPause;
  } else {
    is_listening_.store(false);
  }
}

void Acceptor::OpenAgain() {
  listeners_.clear();
  for (const Address& address : addresses_) {
    auto listener = OpenSocket(address);
    if (!listener.ok()) {
      LogWithin(&failed_lines_, spdlog::level::err, "the {} port cannot be opened again: {}", PortName(options_.kind),
                listener.status().message());
      return;
    }
    listeners_.push_back(*std::move(listener));
  }
  is_listening_.store(true);
  spdlog::warn("the {} port is open again", PortName(options_.kind));
}

}  // namespace switchyard
