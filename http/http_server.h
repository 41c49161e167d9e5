// A process's HTTP port: /metrics for Prometheus, /livez and /readyz for probes. Strangers may reach it, so the size of
// requests, the number of connections and the time of each are bounded, and slow callers do not delay others.
#pragma once

#include <prometheus/metric_family.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace switchyard {

struct HttpOptions {
  std::string host;  // as rpc/address.h says of hosts to listen on
  int port = 0;      // 0 takes a free one
};

// Serves from Start() to destruction, on one thread of its own, one request per connection. `collect` and `is_ready`
// are called from that thread, one at a time; when they throw, the answer is 500. The destructor waits only for a call
// of theirs in progress, and calls nothing afterwards; it drops open connections.
class HttpServer {
 public:
  // `collect` returns the metrics for each scrape; `is_ready` answers /readyz, with an error whose message says why
  // not. UNAVAILABLE when the server cannot listen on the address, for example because another server has the port.
  using CollectFn = std::function<std::vector<prometheus::MetricFamily>()>;
  using ReadyFn = std::function<absl::Status()>;
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpOptions& options, CollectFn collect,
                                                           ReadyFn is_ready);
  virtual ~HttpServer() = default;

  // The port it listens on.
  virtual int port() const = 0;
};

}  // namespace switchyard
