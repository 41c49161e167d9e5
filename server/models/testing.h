// Models for tests: opened like the front's own, without workers.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "server/models/model_opener.h"
#include "server/models/model_table.h"

namespace switchyard {

inline ServerOptions CpuOptions() {
  ServerOptions options;
  options.local_workers = 1;
  options.device = "cpu";
  return options;
}

inline std::shared_ptr<ServedModel> OpenModel(const ModelOption& option) {
  static ModelOpener opener(CpuOptions(), /*num_ranks=*/1);
  return *opener.Open(option);
}

// A checkpoint whose layers are all served.
inline KnownModel Served(const ModelOption& option) {
  KnownModel known = {.name = option.name, .location = option.location};
  known.Serve(OpenModel(option), [](const std::string&) { return true; });
  return known;
}

inline std::shared_ptr<const ModelTable> TableOf(const std::vector<ModelOption>& options) {
  std::vector<KnownModel> models;
  for (const ModelOption& option : options) models.push_back(Served(option));
  return std::make_shared<const ModelTable>(std::move(models));
}

}  // namespace switchyard
