// The served layers as the KServe API's models: each is named NAME.LAYER and has the one version "1".
//
//   input   hidden_states   [-1, D]   FP64, FP32, FP16 or BF16
//   outputs output          [-1, D]   of the input's type
//           expert_ids      [-1, k]   INT32, when asked for
//           expert_weights  [-1, k]   FP32, when asked for
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "moe/base/status.h"
#include "proto/inference.pb.h"
#include "server/model_table.h"

namespace switchyard {

inline constexpr char kKserveVersion[] = "1";
inline constexpr char kInputName[] = "hidden_states";
inline constexpr char kRowsName[] = "output";
inline constexpr char kExpertIdsName[] = "expert_ids";
inline constexpr char kExpertWeightsName[] = "expert_weights";

// "FP32" and the like, and the inverse; InvalidArgument lists the types of rows there are.
std::string_view KserveDType(DType dtype);
absl::StatusOr<DType> ParseKserveDType(const std::string& name);

// `text` in quotes, cut when long: whatever a caller sent can be shown in an error.
std::string Quoted(std::string_view text);

// Constant after construction.
class KserveModels {
 public:
  struct Entry {
    std::string name;  // NAME.LAYER
    const ServedModel* model = nullptr;
    ServedLayer* layer = nullptr;
  };

  // `table` outlives this.
  explicit KserveModels(const ModelTable& table);

  const std::vector<Entry>& entries() const { return entries_; }

  // `version` is empty or "1". NotFound names the models that there are; InvalidArgument for a version that is not a
  // number.
  absl::StatusOr<const Entry*> Find(const std::string& name, const std::string& version) const;

 private:
  std::vector<Entry> entries_;  // in LayerId order
  std::map<std::string, size_t, std::less<>> by_name_;
};

inference::ModelMetadataResponse MetadataOf(const KserveModels::Entry& entry);
inference::ModelConfig ConfigOf(const KserveModels::Entry& entry);

}  // namespace switchyard
