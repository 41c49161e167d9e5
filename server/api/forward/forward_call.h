// One Forward request, from a unary call or from a stream.
#pragma once

#include <functional>

#include "server/api/calls/layer_call.h"
#include "server/api/forward/forward_codec.h"

namespace switchyard {

v1::DataType ToWire(DType dtype);

struct ForwardAnswer {
  absl::Status status;
  uint64_t id = 0;
  // When the status is OK:
  v1::ForwardResponse head;  // without rows
  TensorSlices rows;
};

// Thread-safe.
class ForwardCall final : public LayerCall {
 public:
  using AnswerFn = std::function<void(const ForwardAnswer&)>;

  struct Options {
    std::shared_ptr<const RequestIdentity> identity;
    uint64_t id = 0;
    bool returns_stats = false;  // unless the request says otherwise
  };

  // `decoded` may be an error, which is then the answer. `answer` is called exactly once, on any thread, perhaps before
  // Start returns; nothing refers to the front any more when it is called.
  ForwardCall(Front* front, Options options, absl::StatusOr<DecodedForward> decoded, AnswerFn answer)
      : LayerCall(front, std::move(options.identity), options.id),
        decoded_(std::move(decoded)),
        returns_stats_(options.returns_stats),
        answer_(std::move(answer)) {}

  void Start() override;

 private:
  absl::StatusOr<std::shared_ptr<Request>> MakeRequest(std::shared_ptr<ServedLayer>* layer);
  void Answer(const absl::Status& status, const std::shared_ptr<Request>& request) override;
  void Refuse(const absl::Status& status) override;

  absl::StatusOr<DecodedForward> decoded_;  // until Start makes a request of it
  bool returns_stats_;
  const AnswerFn answer_;
};

}  // namespace switchyard
