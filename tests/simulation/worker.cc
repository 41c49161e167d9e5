#include "tests/simulation/worker.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "moe/plan/plan_codec.h"
#include "tests/simulation/plain_model.h"

namespace switchyard::simulation {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using worker::ThreadProgress;

constexpr int kLooks = 4;                             // in a front_timeout
constexpr Nanos kSlowest = std::chrono::seconds(15);  // that a part of a step takes, and a preparation
constexpr Nanos kBeat = milliseconds(250), kWorkBeat = milliseconds(1);

}  // namespace

// ---- The stream -----------------------------------------------------------------------------------------------------

void Connection::Send(worker::FrontMessage message) {
  if (is_over_at_front_) return;
  const Point point = PointOf(message);
  if (message.has_step()) site_->interleave();
  down_->Send(point, host(), [self = shared_from_this(), message = std::move(message)] {
    if (!self->is_over_at_worker_) self->worker_->OnFrontMessage(self.get(), message);
  });
}

void Connection::Close(const absl::Status& why) {
  if (!why.ok() && worker_->local_index() >= 0) {
    // The supervisor ends a worker that was given up, or whose stream has ended.
    site_->loop->After(site_->loop->random().Delay(microseconds(300)),
                       [self = shared_from_this()] { self->worker_->OnGivenUp(self.get()); });
  }
  if (std::exchange(is_over_at_front_, true)) return;
  down_->Send(Point::kStreamEnd, host(),
              [self = shared_from_this()] { self->worker_->OnStreamEnd(self.get(), /*is_sent_away=*/true); });
  site_->loop->After(site_->loop->random().Delay(microseconds(300)),
                     [self = shared_from_this()] { self->site_->front->Left(self); });
}

void Connection::SendUp(worker::WorkerMessage message) {
  if (is_over_at_worker_) return;
  const Point point = PointOf(message);
  up_->Send(point, host(), [self = shared_from_this(), message = std::move(message)] {
    if (self->is_over_at_front_) return;
    if (message.has_hello()) return self->site_->front->Joined(self, message.hello());
    self->site_->front->Said(self, message);
  });
}

void Connection::EndAtFront() {
  if (std::exchange(is_over_at_front_, true)) return;
  site_->front->Left(shared_from_this());
}

void Connection::EndByWorker(bool loses) {
  if (std::exchange(is_over_at_worker_, true)) return;
  if (loses) up_->Drop();
  up_->Send(Point::kStreamEnd, host(), [self = shared_from_this()] { self->EndAtFront(); });
}

void Connection::Break() {
  up_->Drop();
  down_->Drop();
  up_->Send(Point::kStreamEnd, host(), [self = shared_from_this()] { self->EndAtFront(); });
  down_->Send(Point::kStreamEnd, host(), [self = shared_from_this()] { self->worker_->OnStreamEnd(self.get()); });
}

void Connection::Lose() {
  up_->Lose();
  down_->Lose();
}

// ---- The process ----------------------------------------------------------------------------------------------------

Worker::Worker(Site* site, int host, int local_index, bool keeps_weights)
    : site_(site), host_(host), local_index_(local_index), keeps_weights_(keeps_weights) {}

Worker::~Worker() {
  site_->restarts = false;
  if (is_alive_) Kill();
  is_over_ = true;
  while (fiber_ != nullptr && !fiber_->is_done()) fiber_->Resume();
}

void Worker::Later(Nanos delay, std::function<void()> fn) {
  site_->loop->After(delay, [this, process = incarnation_, fn = std::move(fn)] {
    if (process != incarnation_ || !is_alive_) return;
    if (site_->network->is_stopped(host_)) {
      held_.push_back(fn);
    } else {
      fn();
    }
  });
}

