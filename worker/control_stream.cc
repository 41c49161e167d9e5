#include "worker/control_stream.h"

#include <limits>

#include "rpc/grpc_status.h"

namespace switchyard {

ControlStream::ControlStream(worker::WorkerHub::Stub* stub, const std::string& token, worker::Hello hello, Inbox* inbox,
                             std::function<void(Epoch)> on_new_epoch, std::function<void(worker::Pong*)> describe,
                             std::chrono::milliseconds silence_timeout)
    : inbox_(inbox),
      on_new_epoch_(std::move(on_new_epoch)),
      describe_(std::move(describe)),
      silence_timeout_(silence_timeout),
      writer_([this](const worker::WorkerMessage* message) { StartWrite(message); }) {
  context_.set_wait_for_ready(false);
  if (!token.empty()) context_.AddMetadata("authorization", absl::StrCat("Bearer ", token));
  stub->async()->Join(&context_, this);
  // Other threads start writes too, so a hold keeps the stream open until the read side ends it.
  AddHold();
  StartRead(&incoming_);
  StartCall();
  worker::WorkerMessage first;
  *first.mutable_hello() = std::move(hello);
  writer_.Send(std::move(first));
  if (silence_timeout_.count() > 0) ListenForSilence();
}

ControlStream::~ControlStream() {
  deadlines_.Stop();
  context_.TryCancel();
  MutexLock lock(&mu_);
  while (!done_) ended_.Wait(&mu_);
}

void ControlStream::ListenForSilence() {
  deadlines_.Add(deadlines_.NewKey(Clock::Real().Now() + silence_timeout_ / kLooks), [this] {
    if (num_silent_looks_.fetch_add(1) + 1 < kLooks) return ListenForSilence();
    context_.TryCancel();
  });
}

void ControlStream::Send(worker::WorkerMessage message) { writer_.Send(std::move(message)); }

void ControlStream::Finish() {
  writer_.Stop();
  MutexLock lock(&mu_);
  if (!is_ending_) StartWritesDone();
}

void ControlStream::OnReadDone(bool ok) {
  if (!ok) {
    writer_.Stop();
    {
      MutexLock lock(&mu_);
      is_ending_ = true;
    }
    RemoveHold();
    return;
  }
  num_silent_looks_.store(0);
  if (incoming_.has_end_group()) {
    on_new_epoch_(Epoch{incoming_.end_group().epoch() + 1});
  } else if (incoming_.has_ping()) {
    worker::WorkerMessage answer;
    answer.mutable_pong()->set_number(incoming_.ping().number());
    describe_(answer.mutable_pong());
    writer_.Send(std::move(answer));
  } else {
    if (incoming_.has_prepare_group()) on_new_epoch_(Epoch{incoming_.prepare_group().epoch()});
    inbox_->Push(std::move(incoming_));
    incoming_.Clear();
  }
  StartRead(&incoming_);
}

void ControlStream::OnWriteDone(bool ok) { writer_.OnWriteDone(ok); }

void ControlStream::OnDone(const grpc::Status& status) {
  on_new_epoch_(Epoch{std::numeric_limits<int64_t>::max()});
  if (silence_timeout_.count() > 0 && num_silent_looks_.load() >= kLooks) {
    inbox_->Close(absl::DeadlineExceededError(
        absl::StrCat("it has said nothing for ", silence_timeout_.count(), " ms, not even a ping")));
  } else {
    inbox_->Close(status.ok() ? absl::UnavailableError("the front closed the stream") : FromGrpcStatus(status));
  }
  MutexLock lock(&mu_);
  done_ = true;
  ended_.SignalAll();
}

}  // namespace switchyard
