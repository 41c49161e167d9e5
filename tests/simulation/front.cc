#include "tests/simulation/front.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/plan/plan_codec.h"
#include "server/links/stream_link.h"
#include "server/models/model_opener.h"

namespace switchyard::simulation {
namespace {

using std::chrono::microseconds;

std::vector<LayerId> LayersOf(const ServedModel& model) {
  std::vector<LayerId> layers;
  for (const auto& layer : model.layers) layers.push_back(layer->id);
  return layers;
}

LinkLayout LayoutFor(const FrontOptions& options) {
  const int num_ranks = options.group.membership.num_ranks;
  const int64_t max_rows = options.scheduler.batcher.max_batch_rows;
  const int64_t home_rows = (max_rows + num_ranks - 1) / num_ranks;
  const size_t row_bytes = home_rows * options.largest.hidden_dim * sizeof(float);
  const int num_slots = options.largest.num_experts + options.largest.num_shared;
  return LinkLayout::For(options.scheduler.num_slots, row_bytes,
                         MaxEncodedSize(num_ranks, num_slots, num_slots, home_rows, max_rows), row_bytes,
                         options.num_spare_outputs);
}

// The rows of a message in the pieces in which gRPC may have received them.
RowChunks Cut(std::string& rows, Random& random) {
  RowChunks chunks;
  std::span<const std::byte> rest = std::as_bytes(std::span(rows));
  while (!rest.empty()) {
    const size_t size = random.Chance(50) ? rest.size() : random.In(1, static_cast<int64_t>(rest.size()));
    chunks.push_back(rest.first(size));
    rest = rest.subspan(size);
  }
  return chunks;
}

}  // namespace

Front::Front(Site* site, const FrontOptions& options, std::vector<ModelShape> checkpoints, int num_loaded)
    : site_(site), options_(options), admission_(options.max_queued_rows, options.max_queued_bytes) {
  GroupOptions group = options.group;
  group.on_model_abandoned = [this](ModelId id, const absl::Status& why) { Abandon(id, why); };
  workers_ = *WorkerGroup::Create(LayoutFor(options), options.scheduler, group, &metrics_);
  Scheduler& scheduler = workers_->scheduler();
  threads_ = {{[&] { return scheduler.dispatch_due(); }, [&] { scheduler.DispatchOnce(); }},
              {[&] { return scheduler.timer_due(); }, [&] { scheduler.RunTimers(); }},
              {[this] { return workers_->group().next_due(); },
               [this] {
                 workers_->group().RunDue();
                 SeeGroup();
               }}};
  for (size_t i = 0; i < checkpoints.size(); ++i) {
    checkpoints_.push_back({absl::StrCat("m", i), checkpoints[i], nullptr, nullptr});
  }
  for (int i = 0; i < num_loaded; ++i) {
    checkpoints_[i].loaded = Open(checkpoints_[i]);
    workers_->group().AddNeededModel(MakeGroupModel(checkpoints_[i].loaded));
  }
}

Front::~Front() { Destroy(); }

// ---- Threads --------------------------------------------------------------------------------------------------------

void Front::Run(std::function<void()> fn) {
  if (site_->network->is_stopped(kFrontHost)) {
    held_.push_back(std::move(fn));
  } else {
    fn();
  }
}

void Front::Continue() {
  site_->network->Continue(kFrontHost);
  if (site_->network->is_stopped(kFrontHost)) return;
  last_continued_ = site_->loop->now();
  for (auto& fn : std::exchange(held_, {})) site_->loop->After(Nanos(0), [this, fn] { Run(fn); });
}

void Front::Poke() {
  if (workers_ == nullptr) return;
  for (Thread& thread : threads_) Schedule(thread);
}

void Front::Schedule(Thread& thread) {
  if (thread.is_running) return;
  const SteadyTime due = std::max(thread.due(), site_->loop->now());
  if (thread.due() == SteadyTime::max() || thread.wakes_for <= due) return;
  thread.wakes_for = due;
  site_->loop->At(due + site_->loop->random().Delay(microseconds(5)), [this, &thread, number = ++thread.number] {
    if (number != thread.number) return;
    Run([this, &thread, number] {
      if (number == thread.number) RunThread(thread);
    });
  });
}

void Front::RunThread(Thread& thread) {
  if (workers_ == nullptr || thread.is_running) return;
  thread.wakes_for = SteadyTime::max();
  thread.is_running = true;
  thread.run();
  thread.is_running = false;
}

void Front::Interleave() {
  if (is_interleaving_ || !site_->loop->random().Chance(10)) return;
  is_interleaving_ = true;
  const SteadyTime until = site_->loop->now() + site_->loop->random().About(microseconds(200));
  for (int64_t i = site_->loop->random().In(1, 6); i > 0 && site_->loop->next() <= until; --i) site_->loop->RunNext();
  is_interleaving_ = false;
}

void Front::SeeGroup() {
  const GroupInfo info = workers_->group().info();
  if (info.serving == is_serving_ && info.epoch == epoch_) return;
  const bool is_new = info.serving && (!is_serving_ || info.epoch != epoch_);
  if (is_new) ++num_formations_;
  const bool was_serving = std::exchange(is_serving_, info.serving);
  epoch_ = info.epoch;
  if (!is_new && !was_serving) return;
  site_->loop->Note(is_new ? "group formed" : "group lost", epoch_.value);
  site_->pass(is_new ? Point::kGroupFormed : Point::kGroupLost, kFrontHost);
}

// ---- Callers --------------------------------------------------------------------------------------------------------

absl::Status Front::Submit(const std::shared_ptr<Request>& request, int64_t num_bytes) {
  const std::shared_ptr<const Holder> holder = request->ask.holder;
  SY_RETURN_IF_ERROR(admission_.Admit(*holder, request->ask.num_rows, num_bytes));
  if (is_draining_) {
    admission_.Release(*holder, request->ask.num_rows, num_bytes);
    return absl::UnavailableError("the server is draining");
  }
  request->ask.arrival = site_->loop->now();
  if (request->ask.timeout_us > 0) {
    request->ask.answer_by = request->ask.arrival + microseconds(request->ask.timeout_us);
    request->ask.deadline = std::min(request->ask.deadline, request->ask.answer_by);
  }
  request->outcome.held_bytes = std::shared_ptr<const void>(
      nullptr, [this, holder, num_bytes](const void*) { admission_.ReleaseBytes(*holder, num_bytes); });
  request->ask.done = [this, holder, num_rows = request->ask.num_rows,
                       done = std::move(request->ask.done)](const absl::Status& status) {
    admission_.ReleaseRows(*holder, num_rows);
    done(status);
    site_->pass(Point::kAnswer, kFrontHost);
  };
  workers_->scheduler().Enqueue(request);
  return absl::OkStatus();
}

void Front::Cancel(const std::shared_ptr<Request>& request) {
  const SteadyTime now = site_->loop->now();
  workers_->scheduler().Cancel(
      request, now < request->ask.deadline ? absl::CancelledError("the caller cancelled") : WhyExpired(*request, now));
}

// ---- Workers --------------------------------------------------------------------------------------------------------

void Front::Joined(const std::shared_ptr<Connection>& connection, const worker::Hello& hello) {
  if (workers_ != nullptr) workers_->group().Joined(connection, hello);
}

void Front::Said(const std::shared_ptr<Connection>& connection, worker::WorkerMessage message) {
  if (workers_ == nullptr) return;
  if (!message.has_step_result()) return workers_->group().Said(connection, std::move(message));
  const ResultMessage result = ParseStreamResult(message.step_result());
  workers_->group().StepDone(connection.get(), result,
                             Cut(*message.mutable_step_result()->mutable_rows(), site_->loop->random()));
}

void Front::Left(const std::shared_ptr<Connection>& connection) {
  Run([this, connection] {
    if (workers_ != nullptr) workers_->group().Left(connection, "its stream ended");
  });
}

void Front::Exited(int local_index) {
  Run([this, local_index] {
    site_->pass(Point::kExitNotice, 1 + local_index);
    if (workers_ != nullptr) workers_->group().LocalWorkerExited(local_index, "ended");
  });
}

// ---- Models ---------------------------------------------------------------------------------------------------------

std::shared_ptr<ServedModel> Front::Open(const Checkpoint& checkpoint) {
  const ModelId id{++num_models_};
  const ModelMaking making = {options_.group.membership.num_ranks, options_.scheduler.batcher.max_batch_rows, [this] {
                                site_->pass(Point::kGate, kFrontHost);
                                Interleave();
                              }};
  auto model =
      MakeModel(id, checkpoint.name, checkpoint.shape, id.value, LayerId{num_layers_}, making, site_->loop->random());
  num_layers_ += checkpoint.shape.num_layers;
  for (const auto& layer : model->layers) metrics_.AddLayer(*layer);
  model->on_retired = [this](const ServedModel& retired) { Retire(retired); };
  models_[id] = {checkpoint.name, model, LayersOf(*model)};
  return model;
}

GroupModel Front::MakeGroupModel(const std::shared_ptr<ServedModel>& model) const {
  GroupModel made = {model->id, model->name, MakeShares(*model, options_.group.membership.num_ranks), nullptr};
  made.choose_compute_dtype = [](const std::vector<std::string>&) { return "fp32"; };
  return made;
}

bool Front::has_departing(const Checkpoint& checkpoint) const {
  return std::any_of(models_.begin(), models_.end(), [&](const auto& each) {
    const bool is_held = (checkpoint.loaded != nullptr && checkpoint.loaded->id == each.first) ||
                         (checkpoint.loading != nullptr && checkpoint.loading->id == each.first);
    return each.second.name == checkpoint.name && !each.second.is_gone && !is_held;
  });
}

bool Front::Load(Checkpoint& checkpoint) {
  if (is_draining_ || checkpoint.loading != nullptr || has_departing(checkpoint)) return false;
  checkpoint.loading = Open(checkpoint);
  const ModelId id = checkpoint.loading->id;
  models_.at(id).is_deadly = site_->loop->random().Chance(10);
  site_->loop->Note("load begins", id.value, is_deadly(id) ? 1 : 0);
  workers_->group().AddModel(MakeGroupModel(checkpoint.loading), [this, &checkpoint, id](const absl::Status& status) {
    site_->loop->After(site_->loop->random().Delay(microseconds(50)), [this, &checkpoint, id, status] {
      Run([this, &checkpoint, id, status] { EndLoad(checkpoint, id, status); });
    });
  });
  return true;
}

void Front::EndLoad(Checkpoint& checkpoint, ModelId id, const absl::Status& status) {
  if (checkpoint.loading == nullptr || checkpoint.loading->id != id) return;  // it was called off
  site_->loop->Note(status.ok() ? "load ends" : "load fails", id.value);
  std::shared_ptr<ServedModel> old = std::exchange(checkpoint.loading, nullptr);
  if (status.ok()) old.swap(checkpoint.loaded);
  Release(std::move(old));
}

bool Front::Unload(Checkpoint& checkpoint) {
  if (checkpoint.loaded == nullptr && checkpoint.loading == nullptr) return false;
  site_->loop->Note("unload");
  Release(std::exchange(checkpoint.loading, nullptr));
  Release(std::exchange(checkpoint.loaded, nullptr));
  return true;
}

void Front::Release(std::shared_ptr<ServedModel> model) {
  if (model != nullptr && workers_ != nullptr) workers_->group().ReleaseModel(model->id);
}

// The last user of the model has let go of it.
void Front::Retire(const ServedModel& model) {
  site_->loop->Note("model retires", model.id.value);
  if (workers_ == nullptr) return;
  workers_->group().RemoveModel(model.id, [this, id = model.id, layers = LayersOf(model)] {
    workers_->scheduler().DropLayers(layers);
    metrics_.RemoveLayers(layers);
    models_.at(id).is_gone = true;
    site_->loop->Note("model is gone", id.value);
  });
}

void Front::Abandon(ModelId id, const absl::Status& why) {
  const std::shared_ptr<ServedModel> model = models_.at(id).model.lock();
  if (model == nullptr) return;
  models_.at(id).was_abandoned = true;
  site_->loop->Note("model is abandoned", id.value);
  for (Checkpoint& checkpoint : checkpoints_) {
    if (checkpoint.loaded == model) Release(std::exchange(checkpoint.loaded, nullptr));
  }
  workers_->scheduler().FailLayers(
      LayersOf(*model), absl::UnavailableError(absl::StrCat("model ", model->name, " was lost: ", why.message())));
}

bool Front::is_settled(ModelId id) const {
  return num_formations_ > 0 && std::any_of(checkpoints_.begin(), checkpoints_.end(), [&](const Checkpoint& each) {
           return each.loaded != nullptr && each.loaded->id == id;
         });
}

bool Front::models_are_settled() const {
  return std::all_of(models_.begin(), models_.end(),
                     [](const auto& each) { return each.second.is_gone || !each.second.model.expired(); }) &&
         std::none_of(checkpoints_.begin(), checkpoints_.end(),
                      [&](const Checkpoint& each) { return each.loading != nullptr || has_departing(each); });
}

std::vector<ModelId> Front::LeakedModels() const {
  std::vector<ModelId> leaked;
  for (const auto& [id, record] : models_) {
    if (!record.model.expired()) leaked.push_back(id);
  }
  return leaked;
}

// ---- The end --------------------------------------------------------------------------------------------------------

void Front::BeginDrain() {
  is_draining_ = true;
  site_->loop->Note("drain");
}

void Front::Destroy() {
  if (workers_ == nullptr) return;
  for (Thread& thread : threads_) ++thread.number;
  held_.clear();
  for (Checkpoint& checkpoint : checkpoints_) checkpoint.loading = checkpoint.loaded = nullptr;
  const std::unique_ptr<WorkerGroup> ending = std::move(workers_);
}

std::string Front::Describe() const {
  if (workers_ == nullptr) return "the front has ended";
  const GroupInfo info = workers_->group().info();
  const Scheduler::Load now = load();
  std::string text = absl::StrCat("epoch ", info.epoch.value, info.serving ? ", serving" : ", not serving", "; ",
                                  now.queued_rows, " rows queued, ", now.steps_in_flight, " steps in flight, ",
                                  now.free_slots, " free slots, ", now.free_outputs, " free outputs;");
  for (const RankInfo& rank : info.ranks) absl::StrAppend(&text, " ", rank.pid, " ", rank.state);
  if (const auto oldest = workers_->scheduler().oldest_step()) {
    absl::StrAppend(&text, "; ", oldest->what, " owed by ", oldest->owing.size(), ", limit ", oldest->limit.count(),
                    " ms");
  }
  for (const auto& [id, record] : models_) {
    absl::StrAppend(&text, "; model ", id.value, record.model.expired() ? " retired" : " used",
                    record.is_gone ? ", gone" : "");
  }
  return text;
}

}  // namespace switchyard::simulation
