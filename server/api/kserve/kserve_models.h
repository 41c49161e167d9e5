// The served layers as the KServe API's models: each is named NAME.LAYER and has the one version "1".
//
//   input   hidden_states   [-1, D]   FP64, FP32, FP16 or BF16
//   outputs output          [-1, D]   of the input's type
//           expert_ids      [-1, k]   INT32, when asked for
//           expert_weights  [-1, k]   FP32, when asked for
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"
#include "proto/inference.pb.h"
#include "server/models/model_table.h"

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
std::string QuotedText(std::string_view text);

// Thread-safe. Whoever holds an entry keeps its model.
class KserveModels {
 public:
  using Entry = LayerEntry;
  using TableFn = std::function<std::shared_ptr<const ModelTable>()>;

  // `table` gives the table of the moment.
  explicit KserveModels(TableFn table) : table_(std::move(table)) {}

  // Those that are served, model after model.
  std::vector<std::shared_ptr<const Entry>> entries() const { return table_()->layers(); }

  // `version` is empty or "1". NotFound names the models that there are, Unavailable says why one that is known is not
  // served; InvalidArgument for a version that is not a number.
  absl::StatusOr<std::shared_ptr<const Entry>> Find(const std::string& name, const std::string& version) const;

 private:
  const TableFn table_;
};

inference::ModelMetadataResponse MetadataOf(const KserveModels::Entry& entry);
inference::ModelConfig ConfigOf(const KserveModels::Entry& entry);

}  // namespace switchyard
