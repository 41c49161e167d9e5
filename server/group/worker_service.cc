#include "server/group/worker_service.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <utility>

#include "absl/strings/string_view.h"
#include "base/deadlines.h"
#include "base/mutex.h"
#include "proto/worker.grpc.pb.h"
#include "rpc/grpc_status.h"
#include "rpc/stream_writer.h"
#include "server/group/group.h"
#include "server/group/worker_access.h"
#include "server/group/worker_message.h"
#include "server/links/stream_link.h"

namespace switchyard {
namespace {

using RawJoinReactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

grpc::ByteBuffer Serialize(const worker::FrontMessage& message) {
  grpc::ByteBuffer bytes;
  bool own = false;
  grpc::SerializationTraits<worker::FrontMessage>::Serialize(message, &bytes, &own);
  return bytes;
}

// A Hello has names and numbers only.
constexpr size_t kMaxHelloBytes = 64 << 10;

absl::string_view Authorization(const grpc::CallbackServerContext& context) {
  const auto found = context.client_metadata().find("authorization");
  if (found == context.client_metadata().end()) return {};
  return {found->second.data(), found->second.size()};
}

// A call that was not let in: ends at once, and reads nothing.
class RefusedJoin final : public RawJoinReactor {
 public:
  explicit RefusedJoin(const absl::Status& why) { Finish(ToGrpcStatus(why)); }

 private:
  void OnDone() override { delete this; }
};

// One worker's stream. gRPC owns one reference until OnDone, the group the others.
class JoinStream final : public RawJoinReactor, public WorkerChannel {
 public:
  // `hello_due` is the time of the first message.
  static JoinStream* Start(const std::string& peer, const Deadlines::Key& hello_due, Deadlines* deadlines,
                           Group* group) {
    auto stream = std::make_shared<JoinStream>(peer, hello_due, deadlines, group);
    stream->self_ = stream;
    deadlines->Add(hello_due, [weak = std::weak_ptr<JoinStream>(stream)] {
      if (const auto late = weak.lock()) {
        late->Refuse(WorkerRefusal::kLate, absl::DeadlineExceededError("worker refused: it sends no Hello"));
      }
    });
    stream->StartRead(&stream->incoming_);
    return stream.get();
  }

  JoinStream(const std::string& peer, const Deadlines::Key& hello_due, Deadlines* deadlines, Group* group)
      : peer_(peer),
        hello_due_(hello_due),
        deadlines_(deadlines),
        group_(group),
        writer_([this](const grpc::ByteBuffer* message) { StartWrite(message); }) {}

  // The group's first message to a worker is that it is accepted.
  void Send(worker::FrontMessage message) override {
    writer_.Send(Serialize(message));
    ReadOn();
  }

  // A polite end: the messages sent before are delivered, then the status. A worker that does not read is cancelled by
  // the end of its connection or, when the front started it, of its process.
  void Close(const absl::Status& why) override { End(why); }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) {
      End(absl::OkStatus());
      return;
    }
    if (!joined_) return Join();
    auto received = DecodeWorkerMessage(incoming_);
    incoming_.Clear();
    if (!received.ok()) {
      End(received.status());
      return;
    }
    Handle(*received);
    StartRead(&incoming_);
  }

  // Handles the first message, and leaves the others unread until the group has accepted the worker.
  void Join() {
    const size_t num_bytes = incoming_.Length();
    if (num_bytes > kMaxHelloBytes) {
      return Refuse(WorkerRefusal::kFirstMessage,
                    absl::FailedPreconditionError(absl::StrCat("worker refused: its first message has ", num_bytes,
                                                               " bytes, and a Hello at most ", kMaxHelloBytes)));
    }
    auto received = DecodeWorkerMessage(incoming_);
    incoming_.Clear();
    if (!received.ok() || !received->message.has_hello()) {
      return Refuse(WorkerRefusal::kFirstMessage,
                    absl::FailedPreconditionError("worker refused: its first message is not a Hello"));
    }
    if (!deadlines_->Remove(hello_due_)) return;  // it has been refused
    joined_ = true;
    group_->Joined(self_, std::move(*received->message.mutable_hello()));
  }

  void ReadOn() {
    if (accepted_.exchange(true)) return;
    MutexLock lock(&mu_);
    if (!ended_) StartRead(&incoming_);
  }

  void Handle(ReceivedWorkerMessage& received) {
    worker::WorkerMessage& message = received.message;
    if (message.has_step_result()) {
      group_->StepDone(this, ParseStreamResult(message.step_result()), received.rows);
    } else {
      group_->Said(self_, std::move(message));
    }
  }

  void OnWriteDone(bool ok) override { writer_.OnWriteDone(ok); }
  void OnCancel() override { End(absl::CancelledError("stream cancelled")); }

  void OnDone() override {
    deadlines_->Remove(hello_due_);
    if (joined_) group_->Left(self_, "its stream ended");
    const std::shared_ptr<JoinStream> last = std::move(self_);
  }

  // Counts the refusal before the worker hears of it.
  void Refuse(WorkerRefusal reason, const absl::Status& why) {
    if (!MarkEnded()) return;
    group_->Refused(reason, why, peer_);
    FinishWith(why);
  }

  void End(const absl::Status& why) {
    if (MarkEnded()) FinishWith(why);
  }

  // False when the stream has ended before.
  bool MarkEnded() {
    MutexLock lock(&mu_);
    return !std::exchange(ended_, true);
  }

  void FinishWith(const absl::Status& why) {
    writer_.Stop();
    Finish(ToGrpcStatus(why));
  }

  const std::string peer_;
  const Deadlines::Key hello_due_;
  Deadlines* const deadlines_;
  Group* const group_;
  StreamWriter<grpc::ByteBuffer> writer_;
  grpc::ByteBuffer incoming_;          // the read under way
  bool joined_ = false;                // a Hello came; reads are in sequence
  std::shared_ptr<JoinStream> self_;   // gRPC's reference
  std::atomic<bool> accepted_{false};  // by the group
  Mutex mu_;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

class WorkerService final : public worker::WorkerHub::WithRawCallbackMethod_Join<worker::WorkerHub::Service> {
 public:
  WorkerService(const WorkerAccess* access, std::chrono::milliseconds hello_timeout, Group* group)
      : access_(access), hello_timeout_(hello_timeout), group_(group) {}

  RawJoinReactor* Join(grpc::CallbackServerContext* context) override {
    const std::string peer = context->peer();
    if (const auto refusal = access_->Check(Authorization(*context), peer)) {
      group_->Refused(refusal->reason, refusal->why, peer);
      return new RefusedJoin(refusal->why);
    }
    return JoinStream::Start(peer, deadlines_.NewKey(Clock::Real().Now() + hello_timeout_), &deadlines_, group_);
  }

 private:
  const WorkerAccess* const access_;
  const std::chrono::milliseconds hello_timeout_;
  Group* const group_;
  Deadlines deadlines_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerService(const WorkerAccess* access, std::chrono::milliseconds hello_timeout,
                                                 Group* group) {
  return std::make_unique<WorkerService>(access, hello_timeout, group);
}

}  // namespace switchyard
