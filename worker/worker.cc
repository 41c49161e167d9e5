#include "worker/worker.h"

#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <limits>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/logging/logging.h"
#include "base/process/container_limits.h"
#include "base/version.h"
#include "moe/exchange/mesh/mesh_address.h"
#include "moe/link/spin_wait.h"
#include "moe/plan/plan_codec.h"
#include "rpc/address.h"
#include "rpc/build_fingerprint.h"
#include "rpc/deadline.h"
#include "rpc/tls.h"
#include "rpc/token_list.h"
#include "worker/welcome.h"

namespace switchyard {
namespace {

// The front's port refuses messages that are too large, so the worker only lifts gRPC's default limit of 4 MB.
constexpr int kUnlimitedMessage = -1;

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

absl::StatusOr<std::string> TokenForFront(const std::string& path) {
  if (path.empty()) {
    const char* inherited = getenv("SWITCHYARD_WORKER_TOKEN");  // set by a front for the workers it starts
    return std::string(inherited == nullptr ? "" : inherited);
  }
  return ReadToken({"--worker_token_file", path});
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectToFront(const std::string& front, const TlsFiles& tls) {
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kUnlimitedMessage);
  args.SetMaxSendMessageSize(kUnlimitedMessage);
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  // A proxy in the environment is for traffic to the outside. It would read the token of the workers.
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  SY_RETURN_IF_ERROR(CheckMutualTlsFlags(tls));
  if (!tls.cert.given()) return grpc::CreateCustomChannel(front, grpc::InsecureChannelCredentials(), args);
  SY_ASSIGN_OR_RETURN(const auto credentials, TlsChannelCredentials(tls));
  return grpc::CreateCustomChannel(front, credentials, args);
}

// A step that came over the stream, with its input rows and its answer.
struct StreamStep {
  worker::StepRequest request;
  worker::WorkerMessage answer;
};

void FillResult(const absl::Status& status, const StepTimes& times, worker::StepResult* result) {
  result->set_code(static_cast<int>(status.code()));
  result->set_message(std::string(status.message()));
  if (!status.ok()) result->clear_rows();
  result->mutable_times()->set_dispatch_us(times.dispatch_us);
  result->mutable_times()->set_expert_us(times.expert_us);
  result->mutable_times()->set_combine_us(times.combine_us);
}

void Describe(const Heartbeat& heartbeat, worker::Pong* pong) {
  if (!heartbeat.is_watching()) return;
  const Heartbeat::View view = heartbeat.Look();
  worker::ThreadProgress& thread = *pong->add_threads();
  thread.set_moves(view.moves);
  thread.set_activity(static_cast<worker::ThreadProgress::Activity>(view.activity));
  thread.set_peer(view.peer);
  thread.set_num_waits(view.num_waits);
  thread.set_epoch(view.epoch.value);
  thread.set_step_id(view.step.value);
}

}  // namespace

Worker::Worker(const WorkerOptions& options, std::unique_ptr<Device> device)
    : options_(options),
      device_(std::move(device)),
      group_([this](const std::string& name) { return device_->MakeExchange(name); }) {}

Worker::~Worker() {
  loader_.reset();  // from here on no model is taken up
  // Makes steps that wait for a peer end, so that they are reported while the stream still exists.
  group_.Announce(Epoch{std::numeric_limits<int64_t>::max()});
  steps_.reset();
}

absl::StatusOr<std::unique_ptr<Worker>> Worker::Create(const WorkerOptions& options, DeviceOpener open_device) {
  SY_RETURN_IF_ERROR(CheckOptions(options));
  SY_ASSIGN_OR_RETURN(auto device, open_device(options));
  std::unique_ptr<Worker> worker(new Worker(options, std::move(device)));
  SY_ASSIGN_OR_RETURN(worker->inbox_, Inbox::Create());
  if (options.link_fd >= 0) SY_RETURN_IF_ERROR(worker->AttachLink());
  if (options.http_port.has_value()) SY_RETURN_IF_ERROR(worker->StartHttp());
  return worker;
}

absl::Status Worker::StartHttp() {
  const int number = *options_.http_port == 0 ? 0 : std::max(0, options_.local_index);
  SY_ASSIGN_OR_RETURN(http_, HttpServer::Start(
                                 {options_.http_host, *options_.http_port + number},
                                 [this] { return metrics_.Collect(); }, [this] { return metrics_.in_group(); }));
  spdlog::info("metrics at http://{}/metrics", JoinHostPort(options_.http_host, http_->port()));
  return absl::OkStatus();
}

absl::Status Worker::AttachLink() {
  link_socket_ = UniqueFd(options_.link_fd);
  SY_ASSIGN_OR_RETURN(Setup setup, ReceiveSetup(link_socket_.get()));
  layout_ = setup.layout;
  SY_ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Attach(std::move(setup.memory_fd), layout_.total_bytes()));
  link_memory_.emplace(std::move(memory));
  if (absl::Status locked = device_->LockMemory(link_memory_->data(), link_memory_->size()); !locked.ok()) {
    spdlog::warn("the link's memory stays pageable, which makes steps slower: {}", locked.message());
  }
  return absl::OkStatus();
}

