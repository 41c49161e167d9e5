#include "worker/loading/model_loader.h"

#include <malloc.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/logging/logging.h"
#include "moe/weights/weight_source.h"
#include "worker/loading/expert_loader.h"

namespace switchyard {
namespace {

constexpr double kGiB = 1 << 30;

// The files must not change after the front opened them; otherwise some ranks or experts would have other weights than
// the rest.
absl::Status CheckSameFiles(const worker::ModelShare& model, const WeightSource& source) {
  if (model.file_identity() == 0) return absl::OkStatus();
  SY_ASSIGN_OR_RETURN(const uint64_t identity, source.FileIdentity());
  if (identity == model.file_identity()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      model.location(),
      " was written to since the front opened it; load the model anew to serve what is there now, or put the "
      "files back"));
}

absl::StatusOr<std::unique_ptr<WeightSource>> OpenSameWeights(const worker::ModelShare& model) {
  SY_ASSIGN_OR_RETURN(auto source, OpenWeightSource(model.location()));
  SY_RETURN_IF_ERROR(CheckSameFiles(model, *source));
  if (source->spec().fingerprint != model.fingerprint()) {
    return absl::FailedPreconditionError(
        absl::StrCat(model.location(),
                     " is not what the front serves: its configuration or tensors changed since the front opened it, "
                     "or this host has another copy"));
  }
  if (static_cast<int>(source->spec().layers.size()) != model.layers_size()) {
    return absl::FailedPreconditionError(absl::StrCat(model.location(), ": the front announced ", model.layers_size(),
                                                      " layers, found ", source->spec().layers.size()));
  }
  return source;
}

// No front can be told to take more rows into a step (server/config/options.cc).
constexpr int64_t kMaxBatchRows = int64_t{1} << 20;

// Memory is taken for what a share says, so a share of a front that is broken must not be believed.
absl::Status CheckShare(const worker::ModelShare& model, const ModelSpec& spec) {
  if (model.max_batch_rows() < 1 || model.max_batch_rows() > kMaxBatchRows || model.first_layer_id() < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("the front announced steps of ", model.max_batch_rows(), " rows for layers from number ",
                     model.first_layer_id(), ", expected 1 to ", kMaxBatchRows, " rows and a number of at least 0"));
  }
  for (int layer_idx = 0; layer_idx < model.layers_size(); ++layer_idx) {
    const LayerSpec& layer = spec.layers[layer_idx];
    std::vector<bool> is_assigned(layer.num_stored_experts());
    for (const int32_t expert : model.layers(layer_idx).expert_idx()) {
      if (expert < 0 || expert >= layer.num_stored_experts()) {
        return absl::InvalidArgumentError(absl::StrCat("layer ", layer.name, ": expert ", expert, " of ",
                                                       layer.num_stored_experts(), " was assigned"));
      }
      if (is_assigned[expert]) {
        return absl::InvalidArgumentError(
            absl::StrCat("layer ", layer.name, ": expert ", expert, " was assigned twice"));
      }
      is_assigned[expert] = true;
    }
  }
  return absl::OkStatus();
}

// Declares every layer and lists the experts to load.
absl::StatusOr<std::vector<ExpertToLoad>> AddLayers(const worker::ModelShare& model, const ModelSpec& spec,
                                                    ExpertEngine& engine) {
  std::vector<ExpertToLoad> experts;
  for (int layer_idx = 0; layer_idx < model.layers_size(); ++layer_idx) {
    const LayerSpec& layer = spec.layers[layer_idx];
    const auto& share = model.layers(layer_idx).expert_idx();
    SY_RETURN_IF_ERROR(engine.AddLayer(layer, share.size()));
    for (int slot = 0; slot < share.size(); ++slot) experts.push_back({layer_idx, slot, share[slot]});
  }
  return experts;
}

int64_t CountBytes(const worker::ModelShare& model, const ModelSpec& spec, DType compute_dtype) {
  int64_t num_bytes = 0;
  for (int i = 0; i < model.layers_size(); ++i) {
    num_bytes += model.layers(i).expert_idx_size() * ExpertBytes(spec.layers[i], compute_dtype);
  }
  return num_bytes;
}

}  // namespace

int64_t LoadProgress::bytes_done() const {
  int64_t sum = 0;
  for (const Model& model : models) sum += model.bytes_done;
  return sum;
}

int64_t LoadProgress::bytes_total() const {
  int64_t sum = 0;
  for (const Model& model : models) sum += model.bytes_total;
  return sum;
}

struct ModelLoader::Job {
  explicit Job(worker::ModelShare of) : share(std::move(of)), id{share.model_id()} {}

