// Presents a layer's statistics in the KServe API's terms.
#pragma once

#include <string>

#include "proto/inference.pb.h"
#include "server/observe/layer_statistics.h"

namespace switchyard {

// `name` is the model's name. Requests count as inferences and steps as executions. batch_stats are statistics of
// steps; their batch_size is the steps' rows, rounded up to a power of two.
inference::ModelStatistics StatisticsOf(const std::string& name, const LayerStatistics::Snapshot& counts);

}  // namespace switchyard
