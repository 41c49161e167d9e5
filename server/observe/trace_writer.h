// Writes traces to files, as one JSON array each, on a thread of its own, so that no request waits for a disk.
//
// After every batch of traces the file is complete and can be read. When traces come faster than the disk takes them,
// some are dropped, and the log says how many. A batch that the disk does not take, for instance because it is full, is
// dropped, too: the file stays as it was before, and goes on when there is room again.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/logging/line_budget.h"
#include "base/mutex.h"
#include "base/status.h"
#include "base/unique_fd.h"
#include "server/requests/request_identity.h"

namespace switchyard {

// The content of one request's trace.
struct TraceRecord {
  std::string model;       // NAME.LAYER
  std::string request_id;  // the KServe API's; empty when the caller gave none
  RequestIdentity identity;
  std::vector<std::pair<const char*, SteadyTime>> timestamps;
};

// An object of Triton's trace format with some additions: {"id", "model_name", "model_version", "request_id",
// "x_request_id", "trace_id", "parent_span_id", "timestamps": [{"name", "ns"}]}. request_id, trace_id and
// parent_span_id are left out when the request has none. Nanoseconds are the steady clock's.
std::string EncodeTrace(int64_t id, const TraceRecord& record);

// Thread-safe.
class TraceWriter {
 public:
  // FailedPrecondition when the file cannot be written.
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Create(const std::string& path);
  // Writes the traces that still wait.
  ~TraceWriter();

  // `traces_per_file` means the same as log_frequency in TraceSettings.
  void Add(TraceRecord record, int64_t traces_per_file);
  // Begins a new file before the next trace if the one of --trace_file was moved away or removed meanwhile.
  void ReopenFile();

 private:
  struct Item {
    TraceRecord record;
    int64_t traces_per_file = 0;
  };

  explicit TraceWriter(std::string path);

  // How far a file is written.
  struct Place {
    int64_t num_traces = 0;
    int64_t end = 0;  // where the next trace goes, behind the traces that the file has
  };

  void Loop();
  absl::Status WriteAll(const std::deque<Item>& items);
  // Adds to the batch. Writes it first, and opens another file, when the open one is full or none is open.
  absl::Status Write(const Item& item);
  absl::Status Open(const std::string& path);
  // Opens the file of --trace_file again, to go on after the traces that it has. Begins a new one if it is not as it
  // was left.
  absl::Status Reopen();
  bool IsStillThere() const;
  // Writes the batch and the end of the JSON array, which the next batch overwrites.
  absl::Status Flush();
  absl::Status WriteAt(int64_t offset, std::string_view text) const;

  const std::string path_;
  LineBudget drops_{1}, errors_{1};

  // Only the writing thread uses the members down to is_numbered_.
  UniqueFd file_;
  Place place_;  // of the open file
  Place whole_;  // of --trace_file itself, while a numbered file is open
  std::string batch_;
  int64_t batch_traces_ = 0;
  int64_t next_id_ = 1;
  int64_t next_number_ = 0;
  bool is_numbered_ = false;

  Mutex mu_;
  CondVar work_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool reopening_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<Item> items_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace switchyard
