#include "client/forward_stream.h"

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/clock.h"
#include "base/deadlines.h"
#include "base/mutex.h"
#include "client/forward_codec.h"
#include "client/rpc_status.h"

namespace switchyard {
namespace {

constexpr char kMethod[] = "/switchyard.v1.Switchyard/ForwardStream";
// A timeout of more is none; clocks overflow beyond.
constexpr absl::Duration kLongestTimeout = absl::Hours(24);
// How long Close waits for the server to end a stream on which nothing is left to do.
constexpr std::chrono::seconds kEndGrace{1};

absl::Status CheckOptions(const ForwardStreamOptions& options) {
  if (options.timeout < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("timeout: expected more than zero, found ", absl::FormatDuration(options.timeout)));
  }
  if (options.max_in_flight >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("max_in_flight: expected 1 or more, found ", options.max_in_flight));
}

// The status of requests that were not answered when the stream ended with `end`.
absl::Status Unanswered(const grpc::Status& end) {
  if (end.ok()) return absl::UnavailableError("the server ended the stream before it answered");
  const absl::Status status = FromRpcStatus(end);
  // The server or the network cancelled the stream: when this side cancels it, OnDone uses given_up_ instead.
  return absl::IsCancelled(status) ? absl::UnavailableError(status.message()) : status;
}

}  // namespace

absl::Duration RetryAfter(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfterUrl);
  int64_t millis = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &millis)) return absl::ZeroDuration();
  return absl::Milliseconds(millis);
}

