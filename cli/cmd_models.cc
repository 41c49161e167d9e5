#include "cli/command.h"
#include "cli/table.h"

namespace switchyard {
namespace {

constexpr char kModelsFooter[] = R"(
Examples:
  switchyard models
  switchyard models --target=front.example:8001 --format=json)";

nlohmann::ordered_json LayerJson(const v1::Layer& layer) {
  return {{"name", layer.name()},
          {"hidden_dim", layer.hidden_dim()},
          {"expert_dim", layer.expert_dim()},
          {"num_experts", layer.num_experts()},
          {"top_k", layer.top_k()},
          {"activation", layer.activation()},
          {"gated", layer.gated()},
          {"gate", layer.gate()},
          {"num_gates", layer.num_gates()},
          {"shared_dim", layer.shared_dim()}};
}

nlohmann::ordered_json ModelJson(const v1::Model& model) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const v1::Layer& layer : model.layers()) layers.push_back(LayerJson(layer));
  return {{"name", model.name()},
          {"family", model.family()},
          {"checkpoint_dtype", TypeName(model.checkpoint_dtype())},
          {"compute_dtype", TypeName(model.compute_dtype())},
          {"layers", std::move(layers)}};
}

void PrintModelsJson(const Console& console, const v1::ListModelsResponse& response) {
  nlohmann::ordered_json models = nlohmann::ordered_json::array();
  for (const v1::Model& model : response.models()) models.push_back(ModelJson(model));
  PrintJson(console, {{"models", std::move(models)}});
}

void PrintModelsTable(const Console& console, const v1::ListModelsResponse& response) {
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"MODEL"},
               {"FAMILY"},
               {"STORED"},
               {"COMPUTES IN"},
               {"LAYER"},
               {"HIDDEN", kRight},
               {"EXPERT", kRight},
               {"EXPERTS", kRight},
               {"SHARED", kRight},
               {"GATE"},
               {"ACTIVATION"}});
  for (const v1::Model& model : response.models()) {
    for (const v1::Layer& layer : model.layers()) {
      table.AddRow({model.name(), model.family(), TypeName(model.checkpoint_dtype()), TypeName(model.compute_dtype()),
                    layer.name(), absl::StrCat(layer.hidden_dim()), absl::StrCat(layer.expert_dim()),
                    absl::StrCat(layer.num_experts()), absl::StrCat(layer.shared_dim()), layer.gate(),
                    layer.activation() + (layer.gated() ? ", gated" : "")});
    }
  }
  table.Print(*console.out);
}

int RunModels(const FrontFlags& flags, const Console& console) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectTo(flags, /*max_attempts=*/1);
  if (!client.ok()) return ReportUsageError(console, client.status());
  const absl::StatusOr<v1::ListModelsResponse> response = (*client)->ListModels();
  if (!response.ok()) return ReportRpcError(console, flags.target, response.status());
  flags.json() ? PrintModelsJson(console, *response) : PrintModelsTable(console, *response);
  return kExitOk;
}

}  // namespace

void AddModelsCommand(CLI::App* app, Console console, int* exit_code) {
  CLI::App* command = app->add_subcommand("models", "Lists the models served and their MoE layers.");
  auto flags = std::make_shared<FrontFlags>();
  AddFrontFlags(command, flags.get());
  command->footer(kModelsFooter);
  command->callback([flags, console, exit_code] { *exit_code = RunModels(*flags, console); });
}

}  // namespace switchyard
