#include "worker/expert_loader.h"

#include <algorithm>
#include <thread>

#include "moe/base/mutex.h"

namespace switchyard {
namespace {

class Loader {
 public:
  Loader(WeightSource& source, ExpertEngine& engine, const std::vector<ExpertToLoad>& experts,
         const std::function<void(const ExpertToLoad&)>& loaded)
      : experts_(experts), engine_(engine), loaded_(loaded), source_(source) {}

  absl::Status Run() {
    const size_t num_threads = std::clamp<size_t>(engine_.load_threads(), 1, std::max<size_t>(experts_.size(), 1));
    std::vector<std::thread> helpers;
    for (size_t i = 1; i < num_threads; ++i) helpers.emplace_back([this] { Work(); });
    Work();
    for (std::thread& helper : helpers) helper.join();
    MutexLock lock(&mu_);
    return status_;
  }

 private:
  void Work() {
    MutexLock lock(&mu_);
    while (status_.ok() && next_ < experts_.size()) {
      const ExpertToLoad& expert = experts_[next_++];
      const absl::Status loaded = Load(expert);
      if (status_.ok()) status_ = Annotate(loaded, NameOf(expert));
      if (loaded.ok()) loaded_(expert);
    }
  }

  absl::Status Load(const ExpertToLoad& expert) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    SY_ASSIGN_OR_RETURN(const ExpertWeights weights, source_.ReadExpert(expert.layer_idx, expert.expert_idx));
    mu_.Unlock();
    absl::Status loaded = engine_.LoadExpert(LayerId{expert.layer_idx}, expert.slot, weights);
    mu_.Lock();
    source_.ReleaseExpert(expert.layer_idx, expert.expert_idx);
    return loaded;
  }

  std::string NameOf(const ExpertToLoad& expert) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return absl::StrCat("layer ", source_.spec().layers[expert.layer_idx].name, ", expert ", expert.expert_idx);
  }

  const std::vector<ExpertToLoad>& experts_;
  ExpertEngine& engine_;
  const std::function<void(const ExpertToLoad&)>& loaded_;

  Mutex mu_;
  WeightSource& source_ ABSL_GUARDED_BY(mu_);
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::Status LoadExperts(WeightSource& source, ExpertEngine& engine, const std::vector<ExpertToLoad>& experts,
                         const std::function<void(const ExpertToLoad&)>& loaded) {
  return Loader(source, engine, experts, loaded).Run();
}

}  // namespace switchyard
