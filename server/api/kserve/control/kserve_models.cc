#include "server/api/kserve/control/kserve_models.h"

#include <algorithm>
#include <array>

#include "absl/strings/numbers.h"
#include "base/logging/logging.h"

namespace switchyard {
namespace {

// The metadata that carries a status has no room for more names.
constexpr size_t kMaxNamesListed = 20;

constexpr char kPlatform[] = "switchyard";
constexpr int64_t kAnyRows = -1;

struct DTypeRow {
  DType dtype;
  std::string_view name;
  inference::DataType config;
};
constexpr std::array<DTypeRow, 4> kDTypes = {{{DType::kF64, "FP64", inference::TYPE_FP64},
                                              {DType::kF32, "FP32", inference::TYPE_FP32},
                                              {DType::kF16, "FP16", inference::TYPE_FP16},
                                              {DType::kBF16, "BF16", inference::TYPE_BF16}}};

const DTypeRow& RowOf(DType dtype) {
  return *std::find_if(kDTypes.begin(), kDTypes.end(), [&](const DTypeRow& row) { return row.dtype == dtype; });
}

struct Tensor {
  std::string name;
  std::string datatype;
  inference::DataType config;
  int64_t width;
};

Tensor InputOf(const ServedLayer& layer) {
  const DTypeRow& rows = RowOf(layer.on_group.compute_dtype);
  return {kInputName, std::string(rows.name), rows.config, layer.spec.hidden_dim};
}

std::vector<Tensor> OutputsOf(const ServedLayer& layer) {
  Tensor rows = InputOf(layer);
  rows.name = kRowsName;
  const int top_k = layer.spec.gate.top_k;
  return {rows,
          {kExpertIdsName, "INT32", inference::TYPE_INT32, top_k},
          {kExpertWeightsName, "FP32", inference::TYPE_FP32, top_k}};
}

template <typename Repeated>
void AddTensor(const Tensor& tensor, Repeated* tensors) {
  auto& added = *tensors->Add();
  added.set_name(tensor.name);
  added.set_datatype(tensor.datatype);
  added.add_shape(kAnyRows);
  added.add_shape(tensor.width);
}

template <typename Repeated>
void AddConfig(const Tensor& tensor, Repeated* tensors) {
  auto& added = *tensors->Add();
  added.set_name(tensor.name);
  added.set_data_type(tensor.config);
  added.add_dims(kAnyRows);
  added.add_dims(tensor.width);
}

// Lists the models whose names begin with `prefix`.
std::string ListNames(const ModelTable& table, std::string_view prefix) {
  std::string list;
  size_t count = 0;
  for (const auto& entry : table.layers()) {
    if (entry->name.compare(0, prefix.size(), prefix) != 0) continue;
    if (++count <= kMaxNamesListed) absl::StrAppend(&list, count == 1 ? "" : ", ", entry->name);
  }
  if (count > kMaxNamesListed) absl::StrAppend(&list, " and ", count - kMaxNamesListed, " more");
  return list;
}

}  // namespace

std::string_view KserveDType(DType dtype) { return RowOf(dtype).name; }

absl::StatusOr<DType> ParseKserveDType(const std::string& name) {
  for (const DTypeRow& row : kDTypes) {
    if (row.name == name) return row.dtype;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("datatype: expected FP64, FP32, FP16 or BF16, found ", QuotedText(name)));
}

std::string QuotedText(std::string_view text) { return absl::StrCat("'", CutText(text), "'"); }

namespace {

// Says why no model of this name is served.
absl::Status NotServed(const ModelTable& table, const std::string& name) {
  std::string there;
  if (const auto target = table.Resolve(name)) {
    const KnownModel& model = table.models()[target->model_idx];
    const bool is_known = !target->layer.has_value() || model.layers.empty() || model.FindLayer(*target->layer) >= 0;
    if (is_known && (target->layer.has_value() || model.loaded == nullptr)) return ModelTable::Unserved(model, name);
    there = ListNames(table, absl::StrCat(model.name, "."));  // for a known model, only its layers
  }
  return absl::NotFoundError(absl::StrCat("Request for unknown model: ", QuotedText(name),
                                          " is not found; there are: ", there.empty() ? ListNames(table, "") : there));
}

}  // namespace

absl::StatusOr<std::shared_ptr<const KserveModels::Entry>> KserveModels::Find(const std::string& name,
                                                                              const std::string& version) const {
  const std::shared_ptr<const ModelTable> table = table_();
  std::shared_ptr<const Entry> entry = table->FindEntry(name);
  if (entry == nullptr) return NotServed(*table, name);
  if (version.empty() || version == kKserveVersion) return entry;
  int64_t number = 0;
  if (!absl::SimpleAtoi(version, &number)) {
    return absl::InvalidArgumentError(absl::StrCat("version: expected a number, or none for the only one, ",
                                                   kKserveVersion, "; found ", QuotedText(version)));
  }
  return absl::NotFoundError(absl::StrCat("Request for unknown model: ", QuotedText(name), " version ", number,
                                          " is not found; it has version ", kKserveVersion));
}

inference::ModelMetadataResponse MetadataOf(const KserveModels::Entry& entry) {
  inference::ModelMetadataResponse metadata;
  metadata.set_name(entry.name);
  metadata.add_versions(kKserveVersion);
  metadata.set_platform(kPlatform);
  AddTensor(InputOf(*entry.layer), metadata.mutable_inputs());
  for (const Tensor& output : OutputsOf(*entry.layer)) AddTensor(output, metadata.mutable_outputs());
  return metadata;
}

inference::ModelConfig ConfigOf(const KserveModels::Entry& entry) {
  const LayerSpec& spec = entry.layer->spec;
  inference::ModelConfig config;
  config.set_name(entry.name);
  config.set_platform(kPlatform);
  config.set_backend(kPlatform);
  config.mutable_version_policy()->mutable_specific()->add_versions(1);
  config.set_max_batch_size(0);
  AddConfig(InputOf(*entry.layer), config.mutable_input());
  for (const Tensor& output : OutputsOf(*entry.layer)) AddConfig(output, config.mutable_output());
  config.mutable_model_transaction_policy()->set_decoupled(false);
  const auto describe = [&](const char* key, std::string value) {
    (*config.mutable_parameters())[key].set_string_value(std::move(value));
  };
  describe("family", entry.model->spec.family);
  describe("checkpoint_dtype", std::string(KserveDType(entry.model->spec.dtype)));
  describe("num_experts", absl::StrCat(spec.num_experts));
  describe("expert_dim", absl::StrCat(spec.expert_dim));
  describe("num_gates", absl::StrCat(spec.num_gates()));
  describe("gate", DescribeGate(spec.gate, spec.num_experts));
  return config;
}

}  // namespace switchyard
