// Parts of models that a worker keeps while it has no front, so that it need not read them anew for the next one.
//
// A part fits a share of the next front if it was made of the same experts of the same files, in the same order, for
// the same compute type and number of rows. The files are compared by what this host sees of them, because a front on
// another host cannot tell.
//
// Thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/mutex.h"
#include "proto/worker.pb.h"
#include "worker/loading/rank_experts.h"

namespace switchyard {

class KeptParts {
 public:
  void Keep(std::unique_ptr<ModelPart> part);

  // Takes a part that fits `share`, and gives it the share's numbers and name. `file_identity` is what the share's
  // files have now (WeightSource::FileIdentity). Null when no part fits.
  std::unique_ptr<ModelPart> Take(const worker::ModelShare& share, uint64_t file_identity);
  std::vector<std::unique_ptr<ModelPart>> TakeAll();

  int64_t weight_bytes() const;

 private:
  mutable Mutex mu_;
  std::vector<std::unique_ptr<ModelPart>> parts_ ABSL_GUARDED_BY(mu_);
};

}  // namespace switchyard
