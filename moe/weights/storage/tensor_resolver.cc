#include "moe/weights/storage/tensor_resolver.h"

#include <algorithm>

#include "absl/strings/str_join.h"
#include "base/ceil_div.h"
#include "moe/weights/checkpoint/quoted.h"
#include "moe/weights/storage/quantized.h"

namespace switchyard {
namespace {

using Shape = StackedNames::Shape;
std::string Joined(const std::string& path, const std::string& name) {
  return path.empty() ? name : absl::StrCat(path, ".", name);
}

std::string Shown(const std::vector<int64_t>& shape) {
  return absl::StrCat("shape [", absl::StrJoin(shape, ", "), "]");
}

absl::Status Wrong(const std::string& name, const SafetensorsFile& file, const std::string& found,
                   const std::string& expected) {
  return absl::InvalidArgumentError(
      absl::StrCat(file.path(), ": tensor ", Quoted(name), ": found ", found, ", expected ", expected));
}

// A type that is not known here may have any name.
std::string TypeName(const StoredTensor& stored) {
  const StoredType& type = *stored.entry->type;
  return type.num_bytes == 0 ? Quoted(type.name) : std::string(type.name);
}

bool IsFp8(const StoredTensor& stored) { return stored.entry->type->name == "F8_E4M3"; }

StoredMatrix WholeMatrix(const StoredTensor& stored, DType dtype, int64_t num_rows, int64_t num_cols) {
  StoredMatrix matrix;
  matrix.data = stored.entry->bytes.data();
  matrix.dtype = dtype;
  matrix.num_rows = num_rows;
  matrix.num_cols = num_cols;
  matrix.rows = Stride::All(num_rows);
  matrix.cols = Stride::All(num_cols);
  matrix.file = stored.file;
  return matrix;
}

std::vector<int64_t> ShapeOf(Shape shape, int64_t count, int64_t num_rows, int64_t num_cols) {
  switch (shape) {
    case Shape::kPerExpert:
      return {count, num_rows, num_cols};
    case Shape::kTall:
      return {count * num_rows, num_cols};
    case Shape::kFlat:
      return {count * num_rows * num_cols};
  }
  return {};
}

// The gate's or the up projection's outputs among the 2H of a tensor that holds both.
Stride HalfOf(bool interleaved, bool is_gate, int64_t inner) {
  if (interleaved) return {is_gate ? 0 : 1, 2, inner, inner};
  return Stride::Part(is_gate ? 0 : inner, inner);
}

// Inner features [first, first + inner) of a shared expert `width` wide; beyond its width they are zeros.
Stride SharedPart(int64_t first, int64_t inner, int64_t width) {
  return {first, 1, std::min(inner, width - first), inner};
}

}  // namespace

StoredMatrix TensorResolver::Stack::At(int64_t expert_idx) const {
  StoredMatrix matrix = first;
  matrix.data += expert_idx * first.block_bytes();
  if (matrix.scales.data != nullptr) matrix.scales.data += expert_idx * scale_bytes;
  return matrix;
}

absl::StatusOr<StoredLayer> TensorResolver::Resolve(const MoeBlock& block) {
  counts_absent_ = false;
  auto layer = TryResolve(block);
  if (layer.ok()) return layer;
  counts_absent_ = true;
  return TryResolve(block);
}

absl::StatusOr<StoredLayer> TensorResolver::TryResolve(const MoeBlock& block) {
  const std::string path = ChoosePath(block);
  StoredLayer layer;
  for (const GateNames& names : block.names.gates) {
    SY_ASSIGN_OR_RETURN(StoredGate gate, ResolveGate(path, names, block.spec));
    layer.gates.push_back(gate);
  }
  if (block.spec.shared_gated) {
    SY_ASSIGN_OR_RETURN(layer.shared_gate, FindPlain(Joined(path, block.names.shared_gate), {1, block.spec.hidden_dim},
                                                     1, block.spec.hidden_dim));
  }
  SY_RETURN_IF_ERROR(ResolveExperts(path, block, &layer));
  if (block.spec.num_shared > 0) SY_RETURN_IF_ERROR(ResolveShared(path, *block.names.shared, block.spec, &layer));
  return layer;
}

std::string TensorResolver::FirstOf(const std::string& path, const std::vector<std::string>& names) const {
  for (const std::string& name : names) {
    if (Has(Joined(path, name))) return Joined(path, name);
  }
  return Joined(path, names.front());
}

std::string TensorResolver::ChoosePath(const MoeBlock& block) const {
  for (const std::string& path : block.paths) {
    if (Has(FirstOf(path, block.names.gates.front().weight))) return path;
  }
  return block.paths.front();
}

absl::StatusOr<StoredGate> TensorResolver::ResolveGate(const std::string& path, const GateNames& names,
                                                       const LayerSpec& spec) const {
  StoredGate gate;
  const int64_t num_experts = spec.num_experts;
  if (!names.projector.empty()) {
    SY_RETURN_IF_ERROR(ResolveCosine(path, names, spec, &gate));
    return gate;
  }
  SY_ASSIGN_OR_RETURN(gate.weight, FindPlain(FirstOf(path, names.weight), {num_experts, spec.hidden_dim}, num_experts,
                                             spec.hidden_dim));
  if (!names.bias.empty()) {
    SY_ASSIGN_OR_RETURN(gate.bias, FindVector(FirstOf(path, names.bias), num_experts));
  }
  if (!names.score_correction.empty()) {
    const std::vector<int64_t> shape =
        names.correction_is_row ? std::vector<int64_t>{1, num_experts} : std::vector<int64_t>{num_experts};
    SY_ASSIGN_OR_RETURN(gate.score_correction, FindPlain(FirstOf(path, names.score_correction), shape, 1, num_experts));
  }
  return gate;
}

absl::Status TensorResolver::ResolveCosine(const std::string& path, const GateNames& names, const LayerSpec& spec,
                                           StoredGate* gate) const {
  const int64_t dim = names.projection_dim, hidden = spec.hidden_dim;
  const std::string projector = Joined(path, names.projector);
  SY_ASSIGN_OR_RETURN(gate->weight,
                      FindPlain(FirstOf(path, names.weight), {dim, spec.num_experts}, dim, spec.num_experts));
  gate->weight.transposed = true;
  SY_ASSIGN_OR_RETURN(gate->projector, FindPlain(projector + ".weight", {dim, hidden}, dim, hidden));
  SY_ASSIGN_OR_RETURN(gate->projector_bias, FindVector(projector + ".bias", dim));
  SY_ASSIGN_OR_RETURN(gate->temperature, FindVector(Joined(path, names.temperature), 1));
  return absl::OkStatus();
}

bool TensorResolver::HasAny(const std::string& path, const StackedNames& names) const {
  for (const std::string& name : {names.gate_up, names.gate, names.up, names.down}) {
    if (name.empty()) continue;
    const std::string full = Joined(path, name);
    if (Has(full) || (names.may_be_mxfp4 && (Has(full + "_blocks") || Has(full + "_scales")))) return true;
  }
  return false;
}

absl::Status TensorResolver::ResolveExperts(const std::string& path, const MoeBlock& block, StoredLayer* layer) {
  layer->experts.resize(block.spec.num_experts);
  for (const StackedNames& names : block.names.stacked) {
    if (HasAny(path, names)) return ResolveStacked(path, names, block.spec, layer);
  }
  if (block.names.each) return ResolveEach(path, *block.names.each, block.spec, layer);
  return ResolveStacked(path, block.names.stacked.front(), block.spec, layer);
}

absl::Status TensorResolver::ResolveEach(const std::string& path, const EachNames& names, const LayerSpec& spec,
                                         StoredLayer* layer) {
  const std::string prefix = Joined(path, names.prefix);
  for (int idx = 0; idx < spec.num_experts; ++idx) {
    SY_ASSIGN_OR_RETURN(layer->experts[idx],
                        ResolveExpert(absl::StrCat(prefix, idx), names.projections, spec, spec.expert_dim));
  }
  return absl::OkStatus();
}

absl::StatusOr<StoredExpert> TensorResolver::ResolveExpert(const std::string& path, const ProjectionNames& names,
                                                           const LayerSpec& spec, int64_t width) {
  const int64_t hidden = spec.hidden_dim;
  const auto name = [&path](const std::string& part, const char* kind) { return absl::StrCat(path, ".", part, kind); };
  StoredExpert expert;
  if (spec.expert.gated) {
    SY_ASSIGN_OR_RETURN(expert.gate, FindWeight(name(names.gate, ".weight"), width, hidden));
  }
  SY_ASSIGN_OR_RETURN(expert.up, FindWeight(name(names.up, ".weight"), width, hidden));
  SY_ASSIGN_OR_RETURN(expert.down, FindWeight(name(names.down, ".weight"), hidden, width));
  if (!spec.expert.biased) return expert;
  if (spec.expert.gated) {
    SY_ASSIGN_OR_RETURN(expert.gate_bias, FindVector(name(names.gate, ".bias"), width));
  }
  SY_ASSIGN_OR_RETURN(expert.up_bias, FindVector(name(names.up, ".bias"), width));
  SY_ASSIGN_OR_RETURN(expert.down_bias, FindVector(name(names.down, ".bias"), hidden));
  return expert;
}

absl::Status TensorResolver::ResolveStacked(const std::string& path, const StackedNames& names, const LayerSpec& spec,
                                            StoredLayer* layer) {
  SY_RETURN_IF_ERROR(ResolveStackedInner(path, names, spec, layer));
  const BlockShape shape = {spec.num_experts, spec.hidden_dim, spec.expert_dim, names.down_in_major, names.shape};
  SY_ASSIGN_OR_RETURN(const Stack down, FindStack(Joined(path, names.down), names, shape));
  for (int idx = 0; idx < spec.num_experts; ++idx) layer->experts[idx].down = down.At(idx);
  return spec.expert.biased ? ResolveStackedBiases(path, names, spec, layer) : absl::OkStatus();
}

absl::Status TensorResolver::ResolveStackedInner(const std::string& path, const StackedNames& names,
                                                 const LayerSpec& spec, StoredLayer* layer) {
  const int64_t inner = spec.expert_dim;
  BlockShape shape = {spec.num_experts, inner, spec.hidden_dim, names.inner_in_major, names.shape};
  if (!names.gate_up.empty()) {
    shape.num_rows = 2 * inner;
    SY_ASSIGN_OR_RETURN(const Stack gate_up, FindStack(Joined(path, names.gate_up), names, shape));
    for (int idx = 0; idx < spec.num_experts; ++idx) {
      layer->experts[idx].gate = gate_up.At(idx).Outputs(HalfOf(names.interleaved, true, inner));
      layer->experts[idx].up = gate_up.At(idx).Outputs(HalfOf(names.interleaved, false, inner));
    }
    return absl::OkStatus();
  }
  if (spec.expert.gated) {
    SY_ASSIGN_OR_RETURN(const Stack gate, FindStack(Joined(path, names.gate), names, shape));
    for (int idx = 0; idx < spec.num_experts; ++idx) layer->experts[idx].gate = gate.At(idx);
  }
  SY_ASSIGN_OR_RETURN(const Stack up, FindStack(Joined(path, names.up), names, shape));
  for (int idx = 0; idx < spec.num_experts; ++idx) layer->experts[idx].up = up.At(idx);
  return absl::OkStatus();
}

absl::Status TensorResolver::ResolveStackedBiases(const std::string& path, const StackedNames& names,
                                                  const LayerSpec& spec, StoredLayer* layer) const {
  const int64_t count = spec.num_experts, inner = spec.expert_dim, hidden = spec.hidden_dim;
  // Every expert's biases are one row.
  const auto row = [](const StoredMatrix& rows, int64_t idx) { return rows.Outputs(Stride::Part(idx, 1)); };
  SY_ASSIGN_OR_RETURN(const StoredMatrix down,
                      FindPlain(Joined(path, names.down_bias), {count, hidden}, count, hidden));
  const bool both = !names.gate_up_bias.empty();
  const int64_t width = both ? 2 * inner : inner;
  SY_ASSIGN_OR_RETURN(const StoredMatrix up,
                      FindPlain(Joined(path, both ? names.gate_up_bias : names.up_bias), {count, width}, count, width));
  for (int64_t idx = 0; idx < count; ++idx) {
    StoredExpert& expert = layer->experts[idx];
    expert.down_bias = row(down, idx);
    expert.up_bias = row(up, idx);
    if (!both) continue;
    expert.gate_bias = expert.up_bias.Inputs(HalfOf(names.interleaved, true, inner));
    expert.up_bias = expert.up_bias.Inputs(HalfOf(names.interleaved, false, inner));
  }
  return absl::OkStatus();
}

absl::Status TensorResolver::ResolveShared(const std::string& path, const SharedNames& names, const LayerSpec& spec,
                                           StoredLayer* layer) {
  SY_ASSIGN_OR_RETURN(const StoredExpert whole,
                      ResolveExpert(Joined(path, names.path), names.projections, spec, spec.shared_dim));
  for (int64_t first = 0; first < spec.shared_dim; first += spec.expert_dim) {
    const Stride part = SharedPart(first, spec.expert_dim, spec.shared_dim);
    StoredExpert expert;
    expert.up = whole.up.Outputs(part);
    if (whole.gate.present()) expert.gate = whole.gate.Outputs(part);
    expert.down = whole.down.Inputs(part);
    if (whole.up_bias.present()) expert.up_bias = whole.up_bias.Inputs(part);
    if (whole.gate_bias.present()) expert.gate_bias = whole.gate_bias.Inputs(part);
    // The bias is added once: the other parts get zeros, which are all padding.
    if (whole.down_bias.present()) {
      expert.down_bias = first == 0 ? whole.down_bias : whole.down_bias.Inputs({0, 1, 0, spec.hidden_dim});
    }
    layer->experts.push_back(expert);
  }
  return absl::OkStatus();
}

absl::StatusOr<TensorResolver::Stack> TensorResolver::FindStack(const std::string& name, const StackedNames& names,
                                                                const BlockShape& shape) {
  if (names.may_be_mxfp4 && !Has(name) && (Has(name + "_blocks") || Has(name + "_scales"))) {
    return FindMxfp4(name, shape);
  }
  const int64_t num_rows = shape.in_major ? shape.num_cols : shape.num_rows;
  const int64_t num_cols = shape.in_major ? shape.num_rows : shape.num_cols;
  SY_ASSIGN_OR_RETURN(const StoredTensor stored,
                      FindShaped(name, ShapeOf(shape.shape, shape.count, num_rows, num_cols)));
  const bool may_be_fp8 = shape.shape == Shape::kPerExpert && !shape.in_major;
  const bool is_fp8 = may_be_fp8 && IsFp8(stored);
  if (!is_fp8 && !stored.entry->type->element) {
    return Wrong(name, *stored.file, TypeName(stored),
                 absl::StrCat("F64, F32, F16", may_be_fp8 ? ", BF16 or F8_E4M3" : " or BF16"));
  }
  Stack stack = {WholeMatrix(stored, is_fp8 ? DType::kBF16 : *stored.entry->type->element, num_rows, num_cols)};
  stack.first.transposed = shape.in_major;
  if (is_fp8) SY_RETURN_IF_ERROR(AddFp8Scales(name, shape, &stack));
  SY_RETURN_IF_ERROR(CheckSameType(name, stack.first));
  return stack;
}

absl::StatusOr<StoredMatrix> TensorResolver::FindWeight(const std::string& name, int64_t num_rows, int64_t num_cols) {
  SY_ASSIGN_OR_RETURN(const StoredTensor stored, FindShaped(name, {num_rows, num_cols}));
  if (!IsFp8(stored) && !stored.entry->type->element) {
    return Wrong(name, *stored.file, TypeName(stored), "F64, F32, F16, BF16 or F8_E4M3");
  }
  Stack stack = {WholeMatrix(stored, stored.entry->type->element.value_or(DType::kBF16), num_rows, num_cols)};
  // Treated as a stack of one, whose scales have no dimension for experts.
  if (IsFp8(stored)) SY_RETURN_IF_ERROR(AddFp8Scales(name, {1, num_rows, num_cols, false, Shape::kTall}, &stack));
  SY_RETURN_IF_ERROR(CheckSameType(name, stack.first));
  return stack.first;
}

absl::Status TensorResolver::AddFp8Scales(const std::string& name, const BlockShape& shape, Stack* stack) const {
  const std::string scales_name = name + "_scale_inv";
  const int64_t num_rows = CeilDiv(shape.num_rows, fp8_blocks_.num_rows);
  const int64_t num_cols = CeilDiv(shape.num_cols, fp8_blocks_.num_cols);
  SY_ASSIGN_OR_RETURN(
      const StoredMatrix scales,
      FindPlain(scales_name, ShapeOf(shape.shape, shape.count, num_rows, num_cols), shape.count * num_rows, num_cols));
  stack->first.encoding = Encoding::kFp8;
  stack->first.scales = {scales.data, scales.dtype, fp8_blocks_.num_rows, fp8_blocks_.num_cols, scales.file};
  stack->scale_bytes = num_rows * num_cols * SizeOf(scales.dtype);
  return absl::OkStatus();
}

absl::StatusOr<TensorResolver::Stack> TensorResolver::FindMxfp4(const std::string& name, const BlockShape& shape) {
  const int64_t num_groups = CeilDiv(shape.num_cols, kMxfp4Group);
  const std::vector<int64_t> scales_shape = {shape.count, shape.num_rows, num_groups};
  std::vector<int64_t> blocks_shape = scales_shape;
  blocks_shape.push_back(kMxfp4GroupBytes);
  SY_ASSIGN_OR_RETURN(const StoredTensor blocks, FindShaped(name + "_blocks", blocks_shape));
  SY_ASSIGN_OR_RETURN(const StoredTensor scales, FindShaped(name + "_scales", scales_shape));
  if (TypeName(blocks) != "U8") return Wrong(name + "_blocks", *blocks.file, TypeName(blocks), "U8");
  if (TypeName(scales) != "U8") return Wrong(name + "_scales", *scales.file, TypeName(scales), "U8");
  if (shape.num_cols % kMxfp4Group != 0) {
    return Wrong(name + "_blocks", *blocks.file, absl::StrCat("rows of ", shape.num_cols, " values"),
                 absl::StrCat("a multiple of ", kMxfp4Group));
  }
  Stack stack = {WholeMatrix(blocks, DType::kBF16, shape.num_rows, shape.num_cols)};
  stack.first.encoding = Encoding::kMxfp4;
  stack.first.scales = {scales.entry->bytes.data(), DType::kF32, 1, kMxfp4Group, scales.file};
  stack.scale_bytes = shape.num_rows * num_groups;
  SY_RETURN_IF_ERROR(CheckSameType(name + "_blocks", stack.first));
  return stack;
}

absl::StatusOr<StoredMatrix> TensorResolver::FindPlain(const std::string& name, const std::vector<int64_t>& shape,
                                                       int64_t num_rows, int64_t num_cols) const {
  SY_ASSIGN_OR_RETURN(const StoredTensor stored, FindShaped(name, shape));
  if (stored.entry->type->element) return WholeMatrix(stored, *stored.entry->type->element, num_rows, num_cols);
  return Wrong(name, *stored.file, TypeName(stored), "F64, F32, F16 or BF16");
}

absl::StatusOr<StoredMatrix> TensorResolver::FindVector(const std::string& name, int64_t size) const {
  return FindPlain(name, {size}, 1, size);
}

absl::StatusOr<StoredTensor> TensorResolver::FindShaped(const std::string& name,
                                                        const std::vector<int64_t>& shape) const {
  const StoredTensor stored = checkpoint_.Find(name);
  if (stored.entry == nullptr) {
    const absl::Status why = checkpoint_.WhyAbsent(name);
    return absl::Status(why.code(), absl::StrCat(why.message(), ", expected ", Shown(shape)));
  }
  if (stored.entry->shape == shape) return stored;
  return Wrong(name, *stored.file, Shown(stored.entry->shape), Shown(shape));
}

absl::Status TensorResolver::CheckSameType(const std::string& name, const StoredMatrix& stored) {
  if (!experts_dtype_) {
    experts_dtype_ = stored.dtype;
    first_expert_tensor_ = name;
  }
  if (stored.dtype == *experts_dtype_) return absl::OkStatus();
  return Wrong(name, *stored.file, std::string(DTypeName(stored.dtype)),
               absl::StrCat(std::string(DTypeName(*experts_dtype_)), " as in ", Quoted(first_expert_tensor_)));
}

}  // namespace switchyard
