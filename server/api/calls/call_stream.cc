#include "server/api/calls/call_stream.h"

#include <deque>
#include <utility>
#include <vector>

#include "base/mutex.h"

namespace switchyard {

class CallStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  CallStream(std::unique_ptr<StreamProtocol> protocol, const StreamLimits& limits)
      : limits_(limits), protocol_(std::move(protocol)) {
    StartRead(&incoming_);
  }

  void Answer(int slot, grpc::ByteBuffer* message) {
    std::shared_ptr<LayerCall> ended;  // released outside the lock; the thread that brings the answer holds it too
    Next next;
    {
      MutexLock lock(&mu_);
      ended.swap(slots_[slot].call);
      --num_running_;
      Outgoing& outgoing = outgoing_.emplace_back();
      outgoing.message.Swap(message);
      outgoing.num_bytes = slots_[slot].num_bytes;
      free_slots_.push_back(slot);
      next = Advance();
    }
    Go(next);
  }

 private:
  // A request that is running.
  struct Slot {
    std::shared_ptr<LayerCall> call;  // null while the slot is free, and before the message is read
    int64_t num_bytes = 0;            // size of its message
  };
  struct Outgoing {
    grpc::ByteBuffer message;
    int64_t num_bytes = 0;  // size of its request
  };
  // The operations to start once the lock is released. The stream does not end while any of them is left.
  struct Next {
    const grpc::ByteBuffer* write = nullptr;
    bool is_followed = false;  // another write comes at once
    bool read = false;
    bool finish = false;
  };

  void OnReadDone(bool ok) override {
    if (ok) Handle();
    Next next;
    {
      MutexLock lock(&mu_);
      if (!ok) ended_ = true;
      reading_ = false;
      next = Advance();
    }
    Go(next);
  }

  // Handles the message that was read. The stream counts as reading meanwhile, so that it cannot end.
  void Handle() {
    grpc::ByteBuffer message;
    message.Swap(&incoming_);
    const auto num_bytes = static_cast<int64_t>(message.Length());
    const int slot = TakeSlot(num_bytes);
    const StreamProtocol::Action action = protocol_->Read(message, StreamReply(this, slot));
    bool is_broken;
    {
      MutexLock lock(&mu_);
      is_broken = broken_;
      if (action.call == nullptr || is_broken) {
        ReleaseSlot(slot);
      } else {
        slots_[slot].call = action.call;
      }
    }
    if (is_broken) return;
    if (action.call != nullptr) action.call->Start();
    if (action.cancel.has_value()) CancelIf([id = *action.cancel](const LayerCall& call) { return call.id() == id; });
  }

  int TakeSlot(int64_t num_bytes) {
    MutexLock lock(&mu_);
    if (free_slots_.empty()) {
      free_slots_.push_back(static_cast<int>(slots_.size()));
      slots_.emplace_back();
    }
    const int slot = free_slots_.back();
    free_slots_.pop_back();
    slots_[slot].num_bytes = num_bytes;
    ++num_running_;
    ++held_requests_;
    held_bytes_ += num_bytes;
    return slot;
  }

  // Frees the slot of a message that is not answered.
  void ReleaseSlot(int slot) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    --num_running_;
    --held_requests_;
    held_bytes_ -= slots_[slot].num_bytes;
    free_slots_.push_back(slot);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) Break();
    grpc::ByteBuffer written;  // freed outside the lock
    Next next;
    {
      MutexLock lock(&mu_);
      writing_ = false;
      written.Swap(&outgoing_.front().message);
      --held_requests_;
      held_bytes_ -= outgoing_.front().num_bytes;
      outgoing_.pop_front();
      next = Advance();
    }
    Go(next);
  }

  void OnCancel() override {
    Break();
    Next next;
    {
      MutexLock lock(&mu_);
      next = Advance();
    }
    Go(next);
  }

  // The caller is gone.
  void Break() {
    {
      MutexLock lock(&mu_);
      broken_ = true;
    }
    CancelIf([](const LayerCall&) { return true; });
  }

  template <typename Predicate>
  void CancelIf(Predicate predicate) {
    std::vector<std::shared_ptr<LayerCall>> calls;
    {
      MutexLock lock(&mu_);
      for (const Slot& slot : slots_) {
        if (slot.call != nullptr && predicate(*slot.call)) calls.push_back(slot.call);
      }
    }
    for (const auto& call : calls) call->Cancel();
  }

  void OnDone() override { delete this; }

  // Decides which operations can be started: the next write, the next read, or the end.
  Next Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    Next next;
    if (!writing_ && !broken_ && !outgoing_.empty()) {
      writing_ = true;
      next.write = &outgoing_.front().message;
      next.is_followed = outgoing_.size() > 1;
    }
    if (!reading_ && !ended_ && !broken_ && HasRoom()) {
      reading_ = true;
      next.read = true;
    }
    if (finished_ || reading_ || writing_ || num_running_ > 0) return next;
    finished_ = ended_ || broken_;
    next.finish = finished_;
    return next;
  }

  // Call it without the lock, because gRPC may send within these calls. The object may be gone once the last of them
  // has started.
  void Go(const Next& next) {
    if (next.write != nullptr) {
      grpc::WriteOptions options;
      // Messages that are ready together are sent together.
      if (next.is_followed) options.set_buffer_hint();
      StartWrite(next.write, options);
    }
    if (next.read) StartRead(&incoming_);
    if (next.finish) Finish(grpc::Status::OK);
  }

  bool HasRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return held_requests_ == 0 || (held_requests_ < limits_.max_requests && held_bytes_ < limits_.max_bytes);
  }

  const StreamLimits limits_;
  const std::unique_ptr<StreamProtocol> protocol_;
  grpc::ByteBuffer incoming_;  // owned by gRPC while reading_

  Mutex mu_;
  std::vector<Slot> slots_ ABSL_GUARDED_BY(mu_);
  std::vector<int> free_slots_ ABSL_GUARDED_BY(mu_);
  std::deque<Outgoing> outgoing_ ABSL_GUARDED_BY(mu_);  // the first is being written when writing_
  int num_running_ ABSL_GUARDED_BY(mu_) = 0;            // slots taken
  int held_requests_ ABSL_GUARDED_BY(mu_) = 0;          // running or outgoing
  int64_t held_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool reading_ ABSL_GUARDED_BY(mu_) = true;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;   // the caller sends no more
  bool broken_ ABSL_GUARDED_BY(mu_) = false;  // the caller is gone
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

void StreamReply::Send(grpc::ByteBuffer* answer) const { stream_->Answer(slot_, answer); }

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* NewCallStream(std::unique_ptr<StreamProtocol> protocol,
                                                                           const StreamLimits& limits) {
  return new CallStream(std::move(protocol), limits);
}

}  // namespace switchyard