worker::Hello Worker::MakeHello() const {
  worker::Hello hello;
  hello.set_version(std::string(kVersion));
  hello.set_build(std::string(kBuildFingerprint));
  hello.set_local_index(options_.local_index);
  hello.set_pid(getpid());
  hello.set_host(HostName());
  hello.set_device(device_->name());
  for (const std::string& dtype : device_->compute_dtypes()) hello.add_compute_dtypes(dtype);
  for (const std::string& exchange : device_->exchange_names()) hello.add_exchanges(exchange);
  hello.set_host_identity(HostIdentity());
  return hello;
}

absl::Status Worker::JoinFront() {
  SY_ASSIGN_OR_RETURN(const std::string token, TokenForFront(options_.token_file));
  SY_ASSIGN_OR_RETURN(const Address front, ParseAddress(options_.front, "--front"));
  SY_ASSIGN_OR_RETURN(const auto channel, ConnectToFront(front.ToString(), options_.tls));
  const gpr_timespec deadline = DeadlineAfter(absl::Milliseconds(options_.join_timeout_ms));
  spdlog::info("joining the front at {}", options_.front);
  // gRPC would look a missing name up again with pauses of up to two minutes.
  SY_RETURN_IF_ERROR(WaitUntilResolves(front, std::chrono::milliseconds(options_.join_timeout_ms)));
  if (!channel->WaitForConnected(deadline)) {
    return absl::UnavailableError(
        absl::StrCat("no front answered at ", options_.front, " within ", options_.join_timeout_ms, " ms"));
  }
  stub_ = worker::WorkerHub::NewStub(channel);
  control_ = std::make_unique<ControlStream>(
      stub_.get(), token, MakeHello(), inbox_.get(), [this](Epoch epoch) { group_.Announce(epoch); },
      [this](worker::Pong* pong) { DescribeThreads(pong); },
      std::chrono::milliseconds(options_.local_index < 0 ? options_.front_timeout_ms : 0));
  load_report_ = std::make_unique<LoadReport>(
      [this](worker::WorkerMessage message) { control_->Send(std::move(message)); }, options_.local_index < 0);
  loader_ = std::make_unique<ModelLoader>(
      ModelLoaderOptions{.memory_limit = device_->name() == "cpu" ? MemoryLimit() : 0,
                         .make_engine = [this](DType dtype) { return device_->MakeEngine(dtype); },
                         .on_step_thread =
                             [this](Inbox::Task task) {
                               inbox_->Push([this, task = std::move(task)] {
                                 if (steps_ != nullptr) steps_->Drain();
                                 task();
                               });
                             },
                         .progress = [this](const LoadProgress& so_far) { load_report_->Update(so_far); },
                         .done =
                             [this](LoadOutcome outcome) {
                               inbox_->Push([this, shared = std::make_shared<LoadOutcome>(std::move(outcome))] {
                                 OnLoadEnded(std::move(*shared));
                               });
                             }});
  return absl::OkStatus();
}

void Worker::DescribeThreads(worker::Pong* pong) {
  Describe(step_heartbeat_, pong);
  Describe(completion_heartbeat_, pong);
  group_.Nudge();
}

absl::Status Worker::Run(int stop_fd) {
  step_heartbeat_.WatchThisThread();
  SY_RETURN_IF_ERROR(JoinFront());
  SY_RETURN_IF_ERROR(Serve(stop_fd));
  if (steps_ != nullptr) steps_->Drain();
  control_->Finish();
  return absl::OkStatus();
}

