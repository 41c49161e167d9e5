// What the front's log says of single requests, each line with the request's ids, so that callers' complaints can be
// found in it:
//
//   slow     a warning, of a request that took as long as --slow_request_ms or longer, with the time of its stages
//   failed   a warning, of one that ended in an error that is not its caller's doing
//   others   debug lines, of those that were answered and those that were refused
//
// Warnings are few a second, however many requests deserve one.
//
// Thread-safe.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "base/line_budget.h"
#include "server/requests/request.h"
#include "server/requests/request_identity.h"

namespace switchyard {

class RequestLog {
 public:
  // 0 for no slow requests.
  explicit RequestLog(int64_t slow_request_ms) : slow_us_(slow_request_ms * 1000) {}

  // A submitted request was answered.
  void Answered(const Request& request, const RequestIdentity& identity, const absl::Status& status, int64_t total_us,
                SteadyTime now);
  // A request was refused before it was submitted; `layer` is null when it named none that there is.
  void Refused(const ServedLayer* layer, const RequestIdentity& identity, const absl::Status& status) const;

 private:
  static constexpr int kLinesPerSecond = 10;

  const int64_t slow_us_;
  LineBudget slow_lines_{kLinesPerSecond};
  LineBudget failed_lines_{kLinesPerSecond};
};

}  // namespace switchyard
