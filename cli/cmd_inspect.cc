#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "cli/inspection.h"
#include "cli/table.h"

namespace switchyard {
namespace {

constexpr char kInspectFooter[] = R"(
Reads names, shapes and settings only, so that the largest checkpoint takes a moment; it is refused here for the same
reasons as by a server. Sizes are of the weights as they are computed with: quantised weights are widened.

Examples:
  switchyard inspect ~/models/Qwen3-30B-A3B
  switchyard inspect ~/models/DeepSeek-V3 --ranks=8 --gpu_memory=141GB
  switchyard inspect ~/models/Mixtral-8x7B-v0.1 --compute_dtype=fp32 --json)";

constexpr int kMaxRanks = 4096;

struct InspectFlags {
  std::string location;
  InspectOptions options;
  std::vector<uint64_t> gpu_memory = {24'000'000'000, 48'000'000'000, 80'000'000'000, 141'000'000'000};
  bool json = false;
};

std::string ShowBytes(int64_t bytes) {
  constexpr double kMib = 1 << 20;
  if (bytes < int64_t{1} << 30) return absl::StrFormat("%.1f MiB", bytes / kMib);
  return absl::StrFormat("%.2f GiB", bytes / (1024 * kMib));
}

std::string ExpertWords(const LayerSpec& layer) {
  std::string words(ActivationName(layer.expert.activation));
  if (layer.expert.gated) words += ", gated";
  if (layer.expert.limit > 0) absl::StrAppend(&words, ", clamped at ", layer.expert.limit);
  if (layer.expert.biased) words += ", biased";
  if (layer.expert.weighs_input) words += ", weight on the input";
  return words;
}

std::string SharedWords(const LayerSpec& layer) {
  if (layer.num_shared == 0) return "-";
  return absl::StrCat(layer.shared_dim, layer.shared_gated ? ", gated" : "");
}

// The table's cells for a layer, all but its name.
std::vector<std::string> LayerCells(const Inspection& inspection, size_t index) {
  const LayerSpec& layer = inspection.model.layers[index];
  std::string gate = DescribeGate(layer.gate, layer.num_experts);
  if (layer.num_gates() > 1) absl::StrAppend(&gate, " (the first of ", layer.num_gates(), " gates)");
  return {absl::StrCat(layer.hidden_dim),
          absl::StrCat(layer.num_experts),
          absl::StrCat(layer.expert_dim),
          SharedWords(layer),
          std::move(gate),
          ExpertWords(layer),
          ShowBytes(inspection.layer_bytes[index])};
}

// Consecutive layers that are alike share a line.
void PrintLayers(const Inspection& inspection, std::ostream& out) {
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"LAYERS"},
               {"HIDDEN", kRight},
               {"EXPERTS", kRight},
               {"WIDTH", kRight},
               {"SHARED", kRight},
               {"GATE"},
               {"EXPERT"},
               {"WEIGHTS OF EACH", kRight}});
  const std::vector<LayerSpec>& layers = inspection.model.layers;
  for (size_t first = 0, next = 0; first < layers.size(); first = next) {
    std::vector<std::string> cells = LayerCells(inspection, first);
    next = first + 1;
    while (next < layers.size() && LayerCells(inspection, next) == cells) ++next;
    const std::string& name = layers[first].name;
    cells.insert(cells.begin(), next == first + 1 ? name : absl::StrCat(name, " to ", layers[next - 1].name));
    table.AddRow(std::move(cells));
  }
  table.Print(out);
}

void PrintRanks(const Inspection& inspection, std::ostream& out) {
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"RANK", kRight}, {"EXPERTS", kRight}, {"WEIGHTS", kRight}, {"WITH A STEP'S ROWS", kRight}});
  for (size_t rank = 0; rank < inspection.ranks.size(); ++rank) {
    const RankShare& share = inspection.ranks[rank];
    table.AddRow({absl::StrCat(rank), absl::StrCat(share.num_experts), ShowBytes(share.weight_bytes),
                  ShowBytes(share.weight_bytes + inspection.working_bytes)});
  }
  table.Print(out);
}

