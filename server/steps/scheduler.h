// Runs steps: takes batches from the queues, has them built, submits them to the group, and has their requests answered
// when every rank has finished its part.
//
// StepBuilder prepares a step, StepsInFlight keeps it until all ranks have answered, and StepAnswers cuts its output
// up. When the group breaks, steps in flight keep their rows and plans, and are submitted again, in order, once the
// group has formed under a new epoch.
//
// Threads: the holder of the dispatch baton builds and submits. That is the dispatcher's thread or, for a small step,
// the thread that brought the step's last request or the result before it; such a thread dispatches one step and leaves
// the next to the dispatcher. Results come in on the links' threads; the last result's thread cuts the output up and
// answers, with the help of others where the answers are many. One more thread ends requests whose time is over. No
// lock is held while rows are copied, gated or sent.
#pragma once

#include <array>
#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/deadlines.h"
#include "base/mutex.h"
#include "base/threads.h"
#include "server/links/link.h"
#include "server/observe/metrics.h"
#include "server/requests/batcher.h"
#include "server/requests/request.h"
#include "server/steps/dispatch_baton.h"
#include "server/steps/output_pool.h"
#include "server/steps/step.h"
#include "server/steps/step_answers.h"
#include "server/steps/step_builder.h"
#include "server/steps/step_durations.h"
#include "server/steps/steps_in_flight.h"

namespace switchyard {

struct SchedulerOptions {
  BatcherOptions batcher;
  StepBuilderOptions builder;
  StepAnswersOptions answers;
  int num_ranks = 1;
  int num_slots = 3;  // steps in flight
  // How often one step is submitted, each time to a newly formed group, before its input is taken for the cause.
  int max_submissions = 8;
  // How long a step may take; 0 learns it from the steps before (step_durations.h).
  std::chrono::milliseconds step_timeout{0};
  // The most rows of a step that is dispatched by the thread that brings its last request, or the result before it,
  // because waking the dispatcher would take longer. While other steps are in flight there is less to gain.
  int64_t max_inline_rows = 32;
  int64_t max_lone_inline_rows = 256;
  // With Threads::kNone, the owner does the work of the dispatcher and of the timers (DispatchOnce, RunTimers). Builder
  // and answers are to have one thread then.
  Threads threads = Threads::kOwn;
};

class Scheduler {
 public:
  // `links[r]` are rank r's buffers; `metrics` may be shared. All outlive the scheduler.
  // `on_group_broken` is told, from any thread, that a step of `epoch` failed on a rank, and why. The scheduler has
  // given up that group by then.
  using GroupBrokenFn = std::function<void(Epoch epoch, int rank, const absl::Status& why)>;
  Scheduler(const SchedulerOptions& options, std::vector<LinkBuffers*> links, Metrics* metrics, const Clock& clock,
            GroupBrokenFn on_group_broken);
  // Fails the requests that are left with UNAVAILABLE. Nothing calls the scheduler any more.
  ~Scheduler();

  // All of the following are thread-safe.

  // The request ends with DEADLINE_EXCEEDED when its queue timeout or its deadline passes while it is in the queue, and
  // when its `answer_by` passes wherever it is.
  void Enqueue(std::shared_ptr<Request> request);
  // The caller is gone: frees the request's place in the queue at once and calls `done` with `why`, unless `done` was
  // called before. Rows that are in a step already are computed and dropped.
  void Cancel(const std::shared_ptr<Request>& request, absl::Status why);

  // The group formed under `epoch`; connections[r] leads to rank r. Steps in flight are replayed.
  void GroupFormed(Epoch epoch, std::vector<std::shared_ptr<LinkConnection>> connections);
  // Nothing is submitted until a group of a newer epoch forms.
  void GroupLost(Epoch epoch);

  // Gives up layers that no group will compute any more: their requests, also those of steps in flight, fail with `why`
  // when the next group forms. Only while there is no group.
  void FailLayers(const std::vector<LayerId>& layers, const absl::Status& why);
  // Forgets the layers of a model that no request uses any more.
  void DropLayers(const std::vector<LayerId>& layers);

  // A rank's result. `rows` are its output rows when they came with the result, or null when the rank has written them
  // to the link's memory. Rows of another size than the plan says break the group.
  void OnResult(int rank, const ResultMessage& result, const RowChunks* rows);

  struct Load {
    int64_t queued_rows = 0;
    std::array<int64_t, kNumPriorities> queued_rows_by_priority{};  // the highest first
    int steps_in_flight = 0;
    std::chrono::nanoseconds oldest_step{0};  // the time since its first submission
    int free_slots = 0;
    int free_outputs = 0;  // neither a step's nor lent to answers
  };
  Load load() const;

