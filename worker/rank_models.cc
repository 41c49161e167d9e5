#include "worker/rank_models.h"

#include <utility>

#include "base/logging/logging.h"
#include "base/process/container_limits.h"

namespace switchyard {

RankModels::RankModels(WorkerBase* base, Inbox* inbox, RankExperts* experts, RankSteps* steps, SendFn send)
    : base_(base),
      inbox_(inbox),
      experts_(experts),
      steps_(steps),
      send_(std::move(send)),
      load_report_(send_, base->options.local_index < 0),
      loader_(std::make_unique<ModelLoader>(MakeLoaderOptions())) {}

RankModels::~RankModels() {
  loader_.reset();
  while (true) {
    LoadOutcome outcome = TakeOutcome();
    if (outcome.part == nullptr && outcome.status.ok()) break;
    if (outcome.status.ok() && !unwanted_.contains(outcome.id)) base_->kept.Keep(std::move(outcome.part));
  }
  for (std::unique_ptr<ModelPart>& part : experts_->RemoveAll()) base_->kept.Keep(std::move(part));
  CountWeights();
}

ModelLoaderOptions RankModels::MakeLoaderOptions() {
  ModelLoaderOptions options;
  options.memory_limit = base_->device->name() == "cpu" ? MemoryLimit() : 0;
  options.make_engine = [this](DType dtype) { return base_->device->MakeEngine(dtype); };
  options.on_step_thread = [this](Inbox::Task task) {
    inbox_->Push([this, task = std::move(task)] {
      steps_->Drain();
      task();
    });
  };
  options.progress = [this](const LoadProgress& so_far) { load_report_.Update(so_far); };
  options.done = [this](LoadOutcome outcome) {
    {
      MutexLock lock(&mu_);
      ended_.push_back(std::move(outcome));
    }
    inbox_->Push([this] { OnLoadEnded(TakeOutcome()); });
  };
  return options;
}

LoadOutcome RankModels::TakeOutcome() {
  MutexLock lock(&mu_);
  if (ended_.empty()) return {};
  LoadOutcome outcome = std::move(ended_.front());
  ended_.pop_front();
  return outcome;
}

void RankModels::NoteLoading(const worker::ModelShare& model) {
  loading_[ModelId{model.model_id()}] = Clock::Real().Now();
}

void RankModels::Welcome(int rank, std::vector<worker::ModelShare> models) {
  rank_ = rank;
  for (const worker::ModelShare& model : models) NoteLoading(model);
  loader_->Load(std::move(models), &base_->kept);
}

void RankModels::Load(const worker::ModelShare& model) {
  NoteLoading(model);
  loader_->Load({model});
}

void RankModels::Unload(ModelId id) {
  if (loading_.contains(id)) {
    unwanted_.insert(id);
    return loader_->Cancel(id);
  }
  worker::WorkerMessage answer;
  answer.mutable_model_unloaded()->set_model_id(id.value);
  std::unique_ptr<ModelPart> part = experts_->Remove(id);
  CountWeights();
  GiveUp(std::move(part), answer);
}

void RankModels::OnLoadEnded(LoadOutcome outcome) {
  const bool is_unwanted = unwanted_.erase(outcome.id) > 0;
  if (outcome.status.ok() && !is_unwanted) return TakeUp(std::move(outcome.part), outcome.was_kept);
  loading_.erase(outcome.id);
  worker::WorkerMessage answer;
  if (is_unwanted) {
    answer.mutable_model_unloaded()->set_model_id(outcome.id.value);
  } else {
    spdlog::error("rank {} cannot load: {}", rank_, outcome.status.message());
    answer.mutable_model_failed()->set_model_id(outcome.id.value);
    answer.mutable_model_failed()->set_code(static_cast<int>(outcome.status.code()));
    answer.mutable_model_failed()->set_message(std::string(outcome.status.message()));
  }
  GiveUp(std::move(outcome.part), answer);
}

void RankModels::TakeUp(std::unique_ptr<ModelPart> part, bool was_kept) {
  const ExpertEngine& engine = *part->engine;
  steps_->PrepareFor(engine);
  const double mebibytes = engine.weight_bytes() / 1048576.0;
  if (was_kept) {
    spdlog::info("rank {}: model {}: {:.1f} MiB of weights kept, nothing is read", rank_, part->share.name(),
                 mebibytes);
  } else {
    spdlog::info("rank {}: model {}: {:.1f} MiB of weights in {:.2f} s", rank_, part->share.name(), mebibytes,
                 MicrosBetween(loading_[part->id()], Clock::Real().Now()) / 1e6);
  }
  loading_.erase(part->id());
  worker::WorkerMessage answer;
  answer.mutable_model_loaded()->set_model_id(part->id().value);
  answer.mutable_model_loaded()->set_weight_bytes(engine.weight_bytes());
  for (const ModelPart::Layer& layer : part->layers) {
    answer.mutable_model_loaded()->add_layers()->mutable_digest()->Add(layer.digests.begin(), layer.digests.end());
  }
  experts_->Add(std::move(part));
  CountWeights();
  send_(std::move(answer));
}

void RankModels::GiveUp(std::unique_ptr<ModelPart> part, const worker::WorkerMessage& answer) {
  if (part != nullptr && part->engine != nullptr && part->engine->stream() == nullptr) {
    return loader_->Free(std::move(part), [this, answer] { send_(answer); });
  }
  // Device memory is freed between steps, as it is reserved.
  steps_->Drain();
  part.reset();
  send_(answer);
}

}  // namespace switchyard
