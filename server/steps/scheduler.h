// Runs steps: takes batches from the queues, prepares them (rows to the links, gate, plan), submits them to the group,
// and answers the requests when every rank has finished its part.
//
// A step stays here until all ranks have answered under the group's current epoch. When the group breaks, its steps
// keep their rows and plans, and are submitted again, in order, once the group has re-formed under a new epoch.
//
// Threads: one thread at a time prepares and submits, so every rank gets the steps in the same order: the dispatcher's,
// or, for small steps, whoever brings a request or a result. Results come in on the links' threads, the last of which
// cuts the output up and answers, with the help of others where the answers are many. Another thread ends requests that
// expire in the queue, also while a long step is prepared. No lock is held while rows are copied, gated or sent.
#pragma once

#include <array>
#include <atomic>
#include <map>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "base/tensor/buffer.h"
#include "base/work_pool.h"
#include "moe/plan/step_plan.h"
#include "server/links/link.h"
#include "server/observe/metrics.h"
#include "server/requests/batcher.h"
#include "server/requests/request.h"
#include "server/steps/output_pool.h"
#include "server/steps/request_router.h"

namespace switchyard {

struct SchedulerOptions {
  BatcherOptions batcher;
  int num_ranks = 1;
  int num_slots = 3;  // steps in flight
  // A step that failed so often, each time on a freshly formed group, is the fault of its input: it fails for good.
  int max_submissions = 8;
  // Output rows of a request that are at least so many bytes are answered from the links' memory, where they have the
  // right type and outputs are to spare; what is less is quicker copied than kept track of.
  size_t min_lent_bytes = 32 << 10;
  // Steps of at most so many rows are prepared on the thread that brings their last request, or the result before
  // them, when the dispatcher is idle: waking it would take longer. While other steps are in flight there is less to
  // gain.
  int64_t max_inline_rows = 32;
  int64_t max_lone_inline_rows = 256;
  // Threads that copy the rows of a step into the links, and what one copies at a time.
  int num_copy_threads = 1;
  size_t copy_task_bytes = 128 << 10;
  // Threads that send the answers of a step which has at least so many: each takes longer than the step of a few rows.
  int num_answer_threads = 1;
  size_t min_shared_answers = 4;
};

class Scheduler {
 public:
  // `links[r]` are rank r's buffers; `metrics` may be shared. All outlive the scheduler.
  // `on_group_broken` is told, from any thread, that a step of `epoch` failed on a rank, and why.
  using GroupBrokenFn = std::function<void(Epoch epoch, int rank, const absl::Status& why)>;
  Scheduler(const SchedulerOptions& options, std::vector<LinkBuffers*> links, Metrics* metrics, const Clock& clock,
            GroupBrokenFn on_group_broken);
  // Fails what is left with UNAVAILABLE. Results have come, and are handled, or will not come.
  ~Scheduler();

  // Thread-safe, all of the following.

  // When its queue timeout or its deadline passes in the queue, the request ends with DEADLINE_EXCEEDED at once.
  void Enqueue(std::shared_ptr<Request> request);
  // Its caller is gone: frees its place in the queue at once and calls `done` with `why` unless that has happened.
  // Rows already in a step are computed and dropped.
  void Cancel(const std::shared_ptr<Request>& request, absl::Status why);

  // The group formed under `epoch`; connections[r] leads to rank r. Steps in flight are replayed.
  void GroupFormed(Epoch epoch, std::vector<std::shared_ptr<LinkConnection>> connections);
  // Nothing is submitted until a group of a newer epoch forms.
  void GroupLost(Epoch epoch);

  // Layers that no group will compute any more: their requests, also those of steps in flight, fail with `why` when the
  // next group forms. Only while there is none.
  void FailLayers(const std::vector<LayerId>& layers, const absl::Status& why);
  // Of a model that nobody uses any more.
  void DropLayers(const std::vector<LayerId>& layers);

  void OnResult(int rank, const ResultMessage& result, std::span<const std::byte> rows);

  struct Load {
    int64_t queued_rows = 0;
    std::array<int64_t, kNumPriorities> queued_rows_by_priority{};  // the highest first
    int steps_in_flight = 0;
  };
  Load load() const;

 private:
  struct Group {
    Epoch epoch;
    std::vector<std::shared_ptr<LinkConnection>> connections;
  };

  struct Step {
    StepId id;
    Batch batch;
    int slot = 0;
    int output = 0;
    bool gate_reads_link = false;  // rows in the links are of a type the gate takes
    Routing routing;
    StepPlan plan;
    SteadyTime started;    // preparation began
    SteadyTime uploaded;   // rows in the links
    SteadyTime gated;      // routing known
    SteadyTime planned;    // plan known
    SteadyTime submitted;  // first submission
    SteadyTime finished;   // the last rank answered
    // Guarded by mu_.
    Epoch epoch;                 // of the last submission
    std::vector<bool> answered;  // by rank
    int num_unanswered = 0;
    int submissions = 0;
    StepTimes slowest;  // over the ranks
  };

  // Rows that go from the wire to a link, and to the gate's own copy when it has one.
  struct CopyTask {
    const ChunkedRows* rows = nullptr;
    ChunkedRows::Position begin;
    DType from = DType::kF32, to = DType::kF32;
    size_t num_elements = 0;
    std::byte* link_rows = nullptr;
    float* gate_rows = nullptr;

