// Hears the decisions of Membership, from within Membership's calls.
#pragma once

#include <string>

#include "base/ids.h"
#include "base/model_id.h"
#include "base/status.h"

namespace switchyard {

class MembershipListener {
 public:
  virtual ~MembershipListener() = default;
  virtual void OnGroupFormed(Epoch epoch) = 0;
  virtual void OnGroupLost(Epoch epoch, const std::string& why) = 0;
  // The group does not wait for this rank's worker, process `pid`, any longer: end the process if it is ours.
  virtual void OnWorkerGivenUp(int rank, int pid) = 0;
  // A rank cannot load a model that the group does not form without.
  virtual void OnLoadFailed(int rank, const absl::Status& why) = 0;
  // Every rank has a model that was added: it is needed from now on.
  virtual void OnModelLoaded(ModelId id) = 0;
  // A model that was added could not be loaded everywhere, and is given up.
  virtual void OnModelFailed(ModelId id, const absl::Status& why) = 0;
  // A rank cannot load a needed model, and a later one of its name is there or being added, or it was released: the
  // group does without the old one from now on. The old one is to be removed, too.
  virtual void OnModelAbandoned(ModelId id, const absl::Status& why) = 0;
  // No worker has anything of a removed model.
  virtual void OnModelGone(ModelId id) = 0;
};

}  // namespace switchyard
