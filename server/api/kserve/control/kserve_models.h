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

// The KServe name of a type, such as "FP32", and the inverse. InvalidArgument lists the types that rows may have.
std::string_view KserveDType(DType dtype);
absl::StatusOr<DType> ParseKserveDType(const std::string& name);

// `text` in quotes, cut when it is long. So errors can show anything that a caller sent.
std::string QuotedText(std::string_view text);

// Thread-safe. An entry keeps its model alive.
class KserveModels {
 public:
  using Entry = LayerEntry;
  using TableFn = std::function<std::shared_ptr<const ModelTable>()>;

  // `table` returns the table that is valid at the time.
  explicit KserveModels(TableFn table) : table_(std::move(table)) {}

  // The layers that are served, model after model.
  std::vector<std::shared_ptr<const Entry>> entries() const { return table_()->layers(); }

  // `version` is empty or "1". NotFound names the models that exist. Unavailable says why a known model is not served.
  // InvalidArgument for a version that is not a number.
  absl::StatusOr<std::shared_ptr<const Entry>> Find(const std::string& name, const std::string& version) const;

 private:
  const TableFn table_;
};

inference::ModelMetadataResponse MetadataOf(const KserveModels::Entry& entry);
inference::ModelConfig ConfigOf(const KserveModels::Entry& entry);

}  // namespace switchyard
