// Callers of the front: they send requests, cancel some, read their answers slowly, and hold every answer against the
// plain reference and against what the caller of this request may get.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/simulation/front.h"

namespace switchyard::simulation {

struct CallersOptions {
  int64_t max_rows = 8;
  Nanos slowest_reader{};
  int max_submissions = 8;
  int percent_poisoned = 0;
};

class Callers {
 public:
  // `fail` is told what must not be.
  Callers(EventLoop* loop, Front* front, const CallersOptions& options, std::function<void(const std::string&)> fail)
      : loop_(loop), front_(front), options_(options), fail_(std::move(fail)) {}
  ~Callers();

  // Sends this many requests at random times within `span`.
  void SendWithin(int count, Nanos span);
  // Sends a request that is neither poisoned nor cancelled nor limited in time. Its answer is kept until LetGo.
  void SendPlain(Checkpoint& checkpoint, int64_t num_rows);
  void LetGo();

  // Requests that are not answered yet, and answers that are not read yet.
  int num_open() const { return num_open_; }
  int num_unread() const { return num_unread_; }
  int num_to_send() const { return num_to_send_; }
  int64_t num_of(absl::StatusCode code) const { return counts_[static_cast<size_t>(code)]; }
  // Requests that still exist.
  int NumLeaked() const;
  std::string Describe() const;

 private:
  struct Call {
    int64_t id = 0;
    std::shared_ptr<Request> request;  // until the answer has been read
    std::weak_ptr<Request> weak;
    ModelId model;
    uint64_t version = 0;
    int layer_idx = 0;
    LayerSpec spec;
    std::vector<float> values;
    absl::Status status;
    int num_ends = 0;
    bool was_cancelled = false, is_kept = false;
    int64_t formations_before = 0;
  };

  std::shared_ptr<Call> Make(const std::shared_ptr<ServedModel>& model, int64_t num_rows);
  void SendRandom();
  void Adorn(Call& call);
  void Submit(const std::shared_ptr<Call>& call);
  void End(const std::shared_ptr<Call>& call, const absl::Status& status);
  void CheckStatus(const Call& call);
  void CheckRows(const Call& call, const char* when);
  void Read(const std::shared_ptr<Call>& call);

  EventLoop* const loop_;
  Front* const front_;
  const CallersOptions options_;
  const std::function<void(const std::string&)> fail_;
  std::vector<std::shared_ptr<Call>> calls_;
  int num_open_ = 0, num_unread_ = 0, num_to_send_ = 0, num_gate_poisons_ = 0;
  std::vector<int64_t> counts_ = std::vector<int64_t>(20);
};

}  // namespace switchyard::simulation
