// Workers that lose their front, or are cut off from it, come back with their weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "tests/e2e/checked_load.h"
#include "tests/e2e/cut_proxy.h"
#include "tests/e2e/negated_checkpoint.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kModel[] = "tests/testdata/jargon-moe";
constexpr char kGolden[] = "tests/testdata/golden_qwen3_moe";
constexpr char kKept[] = "of weights kept, nothing is read";
constexpr std::chrono::seconds kPatience(60);

// Long enough for a group that forms anew.
const ClientOptions kPatientCalls = {.timeout = absl::Seconds(90), .max_attempts = 1};

// Repeats until `condition` holds; false when it does not in time.
bool Await(const std::function<bool()>& condition) {
  const SteadyTime end = Clock::Real().Now() + kPatience;
  while (!condition()) {
    if (Clock::Real().Now() >= end) return false;
    usleep(5000);
  }
  return true;
}

int CountOf(const std::string& text, const std::string& part) {
  return static_cast<int>(std::vector<std::string>(absl::StrSplit(text, part)).size()) - 1;
}

// How often the worker has read a model.
int NumLoads(const ChildProcess& worker) { return CountOf(worker.Log(), " MiB of weights in "); }
int NumKept(const ChildProcess& worker) { return CountOf(worker.Log(), kKept); }

std::string PortOf(const std::string& address) { return address.substr(address.rfind(':') + 1); }

std::unique_ptr<ChildProcess> StartWorker(const std::string& front, const std::vector<std::string>& more = {}) {
  std::vector<std::string> flags = {absl::StrCat("--front=", front), "--device=cpu", "--threads=1"};
  flags.insert(flags.end(), more.begin(), more.end());
  return ChildProcess::Start(kWorkerProgram, flags).value();
}

// The process ids of the ranks, once the group serves.
std::vector<int> ServingPids(Client& client) {
  std::vector<int> pids;
  EXPECT_TRUE(Await([&] {
    const auto status = client.GetStatus();
    if (!status.ok() || status->state() != "serving") return false;
    for (const v1::Rank& rank : status->ranks()) pids.push_back(rank.pid());
    return true;
  }));
  return pids;
}

// A front that awaits workers, and can be started again on the same ports.
class AwaitingFront {
 public:
  AwaitingFront(const std::string& model, int num_workers) : model_(model), num_workers_(num_workers) {}

  // The front's process awaits its workers then.
  void Start(const std::vector<std::string>& more = {}) {
    std::vector<std::string> flags = {absl::StrCat("--model=m=", model_),
                                      absl::StrCat("--await_workers=", num_workers_),
                                      absl::StrCat("--port=", port_),
                                      absl::StrCat("--worker_port=", worker_port_),
                                      "--http_port=0",
                                      "--compute_dtype=fp32"};
    flags.insert(flags.end(), more.begin(), more.end());
    starting_ = ChildProcess::Start(kServerProgram, flags).value();
    const auto address = WaitForWorkerPort(*starting_);
    ASSERT_TRUE(address.ok()) << address.status();
    worker_address_ = *address;
    worker_port_ = PortOf(*address);
  }
  void WaitUntilReady() {
    auto ready = ServerProcess::WaitUntilReady(std::move(starting_));
    ASSERT_TRUE(ready.ok()) << ready.status();
    server_ = *std::move(ready);
    port_ = PortOf(server_->grpc_address());
  }
  void Kill() {
    server_->process().Signal(SIGKILL);
    server_->process().Wait();
    server_ = nullptr;
  }

  ServerProcess& server() { return *server_; }
  const std::string& worker_address() const { return worker_address_; }

 private:
  const std::string model_;
  const int num_workers_;
  std::string port_ = "0", worker_port_ = "0", worker_address_;
  std::unique_ptr<ChildProcess> starting_;
  std::unique_ptr<ServerProcess> server_;
};

// Calls a front that is about to die, whatever the answers are.
class Callers {
 public:
  explicit Callers(Client* client) {
    for (int i = 0; i < 2; ++i) threads_.emplace_back([this, client] { Run(client); });
    EXPECT_TRUE(Await([&] { return answered_ > 20; }));
  }
  ~Callers() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  void Run(Client* client) {
    const HostMatrix rows =
        LoadMatrix({absl::StrCat(kModel, "/golden.safetensors"), "model.layers.0.mlp.input"}).value();
    while (!stop_) answered_ += client->Forward({.model = "m", .layer = "0", .rows = rows.view()}).ok() ? 1 : 0;
  }

