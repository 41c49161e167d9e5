// What a layer's statistics are in the KServe API's terms.
#pragma once

#include <string>

#include "proto/inference.pb.h"
#include "server/observe/layer_statistics.h"

namespace switchyard {

// `name` is the model's. Requests are inferences and steps are executions. batch_stats are those of steps, whose
// batch_size is their rows, rounded up to a power of two.
inference::ModelStatistics StatisticsOf(const std::string& name, const LayerStatistics::Snapshot& counts);

}  // namespace switchyard