void Worker::Start() {
  ++incarnation_;
  is_alive_ = true;
  is_over_ = is_terminated_ = hangs_for_good_ = is_woken_ = step_is_stopped_ = wakes_when_continued_ = false;
  held_.clear();
  activity_ = ThreadProgress::IDLE;
  since_ = site_->loop->now();
  fiber_ = std::make_unique<Fiber>([this] { StepLoop(); });
  site_->loop->Note("process starts", host_, incarnation_);
  Join();
  Wake();
}

void Worker::Join() {
  inbox_.clear();
  is_closed_ = is_drained_ = false;
  newest_ = prepared_ = connected_ = 0;
  rank_ = -1;
  loading_.clear();
  silent_looks_ = 0;
  connection_ = std::make_shared<Connection>(site_, this);
  worker::WorkerMessage message;
  worker::Hello& hello = *message.mutable_hello();  // who it was before, once workers say that, belongs here
  hello.set_version(site_->version);
  hello.set_build(site_->build);
  hello.set_local_index(local_index_);
  hello.set_pid(1000 * host_ + incarnation_);
  hello.set_host(absl::StrCat("host", host_));
  hello.set_device("cpu");
  hello.add_compute_dtypes("fp32");
  hello.add_exchanges("tcp");
  Send(std::move(message));
  if (local_index_ < 0) ListenForSilence();
}

void Worker::ListenForSilence() {
  Later(site_->front_timeout / kLooks, [this, heard = connection_] {
    if (heard != connection_) return;
    if (++silent_looks_ < kLooks) return ListenForSilence();
    OnStreamEnd(connection_.get());
  });
}

void Worker::Kill() {
  if (!is_alive_) return;
  site_->loop->Note("process is killed", host_, incarnation_);
  is_alive_ = false;
  is_over_ = true;
  if (fiber_->is_running()) {  // a step that ends its own process
    site_->loop->After(Nanos(0), [this] { Teardown(); });
    return;
  }
  while (!fiber_->is_done()) fiber_->Resume();
  Teardown();
}

// The process has ended: its sockets are closed, the front's supervisor sees it, and it is started again.
void Worker::Teardown() {
  while (!fiber_->is_done()) fiber_->Resume();
  is_alive_ = false;
  site_->network->Restart(host_);
  Random& random = site_->loop->random();
  connection_->EndByWorker(/*loses=*/is_over_ && random.Chance(30));
  communicator_ = nullptr;
  parts_.clear();
  loading_.clear();
  inbox_.clear();
  Nanos noticed(0);
  if (local_index_ >= 0) {
    noticed = random.Delay(milliseconds(1));
    site_->loop->After(noticed, [this] { site_->front->Exited(local_index_); });
  }
  if (!site_->restarts) return;
  ++num_restarts_;
  site_->loop->After(noticed + random.Delay(milliseconds(100)), [this, process = incarnation_] {
    if (site_->restarts && process == incarnation_) Start();
  });
}

void Worker::Terminate() {
  if (!is_alive_) return;
  is_terminated_ = true;
  Wake();
}

void Worker::StopStepThread() {
  if (step_is_stopped_) return;
  step_is_stopped_ = true;
  stopped_since_ = site_->loop->now();
}

void Worker::ContinueStepThread() {
  if (hangs_for_good_ || !std::exchange(step_is_stopped_, false)) return;
  base_moves_ = moves() - 1;
  since_ = site_->loop->now();
  if (std::exchange(wakes_when_continued_, false)) Wake();
}

void Worker::Continue() {
  for (auto& fn : std::exchange(held_, {})) Later(Nanos(0), std::move(fn));
}

std::set<int64_t> Worker::models() const {
  std::set<int64_t> ids;
  for (const auto& [id, part] : parts_) ids.insert(id);
  return ids;
}

// ---- Messages, as on gRPC's threads ---------------------------------------------------------------------------------

void Worker::Send(worker::WorkerMessage message) {
  if (is_alive_) connection_->SendUp(std::move(message));
}