  const worker::ModelShare share;
  const ModelId id;
  // The loader's thread uses these, and the step thread while the loader's thread waits for it.
  DType compute_dtype = DType::kF32;
  std::unique_ptr<WeightSource> source;
  std::vector<ExpertToLoad> experts;
  uint64_t file_identity = 0;
  std::unique_ptr<ModelPart> part;
  bool was_kept = false;
  int64_t bytes_total = 0;
};

struct ModelLoader::Shared {
  Mutex mu;
  CondVar changed;
  bool stopping ABSL_GUARDED_BY(mu) = false;
  std::array<int, kNumLoaders> num_calls ABSL_GUARDED_BY(mu) = {};  // by loader: calls that wait or are worked on
  std::set<ModelId> cancelled ABSL_GUARDED_BY(mu);                  // models that wait or are being loaded
};

ModelLoader::ModelLoader(ModelLoaderOptions options)
    : options_(std::move(options)), shared_(std::make_shared<Shared>()) {}

ModelLoader::~ModelLoader() {
  MutexLock lock(&shared_->mu);
  shared_->stopping = true;
  shared_->changed.SignalAll();
}

void ModelLoader::Load(std::vector<worker::ModelShare> shares, KeptParts* kept) {
  std::vector<std::shared_ptr<Job>> jobs;
  for (worker::ModelShare& share : shares) jobs.push_back(std::make_shared<Job>(std::move(share)));
  size_t loader = 0;
  {
    MutexLock lock(&shared_->mu);
    loader = std::min_element(shared_->num_calls.begin(), shared_->num_calls.end()) - shared_->num_calls.begin();
    ++shared_->num_calls[loader];
  }
  loaders_[loader].Add([this, loader, jobs = std::move(jobs), kept] {
    LoadAll(jobs, kept);
    MutexLock lock(&shared_->mu);
    --shared_->num_calls[loader];
  });
}

void ModelLoader::Cancel(ModelId id) {
  MutexLock lock(&shared_->mu);
  shared_->cancelled.insert(id);
}

void ModelLoader::Free(std::unique_ptr<ModelPart> part, std::function<void()> done) {
  frees_.Add([part = std::shared_ptr<ModelPart>(std::move(part)), done = std::move(done)]() mutable {
    part = nullptr;
    malloc_trim(0);  // because experts too small for malloc to map leave holes in its heap
    done();
  });
}

absl::Status ModelLoader::CheckWanted(const Job& job) {
  MutexLock lock(&shared_->mu);
  if (shared_->stopping) return absl::CancelledError("the worker is ending");
  if (shared_->cancelled.contains(job.id)) return absl::CancelledError("the model is not wanted any more");
  return absl::OkStatus();
}

void ModelLoader::LoadAll(const std::vector<std::shared_ptr<Job>>& jobs, KeptParts* kept) {
  const std::vector<std::shared_ptr<Job>> opened = OpenAll(jobs, kept);
  if (kept != nullptr) FreeRest(kept);
  {
    MutexLock lock(&progress_mu_);
    for (const auto& job : opened) progress_.models.push_back({job->id, job->share.name(), 0, job->bytes_total});
    if (!opened.empty()) options_.progress(progress_);
  }
  for (const auto& job : opened) {
    Finish(*job, LoadOne(*job, [&](int64_t num_bytes) { Report(*job, num_bytes); }));
  }
  ForgetProgress(opened);
}

std::vector<std::shared_ptr<ModelLoader::Job>> ModelLoader::OpenAll(const std::vector<std::shared_ptr<Job>>& jobs,
                                                                    KeptParts* kept) {
  std::vector<std::shared_ptr<Job>> opened;
  for (const auto& job : jobs) {
    const absl::Status status = Open(*job);
    if (status.ok() && kept != nullptr) job->part = kept->Take(job->share, job->file_identity);
    job->was_kept = job->part != nullptr;
    status.ok() && !job->was_kept ? opened.push_back(job) : Finish(*job, status);
  }
  return opened;
}

// When the loader ends first, the parts stay where they are: the next front may have the models.
void ModelLoader::FreeRest(KeptParts* kept) {
  const absl::Status freed = CallOnStepThread([kept] {
    if (kept->TakeAll().empty()) return absl::OkStatus();
    malloc_trim(0);
    return absl::OkStatus();
  });
  if (!freed.ok()) spdlog::debug("weights that are not needed stay: {}", freed.message());
}

void ModelLoader::Report(const Job& job, int64_t num_bytes) {
  MutexLock lock(&progress_mu_);
  for (LoadProgress::Model& model : progress_.models) {
    if (model.id == job.id) model.bytes_done += num_bytes;
  }
  options_.progress(progress_);
}

