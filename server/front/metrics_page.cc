#include "server/front/metrics_page.h"

#include <iterator>

namespace switchyard {

std::vector<prometheus::MetricFamily> MetricsPage::Collect() const {
  const Admission::Held held = front_->held();
  front_->metrics().SetQueue(held.rows, held.bytes, held.requests);
  front_->metrics().SetQueuedRows(front_->load().queued_rows_by_priority);
  std::vector<prometheus::MetricFamily> all;
  for (const prometheus::Collectable* part : std::initializer_list<const prometheus::Collectable*>{
           &front_->metrics().registry(), &triton_, &gpus_, &process_}) {
    auto families = part->Collect();
    all.insert(all.end(), std::make_move_iterator(families.begin()), std::make_move_iterator(families.end()));
  }
  return all;
}

}  // namespace switchyard