void Worker::OnFrontMessage(const Connection* connection, worker::FrontMessage message) {
  if (!is_alive_ || connection != connection_.get() || is_closed_) return;
  silent_looks_ = 0;
  if (message.has_end_group()) return Announce(message.end_group().epoch() + 1);
  if (message.has_ping()) return Send(MakePong(message.ping().number()));
  if (message.has_prepare_group()) Announce(message.prepare_group().epoch());
  inbox_.emplace_back(std::move(message));
  Wake();
}

void Worker::OnStreamEnd(const Connection* connection, bool is_sent_away) {
  if (!is_alive_ || connection != connection_.get() || is_closed_) return;
  connection_->EndByWorker(/*loses=*/false);
  Announce(std::numeric_limits<int64_t>::max());
  is_closed_ = true;
  is_sent_away_ = is_sent_away;
  Wake();
}

void Worker::OnGivenUp(const Connection* connection) {
  if (is_alive_ && connection == connection_.get()) Kill();
}

void Worker::Announce(int64_t epoch) {
  if (epoch <= newest_) return;
  newest_ = epoch;
  if (communicator_ != nullptr && prepared_ < epoch) communicator_->Abort();
}

void Worker::AbortExchange() {
  if (communicator_ != nullptr) communicator_->Abort();
}

worker::WorkerMessage Worker::MakePong(int64_t number) const {
  worker::WorkerMessage message;
  worker::Pong& pong = *message.mutable_pong();
  pong.set_number(number);
  ThreadProgress& thread = *pong.add_threads();
  thread.set_moves(moves());
  thread.set_activity(activity_);
  thread.set_peer(peer_);
  thread.set_num_waits(num_waits_);
  thread.set_epoch(step_epoch_);
  thread.set_step_id(step_id_);
  return message;
}

int64_t Worker::moves() const {
  const SteadyTime until = step_is_stopped_ ? stopped_since_ : site_->loop->now();
  if (activity_ == ThreadProgress::CONNECTING) return base_moves_;
  return base_moves_ + (until - since_) / (activity_ == ThreadProgress::WORKING ? kWorkBeat : kBeat);
}

void Worker::SetActivity(Progress::Activity activity, int peer) {
  base_moves_ = moves() + 1;
  since_ = site_->loop->now();
  if (activity == ThreadProgress::WAITING || activity == ThreadProgress::CONNECTING) ++num_waits_;
  activity_ = activity;
  peer_ = peer;
}

// ---- The step thread ------------------------------------------------------------------------------------------------

void Worker::Wake() {
  if (std::exchange(is_woken_, true)) return;
  Later(site_->loop->random().Delay(microseconds(20)), [this] {
    is_woken_ = false;
    if (step_is_stopped_) {
      wakes_when_continued_ = true;
      return;
    }
    fiber_->Resume();
    if (fiber_->is_done() && is_alive_) Teardown();
  });
}

void Worker::WaitForPeer(int peer) {
  if (is_over_) return;
  if (activity_ != ThreadProgress::CONNECTING) SetActivity(ThreadProgress::WAITING, peer);
  fiber_->Block();
  if (activity_ != ThreadProgress::CONNECTING) SetActivity(ThreadProgress::WORKING);
}

void Worker::SleepFor(Nanos time) {
  const SteadyTime until = site_->loop->now() + time;
  Later(time, [this] { Wake(); });
  while (site_->loop->now() < until && !is_over_) fiber_->Block();
}

void Worker::StepLoop() {
  while (!is_over_ && !is_drained_ && !is_terminated_) {
    if (!inbox_.empty()) {
      Item item = std::move(inbox_.front());
      inbox_.pop_front();
      SetActivity(ThreadProgress::WORKING);
      if (auto* const message = std::get_if<worker::FrontMessage>(&item)) {
        Handle(*message);
      } else {
        std::get<std::function<void()>>(item)();
      }
      SetActivity(ThreadProgress::IDLE);
    } else if (!is_closed_) {
      fiber_->Block();
    } else if (keeps_weights_ && site_->restarts) {
      communicator_ = nullptr;
      if (is_sent_away_) parts_.clear();
      SleepFor(site_->loop->random().Delay(milliseconds(100)));
      if (!is_over_) Join();
    } else {
      return;
    }
  }
}

