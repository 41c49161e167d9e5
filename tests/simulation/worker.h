// A simulated worker: a host with a process on it that speaks proto/worker.proto as worker/worker.cc does, and that is
// started again when it has ended.
//
// Its step thread is a fiber, which forms groups and runs steps with the real StepRunner. What the real worker does on
// gRPC's and the loaders' threads happens in events: pings are answered and epochs announced at once, loads take time.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <variant>
#include <vector>

#include "base/model_id.h"
#include "server/links/worker_channel.h"
#include "tests/simulation/fiber.h"
#include "tests/simulation/peers.h"
#include "tests/simulation/plain_engine.h"
#include "worker/steps/step_runner.h"

namespace switchyard::simulation {

class Connection;

// The front as workers' connections and processes reach it.
class FrontDoor {
 public:
  virtual ~FrontDoor() = default;
  virtual void Joined(const std::shared_ptr<Connection>& connection, const worker::Hello& hello) = 0;
  virtual void Said(const std::shared_ptr<Connection>& connection, worker::WorkerMessage message) = 0;
  virtual void Left(const std::shared_ptr<Connection>& connection) = 0;
  virtual void Exited(int local_index) = 0;
};

// What all workers share.
struct Site {
  EventLoop* loop;
  Network* network;
  PeerDirectory* directory;
  FrontDoor* front = nullptr;
  std::function<void(Point point, int host)> pass = [](Point, int) {};  // lets faults strike
  // Whether a worker that reads other weights of this model would be found out.
  std::function<bool(int64_t model)> is_settled = [](int64_t) { return false; };
  // Whether processes die while they load this model.
  std::function<bool(int64_t model)> is_deadly = [](int64_t) { return false; };
  std::function<void()> interleave = [] {};  // where the front holds no lock: lets its other threads run
  std::string version, build;
  Nanos load_time{}, work_time{}, front_timeout{};
  bool restarts = true;
  bool corrupts_results = false;
};

// How a worker misbehaves the next time that it has the occasion.
struct Misbehaviour {
  int fail_loads = 0, die_in_loads = 0;
  bool wrong_size = false, stale_results = false, duplicate_result = false, fail_step = false, fail_group = false;
  bool reads_other_files = false;  // until it is cleared
  int slowness = 1;                // until it is 1 again
};

class Worker final : private StepThread {
 public:
  // A `local_index` below 0 is that of a worker that the front does not start. One that keeps its weights joins again
  // when its stream has ended; other processes end.
  Worker(Site* site, int host, int local_index, bool keeps_weights);
  ~Worker() override;

  void Start();
  void Kill();
  // As by SIGTERM.
  void Terminate();
  void StopStepThread();
  void ContinueStepThread();
  // From now on the process stands still, or its step thread does, until somebody ends it.
  void HangForGood() { hangs_for_good_ = true; }
  bool hangs_for_good() const { return hangs_for_good_; }
  // Goes on after the network has let the host go on.
  void Continue();

  void OnFrontMessage(const Connection* connection, worker::FrontMessage message);
  // A worker that the front has sent away keeps no weights, which may be the reason.
  void OnStreamEnd(const Connection* connection, bool is_sent_away = false);
  void OnGivenUp(const Connection* connection);

  Misbehaviour& misbehaviour() { return misbehaviour_; }
  int host() const { return host_; }
  int local_index() const { return local_index_; }
  bool is_alive() const { return is_alive_; }
  bool step_is_stopped() const { return step_is_stopped_; }
  const std::shared_ptr<Connection>& connection() const { return connection_; }
  int rank() const { return rank_; }
  std::set<int64_t> models() const;
  void AbortExchange();

 private:
  using Item = std::variant<worker::FrontMessage, std::function<void()>>;
  using Progress = worker::ThreadProgress;

  // StepThread.
  void WaitForPeer(int peer) override;
  void Wake() override;
  bool is_over() const override { return is_over_; }

