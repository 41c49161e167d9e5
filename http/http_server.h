// A process's HTTP port: /metrics for Prometheus, /livez and /readyz for probes. Strangers may reach it: the sizes of
// requests, the number of connections and the time of each are bounded, and slow callers hold up nobody.
#pragma once

#include <prometheus/metric_family.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"

namespace switchyard {

struct HttpOptions {
  std::string host;
  int port = 0;  // 0 takes a free one
};

// Serves from Start() to destruction, on one thread of its own, one request a connection. The functions are called from
// that thread, one at a time; what they throw is answered with 500. The destructor waits for none but a call of theirs
// in progress, and calls nothing afterwards: open connections are dropped.
class HttpServer {
 public:
  // `collect` is asked for the metrics of every scrape; `is_ready` answers /readyz. UNAVAILABLE when the address cannot
  // be listened on, as when another server has the port.
  using CollectFn = std::function<std::vector<prometheus::MetricFamily>()>;
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpOptions& options, CollectFn collect,
                                                           std::function<bool()> is_ready);
  virtual ~HttpServer() = default;

  // The port it listens on.
  virtual int port() const = 0;
};

}  // namespace switchyard