void Worker::Handle(worker::FrontMessage& message) {
  switch (message.message_case()) {
    case worker::FrontMessage::kWelcome:
      rank_ = message.welcome().rank();
      num_ranks_ = message.welcome().num_ranks();
      std::erase_if(parts_, [&](const auto& part) {
        return std::none_of(message.welcome().models().begin(), message.welcome().models().end(),
                            [&](const worker::ModelShare& share) { return share.model_id() == part.first; });
      });
      return Load({message.welcome().models().begin(), message.welcome().models().end()});
    case worker::FrontMessage::kLoadModel:
      return Load({message.load_model().model()});
    case worker::FrontMessage::kUnloadModel:
      return Unload(message.unload_model().model_id());
    case worker::FrontMessage::kPrepareGroup:
      return PrepareGroup(message.prepare_group());
    case worker::FrontMessage::kConnectGroup: {
      SetActivity(ThreadProgress::CONNECTING);
      const absl::Status status = ConnectGroup(message.connect_group());
      worker::WorkerMessage answer;
      if (status.ok()) {
        connected_ = message.connect_group().epoch();
        answer.mutable_group_ready()->set_epoch(connected_);
      } else {
        answer.mutable_group_failed()->set_epoch(message.connect_group().epoch());
        answer.mutable_group_failed()->set_message(std::string(status.message()));
      }
      return Send(std::move(answer));
    }
    case worker::FrontMessage::kStep:
      return RunStep(message.step());
    case worker::FrontMessage::kDrain:
      is_drained_ = true;
      return;
    default:
      return;
  }
}

absl::Status Worker::Worked(Point point) {
  SleepFor(std::min<Nanos>(site_->loop->random().Delay(site_->work_time) * misbehaviour_.slowness, kSlowest));
  if (!is_over_) site_->pass(point, host_);
  if (is_over_) return absl::CancelledError("the process ends");
  if (std::exchange(misbehaviour_.fail_step, false)) return absl::InternalError("the device failed");
  return absl::OkStatus();
}

void Worker::PrepareGroup(const worker::PrepareGroup& message) {
  SetActivity(ThreadProgress::CONNECTING);
  connected_ = 0;
  communicator_ = nullptr;
  SleepFor(std::min<Nanos>(site_->loop->random().Delay(microseconds(500)) * misbehaviour_.slowness, kSlowest));
  if (is_over_) return;
  worker::WorkerMessage answer;
  if (newest_ > message.epoch() || std::exchange(misbehaviour_.fail_group, false)) {
    answer.mutable_group_failed()->set_epoch(message.epoch());
    answer.mutable_group_failed()->set_message("superseded");
  } else {
    communicator_ =
        std::make_shared<PeerCommunicator>(site_->directory, static_cast<StepThread*>(this), host_, rank_, num_ranks_);
    prepared_ = message.epoch();
    answer.mutable_group_address()->set_epoch(message.epoch());
    answer.mutable_group_address()->set_address(communicator_->address());
  }
  Send(std::move(answer));
}

absl::Status Worker::ConnectGroup(const worker::ConnectGroup& message) {
  const int64_t epoch = message.epoch();
  const std::shared_ptr<PeerCommunicator> communicator = communicator_;
  if (newest_ > epoch || prepared_ != epoch || communicator == nullptr) return absl::AbortedError("superseded");
  const std::vector<std::string> addresses(message.addresses().begin(), message.addresses().end());
  SY_RETURN_IF_ERROR(communicator->Connect(addresses));
  if (std::exchange(misbehaviour_.fail_group, false)) {
    communicator->Abort();
    return absl::InternalError("cannot connect");
  }
  // The check of the exchange: every rank's epoch.
  std::vector<int64_t> mine(num_ranks_, epoch), theirs(num_ranks_);
  const std::vector<size_t> sizes(num_ranks_, sizeof(int64_t));
  SY_RETURN_IF_ERROR(communicator->AllToAllV(reinterpret_cast<const std::byte*>(mine.data()), sizes,
                                             reinterpret_cast<std::byte*>(theirs.data()), sizes, nullptr));
  return theirs == mine ? absl::OkStatus() : absl::DataLossError("a rank of another epoch");
}

