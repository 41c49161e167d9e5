#include "server/front/front.h"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "absl/strings/escaping.h"
#include "base/logging/logging.h"
#include "base/process/container_limits.h"
#include "base/version.h"
#include "rpc/address.h"
#include "rpc/build_fingerprint.h"
#include "rpc/tls.h"
#include "rpc/token_list.h"
#include "server/steps/warm_up.h"

namespace switchyard {
namespace {

constexpr std::chrono::milliseconds kWorkerExitGrace{5000};

// How long the end waits for callers that do not read their answers.
constexpr std::chrono::milliseconds kSendingGrace{1000};

// Copying rows is limited by memory bandwidth, which a few threads share, so these need not be left idle for others.
constexpr int kMinCopyThreads = 4;

// More threads help little: only one thread at a time sends the answers of a connection, and the other work needs
// cores.
constexpr int kMaxAnswerThreads = 4;
constexpr int kCoresPerAnswerThread = 4;

// Outputs of a link in addition to those of the steps in flight: the answers of this many steps can be sent without
// being copied.
constexpr int kSpareOutputs = 8;

constexpr int kLinkSpinUs = 1000;

int NumCores() { return OwnCpuShare().num_threads; }

// Spinning would take the time that a limit of CPU time leaves from the threads that work.
int LinkSpinUs(const ServerOptions& options) {
  if (options.link_spin_us >= 0) return options.link_spin_us;
  return OwnCpuShare().is_limited() ? 0 : kLinkSpinUs;
}

int NumRanks(const ServerOptions& options) {
  return options.local_workers > 0 ? options.local_workers : options.await_workers;
}

std::string RandomToken() {
  char bytes[16] = {};
  // getrandom never fails for so few bytes once the kernel is up. If it did, the token would be zeros, but still only
  // our own workers would be told it.
  if (getrandom(bytes, sizeof(bytes), 0) != sizeof(bytes)) spdlog::warn("no random bytes for the workers' token");
  return absl::BytesToHexString(absl::string_view(bytes, sizeof(bytes)));
}

absl::StatusOr<std::string> WorkerToken(const ServerOptions& options) {
  if (options.local_workers > 0) return RandomToken();
  if (options.worker_token_file.empty()) return std::string();
  return ReadToken({"--worker_token_file", options.worker_token_file});
}

// The path of the worker program: the one given, else beside this program, else where the build puts it.
std::string WorkerBinary(const ServerOptions& options) {
  if (!options.worker_binary.empty()) return options.worker_binary;
  std::error_code ignored;
  const auto folder = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  const auto beside = folder / "switchyard_worker";
  if (std::filesystem::exists(beside, ignored)) return beside;
  return folder.parent_path() / "worker" / "switchyard_worker";
}

std::vector<LayerId> LayersOf(const ServedModel& model) {
  std::vector<LayerId> layers;
  for (const auto& layer : model.layers) layers.push_back(layer->id);
  return layers;
}

}  // namespace

Front::Front(const ServerOptions& options, std::string worker_token)
    : options_(options),
      worker_token_(std::move(worker_token)),
      num_ranks_(NumRanks(options)),
      opener_(options, num_ranks_),
      request_log_(options.slow_request_ms),
      admission_(std::make_shared<Admission>(options.max_queued_rows, options.max_queued_bytes)) {}

absl::StatusOr<std::unique_ptr<Front>> Front::Create(const ServerOptions& options) {
  SY_RETURN_IF_ERROR(ValidateOptions(options));
  SY_ASSIGN_OR_RETURN(std::string token, WorkerToken(options));
  std::unique_ptr<Front> front(new Front(options, std::move(token)));
  SY_ASSIGN_OR_RETURN(front->tracer_, Tracer::Create(options.trace_file));
  SY_ASSIGN_OR_RETURN(const auto models, front->OpenModels());
  SY_RETURN_IF_ERROR(front->LayOutLinks(models));
  SY_RETURN_IF_ERROR(front->CreateGroup());
  front->CreateRepository(models);
  SY_RETURN_IF_ERROR(front->ListenForWorkers());
  return front;
}

absl::StatusOr<std::vector<std::shared_ptr<ServedModel>>> Front::OpenModels() {
  std::vector<std::shared_ptr<ServedModel>> models;
  for (const ModelOption& option : options_.models) {
    auto model = opener_.Open(option);
    if (!model.ok()) return Annotate(model.status(), absl::StrCat("--model=", option.name, "=", option.location));
    for (const auto& other : models) SY_RETURN_IF_ERROR(CheckLayerNames(**model, *other));
    models.push_back(*std::move(model));
  }
  return models;
}

absl::Status Front::LayOutLinks(const std::vector<std::shared_ptr<ServedModel>>& models) {
  link_layout_ = ChooseLinkLayout(models, options_, num_ranks_, {!options_.model_repository.empty(), kSpareOutputs});
  for (const auto& model : models) {
    SY_RETURN_IF_ERROR(FitToLinks(link_layout_, options_.max_batch_rows, num_ranks_, model.get()));
  }
  return absl::OkStatus();
}

void Front::CreateRepository(const std::vector<std::shared_ptr<ServedModel>>& models) {
  for (const auto& model : models) {
    AddMetrics(*model);
    workers_->group().AddNeededModel(MakeGroupModel(model));
  }
  const auto open = [this](const ModelOption& option) -> absl::StatusOr<std::shared_ptr<ServedModel>> {
    SY_ASSIGN_OR_RETURN(std::shared_ptr<ServedModel> model, opener_.Open(option));
    SY_RETURN_IF_ERROR(FitToLinks(link_layout_, options_.max_batch_rows, num_ranks_, model.get()));
    return model;
  };
  repository_ =
      std::make_unique<ModelRepository>(models, options_.model_repository, open, static_cast<ModelHost*>(this));
}

void Front::AddMetrics(const ServedModel& model) {
  for (const auto& layer : model.layers) metrics_->AddLayer(*layer);
}

GroupModel Front::MakeGroupModel(const std::shared_ptr<ServedModel>& model) const {
  GroupModel made = {model->id, model->name, MakeShares(*model, num_ranks_), nullptr};
  for (const LayerSpec& layer : model->spec.layers) made.layer_names.push_back(layer.name);
  // The group holds only a weak reference, so that the model ends when no request uses it any more.
  made.choose_compute_dtype = [shared = std::weak_ptr<ServedModel>(model), chosen = std::make_shared<std::string>()](
                                  const std::vector<std::string>& available) -> absl::StatusOr<std::string> {
    if (const std::shared_ptr<ServedModel> still = shared.lock()) {
      SY_RETURN_IF_ERROR(AgreeOnComputeDType(available, still.get()));
      *chosen = std::string(DTypeName(still->compute_dtype()));
    }
    return *chosen;
  };
  return made;
}

void Front::Load(const std::shared_ptr<ServedModel>& model, std::function<void(absl::Status)> done) {
  AddMetrics(*model);
  workers_->group().AddModel(MakeGroupModel(model), std::move(done));
}

void Front::Release(const ServedModel& model) { workers_->group().ReleaseModel(model.id); }

void Front::Unload(const ServedModel& model, std::function<void()> done) {
  workers_->group().RemoveModel(model.id, [this, layers = LayersOf(model), done = std::move(done)] {
    workers_->scheduler().DropLayers(layers);
    metrics_->RemoveLayers(layers);
    done();
  });
}

void Front::Abandon(ModelId id, const absl::Status& why) {
  const std::shared_ptr<ServedModel> model = repository_->Abandon(id);
  if (model == nullptr) return;
  spdlog::warn("model {} is given up until it is loaded anew: {}", model->name, why.message());
  workers_->scheduler().FailLayers(
      LayersOf(*model), absl::UnavailableError(absl::StrCat("model ", model->name, " was lost: ", why.message())));
}

SchedulerOptions Front::MakeSchedulerOptions() const {
  SchedulerOptions scheduler;
  scheduler.batcher = {options_.max_batch_rows, std::chrono::microseconds(options_.max_queue_delay_us),
                       std::chrono::milliseconds(options_.priority_aging_ms)};
  scheduler.num_ranks = num_ranks_;
  scheduler.num_slots = options_.steps_in_flight;
  scheduler.step_timeout = std::chrono::milliseconds(options_.step_timeout_ms);
  scheduler.builder.num_threads =
      std::max(PreparingThreads(options_, NumCores()), std::min(kMinCopyThreads, NumCores()));
  scheduler.answers.num_threads = std::clamp(NumCores() / kCoresPerAnswerThread, 1, kMaxAnswerThreads);
  return scheduler;
}

GroupOptions Front::MakeGroupOptions() {
  GroupOptions group;
  group.membership.num_ranks = num_ranks_;
  group.membership.local = options_.local_workers > 0;
  group.membership.version = std::string(kVersion);
  group.membership.build = std::string(kBuildFingerprint);
  group.membership.show_load = [this](const std::vector<ModelLoad>& models, SteadyTime now) {
    load_display_->Update(models, now);
  };
  group.membership.formation.exchange = options_.exchange;
  group.membership.worker_timeout = std::chrono::milliseconds(options_.worker_timeout_ms);
  group.link_spin = std::chrono::microseconds(LinkSpinUs(options_));
  group.on_model_abandoned = [this](ModelId id, const absl::Status& why) { Abandon(id, why); };
  group.on_first_load_failed = [this](const absl::Status& why) {
    MutexLock lock(&mu_);
    load_failure_ = why;
  };
  return group;
}

absl::Status Front::CreateGroup() {
  load_display_ = std::make_unique<LoadDisplay>(StderrLoadOutput(options_.log_format));
  SY_ASSIGN_OR_RETURN(workers_,
                      WorkerGroup::Create(link_layout_, MakeSchedulerOptions(), MakeGroupOptions(), metrics_.get()));
  return absl::OkStatus();
}

absl::Status Front::ListenForWorkers() {
  const bool is_local = options_.local_workers > 0;
  const WorkerPortOptions options = {.host = is_local ? "127.0.0.1" : options_.worker_host,
                                     .port = is_local ? 0 : options_.worker_port,
                                     .tls = is_local ? TlsFiles() : options_.worker_tls(),
                                     .token = worker_token_,
                                     .max_row_bytes = link_layout_.output_bytes};
  SY_ASSIGN_OR_RETURN(worker_port_, WorkerPort::Listen(options, &workers_->group()));
  return absl::OkStatus();
}

SupervisorOptions Front::MakeSupervisorOptions() const {
  SupervisorOptions supervisor;
  supervisor.num_workers = num_ranks_;
  supervisor.binary = WorkerBinary(options_);
  const int threads = options_.worker_threads > 0 ? options_.worker_threads : std::max(1, NumCores() / num_ranks_);
  supervisor.arguments = {absl::StrCat("--front=127.0.0.1:", worker_port_->port()),
                          absl::StrCat("--num_local_workers=", num_ranks_),
                          absl::StrCat("--device=", options_.device),
                          absl::StrCat("--gpu_memory_limit=", options_.gpu_memory_limit),
                          absl::StrCat("--allow_tf32=", options_.allow_tf32 ? "true" : "false"),
                          absl::StrCat("--threads=", threads),
                          absl::StrCat("--link_spin_us=", LinkSpinUs(options_)),
                          absl::StrCat("--log_level=", options_.log_level),
                          absl::StrCat("--log_format=", options_.log_format)};
  if (options_.worker_http_port > 0) {
    supervisor.arguments.push_back(absl::StrCat("--http_port=", options_.worker_http_port));
    supervisor.arguments.push_back(absl::StrCat("--http_host=", options_.host));
  }
  // The flag is left out when it is empty, because the worker would take the next argument for its value.
  if (!options_.custom_expert.empty()) {
    supervisor.arguments.push_back(absl::StrCat("--custom_expert=", options_.custom_expert));
  }
  supervisor.environment = {absl::StrCat("SWITCHYARD_WORKER_TOKEN=", worker_token_)};
  const auto thread_waiting = ThreadWaiting(threads * num_ranks_);
  supervisor.environment.insert(supervisor.environment.end(), thread_waiting.begin(), thread_waiting.end());
  return supervisor;
}

absl::Status Front::StartWorkers() {
  if (options_.await_workers > 0) {
    spdlog::info("waiting for {} workers on {}", num_ranks_, JoinHostPort(options_.worker_host, worker_port_->port()));
    return absl::OkStatus();
  }
  SY_ASSIGN_OR_RETURN(
      supervisor_,
      Supervisor::Start(
          MakeSupervisorOptions(),
          [this](int rank, UniqueFd socket) { workers_->group().LocalWorkerSpawned(rank, std::move(socket)); },
          [this](int rank, const std::string& how) {
            workers_->group().LocalWorkerExited(rank, how);
            MutexLock lock(&mu_);
            if (!served_.load() && !load_failure_.has_value()) {
              load_failure_ = absl::InternalError(
                  absl::StrCat("worker ", rank, " ended before it served: ", how, "; its own message is above"));
            }
          }));
  workers_->group().SetSupervisor(supervisor_.get());
  return absl::OkStatus();
}

Front::~Front() {
  if (repository_ != nullptr) repository_->Stop();
  if (workers_ != nullptr) workers_->group().SetSupervisor(nullptr);
}

absl::Status Front::WaitUntilServing(const std::function<bool()>& should_stop) {
  while (!workers_->group().WaitUntilServing(std::chrono::milliseconds(100))) {
    SY_RETURN_IF_ERROR(StartFailure(should_stop));
  }
  std::vector<std::shared_ptr<ServedLayer>> layers;
  const std::shared_ptr<const ModelTable> table = models();
  for (const auto& entry : table->layers()) layers.push_back(entry->layer);
  SY_RETURN_IF_ERROR(WarmUpLayers(layers, [&] { return StartFailure(should_stop); }));
  served_.store(true);
  return absl::OkStatus();
}

absl::Status Front::StartFailure(const std::function<bool()>& should_stop) {
  if (should_stop()) return absl::CancelledError("stopped before the workers were ready");
  MutexLock lock(&mu_);
  if (!load_failure_.has_value()) return absl::OkStatus();
  if (supervisor_ != nullptr) supervisor_->StopRestarting();
  return *load_failure_;
}

absl::Status Front::WarmUpLayers(const std::vector<std::shared_ptr<ServedLayer>>& layers,
                                 const std::function<absl::Status()>& should_stop) {
  if (!options_.warmup || layers.empty()) return absl::OkStatus();
  return switchyard::WarmUp(
      {.full_rows = options_.max_batch_rows}, layers,
      {.enqueue = [this](std::shared_ptr<Request> request) { workers_->scheduler().Enqueue(std::move(request)); },
       .cancel = [this](const std::shared_ptr<Request>& request) { Cancel(request); },
       .should_stop = should_stop});
}

absl::Status Front::WarmUp(const std::shared_ptr<ServedModel>& model,
                           const std::function<absl::Status()>& should_stop) {
  std::vector<std::shared_ptr<ServedLayer>> layers;
  for (size_t i = 0; i < model->layers.size(); ++i) layers.push_back(ShareLayer(model, i));
  return WarmUpLayers(layers, should_stop);
}

absl::Status Front::Submit(const std::shared_ptr<Request>& request, int64_t num_bytes) {
  const std::shared_ptr<const Holder> holder = request->ask.holder;
  SY_RETURN_IF_ERROR(admission_->Admit(*holder, request->ask.num_rows, num_bytes));
  // The draining flag is checked after admission. Drain sets the flag first and then waits for the admitted requests,
  // so it cannot miss one.
  if (draining_.load() || !served_.load()) {
    admission_->Release(*holder, request->ask.num_rows, num_bytes);
    return absl::UnavailableError(draining_.load() ? "the server is draining; another replica may take the request"
                                                   : "the server is still starting");
  }
  request->ask.arrival = Clock::Real().Now();
  if (request->ask.queue_timeout.count() == 0) {
    request->ask.queue_timeout = std::chrono::microseconds(options_.default_queue_timeout_us);
  }
  if (request->ask.timeout_us > 0 && request->ask.timeout_us <= kLongestTimeoutUs) {
    request->ask.answer_by = request->ask.arrival + std::chrono::microseconds(request->ask.timeout_us);
    request->ask.deadline = std::min(request->ask.deadline, request->ask.answer_by);
  }
  request->outcome.held_bytes = std::shared_ptr<const void>(
      nullptr,
      [admission = admission_, holder, num_bytes](const void*) { admission->ReleaseBytes(*holder, num_bytes); });
  request->ask.done = [this, holder, num_rows = request->ask.num_rows,
                       done = std::move(request->ask.done)](absl::Status status) {
    admission_->ReleaseRows(*holder, num_rows);
    done(std::move(status));
  };
  workers_->scheduler().Enqueue(request);
  return absl::OkStatus();
}

void Front::Cancel(const std::shared_ptr<Request>& request) {
  const SteadyTime now = Clock::Real().Now();
  workers_->scheduler().Cancel(
      request, now < request->ask.deadline ? absl::CancelledError("the caller cancelled") : WhyExpired(*request, now));
}

void Front::Drain() {
  draining_.store(true);
  repository_->Stop();
  spdlog::info("draining: {} requests in flight", held().requests);
  if (!admission_->WaitUntilEmpty(std::chrono::milliseconds(options_.drain_timeout_ms))) {
    spdlog::warn("drain timeout: {} requests are given up", held().requests);
  }
  if (!admission_->WaitUntilSent(kSendingGrace)) spdlog::warn("{} bytes of answers are not sent", held().bytes);
  if (supervisor_ != nullptr) supervisor_->StopRestarting();
  workers_->group().Drain();
  if (supervisor_ != nullptr) supervisor_->Shutdown(kWorkerExitGrace);
}

void Front::ReopenFiles() {
  tracer_->ReopenFile();
  for (const TlsFiles& files : {options_.client_tls(), options_.worker_tls()}) {
    if (absl::Status read = ReadTlsFiles(files).status(); !read.ok()) {
      spdlog::error("the certificate in use stays: {}", read.message());
    }
  }
  spdlog::info("SIGHUP: files are opened anew; certificates and tokens that were replaced are used from now on");
}

void Front::LogState() const {
  const GroupInfo group = group_info();
  const Admission::Held held = this->held();
  spdlog::info("SIGUSR1: {}, epoch {}, {} recoveries; {} requests with {} rows and {} bytes are held", state(),
               group.epoch.value, group.recoveries, held.requests, held.rows, held.bytes);
  for (size_t rank = 0; rank < group.ranks.size(); ++rank) {
    const RankInfo& info = group.ranks[rank];
    spdlog::info("SIGUSR1: rank {}: {}, process {} on {}, {}, {:.0f} % loaded, {} restarts", rank, info.state, info.pid,
                 info.host, info.device, 100 * info.load_fraction, info.restarts);
  }
}

std::string Front::state() const {
  if (draining_.load()) return "draining";
  if (!served_.load()) return "starting";
  return workers_->group().info().serving ? "serving" : "recovering";
}

}  // namespace switchyard
