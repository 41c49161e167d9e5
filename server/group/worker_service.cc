#include "server/group/worker_service.h"

#include "rpc/grpc_status.h"
#include "rpc/stream_writer.h"

namespace switchyard {
namespace {

// One worker's stream. gRPC owns one reference until OnDone, the group the others.
class JoinStream final : public grpc::ServerBidiReactor<worker::WorkerMessage, worker::FrontMessage>,
                         public WorkerChannel {
 public:
  static JoinStream* Start(Group* group) {
    auto stream = std::make_shared<JoinStream>(group);
    stream->self_ = stream;
    stream->StartRead(&stream->incoming_);
    return stream.get();
  }

  explicit JoinStream(Group* group)
      : group_(group), writer_([this](const worker::FrontMessage* message) { StartWrite(message); }) {}

  void Send(worker::FrontMessage message) override { writer_.Send(std::move(message)); }

  // A polite end: what was sent before is delivered, then the status. A worker that does not read is cancelled by the
  // end of its connection or, when it is ours, of its process.
  void Close(const absl::Status& why) override { End(why); }

 private:
  void OnReadDone(bool ok) override {
    if (!ok) return End(absl::OkStatus());
    if (joined_) {
      group_->Said(self_, std::move(incoming_));
    } else if (incoming_.has_hello()) {
      joined_ = true;
      group_->Joined(self_, std::move(*incoming_.mutable_hello()));
    } else {
      return End(absl::FailedPreconditionError("worker refused: its first message is not a Hello"));
    }
    incoming_.Clear();
    StartRead(&incoming_);
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
  StreamWriter<worker::FrontMessage> writer_;
  worker::WorkerMessage incoming_;    // the read under way
  bool joined_ = false;               // reads are in sequence
  std::shared_ptr<JoinStream> self_;  // gRPC's reference
  Mutex mu_;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace

grpc::ServerBidiReactor<worker::WorkerMessage, worker::FrontMessage>* WorkerService::Join(
    grpc::CallbackServerContext*) {
  return JoinStream::Start(group_);
}

}  // namespace switchyard
