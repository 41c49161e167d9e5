#include "moe/weights/weight_source.h"

#include "moe/weights/checkpoint_source.h"
#include "moe/weights/synthetic.h"

namespace switchyard {

absl::StatusOr<std::unique_ptr<WeightSource>> OpenWeightSource(const std::string& location) {
  if (!location.starts_with(kSyntheticPrefix)) return OpenCheckpointSource(location);
  SY_ASSIGN_OR_RETURN(const SyntheticOptions options,
                      SyntheticOptions::Parse(std::string_view(location).substr(kSyntheticPrefix.size())));
  return MakeSyntheticSource(options);
}

}  // namespace switchyard