  std::atomic<bool> stop_{false};
  std::atomic<int> answered_{0};
  std::vector<std::thread> threads_;
};

class Rejoin : public testing::Test {
 protected:
  // Two workers; the second one joins at what `address_of_second` makes of the front's address, unless it is null.
  void Serve(const std::vector<std::string>& front_flags = {}, const std::vector<std::string>& worker_flags = {},
             const std::function<std::string(const std::string&)>& address_of_second = nullptr) {
    front_.Start(front_flags);
    const std::string& address = front_.worker_address();
    workers_.push_back(StartWorker(address, worker_flags));
    workers_.push_back(StartWorker(address_of_second == nullptr ? address : address_of_second(address), worker_flags));
    front_.WaitUntilReady();
    client_ = front_.server().Connect(kPatientCalls);
    pids_ = ServingPids(*client_);
    for (const auto& worker : workers_) {
      EXPECT_TRUE(worker->HasLogged("in the group of epoch 1"));
      loads_.push_back(NumLoads(*worker));
    }
  }

  // The workers are the same, of the same ranks, and `worker` has come back without reading weights.
  void ExpectBackWithWeights(size_t worker) {
    EXPECT_EQ(ServingPids(*client_), pids_);
    EXPECT_TRUE(workers_[worker]->HasLogged(kKept)) << workers_[worker]->Log();
    EXPECT_EQ(NumLoads(*workers_[worker]), loads_[worker]) << workers_[worker]->Log();
  }

  AwaitingFront front_{kModel, 2};
  std::vector<std::unique_ptr<ChildProcess>> workers_;
  std::vector<int> loads_;
  std::unique_ptr<Client> client_;
  std::vector<int> pids_;  // by rank
};

TEST_F(Rejoin, AFrontThatWasKilledAndStartedAgainFindsItsWorkersLoaded) {
  Serve();
  for (int round = 1; round <= 2; ++round) {
    {
      const Callers callers(client_.get());
      front_.Kill();
    }
    front_.Start();
    front_.WaitUntilReady();
    client_ = front_.server().Connect(kPatientCalls);
    CheckedLoad load(client_.get(), kModel, 2);
    load.WaitForAnswers(20);
    for (size_t worker = 0; worker < workers_.size(); ++worker) {
      ExpectBackWithWeights(worker);
      EXPECT_TRUE(Await([&] { return NumKept(*workers_[worker]) == round; })) << workers_[worker]->Log();
    }
    load.Stop();
    EXPECT_EQ(load.failed() + load.wrong(), 0);
  }
  EXPECT_EQ(front_.server().Stop(), 0);
  for (const auto& worker : workers_) EXPECT_EQ(worker->Wait(), 0) << "drained";
}

TEST_F(Rejoin, AWorkerThatWasStoppedForLongComesBackWithItsWeights) {
  Serve({"--worker_timeout_ms=1000"});
  CheckedLoad load(client_.get(), kModel, 2);
  load.WaitForAnswers(20);
  workers_[1]->Signal(SIGSTOP);
  ASSERT_TRUE(Await([&] { return client_->GetStatus()->state() != "serving"; }));
  workers_[1]->Signal(SIGCONT);
  load.WaitForAnswers(20);
  ExpectBackWithWeights(1);
  EXPECT_EQ(NumKept(*workers_[0]), 0) << "it was never away";
  load.Stop();
  EXPECT_EQ(load.failed() + load.wrong(), 0);
}

TEST_F(Rejoin, AWorkerWhoseConnectionBreaksJoinsTheSameFront) {
  std::unique_ptr<CutProxy> proxy;
  Serve({}, {}, [&](const std::string& front) {
    proxy = std::make_unique<CutProxy>(front);
    return proxy->address();
  });
  CheckedLoad load(client_.get(), kModel, 2);
  load.WaitForAnswers(20);
  const int64_t epoch = client_->GetStatus()->epoch();
  proxy->Cut();
  ASSERT_TRUE(Await([&] { return client_->GetStatus()->epoch() > epoch; }));
  load.WaitForAnswers(20);
  ExpectBackWithWeights(1);
  load.Stop();
  EXPECT_EQ(load.failed() + load.wrong(), 0);
}

