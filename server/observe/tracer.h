// Traces requests: chooses them by the settings, and writes what is known of them to the trace file.
//
// Thread-safe. While tracing is off, a request costs one read of an atomic.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "base/mutex.h"
#include "base/status.h"
#include "server/observe/trace_settings.h"
#include "server/observe/trace_writer.h"
#include "server/requests/request.h"
#include "server/requests/request_identity.h"

namespace switchyard {

class Tracer {
 public:
  // `file` is the value of --trace_file, empty for none. FailedPrecondition when the file cannot be written.
  static absl::StatusOr<std::unique_ptr<Tracer>> Create(const std::string& file);

  // These do the same as in TraceSettings; `model` is NAME.LAYER or empty.
  absl::Status Update(const std::string& model, const TraceValues& changes);
  TraceValues Show(const std::string& model) const;

  // As TraceWriter::ReopenFile.
  void ReopenFile() {
    if (writer_ != nullptr) writer_->ReopenFile();
  }

  // A submitted request was answered at `now`; `ok` says that it was answered with its rows.
  void RequestAnswered(const Request& request, const RequestIdentity& identity, bool ok, SteadyTime now) {
    if (is_on_.load(std::memory_order_relaxed)) Trace(request, identity, ok, now);
  }

 private:
  explicit Tracer(const std::string& file) : settings_(file) {}

  void Trace(const Request& request, const RequestIdentity& identity, bool ok, SteadyTime now);

  std::unique_ptr<TraceWriter> writer_;  // null without a file; then tracing is never on
  std::atomic<bool> is_on_{false};
  mutable Mutex mu_;
  TraceSettings settings_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
