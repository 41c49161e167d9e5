// One worker group with everything that it needs: the links' memory, the scheduler of its steps, and the group itself.
//
// The order of the members is the order of their lives. The group ends first: its thread and the links' readers, which
// call the scheduler, are gone before the scheduler is. The queue of events outlives both, because the scheduler posts
// to it. The links' memory outlives them all.
#pragma once

#include <memory>
#include <vector>

#include "base/status.h"
#include "server/group/group.h"
#include "server/group/group_events.h"
#include "server/links/link.h"
#include "server/observe/metrics.h"
#include "server/steps/scheduler.h"

namespace switchyard {

// Thread-safe.
class WorkerGroup {
 public:
  // A link of `layout` for each of options.membership.num_ranks. `metrics` outlives the group.
  static absl::StatusOr<std::unique_ptr<WorkerGroup>> Create(const LinkLayout& layout,
                                                             const SchedulerOptions& scheduler_options,
                                                             const GroupOptions& options, Metrics* metrics);

  Scheduler& scheduler() { return *scheduler_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  Group& group() { return *group_; }
  const Group& group() const { return *group_; }

 private:
  WorkerGroup() = default;

  std::vector<std::unique_ptr<LinkBuffers>> links_;  // by rank
  GroupEvents events_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<Group> group_;
};

}  // namespace switchyard
