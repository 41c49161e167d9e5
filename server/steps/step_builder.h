// Prepares a step: copies its rows to the links, gates them, plans who computes which, and writes the plans to the
// links.
//
// The builder keeps scratch memory from step to step, so one thread at a time uses it.
#pragma once

#include <cstdint>
#include <vector>

#include "base/clock.h"
#include "base/status.h"
#include "base/tensor/buffer.h"
#include "base/work_pool.h"
#include "server/links/link.h"
#include "server/steps/request_router.h"
#include "server/steps/step.h"

namespace switchyard {

struct StepBuilderOptions {
  // Threads that copy the rows of a step into the links and plan it, and the bytes that one of them copies at a time.
  int num_threads = 1;
  size_t copy_task_bytes = 128 << 10;
};

// Thread-compatible.
class StepBuilder {
 public:
  // `links[r]` are rank r's buffers, which outlive the builder.
  StepBuilder(const StepBuilderOptions& options, std::vector<LinkBuffers*> links, const Clock& clock);

  // The step has its batch, slot and placement. After an error of a gate the step cannot be submitted.
  absl::Status Build(Step& step);

 private:
  // Rows that go from the wire to a link and, when the gate has a copy of its own, to that.
  struct CopyTask {
    const ChunkedRows* rows = nullptr;
    ChunkedRows::Position begin;
    DType from = DType::kF32, to = DType::kF32;
    size_t num_elements = 0;
    std::byte* link_rows = nullptr;
    float* gate_rows = nullptr;

    void Run() const;
  };

  // Routes the requests whose rows are gated together and have not been gated yet.
  absl::Status RouteWholeRequests(const Step& step);
  void UploadRows(Step& step, const std::vector<int64_t>& home_offsets);
  // Cuts rows of one request that have one home into tasks of about copy_task_bytes.
  void AddCopyTasks(Request& request, DType link_dtype, int64_t num_rows, std::byte* link_rows, float* gate_rows);
  void RunCopyTasks(size_t num_bytes);
  absl::Status GateRows(Step& step, const std::vector<int64_t>& home_offsets);
  // Gates rows [begin, begin + num_rows) of the step with the gate and the top_k of `like`.
  absl::Status GateRun(Step& step, const std::vector<int64_t>& home_offsets, const Request& like, int64_t begin,
                       int64_t num_rows);
  void PlanRows(Step& step, std::vector<int64_t> home_offsets);

  const StepBuilderOptions options_;
  const std::vector<LinkBuffers*> links_;
  const Clock& clock_;

  RequestRouter router_;
  WorkPool pool_;
  // Scratch of the step that is being built.
  std::vector<CopyTask> copy_tasks_;
  HostBuffer gate_rows_;          // [rows, hidden_dim] in fp32, where the gate cannot read the links' type
  bool gate_reads_link_ = false;  // the rows in the links are of a type that the gate takes
};

}  // namespace switchyard