    void Run() const;
  };

  // What the dispatcher does next.
  struct Work {
    bool stop = false;
    std::vector<std::shared_ptr<Step>> replays;
    std::shared_ptr<Step> fresh;
    std::shared_ptr<const Group> group;
  };

  void DispatchLoop();
  void Dispatch(const Work& work);
  // Takes a step, if one can leave: a small one for the calling thread to dispatch, a larger one for the dispatcher,
  // who is told.
  std::shared_ptr<Step> TakeInline() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Dispatches what TakeInline gave, null included.
  void DispatchInline(std::shared_ptr<Step> step);
  Work WaitForWork();
  std::shared_ptr<Step> TakeStep(SteadyTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // `hopeless` gets those that are not to be submitted again, and why.
  std::vector<std::shared_ptr<Step>> TakeReplays(std::vector<std::pair<std::shared_ptr<Step>, absl::Status>>* hopeless)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Not OK for a step of a layer that was given up.
  absl::Status CheckLayer(const Step& step) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  void ExpireLoop();
  void WakeExpirer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Preparation, on the dispatcher thread.
  absl::Status Prepare(Step& step);
  void UploadRows(Step& step, const std::vector<int64_t>& home_offsets);
  // Of one piece, the rows that have one home, in parts of about copy_task_bytes.
  void AddCopyTasks(Request& request, DType link_dtype, int64_t num_rows, std::byte* link_rows, float* gate_rows);
  static void ReleaseRows(const Step& step);
  absl::Status GateRows(Step& step, const std::vector<int64_t>& home_offsets);
  // Rows [begin, begin + count) of the step, which are gated like those of `like`.
  absl::Status GateRun(Step& step, const std::vector<int64_t>& home_offsets, const Request& like, int64_t begin,
                       int64_t count);
  // Of the rows that the step dispatches between different ranks.
  static int64_t CrossingBytes(const Step& step);
  void EncodePlans(const Step& step);
  // Puts a prepared step among those in flight. Null when it has to wait for a group, and goes out with the replays
  // then.
  std::shared_ptr<const Group> Register(const std::shared_ptr<Step>& step);
  void Submit(Step& step, const Group& group);

  // Completion, on whichever thread the last result came in.
  void Finish(const std::shared_ptr<Step>& step);
  // The output in parts, for each piece. The step's output is lent or returned.
  std::vector<std::vector<OutputPart>> CutOutput(const Step& step);
  // Of the piece whose rows begin at `begin` of the step. `loan` is the step's, once there is one.
  std::vector<OutputPart> CutPiece(const Step& step, const Piece& piece, int64_t begin,
                                   std::shared_ptr<const void>* loan);
  void RecordStep(const Step& step);
  void CompletePieces(const Step& step, std::vector<std::vector<OutputPart>> parts);
  void Answer(const std::vector<std::shared_ptr<Request>>& finished);
  void SmoothStepTime(std::chrono::nanoseconds latest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Fail(const std::shared_ptr<Step>& step, const absl::Status& why);

  const SchedulerOptions options_;
  const std::vector<LinkBuffers*> links_;
  Metrics* const metrics_;
  const Clock& clock_;
  const GroupBrokenFn on_group_broken_;

  const std::shared_ptr<OutputPool> outputs_;

  // Of the thread that dispatches.
  RequestRouter router_;
  HostBuffer gate_rows_;  // rows in fp32 where the link's type does not suit the gate
  WorkPool copy_pool_;
  std::vector<CopyTask> copy_tasks_;  // of one upload

  WorkPool answer_pool_;  // of the thread that has taken it
  std::atomic<bool> answer_pool_is_taken_{false};

  mutable Mutex mu_;
  CondVar work_;
  CondVar wake_expirer_;
  // It sleeps until then: a request that expires later, as most do, need not wake it.
  SteadyTime expirer_wakes_ ABSL_GUARDED_BY(mu_) = SteadyTime::max();
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool dispatching_ ABSL_GUARDED_BY(mu_) = false;           // some thread prepares and submits, or is about to
  std::shared_ptr<Step> handed_over_ ABSL_GUARDED_BY(mu_);  // to the dispatcher, by whoever took it
  Batcher batcher_ ABSL_GUARDED_BY(mu_);
  std::chrono::nanoseconds step_time_ ABSL_GUARDED_BY(mu_){0};  // from preparation to the last result, smoothed
  std::shared_ptr<const Group> group_ ABSL_GUARDED_BY(mu_);     // null while there is none
  bool replay_ ABSL_GUARDED_BY(mu_) = false;
  std::map<StepId, std::shared_ptr<Step>> steps_ ABSL_GUARDED_BY(mu_);  // in flight, oldest first
  std::map<LayerId, absl::Status> failed_layers_ ABSL_GUARDED_BY(mu_);
  std::vector<int> free_slots_ ABSL_GUARDED_BY(mu_);
  int64_t next_step_id_ ABSL_GUARDED_BY(mu_) = 1;

  std::thread dispatcher_;
  std::thread expirer_;
};

}  // namespace switchyard