// The front waits long for its worker, whose new stream tells it that the old one is dead.
TEST_F(Rejoin, AWorkerThatWasCutOffUnnoticedTakesItsOwnRankAtOnce) {
  std::unique_ptr<CutProxy> proxy;
  Serve({"--worker_timeout_ms=600000"}, {"--front_timeout_ms=1000"}, [&](const std::string& front) {
    proxy = std::make_unique<CutProxy>(front);
    return proxy->address();
  });
  CheckedLoad load(client_.get(), kModel, 2);
  load.WaitForAnswers(20);
  const int64_t epoch = client_->GetStatus()->epoch();
  proxy->Freeze();
  ASSERT_TRUE(Await([&] { return client_->GetStatus()->epoch() > epoch; }));
  load.WaitForAnswers(20);
  ExpectBackWithWeights(1);
  EXPECT_TRUE(workers_[1]->HasLogged("it has said nothing for 1000 ms"));
  load.Stop();
  EXPECT_EQ(load.failed() + load.wrong(), 0);
}

TEST_F(Rejoin, AFrontThatDidNotRunForLongGetsItsWorkersBack) {
  Serve({}, {"--front_timeout_ms=1000"});
  front_.server().process().Signal(SIGSTOP);
  for (const auto& worker : workers_) ASSERT_TRUE(worker->HasLogged("it has said nothing for 1000 ms"));
  for (const auto& worker : workers_) ASSERT_TRUE(worker->HasLogged("trying again")) << worker->Log();
  front_.server().process().Signal(SIGCONT);
  for (size_t worker = 0; worker < workers_.size(); ++worker) ExpectBackWithWeights(worker);
  CheckedLoad load(client_.get(), kModel, 2);
  load.WaitForAnswers(20);
  load.Stop();
  EXPECT_EQ(load.failed() + load.wrong(), 0);
}

TEST_F(Rejoin, ReadinessAndTheEpochSayWhenAWorkerHasNoGroup) {
  Serve({}, {"--http_port=0"});
  const auto address_of = [](const ChildProcess& worker) {
    EXPECT_TRUE(worker.HasLogged("/metrics"));
    const std::string log = worker.Log();
    const size_t begin = log.find("http://") + 7;
    return log.substr(begin, log.find("/metrics") - begin);
  };
  const std::string http = address_of(*workers_[0]);
  const auto epoch_is = [&](int epoch) {
    return absl::StrContains(HttpGet(http, "/metrics"), absl::StrCat("\nswitchyard_worker_group_epoch ", epoch, "\n"));
  };
  const auto is_ready = [&] { return HttpGet(http, "/readyz") == "ready\n"; };
  EXPECT_TRUE(is_ready());
  EXPECT_TRUE(epoch_is(1));

  workers_[1] = nullptr;
  EXPECT_TRUE(Await([&] { return !is_ready() && epoch_is(0); })) << "the group is over";
  workers_[1] = StartWorker(front_.worker_address());
  EXPECT_TRUE(Await([&] { return is_ready() && epoch_is(2); }));

  front_.Kill();
  EXPECT_TRUE(Await([&] { return !is_ready() && epoch_is(0); })) << "there is no front";
  front_.Start();
  front_.WaitUntilReady();
  EXPECT_TRUE(Await([&] { return is_ready() && epoch_is(1); }));
  EXPECT_EQ(NumKept(*workers_[0]), 1);
}

// ---- Weights that do not fit any more

HostMatrix Golden(const std::string& what) {
  return LoadMatrix({absl::StrCat(kGolden, "/golden.safetensors"), absl::StrCat("model.layers.0.mlp.", what)}).value();
}

HostMatrix Ask(const ServerProcess& server, const HostMatrix& rows) {
  auto result =
      server.Connect()->Forward({.model = "m", .layer = "0", .rows = rows.view(), .timeout = absl::Seconds(60)});
  EXPECT_TRUE(result.ok()) << result.status();
  return std::move(result->rows);
}

TEST(RejoinCheckpoint, AWorkerReadsACheckpointThatWasReplacedMeanwhile) {
  const fs::path folder = fs::path(testing::TempDir()) / "checkpoint";
  fs::create_directory(folder);
  for (const char* name : {"config.json", "model.safetensors"}) fs::copy_file(fs::path(kGolden) / name, folder / name);
  const HostMatrix input = Golden("input"), golden = Golden("output");
  AwaitingFront front(folder.string(), 1);
  front.Start();
  const auto worker = StartWorker(front.worker_address());
  front.WaitUntilReady();
  EXPECT_TRUE(Compare(Ask(front.server(), input).view(), golden.view(), {1e-4, 1e-5}).within_tolerance());
  const int loads = NumLoads(*worker);

  front.Kill();
  WriteNegated(fs::path(kGolden) / "model.safetensors", folder / "other");
  fs::rename(folder / "other", folder / "model.safetensors");
  front.Start();
  front.WaitUntilReady();
  const HostMatrix answer = Ask(front.server(), input);
  const auto local =
      ServerProcess::Start({"--model=m=" + folder.string(), "--local_workers=1", "--compute_dtype=fp32"});
  ASSERT_TRUE(local.ok()) << local.status();
  EXPECT_TRUE(Compare(answer.view(), Ask(**local, input).view(), {1e-4, 1e-5}).within_tolerance());
  EXPECT_FALSE(Compare(answer.view(), golden.view(), {1e-4, 1e-5}).within_tolerance());
  EXPECT_GT(NumLoads(*worker), loads);
  EXPECT_EQ(NumKept(*worker), 0);
}

