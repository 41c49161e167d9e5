// Recorded layers of real checkpoints, through the real front and real workers.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <fstream>

#include "client/compare.h"
#include "client/tensor_io.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

struct GoldenModel {
  const char* folder;
  int num_layers;
};

constexpr GoldenModel kModels[] = {{"jargon-moe", 4}, {"golden_qwen3_moe", 2}, {"golden_mixtral", 2}};

std::string Folder(const std::string& model) { return "tests/testdata/" + model; }

HostMatrix Golden(const std::string& model, int layer, const std::string& what) {
  return LoadMatrix({Folder(model) + "/golden.safetensors", absl::StrCat("model.layers.", layer, ".mlp.", what)})
      .value();
}

std::vector<std::string> ModelFlags() {
  std::vector<std::string> flags;
  for (const GoldenModel& model : kModels)
    flags.push_back(absl::StrCat("--model=", model.folder, "=", Folder(model.folder)));
  return flags;
}

// What MODELS.md asks: fp32 within rtol 1e-4, atol 1e-5; bf16 within rtol 2e-2, atol 2e-2 of the largest output.
Tolerance ToleranceFor(const std::string& compute_dtype, ConstMatrixView expected) {
  if (compute_dtype != "bf16") return {1e-4, 1e-5};
  double largest = 0;
  for (int64_t i = 0; i < expected.num_rows * expected.num_cols; ++i) {
    largest = std::max<double>(largest, std::abs(expected.as<float>()[i]));
  }
  return {2e-2, 2e-2 * largest};
}

void ExpectGolden(Client& client, const std::string& compute_dtype) {
  for (const GoldenModel& model : kModels) {
    for (int layer = 0; layer < model.num_layers; ++layer) {
      const HostMatrix input = Golden(model.folder, layer, "input");
      const HostMatrix expected = Golden(model.folder, layer, "output");
      const auto result = client.Forward({.model = model.folder, .layer = std::to_string(layer), .rows = input.view()});
      ASSERT_TRUE(result.ok()) << result.status();
      const auto comparison =
          Compare(result->rows.view(), expected.view(), ToleranceFor(compute_dtype, expected.view()));
      EXPECT_TRUE(comparison.within_tolerance())
          << model.folder << " layer " << layer << ": " << comparison.num_beyond << " of " << comparison.num_elements
          << " beyond, largest error " << comparison.max_abs_error;
    }
  }
}

class GoldenTest : public testing::TestWithParam<std::tuple<int, std::string>> {};

TEST_P(GoldenTest, EveryLayerOverSharedMemory) {
  const auto& [num_workers, compute_dtype] = GetParam();
  std::vector<std::string> flags = ModelFlags();
  flags.push_back(absl::StrCat("--local_workers=", num_workers));
  flags.push_back(absl::StrCat("--compute_dtype=", compute_dtype));
  auto server = ServerProcess::Start(flags);
  ASSERT_TRUE(server.ok()) << server.status();
  ExpectGolden(*(*server)->Connect(), compute_dtype);
  EXPECT_EQ((*server)->Stop(), 0);
}

INSTANTIATE_TEST_SUITE_P(Workers, GoldenTest,
                         testing::Combine(testing::Values(1, 2, 3), testing::Values("fp32", "bf16", "fp64")),
                         [](const auto& info) {
                           return absl::StrCat(std::get<0>(info.param), "workers_", std::get<1>(info.param));
                         });

