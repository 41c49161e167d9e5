// Measures how fast a worker loads from the page cache: experts of Qwen3-30B-A3B's shape, 2.25 GiB of bf16 in published
// form, in a folder of its own in $TMPDIR that is deleted afterwards.
//
//   dd     dd if=FILE of=/dev/null bs=1M: the upper limit of the rate at which a process can read this file
//   read   LoadExperts into an engine that only sums up every word
//   load   LoadExperts into the CPU engine, which packs every matrix into the library's layout
//
// Prints a table in Markdown with the rates and their ratio to dd's rate. The three run in turn, and each rate is the
// median of kRounds runs, because other work on the host disturbs single runs.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "base/clock.h"
#include "moe/experts/cpu/cpu_engine.h"
#include "moe/weights/writer/checkpoint_writer.h"
#include "worker/loading/expert_loader.h"

namespace switchyard {
namespace {

constexpr int kRounds = 7;

// An engine that reads every byte once and keeps nothing.
class SummingEngine final : public ExpertEngine {
 public:
  DType compute_dtype() const override { return DType::kBF16; }
  absl::Status AddLayer(const LayerSpec&, int) override { return absl::OkStatus(); }
  absl::Status LoadExpert(LayerId, int, const ExpertWeights& weights) override {
    const uint64_t sum = Sum(weights.up.matrix) + Sum(weights.gate.matrix) + Sum(weights.down.matrix);
    volatile uint64_t used = sum;
    static_cast<void>(used);
    return absl::OkStatus();
  }
  int64_t weight_bytes() const override { return 0; }
  absl::StatusOr<std::byte*> ScratchBytes(Scratch, size_t) override { return nullptr; }
  DeviceStream stream() const override { return nullptr; }
  absl::Status GatherSendRows(const RankPlanView&, ConstMatrixView, MatrixView) override { return absl::OkStatus(); }
  absl::Status RunExperts(LayerId, const RankPlanView&, ConstMatrixView, MatrixView) override {
    return absl::OkStatus();
  }
  absl::Status Combine(const RankPlanView&, ConstMatrixView, MatrixView) override { return absl::OkStatus(); }

 private:
  // Computes four sums at once, so that additions do not wait for each other. The writer aligns tensors to 8 bytes.
  static uint64_t Sum(ConstMatrixView matrix) {
    const auto* words = reinterpret_cast<const uint64_t*>(matrix.data);
    const size_t num_words = matrix.size_bytes() / sizeof(uint64_t) / 4 * 4;
    uint64_t a = 0, b = 0, c = 0, d = 0;
    for (size_t i = 0; i < num_words; i += 4) {
      a += words[i];
      b += words[i + 1];
      c += words[i + 2];
      d += words[i + 3];
    }
    return a + b + c + d;
  }
};

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "switchyard-load-XXXXXX").string();
    if (mkdtemp(name.data()) != nullptr) path_ = name;
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

absl::Status WriteModel(const std::string& folder) {
  CheckpointOptions options;
  options.family = "qwen3_moe";
  options.hidden_dim = 2048;
  options.expert_dim = 768;
  options.num_experts = 128;
  options.top_k = 8;
  options.num_layers = 2;
  return WriteCheckpoint(folder, options);
}

absl::Status RunDd(const std::string& folder) {
  const std::string command = absl::StrCat("dd if=", folder, "/model.safetensors of=/dev/null bs=1M status=none");
  return std::system(command.c_str()) == 0 ? absl::OkStatus() : absl::InternalError(absl::StrCat("failed: ", command));
}

absl::Status LoadInto(ExpertEngine& engine, const std::string& folder) {
  SY_ASSIGN_OR_RETURN(const auto source, OpenWeightSource(folder));
  std::vector<ExpertToLoad> experts;
  for (int layer_idx = 0; layer_idx < static_cast<int>(source->spec().layers.size()); ++layer_idx) {
    const LayerSpec& layer = source->spec().layers[layer_idx];
    SY_RETURN_IF_ERROR(engine.AddLayer(layer, layer.num_experts));
    for (int expert_idx = 0; expert_idx < layer.num_experts; ++expert_idx) {
      experts.push_back({layer_idx, expert_idx, expert_idx});
    }
  }
  return LoadExperts(*source, engine, experts, [](const ExpertToLoad&, uint64_t) { return absl::OkStatus(); });
}

absl::Status Pack(const std::string& folder) {
  SY_ASSIGN_OR_RETURN(const auto engine, CreateCpuEngine({.compute_dtype = DType::kBF16}));
  return LoadInto(*engine, folder);
}

absl::Status ReadOnly(const std::string& folder) {
  SummingEngine engine;
  return LoadInto(engine, folder);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

absl::Status Measure() {
  const TemporaryFolder folder;
  SY_RETURN_IF_ERROR(WriteModel(folder.path()));
  const double num_bytes = std::filesystem::file_size(folder.path() + "/model.safetensors");
  const std::vector<std::pair<std::string, std::function<absl::Status()>>> measurements = {
      {"dd", [&] { return RunDd(folder.path()); }},
      {"read", [&] { return ReadOnly(folder.path()); }},
      {"load", [&] { return Pack(folder.path()); }},
  };
  SY_RETURN_IF_ERROR(RunDd(folder.path()));  // brings the file into the page cache if writing it has not
  std::map<std::string, std::vector<double>> rates;
  for (int round = 0; round < kRounds; ++round) {
    for (const auto& [name, run] : measurements) {
      const SteadyTime begin = Clock::Real().Now();
      SY_RETURN_IF_ERROR(Annotate(run(), name));
      rates[name].push_back(num_bytes / MicrosBetween(begin, Clock::Real().Now()) * 1e6);
    }
  }
  std::printf("| %.2f GiB | GB/s | slowest | fastest | relative to dd |\n| --- | ---: | ---: | ---: | ---: |\n",
              num_bytes / (1 << 30));
  const double dd = Median(rates["dd"]);
  for (const auto& [name, run] : measurements) {
    const auto [slowest, fastest] = std::minmax_element(rates[name].begin(), rates[name].end());
    std::printf("| %s | %.2f | %.2f | %.2f | %.2f |\n", name.c_str(), Median(rates[name]) / 1e9, *slowest / 1e9,
                *fastest / 1e9, Median(rates[name]) / dd);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace switchyard

int main() {
  const absl::Status status = switchyard::Measure();
  if (status.ok()) return 0;
  std::fprintf(stderr, "expert_loader_benchmark: %s\n", std::string(status.message()).c_str());
  return 1;
}
