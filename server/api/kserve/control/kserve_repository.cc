#include "server/api/kserve/control/kserve_repository.h"

#include "server/api/kserve/control/kserve_models.h"

namespace switchyard {
namespace {

constexpr char kUnloadDependents[] = "unload_dependents";

using Change = KnownModel::Change;

// Describes a model or layer that is not served.
void SetUnserved(const KnownModel& model, inference::RepositoryIndexResponse::ModelIndex* index) {
  switch (model.change) {
    case Change::kLoading:
      return index->set_state("LOADING");
    case Change::kUnloading:
      return index->set_state("UNLOADING");
    case Change::kNone:
      index->set_state("UNAVAILABLE");
      index->set_reason(model.loaded == nullptr ? model.reason : "unloaded");
  }
}

void SetServed(const KnownModel& model, const std::string& front_state,
               inference::RepositoryIndexResponse::ModelIndex* index) {
  const bool ready = front_state == "serving";
  index->set_state(ready ? "READY" : front_state == "starting" ? "LOADING" : "UNAVAILABLE");
  index->set_reason(ready ? model.reason : front_state);
}

absl::Status CheckModelName(const std::string& name) {
  if (!name.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError("model_name: expected the name of a model, found none");
}

}  // namespace

inference::RepositoryIndexResponse IndexOf(const ModelTable& table, const std::string& front_state, bool ready_only) {
  inference::RepositoryIndexResponse response;
  for (const KnownModel& model : table.models()) {
    if (model.layers.empty() && !ready_only) {
      auto& index = *response.add_models();
      index.set_name(model.name);
      SetUnserved(model, &index);
    }
    for (const KnownModel::Layer& layer : model.layers) {
      inference::RepositoryIndexResponse::ModelIndex index;
      index.set_name(absl::StrCat(model.name, ".", layer.name));
      index.set_version(kKserveVersion);
      layer.is_served ? SetServed(model, front_state, &index) : SetUnserved(model, &index);
      if (!ready_only || index.state() == "READY") *response.add_models() = std::move(index);
    }
  }
  return response;
}

absl::Status CheckRepositoryName(const std::string& name) {
  if (name.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("repository_name: expected none, found ", QuotedText(name)));
}

absl::Status CheckLoad(const inference::RepositoryModelLoadRequest& request) {
  SY_RETURN_IF_ERROR(CheckRepositoryName(request.repository_name()));
  SY_RETURN_IF_ERROR(CheckModelName(request.model_name()));
  if (request.parameters().empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "parameters: expected none, found ", QuotedText(request.parameters().begin()->first),
      ": models are loaded as their checkpoints on the server say, without a configuration or files of the caller's"));
}

absl::Status CheckUnload(const inference::RepositoryModelUnloadRequest& request) {
  SY_RETURN_IF_ERROR(CheckRepositoryName(request.repository_name()));
  SY_RETURN_IF_ERROR(CheckModelName(request.model_name()));
  for (const auto& [name, value] : request.parameters()) {
    // Accepted: no model depends on another one.
    if (name == kUnloadDependents && value.has_bool_param()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("parameters: expected ", kUnloadDependents, " (a bool) or none, found ", QuotedText(name)));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
