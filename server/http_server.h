// The front's HTTP port: /metrics for Prometheus, /livez and /readyz for probes.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "moe/base/status.h"

namespace prometheus {
class Registry;
}

namespace switchyard {

struct HttpOptions {
  std::string host;
  int port = 0;  // 0 takes a free one
};

// Serves from construction to destruction, on threads of its own. The functions are called from them.
class HttpServer {
 public:
  // `before_scrape` brings gauges up to date; `is_ready` answers /readyz.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpOptions& options, prometheus::Registry* registry,
                                                           std::function<void()> before_scrape,
                                                           std::function<bool()> is_ready);
  virtual ~HttpServer() = default;

  // The port it listens on.
  virtual int port() const = 0;
};

}  // namespace switchyard
