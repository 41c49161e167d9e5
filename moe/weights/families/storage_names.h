// Under which names, and in which order of elements, a checkpoint stores one MoE layer. A family describes its layers
// in these terms; storage/tensor_resolver.h finds and checks the tensors.
//
// E experts, D model width, H inner width of an expert, W of the shared one. All names stand under the layer's module
// path P ("model.layers.3.mlp"), or bare where P is empty.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace switchyard {

// Names of an expert's projections, without prefix and suffix.
struct ProjectionNames {
  std::string gate = "gate_proj";  // not looked for where the layer is not gated
  std::string up = "up_proj";
  std::string down = "down_proj";
};

// One tensor per expert and projection, [out, in]:
//   P.PREFIX e.NAME.weight    gate and up [H, D], down [D, H]
//   P.PREFIX e.NAME.bias      where biased: [H], [H], [D]
struct EachNames {
  std::string prefix = "experts.";
  ProjectionNames projections;
};

// All experts of a layer in one tensor per projection. Orders of the elements of an expert's part:
//   out-major  gate, up [H, D], gate_up [2H, D], down [D, H]
//   in-major   gate, up [D, H], gate_up [D, 2H], down [H, D]
struct StackedNames {
  enum class Shape : uint8_t {
    kPerExpert = 1,  // [E, rows, columns]
    kTall = 2,       // [E · rows, columns] (dbrx)
    kFlat = 3,       // [E · rows · columns] (Tutel's llama_ffn)
  };
  std::string gate_up;   // gate and up in one tensor; empty when they are apart:
  std::string gate, up;  // their own tensors (no gate where the layer is not gated)
  std::string down;
  Shape shape = Shape::kPerExpert;
  bool interleaved = false;  // in gate_up, outputs 0, 2, … are the gate's; else the first H are
  bool inner_in_major = false;
  bool down_in_major = false;
  // [E, 2H], [E, H] and [E, D]; looked for where the layer is biased. gate_up_bias is split as gate_up is.
  std::string gate_up_bias, up_bias, down_bias;
  // Whether MXFP4, out-major, may replace NAME: NAME_blocks U8 [E, out, in / 32, 16], NAME_scales U8 [E, out, in / 32].
  bool may_be_mxfp4 = false;
};

// The shared expert: P.PATH.NAME.weight (.bias), gate and up [W, D], down [D, W].
struct SharedNames {
  std::string path;
  ProjectionNames projections;
};

// One gate's tensors. The first name of a list that exists is taken; with an empty list the gate has no such tensor.
struct GateNames {
  std::vector<std::string> weight = {"gate.weight"};  // [E, D], or of a cosine gate [projection_dim, E]
  std::vector<std::string> bias;                      // [E]
  std::vector<std::string> score_correction;          // [E]
  bool correction_is_row = false;                     // score_correction is [1, E] instead
  // Cosine gate (Tutel): the name under which .weight [projection_dim, D] and .bias [projection_dim] lie, and the
  // temperature [1].
  std::string projector, temperature;
  int64_t projection_dim = 0;
};

struct StorageNames {
  std::vector<GateNames> gates = {GateNames{}};
  std::string shared_gate;  // [1, D]; empty: none
  // The forms in which experts may be stored. The first stacked form of which any tensor exists is taken; without one,
  // the form per expert, where there is such a form.
  std::optional<EachNames> each = EachNames{};
  std::vector<StackedNames> stacked = {StandardStacked()};
  std::optional<SharedNames> shared;

  // The form in which newer programs store any family that is otherwise stored per expert.
  static StackedNames StandardStacked() {
    StackedNames names;
    names.gate_up = "experts.gate_up_proj";
    names.down = "experts.down_proj";
    return names;
  }
};

}  // namespace switchyard