class ForwardStream::Impl final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Impl(const std::shared_ptr<grpc::ChannelInterface>& channel, const std::string& authorization,
       const ForwardStreamOptions& options)
      : options_(options), stub_(channel) {
    if (!authorization.empty()) context_.AddMetadata("authorization", authorization);
    if (!options.request_id.empty()) context_.AddMetadata(kRequestIdKey, options.request_id);
    stub_.PrepareBidiStreamingCall(&context_, kMethod, grpc::StubOptions(), this);
    AddHold();  // for writes, which other threads start; removed once stopped_ is set
    StartRead(&incoming_);
    StartCall();
  }

  ~Impl() override {
    GiveUp(absl::CancelledError("the stream was closed by its owner"));
    WaitForEnd();
  }

  uint64_t Submit(const ForwardArgs& args, Callback done) {
    const uint64_t id = next_id_.fetch_add(1, std::memory_order_relaxed);
    if (absl::Status status = Send(id, args, &done); !status.ok()) done(std::move(status));
    return id;
  }

  void Cancel(uint64_t id) {
    std::optional<Pending> unsent;
    Next next;
    {
      MutexLock lock(&mu_);
      if (stopped_ || !pending_.contains(id)) return;
      if (Unqueue(id)) {
        unsent = Take(id);
      } else {
        Enqueue(0, EncodeStreamCancel(id), /*first=*/true);
      }
      next = Advance();
    }
    Go(next);
    if (unsent.has_value()) End(*std::move(unsent), absl::CancelledError("cancelled before it was sent"));
  }

  absl::Status Close() {
    Next next;
    {
      MutexLock lock(&mu_);
      is_closed_ = true;
      next = Advance();
    }
    Go(next);
    {
      MutexLock lock(&mu_);
      while (!pending_.empty() && !is_over_) changed_.Wait(&mu_);
      while (!is_over_ && !changed_.WaitFor(&mu_, kEndGrace)) {
      }
    }
    GiveUp(absl::OkStatus());
    WaitForEnd();
    MutexLock lock(&mu_);
    return end_;
  }

  absl::Status status() const {
    MutexLock lock(&mu_);
    return WhyNoRequests();
  }

 private:
  // A request that is not answered.
  struct Pending {
    ConstMatrixView rows;  // only its shape and type are used
    Callback done;
    Deadlines::Key deadline;
  };
  struct Outgoing {
    uint64_t id = 0;  // of a request; 0 for any other message
    grpc::ByteBuffer message;
  };
  // The gRPC operations to start once the lock is released.
  struct Next {
    bool write = false;
    bool is_followed = false;  // another write comes at once
    bool writes_done = false;
    bool remove_hold = false;
  };

  // Does not move `*done` when it fails.
  absl::Status Send(uint64_t id, const ForwardArgs& args, Callback* done) {
    if (!args.request_id.empty()) {
      return absl::InvalidArgumentError("request_id: a stream has one for all of its requests, expected none");
    }
    const absl::Duration timeout =
        std::min(args.timeout > absl::ZeroDuration() ? args.timeout : options_.timeout, kLongestTimeout);
    SY_ASSIGN_OR_RETURN(grpc::ByteBuffer message,
                        EncodeStreamRequest(id, args, std::max<int64_t>(1, absl::ToInt64Microseconds(timeout))));
    const Deadlines::Key deadline = deadlines_.NewKey(Clock::Real().Now() + absl::ToChronoNanoseconds(timeout));
    Next next;
    absl::Status refusal;
    {
      MutexLock lock(&mu_);
      refusal = WhyNotOneMore();
      if (refusal.ok()) {
        pending_.emplace(id, Pending{args.rows, std::move(*done), deadline});
        deadlines_.Add(deadline, [this, id] { Expire(id); });  // Expire waits for the lock, so it finds the request
        Enqueue(id, message, /*first=*/false);
        next = Advance();
      }
    }
    Go(next);
    return refusal;
  }

  absl::Status WhyNoRequests() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (is_closed_) return absl::FailedPreconditionError("the stream is closed");
    if (!end_.ok()) return end_;
    return stopped_ ? absl::UnavailableError("the stream is ending") : absl::OkStatus();
  }

  absl::Status WhyNotOneMore() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    SY_RETURN_IF_ERROR(WhyNoRequests());
    if (pending_.size() < static_cast<size_t>(options_.max_in_flight)) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("max_in_flight: ", pending_.size(), " requests of the stream are not answered yet"));
  }

  void Enqueue(uint64_t id, grpc::ByteBuffer message, bool first) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    Outgoing& outgoing = first ? outgoing_.emplace_front() : outgoing_.emplace_back();
    outgoing.id = id;
    outgoing.message.Swap(&message);
  }

  // Removes a request from the queue of unsent messages. False when it is not there.
  bool Unqueue(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto it =
        std::find_if(outgoing_.begin(), outgoing_.end(), [id](const Outgoing& queued) { return queued.id == id; });
    if (it == outgoing_.end()) return false;
    outgoing_.erase(it);
    return true;
  }

  std::optional<Pending> Take(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    const auto it = pending_.find(id);
    if (it == pending_.end()) return std::nullopt;
    std::optional<Pending> taken(std::move(it->second));
    pending_.erase(it);
    if (is_closed_ && pending_.empty()) changed_.SignalAll();
    return taken;
  }

  void End(Pending pending, absl::StatusOr<ForwardResult> result) {
    deadlines_.Remove(pending.deadline);
    const Callback done = std::move(pending.done);  // its captures end here, before the stream does
    done(std::move(result));
  }

  void Expire(uint64_t id) {
    std::optional<Pending> late;
    Next next;
    {
      MutexLock lock(&mu_);
      late = Take(id);
      Unqueue(id);
      next = Advance();
    }
    Go(next);
    // No cancel message is needed: the server has the same timeout, and frees the request's place by itself.
    if (late.has_value()) late->done(absl::DeadlineExceededError("timeout: not answered in time"));
  }

  void OnReadDone(bool ok) override {
    if (!ok) return Stop();
    grpc::ByteBuffer message;
    message.Swap(&incoming_);
    if (Deliver(&message)) StartRead(&incoming_);
  }

  // Returns false when the stream cannot go on.
  bool Deliver(grpc::ByteBuffer* message) {
    const absl::StatusOr<StreamAnswer> answer = ReadStreamAnswer(message);
    std::optional<Pending> pending;
    if (!answer.ok()) {
      GiveUp(answer.status());
      Stop();
      return false;
    }
    {
      MutexLock lock(&mu_);
      pending = Take(answer->id);
    }
    if (!pending.has_value()) return true;  // its timeout has passed
    absl::StatusOr<ForwardResult> result = ReadResult(message, *answer, pending->rows);
    message->Clear();
    End(*std::move(pending), std::move(result));
    return true;
  }

  static absl::StatusOr<ForwardResult> ReadResult(grpc::ByteBuffer* message, const StreamAnswer& answer,
                                                  ConstMatrixView rows) {
    SY_RETURN_IF_ERROR(answer.error);
    return DecodeStreamResponse(message, answer, rows);
  }

  void OnWriteDone(bool ok) override { OnSent(ok); }
  void OnWritesDoneDone(bool ok) override { OnSent(ok); }

  void OnSent(bool ok) {
    grpc::ByteBuffer sent;  // freed outside the lock
    Next next;
    {
      MutexLock lock(&mu_);
      sent.Swap(&writing_message_);
      is_writing_ = false;
      if (!ok) stopped_ = true;
      next = Advance();
    }
    Go(next);
  }

  // Nothing is sent after this.
  void Stop() {
    Next next;
    {
      MutexLock lock(&mu_);
      stopped_ = true;
      next = Advance();
    }
    Go(next);
  }

  // Ends the stream, with the status `why`, unless it has ended.
  void GiveUp(absl::Status why) {
    {
      MutexLock lock(&mu_);
      if (is_over_) return;
      if (!given_up_.has_value()) given_up_ = std::move(why);
    }
    context_.TryCancel();
  }

  // Waits for the last callback, including the callbacks of requests that expire.
  void WaitForEnd() {
    {
      MutexLock lock(&mu_);
      while (!is_over_) changed_.Wait(&mu_);
    }
    deadlines_.Stop();
  }

  // gRPC calls this last.
  void OnDone(const grpc::Status& status) override {
    std::vector<Pending> unanswered;
    absl::Status why;
    {
      MutexLock lock(&mu_);
      stopped_ = true;
      if (given_up_.has_value()) {
        end_ = *given_up_;
      } else if (!status.ok() || !is_closed_) {
        end_ = Unanswered(status);
      }
      why = end_.ok() ? Unanswered(status) : end_;
      for (auto& [id, pending] : pending_) unanswered.push_back(std::move(pending));
      pending_.clear();
      outgoing_.clear();
    }
    for (Pending& pending : unanswered) End(std::move(pending), why);
    MutexLock lock(&mu_);
    is_over_ = true;
    changed_.SignalAll();
  }

  // Decides which operations can be started.
  Next Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    Next next;
    if (is_writing_) return next;
    if (stopped_) {
      next.remove_hold = has_hold_;
      has_hold_ = false;
    } else if (!outgoing_.empty()) {
      writing_message_.Swap(&outgoing_.front().message);
      outgoing_.pop_front();
      is_writing_ = next.write = true;
      next.is_followed = !outgoing_.empty();
    } else if (is_closed_ && !half_closed_) {
      half_closed_ = is_writing_ = next.writes_done = true;
    }
    return next;
  }

  // Call it without the lock, because gRPC may send within these calls.
  void Go(const Next& next) {
    if (next.write) {
      grpc::WriteOptions options;
      // Messages that are ready together are sent together.
      if (next.is_followed) options.set_buffer_hint();
      StartWrite(&writing_message_, options);
    }
    if (next.writes_done) StartWritesDone();
    if (next.remove_hold) RemoveHold();
  }

  const ForwardStreamOptions options_;
  grpc::GenericStub stub_;
  grpc::ClientContext context_;  // refers to the stub's channel
  std::atomic<uint64_t> next_id_{1};
  Deadlines deadlines_;
  grpc::ByteBuffer incoming_;         // owned by gRPC while it reads
  grpc::ByteBuffer writing_message_;  // owned by gRPC while is_writing_

  mutable Mutex mu_;
  CondVar changed_;
  std::unordered_map<uint64_t, Pending> pending_ ABSL_GUARDED_BY(mu_);
  std::deque<Outgoing> outgoing_ ABSL_GUARDED_BY(mu_);
  bool is_writing_ ABSL_GUARDED_BY(mu_) = false;
  bool has_hold_ ABSL_GUARDED_BY(mu_) = true;
  bool is_closed_ ABSL_GUARDED_BY(mu_) = false;                // its owner closed it
  bool half_closed_ ABSL_GUARDED_BY(mu_) = false;              // the server was told that no more requests come
  bool stopped_ ABSL_GUARDED_BY(mu_) = false;                  // nothing more is sent
  std::optional<absl::Status> given_up_ ABSL_GUARDED_BY(mu_);  // why this side ended the stream
  absl::Status end_ ABSL_GUARDED_BY(mu_);                      // the status with which the stream ended
  bool is_over_ ABSL_GUARDED_BY(mu_) = false;                  // the last callback has run
};