// Workers that join from elsewhere get their steps over gRPC instead of shared memory.
TEST(AwaitedWorkers, EveryLayerOverGrpc) {
  const std::string token_file = testing::TempDir() + "/token";
  std::ofstream(token_file) << "a secret\n";
  std::vector<std::string> flags = ModelFlags();
  flags.insert(flags.end(), {"--port=0", "--http_port=0", "--await_workers=2", "--worker_port=0",
                             "--compute_dtype=fp32", "--worker_token_file=" + token_file});
  auto front = *ChildProcess::Start("server/switchyard_server", flags);
  // The front logs where it waits; workers keep trying until it does.
  std::string port;
  const std::string announcement = "waiting for 2 workers on 127.0.0.1:";
  for (int i = 0; i < 3000 && port.empty(); ++i) {
    const std::string log = front->Log();
    const size_t found = log.find(announcement);
    if (found != std::string::npos && log.find('\n', found) != std::string::npos) {
      port = log.substr(found + announcement.size(), log.find('\n', found) - found - announcement.size());
    } else {
      usleep(10'000);
    }
  }
  ASSERT_FALSE(port.empty()) << front->Log();
  // A stranger without the token first: refused, with the reason, and no harm done.
  auto stranger = *ChildProcess::Start("worker/switchyard_worker", {"--front=127.0.0.1:" + port, "--device=cpu"});
  EXPECT_EQ(stranger->Wait(), 1);
  EXPECT_NE(stranger->Log().find("worker refused: its token is not this front's"), std::string::npos)
      << stranger->Log();
  std::vector<std::unique_ptr<ChildProcess>> workers;
  for (int i = 0; i < 2; ++i) {
    workers.push_back(*ChildProcess::Start(
        "worker/switchyard_worker",
        {"--front=127.0.0.1:" + port, "--device=cpu", "--threads=1", "--worker_token_file=" + token_file}));
  }
  auto server = ServerProcess::WaitUntilReady(std::move(front));
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  ExpectGolden(*client, "fp32");
  EXPECT_EQ(client->GetStatus()->ranks(1).link(), "grpc");

  // One dies and another takes its place: the front goes on, and a call in between only waits.
  workers[0]->Signal(SIGKILL);
  workers[0] = *ChildProcess::Start("worker/switchyard_worker", {"--front=127.0.0.1:" + port, "--device=cpu",
                                                                 "--threads=1", "--worker_token_file=" + token_file});
  ExpectGolden(*client, "fp32");
  EXPECT_EQ((*server)->Stop(), 0);
  for (auto& worker : workers) EXPECT_EQ(worker->Wait(), 0) << "a drained worker ends well";
}

TEST(Rows, TheAnswerDoesNotDependOnTheBatchOrTheType) {
  std::vector<std::string> flags = ModelFlags();
  flags.insert(flags.end(), {"--local_workers=2", "--compute_dtype=fp32", "--max_batch_rows=100"});
  auto server = ServerProcess::Start(flags);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  const HostMatrix input = Golden("jargon-moe", 2, "input"), expected = Golden("jargon-moe", 2, "output");
  // 512 rows go through several steps of at most 100.
  const auto whole =
      client->Forward({.model = "jargon-moe", .layer = "2", .rows = input.view(), .return_routing = true});
  ASSERT_TRUE(whole.ok()) << whole.status();
  EXPECT_GE(whole->stats.num_steps(), 6);
  EXPECT_TRUE(Compare(whole->rows.view(), expected.view(), {1e-4, 1e-5}).within_tolerance());
  EXPECT_EQ(whole->routing.num_rows, 512);
  EXPECT_EQ(whole->routing.top_k, 4);
  for (int64_t row : {0, 99, 100, 511}) {
    const auto alone = client->Forward({.model = "jargon-moe", .layer = "2", .rows = input.view().Rows(row, 1)});
    ASSERT_TRUE(alone.ok()) << alone.status();
    EXPECT_TRUE(Compare(alone->rows.view(), expected.view().Rows(row, 1), {1e-4, 1e-5}).within_tolerance()) << row;
  }
  for (DType dtype : {DType::kF64, DType::kF16, DType::kBF16}) {
    const HostMatrix converted = ConvertTo(dtype, input.view());
    const auto result = client->Forward({.model = "jargon-moe", .layer = "2", .rows = converted.view()});
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->rows.dtype, dtype);
    const HostMatrix reference = ConvertTo(DType::kF32, converted.view());
    const auto exact = client->Forward({.model = "jargon-moe", .layer = "2", .rows = reference.view()});
    EXPECT_TRUE(Compare(result->rows.view(), exact->rows.view(), {1e-2, 1e-3}).within_tolerance());
  }
  EXPECT_EQ((*server)->Stop(), 0);
}

}  // namespace
}  // namespace switchyard
