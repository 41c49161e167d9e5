// Recorded layers of real checkpoints, through the real front and real workers.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "moe/weights/checkpoint/safetensors.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

// One layer of a recorded checkpoint, and the module path under which its vectors are stored ("" for a bare Tutel
// layer).
struct GoldenLayer {
  std::string model;  // a folder of tests/testdata
  std::string layer;
  std::string path;
};

std::string Folder(const std::string& model) { return "tests/testdata/" + model; }

std::vector<std::string> Models() {
  std::vector<std::string> models;
  for (const auto& entry : std::filesystem::directory_iterator("tests/testdata")) {
    if (std::filesystem::exists(entry.path() / "golden.safetensors")) models.push_back(entry.path().filename());
  }
  std::sort(models.begin(), models.end());
  return models;
}

// The layer's name: "3" for "model.layers.3.mlp", "encoder.1" for "encoder.block.1.layer.1.mlp", "0" for no path.
std::string LayerOf(const std::string& path) {
  if (path.empty()) return "0";
  const size_t digit = path.find_first_of("0123456789");
  const std::string index = path.substr(digit, path.find('.', digit) - digit);
  for (const char* stack : {"encoder", "decoder"}) {
    if (path.find(stack) != std::string::npos) return absl::StrCat(stack, ".", index);
  }
  return index;
}

std::vector<GoldenLayer> LayersOf(const std::string& model) {
  std::vector<GoldenLayer> layers;
  const auto file = SafetensorsFile::Open(Folder(model) + "/golden.safetensors");
  EXPECT_TRUE(file.ok()) << file.status();
  for (const std::string_view view : (*file)->names()) {
    const std::string name(view), input = "input";
    if (!absl::EndsWith(name, input) || !(name == input || absl::EndsWith(name, "." + input))) continue;
    const std::string path = name == input ? "" : name.substr(0, name.size() - input.size() - 1);
    layers.push_back({model, LayerOf(path), path});
  }
  EXPECT_FALSE(layers.empty()) << model;
  return layers;
}

TensorRef GoldenTensor(const GoldenLayer& layer, const std::string& what) {
  return {Folder(layer.model) + "/golden.safetensors", layer.path.empty() ? what : absl::StrCat(layer.path, ".", what)};
}

HostMatrix Golden(const GoldenLayer& layer, const std::string& what) {
  return LoadMatrix(GoldenTensor(layer, what)).value();
}

std::vector<std::string> ModelFlags() {
  std::vector<std::string> flags;
  for (const std::string& model : Models()) flags.push_back(absl::StrCat("--model=", model, "=", Folder(model)));
  return flags;
}

// The required accuracy: fp32 and better within rtol 1e-4, atol 1e-5 of the largest output; bf16 within 2e-2 of both.
Tolerance ToleranceFor(const std::string& compute_dtype, ConstMatrixView expected) {
  double largest = 0;
  for (int64_t i = 0; i < expected.num_rows * expected.num_cols; ++i) {
    largest = std::max<double>(largest, std::abs(expected.as<float>()[i]));
  }
  if (compute_dtype != "bf16") return {1e-4, 1e-5 * std::max(1.0, largest)};
  return {2e-2, 2e-2 * largest};
}

void ExpectLayer(Client& client, const std::string& compute_dtype, const GoldenLayer& layer, ConstMatrixView input,
                 ConstMatrixView expected) {
  SCOPED_TRACE(absl::StrCat(layer.model, " layer ", layer.layer, ", ", input.num_rows, " rows"));
  const auto result = client.Forward({.model = layer.model, .layer = layer.layer, .rows = input});
  ASSERT_TRUE(result.ok()) << result.status();
  const auto comparison = Compare(result->rows.view(), expected, ToleranceFor(compute_dtype, expected));
  EXPECT_TRUE(comparison.within_tolerance())
      << comparison.num_beyond << " of " << comparison.num_elements << " beyond, largest error "
      << comparison.max_abs_error << " in row " << comparison.worst_row;
}

void ExpectGolden(Client& client, const std::string& compute_dtype) {
  for (const std::string& model : Models()) {
    for (const GoldenLayer& layer : LayersOf(model)) {
      const HostMatrix input = Golden(layer, "input"), expected = Golden(layer, "output");
      ExpectLayer(client, compute_dtype, layer, input.view(), expected.view());
      const auto alone = LoadMatrix(GoldenTensor(layer, "output_of_first_token_alone"));
      if (alone.ok()) ExpectLayer(client, compute_dtype, layer, input.view().Rows(0, 1), alone->view());
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

// Workers that are not started by the front get their steps over gRPC instead of shared memory.
TEST(AwaitedWorkers, EveryLayerOverGrpc) {
  const std::string token_file = testing::TempDir() + "/token";
  std::ofstream(token_file) << "a-secret\n";
  std::vector<std::string> flags = ModelFlags();
  flags.insert(flags.end(), {"--port=0", "--http_port=0", "--await_workers=2", "--worker_port=0",
                             "--compute_dtype=fp32", "--worker_token_file=" + token_file});
  auto front = *ChildProcess::Start("server/switchyard_server", flags);
  const auto worker_port = WaitForWorkerPort(*front);
  ASSERT_TRUE(worker_port.ok()) << worker_port.status();
  const std::string join = absl::StrCat("--front=", *worker_port);
  // First a stranger without the token: it is refused, with the reason, and harms nothing.
  auto stranger = *ChildProcess::Start(kWorkerProgram, {join, "--device=cpu"});
  EXPECT_EQ(stranger->Wait(), 4);
  EXPECT_NE(stranger->Log().find("worker refused: its token is not this front's"), std::string::npos)
      << stranger->Log();
  std::vector<std::unique_ptr<ChildProcess>> workers;
  for (int i = 0; i < 2; ++i) {
    workers.push_back(*ChildProcess::Start(kWorkerProgram,
                                           {join, "--device=cpu", "--threads=1", "--worker_token_file=" + token_file}));
  }
  auto server = ServerProcess::WaitUntilReady(std::move(front));
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  ExpectGolden(*client, "fp32");
  EXPECT_EQ(client->GetStatus()->ranks(1).link(), "grpc");

  // One worker dies and another takes its place: the front goes on, and a call in between only waits.
  workers[0]->Signal(SIGKILL);
  while (client->GetStatus()->state() == "serving") usleep(1000);  // an earlier worker would find the place taken
  workers[0] =
      *ChildProcess::Start(kWorkerProgram, {join, "--device=cpu", "--threads=1", "--worker_token_file=" + token_file});
  ExpectGolden(*client, "fp32");
  EXPECT_EQ((*server)->Stop(), 0);
  for (auto& worker : workers) EXPECT_EQ(worker->Wait(), 0) << worker->Log();
}

const GoldenLayer kJargonLayer = {"jargon-moe", "2", "model.layers.2.mlp"};

TEST(Rows, TheAnswerDoesNotDependOnTheBatchOrTheType) {
  std::vector<std::string> flags = ModelFlags();
  flags.insert(flags.end(), {"--local_workers=2", "--compute_dtype=fp32", "--max_batch_rows=100"});
  auto server = ServerProcess::Start(flags);
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = (*server)->Connect();
  const HostMatrix input = Golden(kJargonLayer, "input"), expected = Golden(kJargonLayer, "output");
  // 512 rows need several steps, because a step has at most 100.
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
