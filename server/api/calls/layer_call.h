// One request for a layer, of either API, from its bytes to its answer. A unary call has one, a stream has many.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "base/mutex.h"
#include "rpc/slice_stream.h"
#include "server/front/front.h"
#include "server/requests/request_identity.h"

namespace switchyard {

// Derived classes define how a request is read and how it is answered. Thread-safe.
class LayerCall : public std::enable_shared_from_this<LayerCall> {
 public:
  virtual ~LayerCall() = default;

  // Reads the request and submits it, or refuses it. Call it once.
  virtual void Start() = 0;
  // Gives the request up, at any time. It leaves the queue and is answered with CANCELLED, unless it has been answered.
  void Cancel();

  // The caller's number for the request, where an API has one.
  uint64_t id() const { return id_; }

 protected:
  // `front` must outlive Answer and Refuse. `identity` is the call's, for log and traces; all requests of a stream
  // share it.
  LayerCall(Front* front, std::shared_ptr<const RequestIdentity> identity, uint64_t id = 0)
      : front_(front), identity_(std::move(identity)), id_(id) {}

  Front& front() const { return *front_; }

  // Ends the reading; call it once. `request` is complete but for `done`, or the reason why there is none. `layer` is
  // the requested layer; null when it is not known.
  void Submit(absl::StatusOr<std::shared_ptr<Request>> request, const ServedLayer* layer);

  // Exactly one of the two is called, once, on any thread, perhaps before Submit returns. They answer the caller.
  //
  // Answers a request that was submitted and has ended; nothing refers to the front any more. Answer has to call
  // Record.
  virtual void Answer(const absl::Status& status, const std::shared_ptr<Request>& request) = 0;
  // Answers a request that was not submitted; this is already recorded.
  virtual void Refuse(const absl::Status& status) = 0;

  // Records a submitted request in metrics, log and traces, by its final outcome.
  void Record(const Request& request, const absl::Status& status) const;
  // The output rows of an answered request, where they lie. They keep the request's part of the budget of bytes.
  static TensorSlices OutputSlices(const Request& request);

 private:
  absl::Status TrySubmit(absl::StatusOr<std::shared_ptr<Request>> made);
  void OnDone(const std::shared_ptr<Request>& request, const absl::Status& status);

  Front* const front_;
  const std::shared_ptr<const RequestIdentity> identity_;
  const uint64_t id_;

  Mutex mu_;
  std::shared_ptr<Request> request_ ABSL_GUARDED_BY(mu_);  // while it is submitted and unanswered
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace switchyard
