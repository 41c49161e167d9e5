#include "server/group/worker_group.h"

#include <string>

namespace switchyard {

absl::StatusOr<std::unique_ptr<WorkerGroup>> WorkerGroup::Create(const LinkLayout& layout,
                                                                 const SchedulerOptions& scheduler_options,
                                                                 const GroupOptions& options, Metrics* metrics) {
  std::unique_ptr<WorkerGroup> made(new WorkerGroup);
  std::vector<LinkBuffers*> links;
  for (int rank = 0; rank < options.membership.num_ranks; ++rank) {
    SY_ASSIGN_OR_RETURN(auto buffers, LinkBuffers::Create(layout));
    links.push_back(buffers.get());
    made->links_.push_back(std::move(buffers));
  }
  made->scheduler_ =
      std::make_unique<Scheduler>(scheduler_options, links, metrics, *options.clock,
                                  [events = &made->events_](Epoch epoch, int rank, const absl::Status& why) {
                                    events->Post([epoch, rank, text = std::string(why.message())](Group& group) {
                                      group.OnStepFailed(epoch, rank, text);
                                    });
                                  });
  made->group_ = std::make_unique<Group>(options, &made->events_, links, made->scheduler_.get(), metrics);
  return made;
}

}  // namespace switchyard
