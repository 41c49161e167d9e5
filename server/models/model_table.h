// Every checkpoint that the front knows by name, and for each loaded one the layers that callers can reach. KServe
// clients know each layer as a model of its own, NAME.LAYER.
//
// No two layers of loaded checkpoints have one name: whoever loads checkpoints sees to it (CheckLayerNames).
//
// A table is constant. A change creates another table, which replaces the old one (ModelRepository); callers keep the
// models and layers that they looked up in the old one.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "server/models/served_model.h"

namespace switchyard {

// A checkpoint that the front knows.
struct KnownModel {
  enum class Change { kNone, kLoading, kUnloading };
  struct Layer {
    std::string name;
    bool is_served = false;
  };

  std::string name;
  std::string location;
  std::shared_ptr<ServedModel> loaded;  // null while the checkpoint is not loaded
  std::vector<Layer> layers;            // of the loaded model, or of the last one; empty if none was ever loaded
  Change change = Change::kNone;        // the change under way
  std::string reason;                   // why it is not loaded, or why the last change of a loaded one failed
  bool is_from_folder = false;          // a folder of --model_repository: known while it is there or loaded

  // Sets `loaded` to `model`, and serves the layers for which `is_served` returns true.
  template <typename Fn>
  void Serve(std::shared_ptr<ServedModel> model, Fn is_served) {
    loaded = std::move(model);
    layers.clear();
    for (const auto& layer : loaded->layers) layers.push_back({layer->spec.name, is_served(layer->spec.name)});
    reason.clear();
  }
  // The index of the layer with this name, or -1.
  int FindLayer(std::string_view layer) const;
  bool serves(std::string_view layer) const {
    const int found = FindLayer(layer);
    return found >= 0 && layers[found].is_served;
  }
};

// A layer that is served, as KServe clients know it.
struct LayerEntry {
  std::string name;  // NAME.LAYER
  std::shared_ptr<const ServedModel> model;
  std::shared_ptr<ServedLayer> layer;
};

// FAILED_PRECONDITION when a layer of `model` would have the same name NAME.LAYER as a layer of `other`, a checkpoint
// of another name; says which two.
absl::Status CheckLayerNames(const ServedModel& model, const ServedModel& other);

// Shorten parts of error messages, because the metadata that carries a status is limited: CutText cuts a long `text`,
// ShortList lists the first of `names`.
std::string CutText(std::string_view text);
std::string ShortList(const std::vector<std::string>& names);

// ShortList of the names of `all`.
template <typename Named>
std::string ShortListOf(const std::vector<Named>& all) {
  std::vector<std::string> names;
  for (const Named& each : all) names.push_back(each.name);
  return ShortList(names);
}

class ModelTable {
 public:
  explicit ModelTable(std::vector<KnownModel> models = {});

  const std::vector<KnownModel>& models() const { return models_; }
  // The served layers, grouped by model.
  const std::vector<std::shared_ptr<const LayerEntry>>& layers() const { return layers_; }

  // A NotFound error lists the existing models, or the existing layers of the model; an Unavailable error says why a
  // known model or layer is not served.
  absl::StatusOr<std::shared_ptr<ServedLayer>> Find(const std::string& model, const std::string& layer) const;

  // Finds a layer by its name NAME.LAYER. Null unless it is served.
  std::shared_ptr<const LayerEntry> FindEntry(std::string_view name) const;

  // The target of a change: a known checkpoint, or one layer of it.
  struct Target {
    size_t model_idx = 0;
    std::optional<std::string> layer;
  };
  // The target that NAME or NAME.LAYER stands for; the layer need not exist. If `name` fits both a checkpoint and a
  // layer of another checkpoint, the checkpoint is meant.
  std::optional<Target> Resolve(std::string_view name) const;

  // Says why a known model, or a layer of it, is not served.
  static absl::Status Unserved(const KnownModel& model, std::string_view shown_name);

 private:
  std::vector<KnownModel> models_;
  std::vector<std::shared_ptr<const LayerEntry>> layers_;
  std::map<std::string, std::shared_ptr<const LayerEntry>, std::less<>> by_name_;  // NAME.LAYER
};

}  // namespace switchyard
