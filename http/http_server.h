// A process's HTTP port: /metrics for Prometheus, /livez and /readyz for probes.
#pragma once

#include <prometheus/metric_family.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moe/base/status.h"

namespace switchyard {

struct HttpOptions {
  std::string host;
  int port = 0;  // 0 takes a free one
};

// Serves from construction to destruction, on threads of its own. The functions are called from them.
class HttpServer {
 public:
  // `collect` is asked for the metrics of every scrape; `is_ready` answers /readyz.
  using CollectFn = std::function<std::vector<prometheus::MetricFamily>()>;
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpOptions& options, CollectFn collect,
                                                           std::function<bool()> is_ready);
  virtual ~HttpServer() = default;

  // The port it listens on.
  virtual int port() const = 0;
};

}  // namespace switchyard