absl::Status Worker::Serve(int stop_fd) {
  pollfd polled[] = {{inbox_->wake_fd(), POLLIN, 0}, {stop_fd, POLLIN, 0}, {link_socket_.get(), POLLIN, 0}};
  SpinWait spin{std::chrono::microseconds(options_.link_spin_us)};
  while (!drained_) {
    const bool is_ready = polled[2].fd >= 0 && spin.Until([&] { return poll(polled, 3, 0) > 0; });
    if (!is_ready && poll(polled, 3, Heartbeat::kInterval.count()) < 0 && errno != EINTR) {
      return ErrnoStatus(errno, "poll");
    }
    SY_RETURN_IF_ERROR(DeviceStatus());
    if ((polled[1].revents & POLLIN) != 0) break;
    const Heartbeat::Doing working(Heartbeat::Activity::kWorking);
    if (auto item = inbox_->Pop(); item.has_value()) {
      SY_RETURN_IF_ERROR(HandleItem(*std::move(item)));
    } else if (auto closed = inbox_->closed(); closed.has_value()) {
      return Annotate(*closed, absl::StrCat("front at ", options_.front));
    } else if (polled[2].revents != 0) {
      SY_RETURN_IF_ERROR(HandleLinkStep());
    }
  }
  return absl::OkStatus();
}

absl::Status Worker::HandleItem(Inbox::Item item) {
  if (auto* const message = std::get_if<worker::FrontMessage>(&item)) return Handle(std::move(*message));
  std::get<Inbox::Task>(item)();
  return absl::OkStatus();
}

absl::Status Worker::Handle(worker::FrontMessage message) {
  switch (message.message_case()) {
    case worker::FrontMessage::kWelcome:
      SY_RETURN_IF_ERROR(CheckWelcome(message.welcome()));
      rank_ = message.welcome().rank();
      num_ranks_ = message.welcome().num_ranks();
      spdlog::info("rank {} of {}: {} models to load", rank_, num_ranks_, message.welcome().models_size());
      Load({message.welcome().models().begin(), message.welcome().models().end()});
      return absl::OkStatus();
    case worker::FrontMessage::kLoadModel:
      Load({message.load_model().model()});
      return absl::OkStatus();
    case worker::FrontMessage::kUnloadModel:
      Unload(ModelId{message.unload_model().model_id()});
      return absl::OkStatus();
    case worker::FrontMessage::kPrepareGroup:
      return PrepareGroup(message.prepare_group());
    case worker::FrontMessage::kConnectGroup:
      return ConnectGroup(message.connect_group());
    case worker::FrontMessage::kStep:
      HandleStreamStep(std::move(*message.mutable_step()));
      return absl::OkStatus();
    case worker::FrontMessage::kDrain:
      drained_ = true;
      return absl::OkStatus();
    default:
      return absl::InternalError("the front sent a message this worker does not know");
  }
}

// ---- Models ---------------------------------------------------------------------------------------------------------

void Worker::Load(std::vector<worker::ModelShare> models) {
  if (models.empty()) return;
  for (const worker::ModelShare& model : models) loading_[ModelId{model.model_id()}] = Clock::Real().Now();
  loader_->Load(std::move(models));
}

void Worker::Unload(ModelId id) {
  if (loading_.contains(id)) {
    unwanted_.insert(id);
    return loader_->Cancel(id);
  }
  worker::WorkerMessage answer;
  answer.mutable_model_unloaded()->set_model_id(id.value);
  std::unique_ptr<ModelPart> part = experts_.Remove(id);
  metrics_.SetWeightBytes(experts_.weight_bytes());
  GiveUp(std::move(part), answer);
}