  // Runs `fn` later in this process, if that is still there; a process that is stopped runs it when it goes on.
  void Later(Nanos delay, std::function<void()> fn);
  void Join();
  void Teardown();
  void ListenForSilence();
  void Send(worker::WorkerMessage message);
  void Announce(int64_t epoch);
  worker::WorkerMessage MakePong(int64_t number) const;
  int64_t moves() const;

  // On the step thread's fiber.
  void StepLoop();
  void Handle(worker::FrontMessage& message);
  void SleepFor(Nanos time);
  void SetActivity(Progress::Activity activity, int peer = -1);
  absl::Status Worked(Point point);
  void PrepareGroup(const worker::PrepareGroup& message);
  absl::Status ConnectGroup(const worker::ConnectGroup& message);
  void RunStep(const worker::StepRequest& request);
  absl::Status ComputeStep(const worker::StepRequest& request, std::string* output);
  void SendResult(worker::WorkerMessage answer);

  // Models.
  void Load(std::vector<worker::ModelShare> shares);
  void LoadNext(const std::shared_ptr<std::deque<worker::ModelShare>>& queue);
  void EndLoad(const worker::ModelShare& share);
  void Unload(int64_t id);

  Site* const site_;
  const int host_, local_index_;
  const bool keeps_weights_;
  Misbehaviour misbehaviour_;

  // Of the process.
  int incarnation_ = 0, num_restarts_ = 0;
  bool is_alive_ = false, is_over_ = false, is_terminated_ = false, hangs_for_good_ = false;
  std::vector<std::function<void()>> held_;  // while the process is stopped
  std::shared_ptr<Connection> connection_;
  std::unique_ptr<Fiber> fiber_;
  std::deque<Item> inbox_;
  bool is_closed_ = false, is_sent_away_ = false, is_drained_ = false;
  bool is_woken_ = false, step_is_stopped_ = false, wakes_when_continued_ = false;
  int silent_looks_ = 0;
  int rank_ = -1, num_ranks_ = 0;
  int64_t newest_ = 0, prepared_ = 0, connected_ = 0;  // epochs; connected_ is 0 without a group
  std::shared_ptr<PeerCommunicator> communicator_;
  StepRunner runner_;
  struct Part {
    worker::ModelShare share;
    std::unique_ptr<PlainEngine> engine;
  };
  std::map<int64_t, Part> parts_;    // by model
  std::map<int64_t, bool> loading_;  // by model: whether it is still wanted

  // What the step thread does, for the pongs.
  Progress::Activity activity_ = Progress::IDLE;
  int peer_ = -1;
  int64_t num_waits_ = 0, base_moves_ = 0;
  SteadyTime since_, stopped_since_;
  int64_t step_id_ = 0, step_epoch_ = 0;
};

// A worker's stream to the front: the front's end is the channel that the group knows.
class Connection final : public WorkerChannel, public std::enable_shared_from_this<Connection> {
 public:
  Connection(Site* site, Worker* worker)
      : site_(site),
        worker_(worker),
        up_(site->network->Open(worker->host(), kFrontHost)),
        down_(site->network->Open(kFrontHost, worker->host())) {}

  // The front's end.
  void Send(worker::FrontMessage message) override;
  void Close(const absl::Status& why) override;
  // The worker's end.
  void SendUp(worker::WorkerMessage message);
  // `loses` what is on its way.
  void EndByWorker(bool loses);
  // Both ends learn of it, each in its own time.
  void Break();
  void Lose();

  int host() const { return worker_->host(); }
  bool is_over_at_front() const { return is_over_at_front_; }

 private:
  void EndAtFront();

  Site* const site_;
  Worker* const worker_;
  const std::shared_ptr<Pipe> up_, down_;
  bool is_over_at_front_ = false, is_over_at_worker_ = false;
};

}  // namespace switchyard::simulation
