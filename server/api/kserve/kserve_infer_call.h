// One ModelInfer request, of a call of its own or of a stream.
#pragma once

#include <functional>
#include <vector>

#include "server/api/calls/layer_call.h"
#include "server/api/kserve/kserve_infer_request.h"
#include "server/api/kserve/kserve_models.h"

namespace switchyard {

struct InferAnswer {
  absl::Status status;
  inference::ModelInferResponse head;  // of a request that failed, its id alone
  std::vector<TensorSlices> tensors;   // of head's outputs
};

// Thread-safe.
class InferCall final : public LayerCall {
 public:
  using AnswerFn = std::function<void(const InferAnswer&)>;

  // `bytes` are read by Start. `answer` is called exactly once, on any thread, perhaps before Start returns; nothing
  // refers to the front or the models any more then. `access` is the shared memory that the caller may use; `identity`
  // as of LayerCall.
  InferCall(Front* front, const KserveModels* models, MemoryAccess access,
            std::shared_ptr<const RequestIdentity> identity, const grpc::ByteBuffer* bytes, AnswerFn answer)
      : LayerCall(front, std::move(identity)),
        models_(models),
        access_(std::move(access)),
        bytes_(bytes),
        answer_(std::move(answer)) {}

  void Start() override;

 private:
  // Start's parts, one after the other: everything is checked, the rows are read when they are in shared memory, which
  // may go on in another thread, and the request is submitted.
  absl::Status Prepare();
  void ReadRows();
  void SubmitOrRefuse(absl::Status status);

  void Answer(const absl::Status& status, const std::shared_ptr<Request>& request) override;
  void Refuse(const absl::Status& status) override;
  // Writes the outputs that go to shared memory, which may go on in another thread, and then calls Deliver.
  void WriteOutputs(const std::shared_ptr<Request>& request);
  void Deliver(const Request& request, const absl::Status& written);
  void FillAnswer(const Request& request);

  std::shared_ptr<InferCall> shared() { return std::static_pointer_cast<InferCall>(shared_from_this()); }

  const KserveModels* const models_;
  const MemoryAccess access_;
  const grpc::ByteBuffer* const bytes_;
  const AnswerFn answer_;

  // Written by Start and its parts; by Answer and its parts, once, after that.
  std::shared_ptr<const KserveModels::Entry> entry_;  // until it is answered
  InferRequest infer_;                                // its request is moved out
  InferAnswer result_;
};

}  // namespace switchyard
