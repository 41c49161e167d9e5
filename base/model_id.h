// Number of a model that a front has opened. Front and workers name models to each other by it. A checkpoint that is
// loaded again is another model with another number; numbers are never reused.
#pragma once

#include <cstdint>

#include "base/ids.h"

namespace switchyard {

using ModelId = StrongId<struct ModelIdTag, int64_t>;

}  // namespace switchyard