ForwardStream::ForwardStream(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
ForwardStream::~ForwardStream() = default;

absl::StatusOr<std::unique_ptr<ForwardStream>> ForwardStream::Open(
    const std::shared_ptr<grpc::ChannelInterface>& channel, const std::string& authorization,
    const ForwardStreamOptions& options) {
  SY_RETURN_IF_ERROR(CheckOptions(options));
  return std::unique_ptr<ForwardStream>(new ForwardStream(std::make_unique<Impl>(channel, authorization, options)));
}

uint64_t ForwardStream::Submit(const ForwardArgs& args, Callback done) { return impl_->Submit(args, std::move(done)); }
void ForwardStream::Cancel(uint64_t id) { impl_->Cancel(id); }
absl::Status ForwardStream::Close() { return impl_->Close(); }
absl::Status ForwardStream::status() const { return impl_->status(); }

absl::StatusOr<ForwardResult> ForwardStream::Forward(const ForwardArgs& args) {
  Mutex mu;
  CondVar answered;
  std::optional<absl::StatusOr<ForwardResult>> result;
  Submit(args, [&](absl::StatusOr<ForwardResult> value) {
    MutexLock lock(&mu);
    result = std::move(value);
    answered.Signal();  // under the lock: the waiter may not destroy `answered` before we are done with it
  });
  MutexLock lock(&mu);
  while (!result.has_value()) answered.Wait(&mu);
  return *std::move(result);
}

}  // namespace switchyard
