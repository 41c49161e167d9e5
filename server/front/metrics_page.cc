#include "server/front/metrics_page.h"

#include <iterator>

namespace switchyard {

std::vector<prometheus::MetricFamily> MetricsPage::Collect() const {
  const Admission::Held held = front_->held();
  front_->metrics().SetQueue(held.rows, held.bytes, held.requests);
  const Scheduler::Load load = front_->load();
  front_->metrics().SetQueuedRows(load.queued_rows_by_priority);
  front_->metrics().SetOldestStep(load.oldest_step);
  std::vector<prometheus::MetricFamily> all;
  for (const prometheus::Collectable* part : std::initializer_list<const prometheus::Collectable*>{
           &front_->metrics().registry(), &triton_, &gpus_, &process_}) {
    auto families = part->Collect();
    all.insert(all.end(), std::make_move_iterator(families.begin()), std::make_move_iterator(families.end()));
  }
  return all;
}

}  // namespace switchyard
