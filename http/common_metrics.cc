#include "http/common_metrics.h"

#include <string>

#include "base/version.h"
#include "rpc/build_fingerprint.h"
#include "rpc/version_line.h"

namespace switchyard {

const prometheus::Histogram::BucketBoundaries& SecondsBuckets() {
  static const prometheus::Histogram::BucketBoundaries buckets = {
      1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1, 2, 5, 10};
  return buckets;
}

prometheus::Counter& SingleCounter(prometheus::Registry& registry, const char* name, const char* help) {
  return prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add({});
}

prometheus::Gauge& SingleGauge(prometheus::Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry).Add({});
}

void AddBuildInfo(prometheus::Registry& registry) {
  prometheus::BuildGauge()
      .Name("switchyard_build_info")
      .Help("Always 1; the labels tell the version, the commit and the build.")
      .Register(registry)
      .Add({{"version", std::string(kVersion)},
            {"commit", std::string(BuildCommit())},
            {"build", std::string(kBuildFingerprint)}})
      .Set(1);
}

}  // namespace switchyard
