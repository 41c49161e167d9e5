#include "server/rpc/kserve_stream.h"

#include <deque>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "moe/base/mutex.h"
#include "server/rpc/forward_request.h"
#include "server/rpc/kserve_infer_call.h"

namespace switchyard {
namespace {

class InferStream final : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  InferStream(Front* front, const KserveModels* models, MemoryAccess access, RequestIdentity identity,
              const StreamLimits& limits)
      : front_(front), models_(models), access_(std::move(access)), identity_(std::move(identity)), limits_(limits) {
    MutexLock lock(&mu_);
    reading_ = true;
    StartRead(&incoming_);
  }

 private:
  struct Outgoing {
    grpc::ByteBuffer message;
    int64_t held_bytes = 0;  // of its request
  };

  void OnReadDone(bool ok) override {
    if (ok) StartCall();
    bool finish;
    {
      MutexLock lock(&mu_);
      if (!ok) ended_ = true;
      reading_ = false;
      finish = Advance();
    }
    if (finish) Finish(grpc::Status::OK);
  }

  // Runs what was read. The stream counts as reading all the while, so that it cannot end.
  void StartCall() {
    grpc::ByteBuffer message;
    message.Swap(&incoming_);
    const auto num_bytes = static_cast<int64_t>(message.Length());
    std::shared_ptr<InferCall> call;
    {
      MutexLock lock(&mu_);
      const int64_t number = ++num_read_;
      call = std::make_shared<InferCall>(
          front_, models_, access_, identity_,
          [this, number, num_bytes](const InferAnswer& answer) { Answer(number, num_bytes, answer); });
      running_[number] = call;
      ++held_requests_;
      held_bytes_ += num_bytes;
    }
    call->Start(message);
    bool is_broken;
    {
      MutexLock lock(&mu_);
      is_broken = broken_;
    }
    if (is_broken) call->Cancel();  // it was submitted after CancelAll had looked
  }

  void Answer(int64_t number, int64_t num_bytes, const InferAnswer& answer) {
    const grpc::ByteBuffer message = answer.status.ok() ? EncodeStreamInfer(answer.head, answer.tensors)
                                                        : EncodeStreamError(answer.head, answer.status);
    bool finish;
    {
      MutexLock lock(&mu_);
      running_.erase(number);                     // whoever brings the answer still holds the call
      outgoing_.push_back({message, num_bytes});  // shares the slices
      finish = Advance();
    }
    if (finish) Finish(grpc::Status::OK);
  }

  void OnWriteDone(bool ok) override {
    if (!ok) CancelAll();
    bool finish;
    {
      MutexLock lock(&mu_);
      writing_ = false;
      --held_requests_;
      held_bytes_ -= outgoing_.front().held_bytes;
      outgoing_.pop_front();
      finish = Advance();
    }
    if (finish) Finish(grpc::Status::OK);
  }

  void OnCancel() override {
    CancelAll();
    bool finish;
    {
      MutexLock lock(&mu_);
      finish = Advance();
    }
    if (finish) Finish(grpc::Status::OK);
  }

  void CancelAll() {
    std::vector<std::shared_ptr<InferCall>> calls;
    {
      MutexLock lock(&mu_);
      broken_ = true;
      for (const auto& [number, call] : running_) calls.push_back(call);
    }
    for (const auto& call : calls) call->Cancel();
  }

  void OnDone() override { delete this; }

  // Starts the next write and the next read, if they can be. True when the stream is over: then the caller finishes it,
  // outside the lock, and touches it no more. The starts only enqueue, gRPC does not call back from them.
  bool Advance() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    if (!writing_ && !broken_ && !outgoing_.empty()) {
      writing_ = true;
      StartWrite(&outgoing_.front().message);
    }
    if (!reading_ && !ended_ && !broken_ && HasRoom()) {
      reading_ = true;
      StartRead(&incoming_);
    }
    if (finished_ || reading_ || writing_ || !running_.empty()) return false;
    finished_ = ended_ || broken_;
    return finished_;
  }

  bool HasRoom() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return held_requests_ == 0 || (held_requests_ < limits_.max_requests && held_bytes_ < limits_.max_bytes);
  }

  Front* const front_;
  const KserveModels* const models_;
  const MemoryAccess access_;
  const RequestIdentity identity_;
  const StreamLimits limits_;
  grpc::ByteBuffer incoming_;  // gRPC's while reading_

  Mutex mu_;
  int64_t num_read_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<int64_t, std::shared_ptr<InferCall>> running_ ABSL_GUARDED_BY(mu_);  // by the number of their arrival
  std::deque<Outgoing> outgoing_ ABSL_GUARDED_BY(mu_);  // the first is being written when writing_
  int held_requests_ ABSL_GUARDED_BY(mu_) = 0;          // running or outgoing
  int64_t held_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool reading_ ABSL_GUARDED_BY(mu_) = false;
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;   // the caller sends no more
  bool broken_ ABSL_GUARDED_BY(mu_) = false;  // the caller is gone
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* NewInferStream(Front* front, const KserveModels* models,
                                                                            MemoryAccess access,
                                                                            grpc::CallbackServerContext* context,
                                                                            const StreamLimits& limits) {
  return new InferStream(front, models, std::move(access), IdentifyCall(context), limits);
}

}  // namespace switchyard