  // The step that every later one waits for, while there is a group.
  struct OldestStep {
    Epoch epoch;
    StepId id;
    std::string what;        // "step 7 of layer m.3 with 12 rows"
    std::vector<int> owing;  // the ranks that have not answered
    // How long it may be the oldest: while all ranks wait for each other, and while one computes. The latter is longer,
    // unless it is set, because giving up that rank costs the loading of its weights.
    std::chrono::milliseconds limit{0}, limit_of_work{0};
  };
  std::optional<OldestStep> oldest_step() const;

  // ---- Without threads of its own (SchedulerOptions::threads)

  // When the dispatcher has something to do, if nothing happens before; in the past once it has been woken.
  SteadyTime dispatch_due() const;
  // Does what the dispatcher does from one wait to the next, but dispatches once at most.
  void DispatchOnce();
  // When the next timer fires; SteadyTime::max() when there is none.
  SteadyTime timer_due() const { return deadlines_.next(); }
  void RunTimers() { deadlines_.RunDue(); }

 private:
  // The dispatcher's next task, for which it has the baton: replays and a fresh step, or the end.
  struct Work {
    bool stop = false;
    StepsInFlight::Replays replays;
    std::shared_ptr<Step> fresh;
  };

  // ---- Dispatch

  void DispatchLoop();
  Work WaitForWork();
  // Takes the dispatcher's next task with the baton. Without one, sets look_again_.
  std::optional<Work> TakeWork() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Does a task of the dispatcher, and puts the baton down.
  void TakeTurn(const Work& work);
  void WakeDispatcher() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Does the work, for which the calling thread has the baton.
  void Dispatch(const Work& work);
  absl::Status CheckAndBuild(Step& step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(baton_);
  void Submit(const Step& step, const FormedGroup& group) ABSL_EXCLUSIVE_LOCKS_REQUIRED(baton_);
  // Takes a step, and the baton, if a step can leave. Returns it when the calling thread is to dispatch it; otherwise
  // the dispatcher gets it.
  std::shared_ptr<Step> TakeInline(bool may_dispatch_here) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Dispatches a step that TakeInline returned, if it is one.
  void DispatchInline(std::shared_ptr<Step> step);
  std::shared_ptr<Step> TakeStep(SteadyTime now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // ---- Completion

  void ReportBroken(Epoch epoch, int rank, const absl::Status& why);
  // Copies the output rows that came with a result to the step's output.
  absl::Status ReceiveRows(const Step& step, int rank, const RowChunks& rows);
  void Finish(Step& step, const StepsInFlight::Finished& how);
  void RecordStep(const Step& step, const StepTimes& slowest);
  // Adds the parts to their requests. Returns the requests that are complete.
  std::vector<std::shared_ptr<Request>> AddParts(const Step& step, std::vector<std::vector<OutputPart>> parts,
                                                 int num_submissions) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void SmoothStepTime(std::chrono::nanoseconds latest) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void LearnDuration(const Step& step) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Fail(const Step& step, const absl::Status& why);
  // Calls `done` unless it was called before.
  void Complete(Request& request, absl::Status status);

  // ---- Time limits

  // Ends the request when its `answer_by` passes.
  void SetTimeLimit(const std::shared_ptr<Request>& request);
  // Sets the timer for the next request that expires in the queue.
  void ArmTimer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // The timer that was set for `when`.
  void ExpireQueued(SteadyTime when);

  const SchedulerOptions options_;
  const std::vector<LinkBuffers*> links_;
  Metrics* const metrics_;
  const Clock& clock_;
  const GroupBrokenFn on_group_broken_;
  const std::shared_ptr<OutputPool> outputs_;

  DispatchBaton baton_;
  StepBuilder builder_ ABSL_GUARDED_BY(baton_);
  StepAnswers answers_;

  mutable Mutex mu_;
  CondVar work_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::shared_ptr<Step> handed_over_ ABSL_GUARDED_BY(mu_);  // to the dispatcher, with the baton
  // When the dispatcher looks for work by itself; SteadyTime::min() once it has been woken.
  SteadyTime look_again_ ABSL_GUARDED_BY(mu_) = SteadyTime::max();
  Batcher batcher_ ABSL_GUARDED_BY(mu_);
  StepsInFlight flight_ ABSL_GUARDED_BY(mu_);
  std::chrono::nanoseconds step_time_ ABSL_GUARDED_BY(mu_){0};  // from preparation to the last result, smoothed
  SteadyTime timer_ ABSL_GUARDED_BY(mu_) = SteadyTime::max();   // the one that ArmTimer set last
  StepDurations durations_ ABSL_GUARDED_BY(mu_);
  SteadyTime last_finish_ ABSL_GUARDED_BY(mu_);
  int64_t next_step_id_ ABSL_GUARDED_BY(mu_) = 1;

  // The threads end first, because they use all of the above.
  Deadlines deadlines_;
  std::thread dispatcher_;
};

}  // namespace switchyard
