// One ModelInfer request between its bytes and its answer. A unary call has one, a stream many.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moe/base/mutex.h"
#include "server/front.h"
#include "server/request_identity.h"
#include "server/rpc/kserve_infer_request.h"
#include "server/rpc/kserve_models.h"

namespace switchyard {

struct InferAnswer {
  absl::Status status;
  inference::ModelInferResponse head;  // of a request that failed, its id alone
  std::vector<TensorSlices> tensors;   // of head's outputs
};

// Thread-safe.
class InferCall : public std::enable_shared_from_this<InferCall> {
 public:
  using AnswerFn = std::function<void(const InferAnswer&)>;

  // `answer` is called exactly once, on any thread, perhaps before Start returns; what was submitted has ended then and
  // nothing refers to the front any more. All pointers outlive that. `access` is the shared memory that the caller may
  // use; `identity` is for the log.
  InferCall(Front* front, const KserveModels* models, MemoryAccess access, RequestIdentity identity, AnswerFn answer)
      : front_(front),
        models_(models),
        access_(std::move(access)),
        identity_(std::move(identity)),
        answer_(std::move(answer)) {}

  // Once.
  void Start(const grpc::ByteBuffer& bytes);
  // The caller is gone: the request leaves the queue.
  void Cancel();

 private:
  // Start's parts, one after the other: everything is checked, the rows are read when they are in shared memory, which
  // may go on in another thread, and the request is submitted.
  absl::Status Prepare(const grpc::ByteBuffer& bytes);
  void ReadRows();
  void SubmitOrRefuse(absl::Status status);
  absl::Status Submit();
  // Ends the request with DEADLINE_EXCEEDED when it is not answered by then.
  void SetTimeout();
  void OnTimeout(bool expired);
  void OnDone(const absl::Status& status);
  // Writes the outputs that go to shared memory, which may go on in another thread, and then calls Deliver.
  void WriteOutputs(const std::shared_ptr<Request>& request);
  void Deliver(const Request& request, const absl::Status& written);
  // One of the things that `answer_` waits for has ended; the last of them calls it.
  void Release();
  void FillAnswer(const Request& request);

  Front* const front_;
  const KserveModels* const models_;
  const MemoryAccess access_;
  const RequestIdentity identity_;
  const AnswerFn answer_;

  // Written by Start and its parts; by OnDone and its parts, once, after that.
  const KserveModels::Entry* entry_ = nullptr;
  InferRequest infer_;  // its request is moved to request_
  InferAnswer result_;

  Mutex mu_;
  std::shared_ptr<Request> request_ ABSL_GUARDED_BY(mu_);      // while it is submitted and unanswered
  std::unique_ptr<grpc::Alarm> timeout_ ABSL_GUARDED_BY(mu_);  // of a request that has one
  bool timed_out_ ABSL_GUARDED_BY(mu_) = false;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;  // by the caller, perhaps before the request is submitted
  int pending_ ABSL_GUARDED_BY(mu_) = 1;         // the request, and its timeout when it has one
};

}  // namespace switchyard