void Worker::OnLoadEnded(LoadOutcome outcome) {
  const bool is_unwanted = unwanted_.erase(outcome.id) > 0;
  if (outcome.status.ok() && !is_unwanted) return TakeUp(std::move(outcome.part));
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

void Worker::TakeUp(std::unique_ptr<ModelPart> part) {
  const ExpertEngine& engine = *part->engine;
  if (steps_ == nullptr) {
    const int num_lanes = engine.stream() == nullptr ? 0 : engine.num_lanes();
    steps_ = std::make_unique<StepPipeline>(
        num_lanes, [this](const absl::Status& why) { OnDeviceLost(why); }, &completion_heartbeat_);
  }
  spdlog::info("rank {}: model {}: {:.1f} MiB of weights in {:.2f} s", rank_, part->name,
               engine.weight_bytes() / 1048576.0, MicrosBetween(loading_[part->id], Clock::Real().Now()) / 1e6);
  loading_.erase(part->id);
  worker::WorkerMessage answer;
  answer.mutable_model_loaded()->set_model_id(part->id.value);
  answer.mutable_model_loaded()->set_weight_bytes(engine.weight_bytes());
  for (const ModelPart::Layer& layer : part->layers) {
    answer.mutable_model_loaded()->add_layers()->mutable_digest()->Add(layer.digests.begin(), layer.digests.end());
  }
  experts_.Add(std::move(part));
  metrics_.SetWeightBytes(experts_.weight_bytes());
  control_->Send(std::move(answer));
}

void Worker::GiveUp(std::unique_ptr<ModelPart> part, const worker::WorkerMessage& answer) {
  if (part != nullptr && part->engine != nullptr && part->engine->stream() == nullptr) {
    return loader_->Free(std::move(part), [this, answer] { control_->Send(answer); });
  }
  // Device memory is freed between steps, as it is reserved.
  if (steps_ != nullptr) steps_->Drain();
  part.reset();
  control_->Send(answer);
}

// ---- The group ------------------------------------------------------------------------------------------------------

absl::Status Worker::PrepareGroup(const worker::PrepareGroup& message) {
  if (num_ranks_ == 0) return absl::InternalError("the front formed a group before it said Welcome");
  const Epoch epoch{message.epoch()};
  // Steps of the previous epoch that have not ended yet end with errors, because their communicator was aborted when
  // this epoch was announced.
  if (steps_ != nullptr) steps_->Drain();
  metrics_.SetGroup(Epoch{}, rank_);
  worker::WorkerMessage answer;
  const auto address = group_.Prepare(epoch, message.exchange(), rank_, num_ranks_);
  if (address.ok()) {
    answer.mutable_group_address()->set_epoch(epoch.value);
    answer.mutable_group_address()->set_address(*address);
  } else {
    answer.mutable_group_failed()->set_epoch(epoch.value);
    answer.mutable_group_failed()->set_message(std::string(address.status().message()));
  }
  control_->Send(std::move(answer));
  return address.ok() ? absl::OkStatus() : CheckDevice();
}

absl::Status Worker::ConnectGroup(const worker::ConnectGroup& message) {
  const std::vector<std::string> addresses(message.addresses().begin(), message.addresses().end());
  const absl::Status status = group_.Connect(Epoch{message.epoch()}, addresses);
  worker::WorkerMessage answer;
  if (status.ok()) {
    answer.mutable_group_ready()->set_epoch(message.epoch());
    metrics_.SetGroup(Epoch{message.epoch()}, rank_);
    spdlog::info("rank {}: in the group of epoch {}", rank_, message.epoch());
  } else {
    answer.mutable_group_failed()->set_epoch(message.epoch());
    answer.mutable_group_failed()->set_message(std::string(status.message()));
    // The front says it, once for all attempts.
    spdlog::debug("rank {}: could not form the group of epoch {}: {}", rank_, message.epoch(), status.message());
  }
  control_->Send(std::move(answer));
  return status.ok() ? absl::OkStatus() : CheckDevice();
}

// Not OK when the device is lost, so that trying again would be in vain.
absl::Status Worker::CheckDevice() const {
  return Annotate(experts_.CheckDevice(), absl::StrCat("device ", device_->name()));
}

bool Worker::BeginStep(Epoch epoch, StepId step) {
  if (group_.communicator() == nullptr || group_.epoch() != epoch) return false;
  step_heartbeat_.SetStep(epoch, step);
  return true;
}

void Worker::OnDeviceLost(const absl::Status& why) {
  {
    MutexLock lock(&mu_);
    if (device_status_.ok()) device_status_ = Annotate(why, absl::StrCat("device ", device_->name()));
  }
  inbox_->Close(why);  // wakes the step thread
}

absl::Status Worker::DeviceStatus() const {
  MutexLock lock(&mu_);
  return device_status_;
}

// ---- Steps ----------------------------------------------------------------------------------------------------------

absl::Status Worker::HandleLinkStep() {
  auto received = ReceiveStep(link_socket_.get());
  // If the link is closed without a message on the control stream, the front is gone.
  if (!received.ok()) return Annotate(received.status(), "step link");
  const StepMessage& step = *received;
  if (!BeginStep(step.epoch, step.step_id)) return absl::OkStatus();
  auto done = [this, epoch = step.epoch, id = step.step_id](const absl::Status& status, const StepTimes& times) {
    SendLinkResult({epoch, id, times, status});
  };
  const RankExperts::Place place = experts_.Find(step.layer);
  const size_t row_bytes =
      place.part == nullptr ? 0 : place.layer().hidden_dim * SizeOf(place.engine().compute_dtype());
  if (place.part == nullptr || step.slot < 0 || step.slot >= layout_.num_slots || step.output < 0 ||
      step.output >= layout_.num_outputs || step.num_home_rows < 0 || step.plan_bytes < 0 ||
      static_cast<uint64_t>(step.plan_bytes) > layout_.plan_bytes ||
      static_cast<uint64_t>(step.num_home_rows) > std::min(layout_.input_bytes, layout_.output_bytes) / row_bytes) {
    RefuseStep(absl::InternalError(absl::StrCat("step ", step.step_id.value, " does not fit the link's layout")),
               std::move(done));
    return absl::OkStatus();
  }
  std::byte* const memory = link_memory_->data();
  const size_t num_bytes = step.num_home_rows * row_bytes;
  RunStep(step.layer, {memory + layout_.plan_offset(step.slot), static_cast<size_t>(step.plan_bytes)},
          {memory + layout_.input_offset(step.slot), num_bytes},
          {memory + layout_.output_offset(step.output), num_bytes}, std::move(done));
  return absl::OkStatus();
}

// A failure to send is only logged: when the front is gone, the step thread notices that the link is closed.
void Worker::SendLinkResult(const ResultMessage& result) {
  if (absl::Status sent = SendResult(link_socket_.get(), result); !sent.ok()) {
    spdlog::warn("rank {}: step {} is done and cannot be reported: {}", rank_, result.step_id.value, sent.message());
  }
}

void Worker::HandleStreamStep(worker::StepRequest request) {
  if (!BeginStep(Epoch{request.epoch()}, StepId{request.step_id()})) return;
  auto step = std::make_shared<StreamStep>();
  step->request = std::move(request);
  worker::StepResult& result = *step->answer.mutable_step_result();
  result.set_epoch(step->request.epoch());
  result.set_step_id(step->request.step_id());
  std::string& output = *result.mutable_rows();
  output.resize(step->request.rows().size());
  // protobuf keeps bytes in a std::string, whose data malloc aligns to 16 bytes, enough for the plan and every row
  // type.
  RunStep(LayerId{step->request.layer_id()}, std::as_bytes(std::span(step->request.plan())),
          std::as_bytes(std::span(step->request.rows())), std::as_writable_bytes(std::span(output)),
          [this, step](const absl::Status& status, const StepTimes& times) {
            FillResult(status, times, step->answer.mutable_step_result());
            control_->Send(std::move(step->answer));
          });
}

void Worker::RunStep(LayerId layer, std::span<const std::byte> plan, std::span<const std::byte> rows,
                     std::span<std::byte> output, StepDoneFn done) {
  const auto step = MakeStep(layer, plan, rows, output);
  if (step.ok()) return steps_->Submit(*step, metrics_.Watch(*step, std::move(done)));
  RefuseStep(step.status(), std::move(done));
}

void Worker::RefuseStep(const absl::Status& why, StepDoneFn done) {
  group_.communicator()->Abort();
  if (steps_ == nullptr) return done(why, StepTimes{});
  steps_->Refuse(why, std::move(done));
}

absl::StatusOr<RankStep> Worker::MakeStep(LayerId layer_id, std::span<const std::byte> plan_bytes,
                                          std::span<const std::byte> rows, std::span<std::byte> output) const {
  const RankExperts::Place place = experts_.Find(layer_id);
  if (place.part == nullptr) return absl::InternalError(absl::StrCat("no layer number ", layer_id.value));
  const ModelPart::Layer& layer = place.layer();
  const DType dtype = place.engine().compute_dtype();
  const int64_t row_bytes = layer.hidden_dim * static_cast<int64_t>(SizeOf(dtype));
  const int64_t num_rows = static_cast<int64_t>(rows.size()) / row_bytes;
  auto plan = DecodeRankPlan(plan_bytes, {.num_ranks = num_ranks_,
                                          .num_slots = layer.num_slots,
                                          .max_home_rows = num_rows,
                                          .max_rows = place.part->max_batch_rows});
  if (!plan.ok()) return Annotate(plan.status(), "plan");
  if (plan->num_home_rows != num_rows || num_rows * row_bytes != static_cast<int64_t>(rows.size())) {
    return absl::InternalError(
        absl::StrCat("the plan has ", plan->num_home_rows, " home rows, ", rows.size(), " bytes of rows came"));
  }
  return RankStep{.engine = &place.engine(),
                  .communicator = group_.communicator(),
                  .layer = place.engine_layer,
                  .hidden_dim = layer.hidden_dim,
                  .plan = *plan,
                  .home_rows = {rows.data(), dtype, num_rows, layer.hidden_dim},
                  .output = {output.data(), dtype, num_rows, layer.hidden_dim}};
}

}  // namespace switchyard
