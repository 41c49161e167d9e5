// The steps between their submission and their last result, the slots that they take, and the group that runs them.
//
// A step stays here until every rank has answered under the epoch of its last submission. When the group breaks, its
// steps keep their rows and plans; they are submitted again, in order, once a group has formed under a newer epoch.
//
// A state machine without threads, I/O or locks. Thread-compatible: the scheduler guards it.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "base/status.h"
#include "server/links/link.h"
#include "server/steps/step.h"

namespace switchyard {

// A group that has formed. connections[r] leads to rank r.
struct FormedGroup {
  Epoch epoch;
  std::vector<std::shared_ptr<LinkConnection>> connections;
};

class StepsInFlight {
 public:
  // A step that is submitted more than `max_submissions` times, each time to a newly formed group, has failed for good:
  // its input is taken for the cause.
  StepsInFlight(int num_ranks, int num_slots, int max_submissions);

  // ---- The group

  // Steps in flight are to be replayed from now on.
  void SetGroup(std::shared_ptr<const FormedGroup> group);
  // The group of `epoch`, or an older one, is over. Returns it, so that its connections end outside the caller's lock.
  std::shared_ptr<const FormedGroup> LoseGroup(Epoch epoch);
  const std::shared_ptr<const FormedGroup>& group() const { return group_; }

  // ---- Slots and submission

  bool has_room() const { return !free_slots_.empty(); }
  int num_free_slots() const { return static_cast<int>(free_slots_.size()); }
  int TakeSlot();
  void ReturnSlot(int slot) { free_slots_.push_back(slot); }

  // Puts a step that is ready among those in flight. Returns the group to submit it to, or null when the step has to
  // wait for the next group; it goes out with the replays then.
  std::shared_ptr<const FormedGroup> Add(std::shared_ptr<Step> step);

  // The oldest step, if one was submitted to the group that there is now.
  struct Oldest {
    const Step* step = nullptr;
    Epoch epoch;
    int num_submissions = 0;
    std::vector<int> owing;  // the ranks that have not answered
  };
  std::optional<Oldest> oldest_running() const;
  // The oldest step, running or not; null when there is none.
  const Step* oldest() const { return steps_.empty() ? nullptr : steps_.begin()->second.step.get(); }

  bool empty() const { return steps_.empty(); }
  int size() const { return static_cast<int>(steps_.size()); }
  // The steps' pieces of requests.
  std::vector<std::shared_ptr<Request>> TakeRequests();

  // ---- Replay

  // Whether steps wait for a group to be submitted again.
  bool has_replays() const { return has_replays_; }
  // Whether they can be submitted now: there is a group, and no result of an older one is still being copied.
  bool can_replay() const { return has_replays_ && group_ != nullptr && num_receiving_ == 0; }
  struct Replays {
    std::vector<std::shared_ptr<Step>> steps;                              // in order, oldest first
    std::vector<std::pair<std::shared_ptr<Step>, absl::Status>> hopeless;  // not to be submitted again, and why
    std::shared_ptr<const FormedGroup> group;
  };
  // Only while can_replay().
  Replays TakeReplays();

  // ---- Results

  // The step that a result is for; null when the result is of an older epoch, of a step that is over, or has come
  // before. The caller copies the rows that came with it and calls EndResult.
  std::shared_ptr<Step> BeginResult(int rank, const ResultMessage& result);
  struct Finished {
    int num_submissions = 0;
    StepTimes slowest;  // of each stage, the time of the slowest rank
  };
  // Counts the result that BeginResult began. Returns a value when it was the step's last: the step has left.
  std::optional<Finished> EndResult(const Step& step, int rank, const ResultMessage& result);
  // Gives up the result that BeginResult began.
  void DropResult() { --num_receiving_; }

  // ---- Layers that were given up

  // Steps of these layers fail with `why` instead of being replayed. Only while there is no group.
  void FailLayers(const std::vector<LayerId>& layers, const absl::Status& why);
  // Forgets layers of a model that no request uses any more.
  void DropLayers(const std::vector<LayerId>& layers);
  // Not OK for a layer that was given up.
  absl::Status CheckLayer(LayerId layer) const;

 private:
  struct Flight {
    std::shared_ptr<Step> step;
    Epoch epoch;                 // of the last submission
    std::vector<bool> answered;  // by rank
    int num_unanswered = 0;
    int num_submissions = 0;
    StepTimes slowest;
  };

  void BeginSubmission(Flight& flight) const;
  // The flight that a result belongs to, if it still counts.
  Flight* FindFlight(int rank, StepId step, Epoch epoch);

  const int num_ranks_;
  const int max_submissions_;
  std::shared_ptr<const FormedGroup> group_;  // null while there is none
  bool has_replays_ = false;
  int num_receiving_ = 0;           // results between BeginResult and their end
  std::map<StepId, Flight> steps_;  // oldest first
  std::vector<int> free_slots_;
  std::map<LayerId, absl::Status> failed_layers_;
};

}  // namespace switchyard
