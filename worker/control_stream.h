// The worker's side of the Join stream: answers pings at once on gRPC's threads and puts other messages into the inbox.
//
// A front that is silent for too long is lost, as if the stream had broken: DEADLINE_EXCEEDED. The silence is counted
// in looks, so that the time in which this process did not run itself does not count.
//
// When a new epoch starts, `on_new_epoch` is called before the message is queued, because the step thread may be
// blocked in a collective of the old epoch and must be woken first. It is also called at the end of a group, with the
// next epoch, and at the end of the stream, with an epoch greater than all others.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "base/deadlines.h"
#include "base/ids.h"
#include "proto/worker.grpc.pb.h"
#include "rpc/stream_writer.h"
#include "worker/inbox.h"

namespace switchyard {

class ControlStream final : public grpc::ClientBidiReactor<worker::WorkerMessage, worker::FrontMessage> {
 public:
  // Opens the stream with `token`, unless that is empty, and sends `hello`. `inbox` outlives the stream and is closed
  // with the stream's final status. `describe` adds to the answer of a ping how far this worker's threads are. A
  // `silence_timeout` of 0 waits for ever.
  ControlStream(worker::WorkerHub::Stub* stub, const std::string& token, worker::Hello hello, Inbox* inbox,
                std::function<void(Epoch)> on_new_epoch, std::function<void(worker::Pong*)> describe,
                std::chrono::milliseconds silence_timeout);

  // Cancels the stream if it still runs, and waits for its end.
  ~ControlStream() override;

  // Thread-safe.
  void Send(worker::WorkerMessage message);

  // Half-closes: the front sees an orderly end. Nothing is sent afterwards.
  void Finish();

 private:
  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  static constexpr int kLooks = 20;  // in a silence_timeout
  void ListenForSilence();

  Inbox* const inbox_;
  const std::function<void(Epoch)> on_new_epoch_;
  const std::function<void(worker::Pong*)> describe_;
  const std::chrono::milliseconds silence_timeout_;
  std::atomic<int> num_silent_looks_{0};
  grpc::ClientContext context_;
  StreamWriter<worker::WorkerMessage> writer_;
  worker::FrontMessage incoming_;  // the message being read
  Mutex mu_;
  CondVar ended_;
  bool is_ending_ ABSL_GUARDED_BY(mu_) = false;  // then nothing may be started: OnDone would not wait for it
  bool done_ ABSL_GUARDED_BY(mu_) = false;
  Deadlines deadlines_;  // ends first
};

}  // namespace switchyard
