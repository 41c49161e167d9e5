#include "server/group/worker_service.h"

#include <grpcpp/grpcpp.h>

#include <utility>

#include "base/mutex.h"
#include "proto/worker.grpc.pb.h"
#include "rpc/grpc_status.h"
#include "rpc/stream_writer.h"
#include "server/group/group.h"
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

// One worker's stream. gRPC owns one reference until OnDone, the group the others.
class JoinStream final : public RawJoinReactor, public WorkerChannel {
 public:
  static JoinStream* Start(Group* group) {
    auto stream = std::make_shared<JoinStream>(group);
    stream->self_ = stream;
    stream->StartRead(&stream->incoming_);
    return stream.get();
  }

  explicit JoinStream(Group* group)
      : group_(group), writer_([this](const grpc::ByteBuffer* message) { StartWrite(message); }) {}

  void Send(worker::FrontMessage message) override { writer_.Send(Serialize(message)); }

  // A polite end: the messages sent before are delivered, then the status. A worker that does not read is cancelled by
  // the end of its connection or, when the front started it, of its process.
  void Close(const absl::Status& why) override { End(why); }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return End(absl::OkStatus());
    auto received = DecodeWorkerMessage(incoming_);
    incoming_.Clear();
    const absl::Status handled = received.ok() ? Handle(*received) : received.status();
    if (!handled.ok()) return End(handled);
    StartRead(&incoming_);
  }

  absl::Status Handle(ReceivedWorkerMessage& received) {
    worker::WorkerMessage& message = received.message;
    if (!joined_) {
      if (!message.has_hello()) {
        return absl::FailedPreconditionError("worker refused: its first message is not a Hello");
      }
      joined_ = true;
      group_->Joined(self_, std::move(*message.mutable_hello()));
    } else if (message.has_step_result()) {
      group_->StepDone(this, ParseStreamResult(message.step_result()), received.rows);
    } else {
      group_->Said(self_, std::move(message));
    }
    return absl::OkStatus();
  }

  void OnWriteDone(bool ok) override { writer_.OnWriteDone(ok); }
  void OnCancel() override { End(absl::CancelledError("stream cancelled")); }

  void OnDone() override {
    if (joined_) group_->Left(self_, "its stream ended");
    const std::shared_ptr<JoinStream> last = std::move(self_);
  }

  void End(const absl::Status& why) {
    {
      MutexLock lock(&mu_);
      if (ended_) return;
      ended_ = true;
    }
    writer_.Stop();
    Finish(ToGrpcStatus(why));
  }

  Group* const group_;
  StreamWriter<grpc::ByteBuffer> writer_;
  grpc::ByteBuffer incoming_;         // the read under way
  bool joined_ = false;               // reads are in sequence
  std::shared_ptr<JoinStream> self_;  // gRPC's reference
  Mutex mu_;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

class WorkerService final : public worker::WorkerHub::WithRawCallbackMethod_Join<worker::WorkerHub::Service> {
 public:
  explicit WorkerService(Group* group) : group_(group) {}

  RawJoinReactor* Join(grpc::CallbackServerContext*) override { return JoinStream::Start(group_); }

 private:
  Group* const group_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeWorkerService(Group* group) { return std::make_unique<WorkerService>(group); }

}  // namespace switchyard
