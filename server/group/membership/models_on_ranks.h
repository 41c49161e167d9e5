// Which models the group's workers are to have, and which they have.
//
// A model that is added is wanted of every rank. Once all ranks have it, it is *needed*, like the models of the start:
// a rank is ready only when it has every needed model. A rank that joins is told all models, the needed ones first.
//
// A model that one rank cannot load is undone on the others. A rank that cannot load a needed model has to leave,
// unless a later model of that name is there or being added, or no caller can ask for the model any more: then the
// group does without the model, whose files are likely to be gone.
//
// A worker that dies while it loads models that are not needed makes all of them *suspect*: from then on a rank is told
// to load a suspect only while it loads nothing else, and nothing else while it loads a suspect. When workers die
// kMaxDeaths times in a row while they load one model alone, the model is taken for the cause and fails.
//
// A rank that has loaded a model reports a digest of the bytes of each expert that it read. An expert's digests have to
// be equal, on whichever rank and whenever it is read: otherwise the rank read another checkpoint than the others, or
// than the worker before it, and its load counts as failed. Until all ranks have had the model at once, the digests of
// a worker that leaves are forgotten, because it may be the one that read the wrong checkpoint.
//
// A state machine without threads or I/O of its own. Thread-compatible: Membership owns it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "proto/worker.pb.h"
#include "server/group/membership/group_model.h"
#include "server/group/membership/group_rank.h"
#include "server/group/membership/membership_listener.h"

namespace switchyard {

class ModelsOnRanks {
 public:
  // Both outlive this.
  ModelsOnRanks(GroupRanks* ranks, MembershipListener* listener) : ranks_(*ranks), listener_(listener) {}

  // As the methods of Membership with these names.
  void Add(GroupModel model, bool is_needed);
  void Release(ModelId id);
  void Remove(ModelId id);

  // Lets every model have a compute type that this worker has. Models that are not needed fail where they cannot; a
  // needed one is the reason why the worker is refused.
  absl::Status AgreeWith(const worker::Hello& hello);
  // The models that a worker on this rank has to load, in order.
  void Welcome(int rank, worker::Welcome* welcome);
  // Makes the rank ready when it has everything that is needed.
  void Refresh(GroupRank& rank) const;
  // The rank's worker is gone, and with it its models; `why` is why.
  void OnVacated(int rank, const std::string& why);

  void OnProgress(GroupRank& rank, const worker::LoadProgress& message);
  // Both return why the rank has to leave, if it has to.
  std::optional<std::string> OnLoaded(int rank, const worker::ModelLoaded& message);
  std::optional<std::string> OnFailed(int rank, const worker::ModelFailed& message);
  void OnUnloaded(GroupRank& rank, ModelId id);

  bool is_loading() const;
  // How far every rank is with every model.
  std::vector<ModelLoad> Loads() const;

 private:
  struct ExpertDigest {
    uint64_t value = 0;
    int rank = 0;  // that read it first
  };
  struct Model {
    GroupModel what;
    bool is_needed = false;
    bool is_released = false;
    bool is_suspect = false;
    int num_deaths = 0;  // of workers, in a row, that loaded nothing but this
    // Digests of the experts that were read, by layer and expert. Once they are final, the workers of all ranks had
    // read them.
    std::vector<std::map<int32_t, ExpertDigest>> digests;
    bool are_digests_final = false;
  };
  static constexpr int kMaxDeaths = 3;

  // Adds the digests that a rank reports. An error, and nothing is added, when one is not what it was before or on
  // another rank, or when there is not one for each of the rank's experts.
  static absl::Status AddDigests(int rank, const worker::ModelLoaded& message, Model* model);
  // A rank's load of a model failed. Returns why the rank has to leave, if it has to.
  std::optional<std::string> GiveUpLoad(int rank, ModelId id, const absl::Status& why);
  static absl::Status Agree(const worker::Hello& hello, GroupModel* model);
  std::vector<Model>::iterator Find(ModelId id);
  bool HasSuccessor(const GroupModel& model) const;
  bool IsSuspect(ModelId id) const;
  // Whether the rank may be told to load the model now, beside what it loads already.
  bool MayLoad(const GroupRank& rank, const Model& model) const;
  // Tells every rank to load what it lacks and may load.
  void Offer();
  // Makes the model needed if every rank has it.
  void CheckLoaded(ModelId id);
  void Fail(ModelId id, const absl::Status& why);
  void DropFromNeeds(ModelId id);
  // Tells every rank that has something of the model, or is about to, to free it.
  void Discard(ModelId id);
  void CheckGone(ModelId id);

  GroupRanks& ranks_;
  MembershipListener* const listener_;
  std::vector<Model> models_;    // needed ones, then those being added, in the order in which they came
  std::set<ModelId> departing_;  // removed, and not gone from every rank
};

}  // namespace switchyard