void Worker::RunStep(const worker::StepRequest& request) {
  if (connected_ == 0 || connected_ != request.epoch()) return;  // the front replays it
  step_epoch_ = request.epoch();
  step_id_ = request.step_id();
  worker::WorkerMessage answer;
  worker::StepResult& result = *answer.mutable_step_result();
  result.set_epoch(request.epoch());
  result.set_step_id(request.step_id());
  const absl::Status status = ComputeStep(request, result.mutable_rows());
  if (status == Deadly() && !is_over_) return Kill();
  if (is_over_) return;
  result.set_code(static_cast<int>(status.code()));
  result.set_message(std::string(status.message()));
  if (!status.ok()) result.clear_rows();
  SendResult(std::move(answer));
}

absl::Status Worker::ComputeStep(const worker::StepRequest& request, std::string* output) {
  const std::shared_ptr<PeerCommunicator> communicator = communicator_;
  const auto refuse = [&](const absl::Status& why) {
    communicator->Abort();
    return why;
  };
  const auto part = std::find_if(parts_.begin(), parts_.end(), [&](const auto& each) {
    const int layer_idx = request.layer_id() - each.second.share.first_layer_id();
    return layer_idx >= 0 && layer_idx < each.second.engine->num_layers();
  });
  if (part == parts_.end()) return refuse(absl::InternalError("no such layer"));
  PlainEngine& engine = *part->second.engine;
  const int layer_idx = request.layer_id() - part->second.share.first_layer_id();
  const std::span<const std::byte> rows = std::as_bytes(std::span(request.rows()));
  const int64_t width = part->second.share.fingerprint();  // stands for what the checkpoint's configuration says
  const int64_t num_rows = static_cast<int64_t>(rows.size() / sizeof(float)) / width;
  const auto plan =
      DecodeRankPlan(std::as_bytes(std::span(request.plan())), {.num_ranks = num_ranks_,
                                                                .num_slots = engine.num_slots(layer_idx),
                                                                .max_home_rows = num_rows,
                                                                .max_rows = part->second.share.max_batch_rows()});
  if (!plan.ok()) return refuse(plan.status());
  if (plan->num_home_rows != num_rows) return refuse(absl::InternalError("rows and plan differ"));
  output->resize(rows.size());
  StepTimes times;
  return runner_.Run({.engine = &engine,
                      .communicator = communicator.get(),
                      .layer = LayerId{layer_idx},
                      .hidden_dim = width,
                      .plan = *plan,
                      .home_rows = {rows.data(), DType::kF32, num_rows, width},
                      .output = {reinterpret_cast<std::byte*>(output->data()), DType::kF32, num_rows, width}},
                     &times);
}

void Worker::SendResult(worker::WorkerMessage answer) {
  worker::StepResult& result = *answer.mutable_step_result();
  if (site_->corrupts_results && !result.rows().empty()) ++result.mutable_rows()->back();
  if (std::exchange(misbehaviour_.wrong_size, false)) {
    if (site_->loop->random().Chance(50) && !result.rows().empty()) {
      result.mutable_rows()->pop_back();
    } else {
      result.mutable_rows()->push_back('x');
    }
  }
  if (std::exchange(misbehaviour_.stale_results, false)) {
    // Of earlier groups, and of steps that are over, with rows that would be noticed.
    for (const int64_t epoch : {result.epoch() - 1, int64_t{0}}) {
      worker::WorkerMessage stale = answer;
      stale.mutable_step_result()->set_epoch(epoch);
      std::fill(stale.mutable_step_result()->mutable_rows()->begin(),
                stale.mutable_step_result()->mutable_rows()->end(), 'x');
      Send(std::move(stale));
    }
  }
  const bool repeats = std::exchange(misbehaviour_.duplicate_result, false);
  if (repeats) Send(answer);
  Send(std::move(answer));
}

