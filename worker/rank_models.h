// The models of one session: loads them, takes them up, and frees them, as the front asks. In the end it keeps what it
// has loaded for the next session.
//
// Thread-safety: the step thread calls everything. Meanwhile the loader's threads read and pack weights
// (model_loader.h).
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "proto/worker.pb.h"
#include "worker/inbox.h"
#include "worker/loading/load_report.h"
#include "worker/loading/model_loader.h"
#include "worker/loading/rank_experts.h"
#include "worker/rank_steps.h"
#include "worker/worker_base.h"

namespace switchyard {

class RankModels {
 public:
  using SendFn = std::function<void(worker::WorkerMessage)>;

  // All pointers outlive this. `inbox` takes tasks to the step thread. Any thread may call `send`, which sends a
  // message to the front, until this has ended.
  RankModels(WorkerBase* base, Inbox* inbox, RankExperts* experts, RankSteps* steps, SendFn send);
  // Ends the loads, and moves every part that is loaded to `base->kept`. No step runs any more.
  ~RankModels();

  // The models of the front's Welcome. Parts that the worker kept are used for them, or freed.
  void Welcome(int rank, std::vector<worker::ModelShare> models);
  void Load(const worker::ModelShare& model);
  void Unload(ModelId id);

 private:
  ModelLoaderOptions MakeLoaderOptions();
  void NoteLoading(const worker::ModelShare& model);
  // Takes the outcome of a load that has ended first.
  LoadOutcome TakeOutcome();
  void OnLoadEnded(LoadOutcome outcome);
  void TakeUp(std::unique_ptr<ModelPart> part, bool was_kept);
  // Frees `part`, which may be null, between steps or on the loader's thread, and then sends `answer`.
  void GiveUp(std::unique_ptr<ModelPart> part, const worker::WorkerMessage& answer);
  void CountWeights() { base_->metrics.SetWeightBytes(experts_->weight_bytes() + base_->kept.weight_bytes()); }

  WorkerBase* const base_;
  Inbox* const inbox_;
  RankExperts* const experts_;
  RankSteps* const steps_;
  const SendFn send_;
  int rank_ = -1;
  std::map<ModelId, SteadyTime> loading_;  // when the load was asked for
  std::set<ModelId> unwanted_;             // models in loading_ that the front has unloaded

  Mutex mu_;
  // Loads that have ended, in order. They are not in the inbox, which drops what comes after the end of the stream.
  std::deque<LoadOutcome> ended_ ABSL_GUARDED_BY(mu_);

  LoadReport load_report_;               // used by the loader's threads
  std::unique_ptr<ModelLoader> loader_;  // destroyed first
};

}  // namespace switchyard
