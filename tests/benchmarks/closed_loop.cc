#include "tests/benchmarks/closed_loop.h"

#include <deque>
#include <optional>
#include <utility>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/notification.h"
#include "rpc/grpc_status.h"

namespace switchyard {
namespace {

// Counts the requests that end, and decides when the loop is over. A place of the loop has one request in flight at a
// time. Thread-safe.
class Window {
 public:
  Window(int in_flight, std::chrono::nanoseconds duration)
      : in_flight_(in_flight), duration_(duration), num_running_(in_flight) {}

  // Counts a place's request, which has ended. Returns whether the place goes on.
  bool Count(SteadyTime begin, const absl::Status& status) {
    const SteadyTime now = Clock::Real().Now();
    MutexLock lock(&mu_);
    status_.Update(status);
    if (status_.ok() && !is_over_) CountInWindow(now, now - begin);
    if (status_.ok() && !is_over_) return true;
    if (--num_running_ == 0) idle_.SignalAll();
    return false;
  }

  // Gives up places whose requests will not end any more, because of `status`.
  void Abandon(int num_places, const absl::Status& status) {
    MutexLock lock(&mu_);
    status_.Update(status);
    if ((num_running_ -= num_places) == 0) idle_.SignalAll();
  }

  // Waits until no place goes on.
  absl::StatusOr<LoopResult> Result() {
    MutexLock lock(&mu_);
    while (num_running_ > 0) idle_.Wait(&mu_);
    if (!status_.ok()) return status_;
    return result_;
  }

 private:
  void CountInWindow(SteadyTime now, std::chrono::nanoseconds latency) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (num_before_ < in_flight_) {
      ++num_before_;
      begin_ = now;
      return;
    }
    ++result_.num_calls;
    result_.latency.Record(latency);
    is_over_ = now - begin_ >= duration_ && result_.num_calls >= 2 * in_flight_;
    result_.seconds = std::chrono::duration<double>(now - begin_).count();
  }

  const int64_t in_flight_;
  const std::chrono::nanoseconds duration_;

  Mutex mu_;
  CondVar idle_;
  int num_running_ ABSL_GUARDED_BY(mu_);
  int64_t num_before_ ABSL_GUARDED_BY(mu_) = 0;  // ended before the window
  SteadyTime begin_ ABSL_GUARDED_BY(mu_);
  bool is_over_ ABSL_GUARDED_BY(mu_) = false;
  LoopResult result_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

class CallLoop {
 public:
  CallLoop(const LoopTarget& target, int in_flight, std::chrono::nanoseconds duration)
      : target_(target), window_(in_flight, duration), places_(in_flight) {
    for (int i = 0; i < in_flight; ++i) places_[i].stub = &(*target.stubs)[i % target.stubs->size()];
  }

  absl::StatusOr<LoopResult> Run() {
    for (Place& place : places_) Start(place);
    return window_.Result();
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
                            if (window_.Count(place.begin, Check(place, status))) Start(place);
                          });
  }

  absl::Status Check(const Place& place, const grpc::Status& status) const {
    if (!status.ok()) return FromGrpcStatus(status);
    if (place.answer.Length() >= target_.min_answer_bytes) return absl::OkStatus();
    return absl::InternalError("the answer is too short");
  }

  const LoopTarget& target_;
  Window window_;
  std::deque<Place> places_;
};

// Runs some places of the loop on one stream.
class Stream final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Stream(const StreamTarget& target, grpc::GenericStub* stub, std::vector<size_t> places, Window* window)
      : target_(target), window_(window), to_write_(places.begin(), places.end()), num_running_(places.size()) {
    begins_.resize(target.requests.size());
    stub->PrepareBidiStreamingCall(&context_, target.method, grpc::StubOptions(), this);
    StartRead(&answer_);
    WriteNext();
    StartCall();
  }
  ~Stream() override { ended_.WaitForNotification(); }

 private:
  // Writes the request of one waiting place, unless a write is under way. Ends the stream when no place waits or runs.
  void WriteNext() {
    std::optional<size_t> place;
    bool is_over = false;
    {
      MutexLock lock(&mu_);
      if (is_writing_) return;
      if (!to_write_.empty()) {
        place = to_write_.front();
        to_write_.pop_front();
        is_writing_ = true;
        begins_[*place] = Clock::Real().Now();
      } else {
        is_over = num_running_ == 0 && !std::exchange(is_closed_, true);
      }
    }
    if (place.has_value()) StartWrite(&target_.requests[*place]);
    if (is_over) StartWritesDone();
  }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(&mu_);
      is_writing_ = false;
    }
    if (ok) WriteNext();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;  // OnDone follows
    const auto place = target_.place_of(answer_);
    SteadyTime begin;
    if (place.ok()) {
      MutexLock lock(&mu_);
      begin = begins_[*place];
    }
    const bool goes_on = window_->Count(begin, place.status());
    {
      MutexLock lock(&mu_);
      if (goes_on) {
        to_write_.push_back(*place);
      } else {
        --num_running_;
      }
    }
    WriteNext();
    StartRead(&answer_);
  }

  void OnDone(const grpc::Status& status) override {
    {
      MutexLock lock(&mu_);
      if (num_running_ > 0) {
        const absl::Status why = status.ok() ? absl::InternalError("the stream ended early") : FromGrpcStatus(status);
        window_->Abandon(static_cast<int>(num_running_), why);
      }
    }
    ended_.Notify();
  }

  const StreamTarget& target_;
  Window* const window_;
  grpc::ClientContext context_;
  grpc::ByteBuffer answer_;
  Notification ended_;

  Mutex mu_;
  std::deque<size_t> to_write_ ABSL_GUARDED_BY(mu_);
  std::vector<SteadyTime> begins_ ABSL_GUARDED_BY(mu_);
  size_t num_running_ ABSL_GUARDED_BY(mu_);
  bool is_writing_ ABSL_GUARDED_BY(mu_) = false;
  bool is_closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace

void LoopResult::Add(const LoopResult& other) {
  num_calls += other.num_calls;
  seconds += other.seconds;
  latency.Add(other.latency);
}

absl::StatusOr<LoopResult> RunClosedLoop(const LoopTarget& target, int in_flight, std::chrono::nanoseconds duration) {
  return CallLoop(target, in_flight, duration).Run();
}

absl::StatusOr<LoopResult> RunStreamLoop(const StreamTarget& target, std::chrono::nanoseconds duration) {
  Window window(static_cast<int>(target.requests.size()), duration);
  std::deque<Stream> streams;
  for (size_t i = 0; i < target.stubs->size(); ++i) {
    std::vector<size_t> places;
    for (size_t place = i; place < target.requests.size(); place += target.stubs->size()) places.push_back(place);
    if (!places.empty()) streams.emplace_back(target, &(*target.stubs)[i], std::move(places), &window);
  }
  return window.Result();
}

}  // namespace switchyard
