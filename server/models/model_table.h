// What may be served and what is: every checkpoint that the front knows by name, and of those that are loaded the
// layers that callers reach. KServe clients know each layer as a model of its own, NAME.LAYER.
//
// A table is constant. A change makes another table, which takes the old one's place (ModelRepository); whoever looks
// something up keeps what it has found.
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
  std::shared_ptr<ServedModel> loaded;  // null while it is not
  std::vector<Layer> layers;            // of `loaded`, or as they were when it was; empty when it never was
  Change change = Change::kNone;        // under way
  std::string reason;                   // why it is not loaded, or why the last change of a loaded one failed
  bool is_from_folder = false;          // of --model_repository: known as long as it is there, or loaded

  // Takes `model` for the loaded one, and serves the layers for which `is_served` holds.
  template <typename Fn>
  void Serve(std::shared_ptr<ServedModel> model, Fn is_served) {
    loaded = std::move(model);
    layers.clear();
    for (const auto& layer : loaded->layers) layers.push_back({layer->spec.name, is_served(layer->spec.name)});
    reason.clear();
  }
  // The index of the layer called so, or -1.
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

// For errors, whose messages must fit the metadata that carries a status: `text`, cut when long, and the first of
// `names`.
std::string CutText(std::string_view text);
std::string ShortList(const std::vector<std::string>& names);

// The same of what has names.
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
  // Those that are served, model after model.
  const std::vector<std::shared_ptr<const LayerEntry>>& layers() const { return layers_; }

  // NotFound lists models, or layers of the model, that there are; Unavailable says why one that is known is not
  // served.
  absl::StatusOr<std::shared_ptr<ServedLayer>> Find(const std::string& model, const std::string& layer) const;

  // By the name NAME.LAYER. Null unless it is served.
  std::shared_ptr<const LayerEntry> FindEntry(std::string_view name) const;

  // What a change names: a known checkpoint, or one layer of it.
  struct Target {
    size_t model_idx = 0;
    std::optional<std::string> layer;
  };
  // Of NAME or NAME.LAYER; a layer need not exist. A checkpoint's own name comes before a layer's.
  std::optional<Target> Resolve(std::string_view name) const;

  // Why a layer, or a whole model, that is known is not served.
  static absl::Status Unserved(const KnownModel& model, std::string_view shown_name);

 private:
  std::vector<KnownModel> models_;
  std::vector<std::shared_ptr<const LayerEntry>> layers_;
  std::map<std::string, std::shared_ptr<const LayerEntry>, std::less<>> by_name_;  // NAME.LAYER
};

}  // namespace switchyard
