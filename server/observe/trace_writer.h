// Writes traces to files, as one JSON array each, on a thread of its own, so that no request waits for a disk.
//
// After every batch of traces the file is complete and can be read. Traces that come faster than the disk takes them
// are dropped, and the log says how many.
#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/line_budget.h"
#include "base/mutex.h"
#include "base/status.h"
#include "server/requests/request_identity.h"

namespace switchyard {

// What a trace tells of one request.
struct TraceRecord {
  std::string model;       // NAME.LAYER
  std::string request_id;  // the KServe API's; empty when the caller gave none
  RequestIdentity identity;
  std::vector<std::pair<const char*, SteadyTime>> timestamps;
};

// An object of Triton's trace format, and more: {"id", "model_name", "model_version", "request_id", "x_request_id",
// "trace_id", "parent_span_id", "timestamps": [{"name", "ns"}]}. The last two ids are there when there are any;
// nanoseconds are the steady clock's.
std::string EncodeTrace(int64_t id, const TraceRecord& record);

// Thread-safe.
class TraceWriter {
 public:
  // FailedPrecondition when the file cannot be written.
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Create(const std::string& path);
  // Writes what is left.
  ~TraceWriter();

  // `traces_per_file` as in TraceSettings' log_frequency.
  void Add(TraceRecord record, int64_t traces_per_file);

 private:
  struct FileCloser {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  struct Item {
    TraceRecord record;
    int64_t traces_per_file = 0;
  };

  explicit TraceWriter(std::string path);

  void Loop();
  // Appends to the file that is open, opening one when it is full or there is none.
  absl::Status Write(const Item& item);
  absl::Status Open(const std::string& path);
  // Goes on in the file of --trace_file, after the traces that it has.
  absl::Status Reopen();
  absl::Status Append(const std::string& text);
  // Ends the array; the next trace takes the end's place.
  absl::Status Complete();

  const std::string path_;
  LineBudget drops_{1}, errors_{1};

  // The thread's.
  // How far a file is.
  struct Place {
    int64_t num_traces = 0;
    long end = 0;  // where the next one goes
  };

  std::unique_ptr<std::FILE, FileCloser> file_;
  Place place_;  // of the file that is open
  Place whole_;  // of --trace_file itself, while a numbered one is open
  int64_t next_id_ = 1;
  int64_t next_number_ = 0;
  bool is_numbered_ = false;

  Mutex mu_;
  CondVar work_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<Item> items_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace switchyard
