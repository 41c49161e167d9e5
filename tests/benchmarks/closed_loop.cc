#include "tests/benchmarks/closed_loop.h"

#include <deque>
#include <optional>

#include "moe/base/clock.h"
#include "moe/base/mutex.h"
#include "rpc/grpc_status.h"

namespace switchyard {
namespace {

class Loop {
 public:
  Loop(const LoopTarget& target, int in_flight, std::chrono::nanoseconds duration)
      : target_(target), duration_(duration), places_(in_flight) {
    for (int i = 0; i < in_flight; ++i) places_[i].stub = &(*target.stubs)[i % target.stubs->size()];
  }

  absl::StatusOr<LoopResult> Run() {
    {
      MutexLock lock(&mu_);
      num_running_ = static_cast<int>(places_.size());
    }
    for (Place& place : places_) Start(place);
    MutexLock lock(&mu_);
    while (num_running_ > 0) idle_.Wait(&mu_);
    if (!status_.ok()) return status_;
    return result_;
  }

 private:
  struct Place {
    grpc::GenericStub* stub = nullptr;
    std::optional<grpc::ClientContext> context;
    grpc::ByteBuffer answer;
    SteadyTime begin;
  };

  void Start(Place& place) {
    place.context.emplace();
    place.answer.Clear();
    place.begin = Clock::Real().Now();
    place.stub->UnaryCall(&*place.context, target_.method, grpc::StubOptions(), &target_.request, &place.answer,
                          [this, &place](const grpc::Status& status) {
                            if (Count(place, status)) Start(place);
                          });
  }

  // Whether the place goes on.
  bool Count(const Place& place, const grpc::Status& status) {
    const SteadyTime now = Clock::Real().Now();
    const bool is_short = status.ok() && place.answer.Length() < target_.min_answer_bytes;
    MutexLock lock(&mu_);
    if (status_.ok() && !status.ok()) status_ = FromGrpcStatus(status);
    if (status_.ok() && is_short) status_ = absl::InternalError("the answer is too short");
    if (status_.ok() && !is_over_) CountInWindow(now, now - place.begin);
    if (status_.ok() && !is_over_) return true;
    if (--num_running_ == 0) idle_.SignalAll();
    return false;
  }

  void CountInWindow(SteadyTime now, std::chrono::nanoseconds latency) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto in_flight = static_cast<int64_t>(places_.size());
    if (num_before_ < in_flight) {
      ++num_before_;
      window_begin_ = now;
      return;
    }
    ++result_.num_calls;
    result_.latency.Record(latency);
    is_over_ = now - window_begin_ >= duration_ && result_.num_calls >= 2 * in_flight;
    result_.seconds = std::chrono::duration<double>(now - window_begin_).count();
  }

  const LoopTarget& target_;
  const std::chrono::nanoseconds duration_;
  std::deque<Place> places_;

  Mutex mu_;
  CondVar idle_;
  int num_running_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t num_before_ ABSL_GUARDED_BY(mu_) = 0;  // calls that ended before the window
  SteadyTime window_begin_ ABSL_GUARDED_BY(mu_);
  bool is_over_ ABSL_GUARDED_BY(mu_) = false;
  LoopResult result_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

void LoopResult::Add(const LoopResult& other) {
  num_calls += other.num_calls;
  seconds += other.seconds;
  latency.Add(other.latency);
}

absl::StatusOr<LoopResult> RunClosedLoop(const LoopTarget& target, int in_flight, std::chrono::nanoseconds duration) {
  return Loop(target, in_flight, duration).Run();
}

}  // namespace switchyard
