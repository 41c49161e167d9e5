// Number of a model that a front has opened. A checkpoint that is loaded anew is another model with another number;
// numbers are never used again. Front and workers name models to each other by it.
#pragma once

#include <cstdint>

#include "base/ids.h"

namespace switchyard {

using ModelId = StrongId<struct ModelIdTag, int64_t>;

}  // namespace switchyard