void ModelLoader::ForgetProgress(const std::vector<std::shared_ptr<Job>>& jobs) {
  MutexLock lock(&progress_mu_);
  std::erase_if(progress_.models, [&](const LoadProgress::Model& model) {
    return std::any_of(jobs.begin(), jobs.end(), [&](const auto& job) { return job->id == model.id; });
  });
}

void ModelLoader::Finish(Job& job, const absl::Status& status) {
  job.source = nullptr;
  {
    MutexLock lock(&shared_->mu);
    shared_->cancelled.erase(job.id);
  }
  options_.done(
      {job.id, Annotate(status, absl::StrCat("model ", job.share.name())), std::move(job.part), job.was_kept});
}

absl::Status ModelLoader::Open(Job& job) {
  SY_RETURN_IF_ERROR(CheckWanted(job));
  SY_ASSIGN_OR_RETURN(job.compute_dtype, ParseDType(job.share.compute_dtype()));
  SY_ASSIGN_OR_RETURN(job.source, OpenSameWeights(job.share));
  SY_RETURN_IF_ERROR(CheckShare(job.share, job.source->spec()));
  SY_ASSIGN_OR_RETURN(job.file_identity, job.source->FileIdentity());
  job.bytes_total = CountBytes(job.share, job.source->spec(), job.compute_dtype);
  if (options_.memory_limit == 0 || job.bytes_total <= options_.memory_limit) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrFormat("this rank's weights take %.1f GiB in %s, and the memory that this process may use is %.1f GiB; "
                      "raise the container's memory limit, or spread the model over more workers",
                      job.bytes_total / kGiB, DTypeName(job.compute_dtype), options_.memory_limit / kGiB));
}

absl::Status ModelLoader::LoadOne(Job& job, const std::function<void(int64_t num_bytes)>& expert_done) {
  SY_RETURN_IF_ERROR(CheckWanted(job));
  SY_RETURN_IF_ERROR(CallOnStepThread([&] { return MakePart(job); }));
  const ModelSpec& spec = job.source->spec();
  spdlog::info("model {}: {} experts, {:.1f} MiB of weights in {}", job.share.name(), job.experts.size(),
               job.bytes_total / 1048576.0, DTypeName(job.compute_dtype));
  const auto loaded = [&](const ExpertToLoad& expert, uint64_t digest) {
    job.part->layers[expert.layer_idx].digests[expert.slot] = digest;
    expert_done(ExpertBytes(spec.layers[expert.layer_idx], job.compute_dtype));
    return CheckWanted(job);
  };
  SY_RETURN_IF_ERROR(LoadExperts(*job.source, *job.part->engine, job.experts, loaded));
  return CheckSameFiles(job.share, *job.source);  // they must not have changed while they were read either
}

absl::Status ModelLoader::MakePart(Job& job) {
  job.part = std::make_unique<ModelPart>();
  ModelPart& part = *job.part;
  part.share = job.share;
  part.file_identity = job.file_identity;
  for (int i = 0; i < job.share.layers_size(); ++i) {
    const int num_slots = job.share.layers(i).expert_idx_size();
    part.layers.push_back({job.source->spec().layers[i].hidden_dim, num_slots, std::vector<uint64_t>(num_slots)});
  }
  SY_ASSIGN_OR_RETURN(part.engine, options_.make_engine(job.compute_dtype));
  SY_ASSIGN_OR_RETURN(job.experts, AddLayers(job.share, job.source->spec(), *part.engine));
  return part.engine->Reserve(job.share.max_batch_rows());
}

absl::Status ModelLoader::CallOnStepThread(const std::function<absl::Status()>& call) {
  struct Call {
    bool has_begun = false;
    bool is_dropped = false;
    std::optional<absl::Status> result;
  };
  auto state = std::make_shared<Call>();  // guarded by shared_->mu
  options_.on_step_thread([shared = shared_, state, call] {
    {
      MutexLock lock(&shared->mu);
      if (state->is_dropped) return;
      state->has_begun = true;
    }
    absl::Status result = call();
    MutexLock lock(&shared->mu);
    state->result = std::move(result);
    shared->changed.SignalAll();
  });
  MutexLock lock(&shared_->mu);
  // When the worker is ending, the step thread may never run the task. If it has begun the task, wait for it all the
  // same.
  while (!state->result.has_value() && (!shared_->stopping || state->has_begun)) shared_->changed.Wait(&shared_->mu);
  if (state->result.has_value()) return *state->result;
  state->is_dropped = true;
  return absl::CancelledError("the worker is ending");
}

}  // namespace switchyard
