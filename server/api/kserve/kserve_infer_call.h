// One ModelInfer request, from a unary call or from a stream.
#pragma once

#include <functional>
#include <vector>

#include "server/api/calls/layer_call.h"
#include "server/api/kserve/control/kserve_models.h"
#include "server/api/kserve/kserve_infer_request.h"

namespace switchyard {

struct InferAnswer {
  absl::Status status;
  inference::ModelInferResponse head;  // has only the id when the request failed
  std::vector<TensorSlices> tensors;   // one for each of head's outputs
};

// Thread-safe.
class InferCall final : public LayerCall {
 public:
  using AnswerFn = std::function<void(const InferAnswer&)>;

  // Start reads `bytes`. `answer` is called exactly once, on any thread, perhaps before Start returns; nothing refers
  // to the front or the models any more when it is called. `access` is the shared memory that the caller may use;
  // `identity` is LayerCall's.
  InferCall(Front* front, const KserveModels* models, MemoryAccess access,
            std::shared_ptr<const RequestIdentity> identity, const grpc::ByteBuffer* bytes, AnswerFn answer)
      : LayerCall(front, std::move(identity)),
        models_(models),
        access_(std::move(access)),
        bytes_(bytes),
        answer_(std::move(answer)) {}

  void Start() override;

 private:
  // The parts of Start, one after the other. Prepare checks everything. ReadRows reads rows that are in shared memory,
  // perhaps on another thread. SubmitOrRefuse submits the request.
  absl::Status Prepare();
  void ReadRows();
  void SubmitOrRefuse(absl::Status status);

  void Answer(const absl::Status& status, const std::shared_ptr<Request>& request) override;
  void Refuse(const absl::Status& status) override;
  // Writes the outputs that go to shared memory, perhaps on another thread, and then calls Deliver.
  void WriteOutputs(const std::shared_ptr<Request>& request);
  void Deliver(const Request& request, const absl::Status& written);
  void FillAnswer(const Request& request);

  std::shared_ptr<InferCall> shared() { return std::static_pointer_cast<InferCall>(shared_from_this()); }

  const KserveModels* const models_;
  const MemoryAccess access_;
  const grpc::ByteBuffer* const bytes_;
  const AnswerFn answer_;

  // Start and its parts write these; after that Answer and its parts do, once.
  std::shared_ptr<const KserveModels::Entry> entry_;  // until the request is answered
  InferRequest infer_;                                // its request is moved into Submit
  InferAnswer result_;
};

}  // namespace switchyard