// ---- How workers end

class RejoinEnd : public testing::Test {
 protected:
  void Serve(const std::vector<std::string>& worker_flags, const std::vector<std::string>& front_flags = {}) {
    front_.Start(front_flags);
    worker_ = StartWorker(front_.worker_address(), worker_flags);
    front_.WaitUntilReady();
  }

  AwaitingFront front_{kModel, 1};
  std::unique_ptr<ChildProcess> worker_;
};

TEST_F(RejoinEnd, AFrontThatDoesNotComeBackIsWaitedForOnlySoLong) {
  Serve({"--rejoin_timeout_ms=1500"});
  const SteadyTime begin = Clock::Real().Now();
  front_.Kill();
  EXPECT_EQ(worker_->Wait(), 3);
  EXPECT_GE(MicrosBetween(begin, Clock::Real().Now()), 1'500'000);
  EXPECT_TRUE(worker_->HasLogged("no front took this worker within 1500 ms"));
}

TEST_F(RejoinEnd, AWorkerThatShallNotRejoinEndsAtOnce) {
  Serve({"--rejoin_timeout_ms=0"});
  front_.Kill();
  EXPECT_EQ(worker_->Wait(), 3);
}

TEST_F(RejoinEnd, AWorkerThatWaitsEndsWhenItIsAskedTo) {
  Serve({});
  front_.Kill();
  ASSERT_TRUE(worker_->HasLogged("trying again"));
  worker_->Signal(SIGTERM);
  EXPECT_TRUE(worker_->WaitFor(std::chrono::seconds(10)));
  EXPECT_EQ(worker_->Wait(), 0);
}

TEST_F(RejoinEnd, AWorkerThatNeverHadAFrontEndsWhenItIsAskedTo) {
  Serve({});
  front_.Kill();  // so that nobody listens there
  const auto early = StartWorker(front_.worker_address());
  ASSERT_TRUE(early->HasLogged("trying again"));
  early->Signal(SIGTERM);
  EXPECT_TRUE(early->WaitFor(std::chrono::seconds(10)));
  EXPECT_EQ(early->Wait(), 0);
}

TEST_F(RejoinEnd, ARefusalThatWaitingDoesNotChangeEndsTheWorkerAtOnce) {
  const std::string token = testing::TempDir() + "/token", other = testing::TempDir() + "/other";
  std::ofstream(token) << "the-right-one-of-enough-length\n";
  std::ofstream(other) << "another-one-of-the-same-length\n";
  const std::string flag = "--worker_token_file=" + token;
  Serve({flag}, {flag});
  const auto stranger = StartWorker(front_.worker_address(), {"--worker_token_file=" + other});
  EXPECT_EQ(stranger->Wait(), 4);
  EXPECT_TRUE(stranger->HasLogged("its token is not this front's"));
  const auto foreign = StartWorker(front_.worker_address(), {flag, "--local_index=3"});
  EXPECT_EQ(foreign->Wait(), 4);
  EXPECT_TRUE(foreign->HasLogged("another front started it"));
  EXPECT_EQ(StartWorker(front_.worker_address(), {"--rejoin_timeout_ms=-1"})->Wait(), 2);

  // The token is read anew for each attempt.
  front_.Kill();
  fs::rename(other, token);
  front_.Start({flag});
  front_.WaitUntilReady();
  EXPECT_TRUE(worker_->HasLogged(kKept));
}

TEST_F(RejoinEnd, AWorkerWaitsForARankUntilItIsFree) {
  Serve({});
  const auto spare = StartWorker(front_.worker_address());
  ASSERT_TRUE(spare->HasLogged("all 1 ranks of the group are taken"));
  EXPECT_EQ(StartWorker(front_.worker_address(), {"--join_timeout_ms=500"})->Wait(), 3);
  worker_ = nullptr;
  EXPECT_EQ(ServingPids(*front_.server().Connect()), std::vector<int>{spare->pid()});
}

}  // namespace
}  // namespace switchyard
