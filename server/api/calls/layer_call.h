// One request for a layer between its bytes and its answer, of whatever API. A unary call has one, a stream many.
#pragma once

#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <utility>

#include "base/mutex.h"
#include "server/front/front.h"
#include "server/requests/request_identity.h"

namespace switchyard {

// Derived classes say how a request is read and how it is answered. Thread-safe.
class LayerCall : public std::enable_shared_from_this<LayerCall> {
 public:
  virtual ~LayerCall() = default;

  // Reads the request and submits it, or refuses it. Once.
  virtual void Start() = 0;
  // The caller gives it up, at any time: it leaves the queue, and is answered with CANCELLED unless it is already.
  void Cancel();

  // The caller's number for it, where an API has one.
  uint64_t id() const { return id_; }

 protected:
  // `front` outlives Answer and Refuse; `identity` is the call's, for log and traces, and all of a stream's share it.
  LayerCall(Front* front, std::shared_ptr<const RequestIdentity> identity, uint64_t id = 0)
      : front_(front), identity_(std::move(identity)), id_(id) {}

  Front& front() const { return *front_; }

  // Ends the reading, once: the request, complete but for `done`, or why there is none. `layer` is the one that was
  // asked for, null when that is not known.
  void Submit(absl::StatusOr<std::shared_ptr<Request>> request, const ServedLayer* layer);

  // Exactly one of the two is called, once, on any thread, perhaps before Submit returns; they answer the caller.
  // When it was submitted: it has ended, and nothing refers to the front any more. To be recorded.
  virtual void Answer(const absl::Status& status, const std::shared_ptr<Request>& request) = 0;
  // When it was not; that is recorded.
  virtual void Refuse(const absl::Status& status) = 0;

  // Metrics, log and traces of a submitted request, by its final outcome.
  void Record(const Request& request, const absl::Status& status) const;

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
