// Log lines about single requests. Each line has the request's ids, so that a caller's complaint can be traced to it:
//
//   slow     a warning about a request that took --slow_request_ms or longer, with the time of its stages
//   failed   a warning about a request that failed through no fault of its caller
//   others   debug lines about requests that were answered and requests that were refused
//
// There is at most one warning of a kind a second, however many requests deserve one.
//
// Thread-safe.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "base/logging/line_budget.h"
#include "server/requests/request.h"
#include "server/requests/request_identity.h"

namespace switchyard {

class RequestLog {
 public:
  // 0 logs no requests as slow.
  explicit RequestLog(int64_t slow_request_ms) : slow_us_(slow_request_ms * 1000) {}

  // A submitted request was answered.
  void Answered(const Request& request, const RequestIdentity& identity, const absl::Status& status, int64_t total_us,
                SteadyTime now);
  // A request was refused before it was submitted; `layer` is null when it named no known layer.
  void Refused(const ServedLayer* layer, const RequestIdentity& identity, const absl::Status& status) const;

 private:
  const int64_t slow_us_;
  LineBudget slow_lines_{1}, failed_lines_{1};
};

}  // namespace switchyard
