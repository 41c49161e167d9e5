// A TCP proxy on loopback whose connections a test can break.
#pragma once

#include <atomic>
#include <list>
#include <memory>
#include <string>
#include <thread>

#include "base/mutex.h"
#include "base/unique_fd.h"

namespace switchyard {

// Thread-safe.
class CutProxy {
 public:
  // Passes bytes on to `target`, HOST:PORT with an IPv4 address.
  explicit CutProxy(std::string target);
  ~CutProxy();

  std::string address() const;
  // Closes the connections there are; both ends notice at once.
  void Cut();
  // Passes on no more bytes of the connections there are; neither end is told. New connections work.
  void Freeze();

 private:
  struct Connection {
    UniqueFd near, far;
    bool is_frozen = false;
  };

  void Loop();
  void Accept();
  // False when one side has closed.
  static bool Pass(int from, int to);

  const std::string target_;
  UniqueFd listener_, wake_;
  std::atomic<bool> stop_{false};
  Mutex mu_;
  std::list<Connection> connections_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace switchyard
