// Models that are loaded, reloaded and unloaded while requests come in, with real processes. No request may fail
// unnecessarily, and no answer may mix two sets of weights.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <thread>

#include "base/clock.h"
#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "proto/inference.grpc.pb.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr char kGolden[] = "tests/testdata/golden_qwen3_moe";
constexpr char kJargon[] = "tests/testdata/jargon-moe";
// A worker takes about a second to load this model, which has some hundred MiB of weights.
constexpr char kBig[] = "big=synthetic:dim=1024,hidden=1024,experts=32,topk=2,act=silu,glu=1,bias=0,dtype=fp32";
constexpr int64_t kBigBytes = int64_t{32} * 3 * 1024 * 1024 * 4;
constexpr Tolerance kTolerance = {1e-4, 1e-5};

// Another checkpoint: the same names, shapes and types, with the sign of every weight inverted.
std::string Negated(std::string bytes) {
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  for (size_t i = sizeof(header_bytes) + header_bytes + 1; i < bytes.size(); i += 2) bytes[i] ^= '\x80';  // bf16
  return bytes;
}

std::string ReadFile(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Replaces a file as a careful operator does: processes that read the old file keep reading the old file.
void Replace(const fs::path& path, const std::string& bytes) {
  const fs::path fresh = path.string() + ".new";
  std::ofstream(fresh, std::ios::binary) << bytes;
  fs::rename(fresh, path);
}

HostMatrix Golden(const std::string& what) {
  return LoadMatrix({absl::StrCat(kGolden, "/golden.safetensors"), "model.layers.0.mlp." + what}).value();
}

// Callers that ask for the same rows of one layer until they are told to stop. Every answer must equal one of the
// expected answers in all of its rows.
class Callers {
 public:
  Callers(const ServerProcess& server, std::string model, ConstMatrixView input, std::vector<ConstMatrixView> expected,
          int num_callers = 3)
      : model_(std::move(model)), input_(input), expected_(std::move(expected)), matched_(expected_.size()) {
    for (int i = 0; i < num_callers; ++i) threads_.emplace_back([this, &server, i] { Run(server, i); });
  }
  ~Callers() { Stop(); }

  void Stop() {
    stop_.store(true);
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  int64_t answered() const { return answered_.load(); }
  int64_t matched(size_t expected) const { return matched_[expected].load(); }
  int64_t failed() const { return failed_.load(); }
  int64_t wrong() const { return wrong_.load(); }
  // Waits for `count` more answers.
  void WaitForMore(int64_t count) const {
    const int64_t until = answered() + count;
    while (answered() < until && failed() == 0) usleep(500);
  }

 private:
  void Run(const ServerProcess& server, int caller) {
    const auto client = server.Connect({.timeout = absl::Seconds(60), .max_attempts = 1});
    std::mt19937 random(caller);
    while (!stop_.load()) {
      const int64_t begin = random() % (input_.num_rows / 2), count = 1 + random() % (input_.num_rows / 2);
      const auto result = client->Forward({.model = model_, .layer = "0", .rows = input_.Rows(begin, count)});
      if (!result.ok()) {
        if (failed_++ == 0) std::printf("a request failed: %s\n", std::string(result.status().message()).c_str());
        continue;
      }
      size_t match = 0;
      while (match < expected_.size() &&
             !Compare(result->rows.view(), expected_[match].Rows(begin, count), kTolerance).within_tolerance()) {
        ++match;
      }
      match < expected_.size() ? ++matched_[match] : ++wrong_;
      ++answered_;
    }
  }

  const std::string model_;
  const ConstMatrixView input_;
  const std::vector<ConstMatrixView> expected_;
  std::vector<std::atomic<int64_t>> matched_;
  std::atomic<int64_t> answered_{0}, failed_{0}, wrong_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

absl::StatusOr<HostMatrix> Ask(Client& client, const std::string& model, ConstMatrixView rows) {
  auto result = client.Forward({.model = model, .layer = "0", .rows = rows, .timeout = absl::Seconds(60)});
  if (!result.ok()) return result.status();
  return std::move(result->rows);
}

// Lists each model as "NAME STATE", with ": REASON" where there is one.
std::vector<std::string> Index(const ServerProcess& server) {
  const auto stub = inference::GRPCInferenceService::NewStub(
      grpc::CreateChannel(server.grpc_address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  inference::RepositoryIndexResponse index;
  const grpc::Status status = stub->RepositoryIndex(&context, {}, &index);
  EXPECT_TRUE(status.ok()) << status.error_message();
  std::vector<std::string> lines;
  for (const auto& model : index.models()) {
    lines.push_back(absl::StrCat(model.name(), " ", model.state(), model.reason().empty() ? "" : ": ", model.reason()));
  }
  return lines;
}

int64_t ResidentBytes(int pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/statm"));
  int64_t total = 0, resident = 0;
  file >> total >> resident;
  return resident * sysconf(_SC_PAGESIZE);
}

class ModelChanges : public testing::Test {
 protected:
  ModelChanges() : folder_(fs::path(testing::TempDir()) / "models") {
    fs::remove_all(folder_);
    fs::create_directories(folder_ / "m");
    for (const char* name : {"config.json", "model.safetensors"}) {
      fs::copy_file(fs::path(kGolden) / name, folder_ / "m" / name);
    }
  }

  void Start(std::vector<std::string> flags) {
    flags.insert(flags.end(), {"--local_workers=2", "--compute_dtype=fp32"});
    auto server = ServerProcess::Start(flags);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    client_ = server_->Connect({.timeout = absl::Seconds(60), .max_attempts = 1});
  }
  std::string ModelFlag() const { return "--model=m=" + (folder_ / "m").string(); }
  fs::path weights() const { return folder_ / "m" / "model.safetensors"; }
  // The answers of the other weights.
  HostMatrix OthersOutput() {
    Replace(weights(), Negated(original_));
    Start({ModelFlag()});
    HostMatrix output = *Ask(*client_, "m", input_.view());
    EXPECT_EQ(server_->Stop(), 0);
    Replace(weights(), original_);
    return output;
  }

  const fs::path folder_;
  const std::string original_ = ReadFile(fs::path(kGolden) / "model.safetensors");
  const HostMatrix input_ = Golden("input"), expected_ = Golden("output");
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<Client> client_;
};

TEST_F(ModelChanges, ReloadsWithOtherWeightsUnderLoad) {
  const HostMatrix others = OthersOutput();
  ASSERT_FALSE(Compare(others.view(), expected_.view(), kTolerance).within_tolerance());
  Start({ModelFlag()});
  Callers callers(*server_, "m", input_.view(), {expected_.view(), others.view()});
  for (int i = 0; i < 6; ++i) {
    callers.WaitForMore(20);
    Replace(weights(), i % 2 == 0 ? Negated(original_) : original_);
    const absl::Status loaded = client_->LoadModel("m");
    ASSERT_TRUE(loaded.ok()) << loaded;
    // After this, no request is answered with the earlier weights.
    const HostMatrix& now = i % 2 == 0 ? others : expected_;
    EXPECT_TRUE(Compare(Ask(*client_, "m", input_.view())->view(), now.view(), kTolerance).within_tolerance());
  }
  callers.WaitForMore(20);
  callers.Stop();
  std::printf("%ld answers, %ld of the first weights, %ld of the others\n", callers.answered(), callers.matched(0),
              callers.matched(1));
  EXPECT_EQ(callers.failed(), 0);
  EXPECT_EQ(callers.wrong(), 0);
  EXPECT_GT(callers.matched(0), 0);
  EXPECT_GT(callers.matched(1), 0);
  EXPECT_EQ((*client_->GetStatus()).recoveries(), 0) << "the group served all the while";
  EXPECT_THAT(server_->Get("/metrics"), HasSubstr("switchyard_requests_total{code=\"OK\""));
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(ModelChanges, UnloadAndLoadLeaveOthersAlone) {
  Start({ModelFlag(), absl::StrCat("--model=jargon=", kJargon)});
  const std::string golden = absl::StrCat(kJargon, "/golden.safetensors");
  const HostMatrix input = *LoadMatrix({golden, "model.layers.0.mlp.input"});
  const HostMatrix output = *LoadMatrix({golden, "model.layers.0.mlp.output"});
  Callers others(*server_, "jargon", input.view(), {output.view()});
  Callers callers(*server_, "m", input_.view(), {expected_.view()});
  for (int i = 0; i < 3; ++i) {
    callers.WaitForMore(10);
    others.WaitForMore(10);
    ASSERT_TRUE(client_->UnloadModel("m").ok());
    const absl::Status refused = Ask(*client_, "m", input_.view()).status();
    EXPECT_TRUE(absl::IsUnavailable(refused)) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr("'m.0' is unloaded"));
    EXPECT_THAT(Index(*server_)[0], "m.0 UNAVAILABLE: unloaded");
    ASSERT_TRUE(client_->LoadModel("m").ok());
    EXPECT_THAT(Index(*server_)[0], "m.0 READY");
    EXPECT_TRUE(Ask(*client_, "m", input_.view()).ok());
  }
  callers.Stop();
  others.Stop();
  EXPECT_EQ(others.failed() + others.wrong() + callers.wrong(), 0);
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(ModelChanges, UnloadingGivesTheMemoryBack) {
  Start({ModelFlag(), absl::StrCat("--model=", kBig)});
  const int pid = client_->GetStatus()->ranks(0).pid();
  const int64_t loaded = ResidentBytes(pid);
  ASSERT_GT(loaded, kBigBytes / 2);
  ASSERT_TRUE(client_->UnloadModel("big").ok());
  const int64_t unloaded = ResidentBytes(pid);
  ASSERT_TRUE(client_->LoadModel("big").ok());
  const int64_t again = ResidentBytes(pid);
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(client_->LoadModel("big").ok());
  ASSERT_TRUE(client_->UnloadModel("big").ok());
  const int64_t at_last = ResidentBytes(pid);
  const auto mib = [](int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  std::printf("resident, MiB: %.0f loaded, %.0f unloaded, %.0f loaded again, %.0f after reloads and another unload\n",
              mib(loaded), mib(unloaded), mib(again), mib(at_last));
  const int64_t share = kBigBytes / 2, spare = kBigBytes / 10;
  EXPECT_LT(unloaded, loaded - share + spare);
  EXPECT_LT(again, loaded + spare);
  EXPECT_LT(at_last, unloaded + spare);
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(ModelChanges, AWorkerKilledInTheMiddleOfALoadDoesNotLoseIt) {
  Start({ModelFlag(), absl::StrCat("--model=", kBig)});
  Callers callers(*server_, "m", input_.view(), {expected_.view()});
  callers.WaitForMore(5);
  const int64_t weight_bytes = client_->GetStatus()->ranks(0).weight_bytes();
  absl::Status loaded = absl::UnknownError("not ended");
  std::thread loading([&] { loaded = client_->LoadModel("big"); });
  const auto watcher = server_->Connect();
  int pid = 0;
  while (pid == 0) {
    const v1::Rank rank = watcher->GetStatus()->ranks(1);
    // Rank 1 is still loading its half of the big model.
    if (rank.load_fraction() < 0.9) pid = rank.pid();
  }
  ASSERT_EQ(kill(pid, SIGKILL), 0);
  loading.join();
  EXPECT_TRUE(loaded.ok()) << loaded;
  callers.WaitForMore(5);
  callers.Stop();
  EXPECT_EQ(callers.failed() + callers.wrong(), 0);
  EXPECT_EQ(client_->GetStatus()->ranks(1).restarts(), 1);
  // The earlier version is freed after the load has been answered.
  for (const int rank : {0, 1}) {
    while (client_->GetStatus()->ranks(rank).weight_bytes() != weight_bytes) usleep(500);
  }
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(ModelChanges, ALoadHelpsAGroupThatLostItsOldWeights) {
  const HostMatrix others = OthersOutput();
  Start({ModelFlag(), absl::StrCat("--model=jargon=", kJargon)});
  const std::string golden = absl::StrCat(kJargon, "/golden.safetensors");
  const HostMatrix input = *LoadMatrix({golden, "model.layers.0.mlp.input"});
  const HostMatrix output = *LoadMatrix({golden, "model.layers.0.mlp.output"});
  Callers neighbours(*server_, "jargon", input.view(), {output.view()});
  Callers callers(*server_, "m", input_.view(), {expected_.view(), others.view()});
  callers.WaitForMore(5);
  Replace(weights(), Negated(original_));
  ASSERT_EQ(kill(client_->GetStatus()->ranks(1).pid(), SIGKILL), 0);
  // The worker's successor cannot load the old weights, because they are no longer there.
  const absl::Status loaded = client_->LoadModel("m");
  ASSERT_TRUE(loaded.ok()) << loaded;
  EXPECT_TRUE(Compare(Ask(*client_, "m", input_.view())->view(), others.view(), kTolerance).within_tolerance());
  neighbours.WaitForMore(5);
  callers.Stop();
  neighbours.Stop();
  EXPECT_EQ(callers.wrong() + neighbours.wrong() + neighbours.failed(), 0);
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(ModelChanges, AnUnloadHelpsAGroupThatLostItsWeights) {
  Start({ModelFlag(), absl::StrCat("--model=jargon=", kJargon)});
  const std::string golden = absl::StrCat(kJargon, "/golden.safetensors");
  const HostMatrix input = *LoadMatrix({golden, "model.layers.0.mlp.input"});
  Callers callers(*server_, "m", input_.view(), {expected_.view()});
  callers.WaitForMore(5);
  fs::remove(weights());
  ASSERT_EQ(kill(client_->GetStatus()->ranks(1).pid(), SIGKILL), 0);
  while (client_->GetStatus()->ranks(1).restarts() < 1) usleep(1000);  // the new worker cannot load it either
  // The model's steps wait for a group, and no group can form with the model.
  const absl::Status unloaded = client_->UnloadModel("m");
  EXPECT_TRUE(unloaded.ok()) << unloaded;
  callers.Stop();
  EXPECT_EQ(callers.wrong(), 0);
  const auto answer = Ask(*client_, "jargon", input.view());
  EXPECT_TRUE(answer.ok()) << answer.status();
  EXPECT_THAT(Index(*server_)[0], "m.0 UNAVAILABLE: unloaded");
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(ModelChanges, ADamagedCheckpointIsRefusedAndTheOldOneServes) {
  Start({ModelFlag()});
  const auto expect_refused = [&](const std::string& why) {
    const absl::Status refused = client_->LoadModel("m");
    EXPECT_FALSE(refused.ok());
    EXPECT_THAT(std::string(refused.message()), HasSubstr(why));
    EXPECT_THAT(Index(*server_)[0], testing::AllOf(HasSubstr("m.0 READY: not reloaded"), HasSubstr(why)));
    const auto answer = Ask(*client_, "m", input_.view());
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_TRUE(Compare(answer->view(), expected_.view(), kTolerance).within_tolerance());
  };
  Replace(weights(), original_.substr(0, original_.size() - 100));
  expect_refused("model.safetensors");
  std::string renamed = original_;
  const std::string tensor = "model.layers.0.mlp.experts.3.up_proj.weight";
  ASSERT_NE(renamed.find(tensor), std::string::npos);
  renamed[renamed.find(tensor)] = 'M';
  Replace(weights(), renamed);
  expect_refused(tensor);
  fs::remove(weights());
  expect_refused("model.safetensors");
  Replace(weights(), original_);
  EXPECT_TRUE(client_->LoadModel("m").ok());
  EXPECT_THAT(Index(*server_), ElementsAre("m.0 READY", "m.1 READY"));
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(ModelChanges, StartsEmptyAndLoadsFromItsRepository) {
  fs::create_directory(folder_ / "not-a-model");
  Start({"--model_repository=" + folder_.string()});
  EXPECT_THAT(Index(*server_), ElementsAre("m UNAVAILABLE: not loaded"));
  EXPECT_EQ(client_->GetStatus()->state(), "serving");
  EXPECT_TRUE(absl::IsUnavailable(Ask(*client_, "m", input_.view()).status()));
  for (const char* name : {"not-a-model", "../models/m", "m/../m", ""}) {
    const absl::Status refused = client_->LoadModel(name);
    EXPECT_TRUE(absl::IsNotFound(refused) || (*name == '\0' && absl::IsInvalidArgument(refused))) << refused;
  }
  ASSERT_TRUE(client_->LoadModel("m").ok());
  const auto answer = Ask(*client_, "m", input_.view());
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_TRUE(Compare(answer->view(), expected_.view(), kTolerance).within_tolerance());
  EXPECT_EQ(client_->ListModels()->models(0).name(), "m");
  ASSERT_TRUE(client_->UnloadModel("m").ok());
  EXPECT_THAT(Index(*server_), ElementsAre("m.0 UNAVAILABLE: unloaded", "m.1 UNAVAILABLE: unloaded"));
  EXPECT_EQ(client_->ListModels()->models_size(), 0);
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(ModelChanges, AWiderModelInItsPlaceGoesInSmallerSteps) {
  Start({ModelFlag(), "--max_batch_rows=64"});
  ASSERT_TRUE(Ask(*client_, "m", input_.view()).ok());
  fs::remove_all(folder_ / "m");
  fs::copy(kJargon, folder_ / "m");
  ASSERT_TRUE(client_->LoadModel("m").ok());
  EXPECT_TRUE(server_->process().HasLogged("rows, which is what the links have room for"));
  EXPECT_THAT(Index(*server_), ElementsAre("m.0 READY", "m.1 READY", "m.2 READY", "m.3 READY"));
  const std::string golden = absl::StrCat(kJargon, "/golden.safetensors");
  const HostMatrix input = *LoadMatrix({golden, "model.layers.0.mlp.input"});
  const HostMatrix output = *LoadMatrix({golden, "model.layers.0.mlp.output"});
  const auto answer = Ask(*client_, "m", input.view());
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_TRUE(Compare(answer->view(), output.view(), kTolerance).within_tolerance());
  const absl::Status old_width = Ask(*client_, "m", input_.view()).status();
  EXPECT_TRUE(absl::IsInvalidArgument(old_width)) << old_width;
  EXPECT_EQ(server_->Stop(), 0);
}

// Kills every worker of a server that holds more than `max_bytes`, as a host that runs out of memory does.
class OutOfMemory {
 public:
  OutOfMemory(const ServerProcess& server, int64_t max_bytes) {
    thread_ = std::thread([this, &server, max_bytes] {
      const auto client = server.Connect();
      while (!stop_.load()) {
        const auto status = client->GetStatus();
        for (int rank = 0; status.ok() && rank < status->ranks_size(); ++rank) {
          const auto& each = status->ranks(rank);
          const bool is_alive = each.pid() > 0 && each.state() != "absent";
          if (is_alive && ResidentBytes(each.pid()) > max_bytes) kill(each.pid(), SIGKILL);
        }
        usleep(1000);
      }
    });
  }
  ~OutOfMemory() {
    stop_.store(true);
    thread_.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

TEST_F(ModelChanges, AModelThatKillsItsWorkersIsGivenUpWhileOthersChange) {
  Start({ModelFlag(), absl::StrCat("--model=jargon=", kJargon), absl::StrCat("--model=", kBig)});
  ASSERT_TRUE(client_->UnloadModel("big").ok());
  Callers callers(*server_, "m", input_.view(), {expected_.view()});
  callers.WaitForMore(5);
  int restarts = 0;
  for (const int rank : {0, 1}) restarts -= client_->GetStatus()->ranks(rank).restarts();
  {
    const int64_t resident = std::max(ResidentBytes(client_->GetStatus()->ranks(0).pid()),
                                      ResidentBytes(client_->GetStatus()->ranks(1).pid()));
    const OutOfMemory killer(*server_, resident + kBigBytes / 4);
    absl::Status loaded;
    std::atomic<bool> has_ended{false};
    std::thread loading([&] {
      loaded = server_->Connect({.timeout = absl::Seconds(60), .max_attempts = 1})->LoadModel("big");
      has_ended.store(true);
    });
    const auto watcher = server_->Connect();
    while (watcher->GetStatus()->state() == "serving" && !has_ended.load()) usleep(1000);
    EXPECT_TRUE(client_->UnloadModel("jargon").ok());
    EXPECT_FALSE(has_ended.load()) << "a change of another model does not wait";
    loading.join();
    EXPECT_TRUE(absl::IsFailedPrecondition(loaded)) << loaded;
    EXPECT_THAT(std::string(loaded.message()), HasSubstr("3 workers in a row died"));
  }
  callers.WaitForMore(5);
  callers.Stop();
  EXPECT_EQ(callers.failed() + callers.wrong(), 0);
  for (const int rank : {0, 1}) restarts += client_->GetStatus()->ranks(rank).restarts();
  EXPECT_LE(restarts, 4) << "three, and one that died in the same moment as the third";
  EXPECT_TRUE(client_->LoadModel("jargon").ok());
  EXPECT_TRUE(client_->LoadModel("big").ok()) << "there is memory again";
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(ModelChanges, AnUnloadCallsOffALoad) {
  Start({ModelFlag(), absl::StrCat("--model=", kBig)});
  ASSERT_TRUE(client_->UnloadModel("big").ok());
  absl::Status loaded;
  std::thread loading([&] { loaded = client_->LoadModel("big"); });
  const auto other = server_->Connect({.timeout = absl::Seconds(60), .max_attempts = 1});
  while (other->GetStatus()->ranks(0).load_fraction() == 1) usleep(1000);
  EXPECT_TRUE(other->UnloadModel("big").ok());
  loading.join();
  EXPECT_TRUE(absl::IsCancelled(loaded)) << loaded;
  EXPECT_THAT(Index(*server_), testing::Contains(HasSubstr("big.0 UNAVAILABLE")));
  EXPECT_TRUE(other->LoadModel("big").ok());
  EXPECT_EQ(server_->Stop(), 0);
}

TEST_F(ModelChanges, AStopDuringALoadEndsIt) {
  Start({ModelFlag(), absl::StrCat("--model=", kBig)});
  absl::Status loaded;
  std::thread loading([&] { loaded = client_->LoadModel("big"); });
  while (server_->Connect()->GetStatus()->ranks(0).load_fraction() == 1) usleep(1000);
  EXPECT_EQ(server_->Stop(), 0);
  loading.join();
  EXPECT_TRUE(absl::IsUnavailable(loaded)) << loaded;
}

}  // namespace
}  // namespace switchyard
