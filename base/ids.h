// Strong integer ids, so that a layer index cannot be passed where a rank is wanted.
#pragma once

#include <compare>
#include <cstdint>

namespace switchyard {

template <typename Tag, typename Rep>
struct StrongId {
  Rep value = 0;
  friend auto operator<=>(const StrongId&, const StrongId&) = default;
};

// Index of a layer among all layers of all models a group serves, in the order the front listed them.
using LayerId = StrongId<struct LayerIdTag, int32_t>;

// Generation of a group. It grows with every re-formation; anything that carries an older one is dropped.
using Epoch = StrongId<struct EpochTag, int64_t>;

// Number of a step, unique for the life of a front.
using StepId = StrongId<struct StepIdTag, int64_t>;

}  // namespace switchyard