// ---- Models ---------------------------------------------------------------------------------------------------------

void Worker::Load(std::vector<worker::ModelShare> shares) {
  auto queue = std::make_shared<std::deque<worker::ModelShare>>(shares.begin(), shares.end());
  for (const worker::ModelShare& share : *queue) loading_[share.model_id()] = true;
  LoadNext(queue);
}

// One model after the other, on a thread of the loader.
void Worker::LoadNext(const std::shared_ptr<std::deque<worker::ModelShare>>& queue) {
  if (queue->empty()) return;
  const worker::ModelShare share = std::move(queue->front());
  queue->pop_front();
  site_->pass(Point::kLoadBegins, host_);
  // A worker that has joined again may have another rank, with other experts.
  const auto kept = parts_.find(share.model_id());
  const bool is_kept = kept != parts_.end() && kept->second.share.SerializeAsString() == share.SerializeAsString();
  if (kept != parts_.end() && !is_kept) parts_.erase(kept);
  const Nanos time = is_kept ? microseconds(100) : site_->loop->random().About(site_->load_time);
  const auto stream = connection_;
  Later(time / 2, [this, share, stream] {
    if (stream != connection_) return;
    if (site_->is_deadly(share.model_id())) return Kill();
    if (misbehaviour_.die_in_loads > 0) {
      --misbehaviour_.die_in_loads;
      return Kill();
    }
    worker::WorkerMessage message;
    worker::ModelProgress& progress = *message.mutable_load_progress()->add_models();
    progress.set_model_id(share.model_id());
    progress.set_bytes_done(1);
    progress.set_bytes_total(2);
    Send(std::move(message));
  });
  Later(time, [this, share, queue, stream] {
    if (stream != connection_) return;
    inbox_.emplace_back([this, share] { EndLoad(share); });
    Wake();
    LoadNext(queue);
  });
}

void Worker::EndLoad(const worker::ModelShare& share) {
  const int64_t id = share.model_id();
  const auto load = loading_.extract(id);
  worker::WorkerMessage answer;
  if (load.empty()) return;
  if (!load.mapped()) {
    answer.mutable_model_unloaded()->set_model_id(id);
    parts_.erase(id);
  } else if (misbehaviour_.fail_loads > 0) {
    --misbehaviour_.fail_loads;
    answer.mutable_model_failed()->set_model_id(id);
    answer.mutable_model_failed()->set_code(static_cast<int>(absl::StatusCode::kDataLoss));
    answer.mutable_model_failed()->set_message("cannot be read");
    parts_.erase(id);
  } else {
    Part& part = parts_[id];
    if (part.engine == nullptr) {
      const bool is_other = misbehaviour_.reads_other_files && site_->is_settled(id);
      const uint64_t version = VersionOf(share.location()) + (is_other ? 1'000'000 : 0);
      part = {share, std::make_unique<PlainEngine>(share, version, [this](Point point) { return Worked(point); })};
    }
    worker::ModelLoaded& loaded = *answer.mutable_model_loaded();
    loaded.set_model_id(id);
    loaded.set_weight_bytes(1);
    part.engine->Describe(&loaded);
  }
  Send(std::move(answer));
}

void Worker::Unload(int64_t id) {
  if (const auto load = loading_.find(id); load != loading_.end()) {
    load->second = false;
    return;
  }
  parts_.erase(id);
  worker::WorkerMessage answer;
  answer.mutable_model_unloaded()->set_model_id(id);
  Send(std::move(answer));
}

}  // namespace switchyard::simulation
