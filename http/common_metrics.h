// Metrics, and parts of metrics, that front and workers share.
#pragma once

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

namespace switchyard {

// 10 µs to 10 s, three buckets a decade.
const prometheus::Histogram::BucketBoundaries& SecondsBuckets();

// A metric without labels.
prometheus::Counter& SingleCounter(prometheus::Registry& registry, const char* name, const char* help);
prometheus::Gauge& SingleGauge(prometheus::Registry& registry, const char* name, const char* help);

// switchyard_build_info.
void AddBuildInfo(prometheus::Registry& registry);

}  // namespace switchyard
