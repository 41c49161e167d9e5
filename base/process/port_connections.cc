#include "base/process/port_connections.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <set>

#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace switchyard {
namespace {

// An eighth of the limit is kept for other uses than clients' connections, within these bounds.
constexpr uint64_t kSmallestReserve = 16, kLargestReserve = 256;

uint64_t DescriptorLimit() {
  rlimit limit = {};
  return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : std::numeric_limits<int>::max();
}

// The first descriptor that connections of this kind may not have.
uint64_t EndOfShare(PortKind kind) {
  const uint64_t limit = DescriptorLimit();
  const uint64_t reserve = std::clamp(limit / 8, kSmallestReserve, kLargestReserve);
  const uint64_t kept = kind == PortKind::kClients ? reserve : kind == PortKind::kHttp ? reserve / 2 : reserve / 4;
  return limit - std::min(limit, kept);
}

// A number that no other socket has had since the system started; 0 when `fd` is no socket.
uint64_t CookieOf(int fd) {
  uint64_t cookie = 0;
  socklen_t size = sizeof(cookie);
  return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

struct Ports {
  Mutex mu;
  std::set<PortConnections*> all ABSL_GUARDED_BY(mu);
};

Ports& AllPorts() {
  static Ports* const ports = new Ports;
  return *ports;
}

}  // namespace

const char* PortName(PortKind kind) {
  return kind == PortKind::kClients ? "grpc" : kind == PortKind::kHttp ? "http" : "worker";
}

PortConnections::PortConnections(PortKind kind, int max_connections) : kind_(kind), max_connections_(max_connections) {
  Ports& ports = AllPorts();
  MutexLock lock(&ports.mu);
  ports.all.insert(this);
}

PortConnections::~PortConnections() {
  Ports& ports = AllPorts();
  MutexLock lock(&ports.mu);
  ports.all.erase(this);
}

bool PortConnections::HasRoomFor(int fd) { return static_cast<uint64_t>(fd) < EndOfShare(kind_) && !IsFull(); }

bool PortConnections::IsFull() {
  MutexLock lock(&mu_);
  return static_cast<int64_t>(cookies_.size()) >= max_connections_ && CountOpen() >= max_connections_;
}

void PortConnections::Add(int fd) {
  const uint64_t cookie = CookieOf(fd);
  MutexLock lock(&mu_);
  cookies_[fd] = cookie;
}

std::string PortConnections::Refuse() {
  MutexLock lock(&mu_);
  ++num_refused_;
  const auto num_known = static_cast<int64_t>(cookies_.size());
  if (num_known >= max_connections_) return absl::StrCat("it has ", num_known, " connections, which is its limit");
  return absl::StrCat("descriptors are scarce: RLIMIT_NOFILE is ", DescriptorLimit());
}

bool PortConnections::HasRoom() {
  const UniqueFd next(open("/dev/null", O_PATH | O_CLOEXEC));
  return next.valid() && HasRoomFor(next.get());
}

int64_t PortConnections::CountOpen() {
  std::erase_if(cookies_, [](const auto& known) { return CookieOf(known.first) != known.second; });
  return static_cast<int64_t>(cookies_.size());
}

PortConnections::Counts PortConnections::counts() {
  MutexLock lock(&mu_);
  return {PortName(kind_), CountOpen(), num_refused_};
}

std::vector<PortConnections::Counts> PortConnections::OfAllPorts() {
  std::vector<Counts> counts;
  Ports& ports = AllPorts();
  MutexLock lock(&ports.mu);
  for (PortConnections* port : ports.all) counts.push_back(port->counts());
  return counts;
}

}  // namespace switchyard
