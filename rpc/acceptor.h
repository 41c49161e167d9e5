// Accepts the connections of one gRPC port, on a thread of its own.
//
// gRPC's own listener gives a port up for good after one accept that fails, as it does when descriptors run out. This
// one bounds the connections below that limit (base/process/port_connections.h), waits when the system has no room, and
// opens a listening socket that fails again.
//
// Thread-safe, except that Start and Stop are for the owner.
#pragma once

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/logging/line_budget.h"
#include "base/process/port_connections.h"
#include "base/status.h"
#include "base/unique_fd.h"

namespace switchyard {

struct PortOptions {
  std::string host;  // an address or a name; all addresses of a name are listened on
  int port = 0;      // 0 takes a free one
  std::string flag;  // the flag that errors name
  PortKind kind = PortKind::kClients;
  int max_connections = std::numeric_limits<int>::max();
  // How long sent data may stay unacknowledged before the system ends a connection. 0 for the system's default.
  int unacknowledged_timeout_ms = 0;
};

class Acceptor {
 public:
  using HandOnFn = std::function<void(UniqueFd connection)>;

  // Listens; connections wait until Start. UNAVAILABLE names the flag when the port cannot be had.
  static absl::StatusOr<std::unique_ptr<Acceptor>> Listen(const PortOptions& options);
  ~Acceptor() { Stop(); }

  // From now on hands every connection on. `hand_on` is called on the acceptor's thread and must not wait.
  void Start(HandOnFn hand_on);
  // No connection is accepted or handed on after this returns.
  void Stop();

  int port() const { return port_; }
  // Whether a new connection would be accepted now.
  bool accepting() { return is_listening_.load() && connections_.HasRoom(); }

 private:
  struct Address {
    sockaddr_storage storage;
    socklen_t size;
  };

  explicit Acceptor(const PortOptions& options);
  absl::Status OpenAll();
  absl::Status OpenEach(const addrinfo& found);
  absl::Status OpenWildcard(Address& address);
  absl::Status Open(Address& address);
  absl::StatusOr<UniqueFd> OpenSocket(const Address& address) const;
  void Loop();
  void WaitForConnections(std::chrono::milliseconds timeout);
  void AcceptAll(const UniqueFd& listener);
  void Admit(UniqueFd connection);
  void OnAcceptFailed(int error);
  void OpenAgain();

  const PortOptions options_;
  PortConnections connections_;
  int port_ = 0;
  std::vector<Address> addresses_;
  std::vector<UniqueFd> listeners_;  // by address; the acceptor's thread only, from Start on
  UniqueFd stop_;                    // an eventfd
  HandOnFn hand_on_;
  std::atomic<bool> is_listening_{true};
  SteadyTime not_before_;  // when the system had no room for a connection
  LineBudget refused_lines_{1}, failed_lines_{1};
  std::thread thread_;
};

}  // namespace switchyard
