#include "worker/session.h"

#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <limits>

#include "base/heartbeat.h"
#include "base/logging/logging.h"
#include "base/version.h"
#include "moe/exchange/mesh/mesh_address.h"
#include "moe/link/spin_wait.h"
#include "rpc/build_fingerprint.h"
#include "worker/front_channel.h"
#include "worker/welcome.h"

namespace switchyard {
namespace {

// Greater than all epochs of all fronts.
constexpr Epoch kEndOfSession{std::numeric_limits<int64_t>::max()};

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

// Whether an end of the stream with this status would come again, however long the worker waits.
bool IsFinal(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kUnimplemented:
      return true;
    default:
      return false;
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<Session>> Session::Create(WorkerBase* base) {
  SY_ASSIGN_OR_RETURN(auto inbox, Inbox::Create());
  std::unique_ptr<Session> session(new Session(base, std::move(inbox)));
  SY_RETURN_IF_ERROR(session->OpenStream());
  return session;
}

Session::Session(WorkerBase* base, std::unique_ptr<Inbox> inbox)
    : base_(base),
      inbox_(std::move(inbox)),
      group_([base](const std::string& name) { return base->device->MakeExchange(name); },
             [base](Epoch epoch) { base->metrics.SetEpoch(epoch); }),
      steps_(
          base, &experts_, &group_, [this](worker::WorkerMessage message) { Send(std::move(message)); },
          [this](const absl::Status& why) { OnDeviceLost(why); }) {}

Session::~Session() {
  base_->has_front = false;
  group_.Announce(kEndOfSession);  // steps that wait for a peer end
  steps_.Drain();
  models_.reset();
  control_.reset();
}

absl::Status Session::OpenStream() {
  SY_ASSIGN_OR_RETURN(const std::string token, TokenForFront(base_->options));
  SY_ASSIGN_OR_RETURN(const auto channel, ConnectToFront(base_->options));
  stub_ = worker::WorkerHub::NewStub(channel);
  ++base_->num_streams;
  const bool is_local = base_->options.local_index >= 0;
  control_ = std::make_unique<ControlStream>(
      stub_.get(), token, MakeHello(), inbox_.get(), [this](Epoch epoch) { group_.Announce(epoch); },
      [this](worker::Pong* pong) {
        steps_.Describe(pong);
        group_.Nudge();
      },
      std::chrono::milliseconds(is_local ? 0 : base_->options.front_timeout_ms));
  models_ = std::make_unique<RankModels>(base_, inbox_.get(), &experts_, &steps_,
                                         [this](worker::WorkerMessage message) { Send(std::move(message)); });
  return absl::OkStatus();
}

worker::Hello Session::MakeHello() const {
  worker::Hello hello;
  hello.set_version(std::string(kVersion));
  hello.set_build(std::string(kBuildFingerprint));
  hello.set_local_index(base_->options.local_index);
  hello.set_pid(getpid());
  hello.set_host(HostName());
  hello.set_device(base_->device->name());
  for (const std::string& dtype : base_->device->compute_dtypes()) hello.add_compute_dtypes(dtype);
  for (const std::string& exchange : base_->device->exchange_names()) hello.add_exchanges(exchange);
  hello.set_host_identity(HostIdentity());
  hello.set_instance(base_->instance);
  hello.set_previous_rank(base_->previous_rank);
  hello.set_stream_number(base_->num_streams);
  return hello;
}

void Session::Send(worker::WorkerMessage message) { control_->Send(std::move(message)); }

// ---- Messages -------------------------------------------------------------------------------------------------------

WorkerEnd Session::Run(int stop_fd, SteadyTime welcome_due) {
  WorkerEnd end = Serve(stop_fd, welcome_due);
  if (end.code != ExitCode::kOk) return end;
  steps_.Drain();
  control_->Finish();
  return end;
}

WorkerEnd Session::Serve(int stop_fd, SteadyTime welcome_due) {
  pollfd polled[] = {{inbox_->wake_fd(), POLLIN, 0}, {stop_fd, POLLIN, 0}, {base_->link.socket.get(), POLLIN, 0}};
  SpinWait spin{std::chrono::microseconds(base_->options.link_spin_us)};
  while (!drained_) {
    const bool is_ready = polled[2].fd >= 0 && spin.Until([&] { return poll(polled, 3, 0) > 0; });
    if (!is_ready && poll(polled, 3, Heartbeat::kInterval.count()) < 0 && errno != EINTR) {
      return {ExitCode::kError, ErrnoStatus(errno, "poll")};
    }
    if (absl::Status device = DeviceStatus(); !device.ok()) return {ExitCode::kError, device};
    if ((polled[1].revents & POLLIN) != 0) break;
    if (auto end = HandleNext(polled[2].revents != 0)) return *end;
    if (!welcomed_at_.has_value() && Clock::Real().Now() >= welcome_due) {
      return {ExitCode::kNoFront,
              absl::DeadlineExceededError(absl::StrCat("the front at ", base_->options.front, " does not answer"))};
    }
  }
  return {};
}

std::optional<WorkerEnd> Session::HandleNext(bool has_link_step) {
  const Heartbeat::Doing working(Heartbeat::Activity::kWorking);
  if (auto item = inbox_->Pop(); item.has_value()) {
    if (absl::Status handled = HandleItem(*std::move(item)); !handled.ok()) return {{ExitCode::kError, handled}};
  } else if (auto closed = inbox_->closed(); closed.has_value()) {
    return EndedByFront(*closed);
  } else if (has_link_step) {
    // Joining again would be in vain: only the front that started this worker can give it a link.
    if (absl::Status link = steps_.HandleLinkStep(); !link.ok()) return {{ExitCode::kError, link}};
  }
  return std::nullopt;
}

WorkerEnd Session::EndedByFront(const absl::Status& status) const {
  const absl::Status why = Annotate(status, absl::StrCat("front at ", base_->options.front));
  if (!IsFinal(status)) return {ExitCode::kNoFront, why};
  return {welcomed_at_.has_value() ? ExitCode::kError : ExitCode::kRefused, why};
}

absl::Status Session::HandleItem(Inbox::Item item) {
  if (auto* const message = std::get_if<worker::FrontMessage>(&item)) return Handle(std::move(*message));
  std::get<Inbox::Task>(item)();
  return absl::OkStatus();
}

absl::Status Session::Handle(worker::FrontMessage message) {
  switch (message.message_case()) {
    case worker::FrontMessage::kWelcome:
      return Welcome(message.welcome());
    case worker::FrontMessage::kLoadModel:
      models_->Load(message.load_model().model());
      return absl::OkStatus();
    case worker::FrontMessage::kUnloadModel:
      models_->Unload(ModelId{message.unload_model().model_id()});
      return absl::OkStatus();
    case worker::FrontMessage::kPrepareGroup:
      return PrepareGroup(message.prepare_group());
    case worker::FrontMessage::kConnectGroup:
      return ConnectGroup(message.connect_group());
    case worker::FrontMessage::kStep:
      steps_.HandleStreamStep(std::move(*message.mutable_step()));
      return absl::OkStatus();
    case worker::FrontMessage::kDrain:
      drained_ = true;
      return absl::OkStatus();
    default:
      return absl::InternalError("the front sent a message this worker does not know");
  }
}

absl::Status Session::Welcome(const worker::Welcome& message) {
  SY_RETURN_IF_ERROR(CheckWelcome(message));
  welcomed_at_ = Clock::Real().Now();
  rank_ = message.rank();
  num_ranks_ = message.num_ranks();
  base_->previous_rank = rank_;
  base_->has_front = true;
  base_->metrics.SetRank(rank_);
  steps_.SetRank(rank_, num_ranks_);
  spdlog::info("rank {} of {}: {} models to load", rank_, num_ranks_, message.models_size());
  models_->Welcome(rank_, {message.models().begin(), message.models().end()});
  return absl::OkStatus();
}

// ---- The group ------------------------------------------------------------------------------------------------------

absl::Status Session::PrepareGroup(const worker::PrepareGroup& message) {
  if (num_ranks_ == 0) return absl::InternalError("the front formed a group before it said Welcome");
  const Epoch epoch{message.epoch()};
  // Steps of the previous epoch that have not ended yet end with errors, because their communicator was aborted when
  // this epoch was announced.
  steps_.Drain();
  worker::WorkerMessage answer;
  const auto address = group_.Prepare(epoch, message.exchange(), rank_, num_ranks_);
  if (address.ok()) {
    answer.mutable_group_address()->set_epoch(epoch.value);
    answer.mutable_group_address()->set_address(*address);
  } else {
    answer.mutable_group_failed()->set_epoch(epoch.value);
    answer.mutable_group_failed()->set_message(std::string(address.status().message()));
  }
  Send(std::move(answer));
  return address.ok() ? absl::OkStatus() : CheckDevice();
}

absl::Status Session::ConnectGroup(const worker::ConnectGroup& message) {
  const std::vector<std::string> addresses(message.addresses().begin(), message.addresses().end());
  const absl::Status status = group_.Connect(Epoch{message.epoch()}, addresses);
  worker::WorkerMessage answer;
  if (status.ok()) {
    answer.mutable_group_ready()->set_epoch(message.epoch());
    spdlog::info("rank {}: in the group of epoch {}", rank_, message.epoch());
  } else {
    answer.mutable_group_failed()->set_epoch(message.epoch());
    answer.mutable_group_failed()->set_message(std::string(status.message()));
    // The front says it, once for all attempts.
    spdlog::debug("rank {}: could not form the group of epoch {}: {}", rank_, message.epoch(), status.message());
  }
  Send(std::move(answer));
  return status.ok() ? absl::OkStatus() : CheckDevice();
}

// Not OK when the device is lost, so that trying again would be in vain.
absl::Status Session::CheckDevice() const {
  return Annotate(experts_.CheckDevice(), absl::StrCat("device ", base_->device->name()));
}

void Session::OnDeviceLost(const absl::Status& why) {
  {
    MutexLock lock(&mu_);
    if (device_status_.ok()) device_status_ = Annotate(why, absl::StrCat("device ", base_->device->name()));
  }
  inbox_->Close(why);  // wakes the step thread
}

absl::Status Session::DeviceStatus() const {
  MutexLock lock(&mu_);
  return device_status_;
}

}  // namespace switchyard
