#include "server/models/model_table.h"

#include <algorithm>

#include "absl/strings/str_join.h"

namespace switchyard {
namespace {

constexpr size_t kMaxTextBytes = 100;
constexpr size_t kMaxNamesListed = 20;

}  // namespace

std::string CutText(std::string_view text) {
  if (text.size() <= kMaxTextBytes) return std::string(text);
  // Do not cut within a character, because text that is not UTF-8 could not be sent as an error_message.
  size_t end = kMaxTextBytes;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xc0) == 0x80) --end;
  return absl::StrCat(std::string(text.substr(0, end)), "…");
}

std::string ShortList(const std::vector<std::string>& names) {
  std::vector<std::string> shown;
  for (size_t i = 0; i < std::min(names.size(), kMaxNamesListed); ++i) shown.push_back(CutText(names[i]));
  const size_t more = names.size() - shown.size();
  return absl::StrCat(absl::StrJoin(shown, ", "), more > 0 ? absl::StrCat(", … and ", more, " more") : "");
}

absl::Status CheckLayerNames(const ServedModel& model, const ServedModel& other) {
  for (const LayerSpec& layer : model.spec.layers) {
    for (const LayerSpec& its : other.spec.layers) {
      // Cheap, because only names of one length are compared, and these seldom.
      const bool is_same_length = model.name.size() + layer.name.size() == other.name.size() + its.name.size();
      if (!is_same_length || absl::StrCat(model.name, ".", layer.name) != absl::StrCat(other.name, ".", its.name)) {
        continue;
      }
      return absl::FailedPreconditionError(absl::StrCat(
          "layer '", layer.name, "' of model '", model.name, "' and layer '", its.name, "' of model '", other.name,
          "' would both be '", model.name, ".", layer.name,
          "' to KServe clients; give one of the models another name (--model=NAME=DIR, or rename its folder)"));
    }
  }
  return absl::OkStatus();
}

int KnownModel::FindLayer(std::string_view layer) const {
  const auto it = std::find_if(layers.begin(), layers.end(), [&](const Layer& each) { return each.name == layer; });
  return it == layers.end() ? -1 : static_cast<int>(it - layers.begin());
}

ModelTable::ModelTable(std::vector<KnownModel> models) : models_(std::move(models)) {
  for (const KnownModel& model : models_) {
    for (size_t i = 0; model.loaded != nullptr && i < model.layers.size(); ++i) {
      if (!model.layers[i].is_served) continue;
      auto entry = std::make_shared<const LayerEntry>(
          LayerEntry{absl::StrCat(model.name, ".", model.layers[i].name), model.loaded, ShareLayer(model.loaded, i)});
      by_name_.emplace(entry->name, entry);
      layers_.push_back(std::move(entry));
    }
  }
}

absl::StatusOr<std::shared_ptr<ServedLayer>> ModelTable::Find(const std::string& model,
                                                              const std::string& layer) const {
  const auto known = std::find_if(models_.begin(), models_.end(), [&](const auto& each) { return each.name == model; });
  if (known == models_.end()) {
    return absl::NotFoundError(
        absl::StrCat("model: no model '", CutText(model), "' is served here; there are: ", ShortListOf(models_)));
  }
  const int layer_idx = known->FindLayer(layer);
  if (layer_idx >= 0 && known->loaded != nullptr && known->layers[layer_idx].is_served) {
    return ShareLayer(known->loaded, layer_idx);
  }
  if (layer_idx >= 0 || known->layers.empty()) return Unserved(*known, absl::StrCat(model, ".", layer));
  return absl::NotFoundError(absl::StrCat("layer: model '", model, "' has no MoE layer '", CutText(layer),
                                          "'; it has: ", ShortListOf(known->layers)));
}

std::shared_ptr<const LayerEntry> ModelTable::FindEntry(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : it->second;
}

std::optional<ModelTable::Target> ModelTable::Resolve(std::string_view name) const {
  std::optional<Target> found;
  size_t longest = 0;
  for (size_t i = 0; i < models_.size(); ++i) {
    const std::string& known = models_[i].name;
    if (name == known) return Target{i, std::nullopt};
    const bool is_layer =
        name.size() > known.size() && name.substr(0, known.size()) == known && name[known.size()] == '.';
    if (!is_layer || known.size() < longest) continue;
    longest = known.size();
    found = Target{i, std::string(name.substr(known.size() + 1))};
  }
  return found;
}

absl::Status ModelTable::Unserved(const KnownModel& model, std::string_view shown_name) {
  const std::string name = CutText(shown_name);
  switch (model.change) {
    case KnownModel::Change::kLoading:
      return absl::UnavailableError(absl::StrCat("model '", name, "' is being loaded"));
    case KnownModel::Change::kUnloading:
      return absl::UnavailableError(absl::StrCat("model '", name, "' is unloaded"));
    case KnownModel::Change::kNone:
      break;
  }
  if (model.loaded != nullptr) return absl::UnavailableError(absl::StrCat("model '", name, "' is unloaded"));
  return absl::UnavailableError(absl::StrCat("model '", name, "' is ", model.reason));
}

}  // namespace switchyard