void PrintText(const InspectFlags& flags, const Inspection& inspection, std::ostream& out) {
  out << absl::StreamFormat("%s: %s, %d MoE layers, stored for %s, computed in %s, %s of expert weights\n\n",
                            flags.location, inspection.model.family, inspection.model.layers.size(),
                            std::string(DTypeName(inspection.model.dtype)),
                            std::string(DTypeName(inspection.compute_dtype)), ShowBytes(inspection.total_bytes()));
  PrintLayers(inspection, out);
  out << "\n";
  PrintRanks(inspection, out);
  out << "\n";
  for (const uint64_t memory : flags.gpu_memory) {
    const int ranks = FewestRanks(inspection, static_cast<int64_t>(memory));
    out << absl::StreamFormat("on GPUs of %3.0f GB: %s\n", memory / 1e9,
                              ranks > 0 ? absl::StrCat(ranks) : "does not fit, however many there are");
  }
}

nlohmann::ordered_json LayerJson(const LayerSpec& layer, int64_t bytes) {
  return {{"name", layer.name},
          {"hidden_dim", layer.hidden_dim},
          {"num_experts", layer.num_experts},
          {"expert_dim", layer.expert_dim},
          {"top_k", layer.gate.top_k},
          {"num_gates", layer.num_gates()},
          {"gate", DescribeGate(layer.gate, layer.num_experts)},
          {"expert", ExpertWords(layer)},
          {"shared_dim", layer.shared_dim},
          {"shared_gated", layer.shared_gated},
          {"weight_bytes", bytes}};
}

void PrintInspectionJson(const InspectFlags& flags, const Inspection& inspection, const Console& console) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array(), ranks = layers, fits = layers;
  for (size_t i = 0; i < inspection.model.layers.size(); ++i) {
    layers.push_back(LayerJson(inspection.model.layers[i], inspection.layer_bytes[i]));
  }
  for (const RankShare& share : inspection.ranks) {
    ranks.push_back({{"num_experts", share.num_experts}, {"weight_bytes", share.weight_bytes}});
  }
  for (const uint64_t memory : flags.gpu_memory) {
    fits.push_back(
        {{"gpu_memory_bytes", memory}, {"fewest_gpus", FewestRanks(inspection, static_cast<int64_t>(memory))}});
  }
  PrintJson(console, {{"location", flags.location},
                      {"family", inspection.model.family},
                      {"dtype", std::string(DTypeName(inspection.model.dtype))},
                      {"compute_dtype", std::string(DTypeName(inspection.compute_dtype))},
                      {"weight_bytes", inspection.total_bytes()},
                      {"working_bytes", inspection.working_bytes},
                      {"layers", std::move(layers)},
                      {"ranks", std::move(ranks)},
                      {"fits", std::move(fits)}});
}

int RunInspect(const InspectFlags& flags, const Console& console) {
  const absl::StatusOr<Inspection> inspection = Inspect(flags.location, flags.options);
  if (!inspection.ok()) return ReportUsageError(console, inspection.status());
  flags.json ? PrintInspectionJson(flags, *inspection, console) : PrintText(flags, *inspection, *console.out);
  return kExitOk;
}

}  // namespace

void AddInspectCommand(CLI::App* app, Console console, int* exit_code) {
  CLI::App* command = app->add_subcommand("inspect", "Shows a checkpoint's MoE layers and the memory they need.");
  auto flags = std::make_shared<InspectFlags>();
  command->add_option("dir", flags->location, "Checkpoint folder, or synthetic:...")->required();
  command->add_option("--ranks", flags->options.num_ranks, "Workers to share the experts out to")
      ->check(CLI::Range(1, kMaxRanks))
      ->capture_default_str();
  command->add_option("--compute_dtype", flags->options.compute_dtype, "As the server's flag")
      ->check(CLI::IsMember({"auto", "fp64", "fp32", "fp16", "bf16"}))
      ->capture_default_str();
  command->add_option("--max_batch_rows", flags->options.max_batch_rows, "As the server's flag")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--gpu_memory", flags->gpu_memory, "Sizes of GPUs to say how many are needed of, as 80GB")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true));
  command->add_flag("--json", flags->json, "JSON for scripts");
  command->footer(kInspectFooter);
  command->callback([flags, console, exit_code] { *exit_code = RunInspect(*flags, console); });
}

}  // namespace switchyard
