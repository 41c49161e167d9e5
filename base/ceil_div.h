// Division that rounds up.
#pragma once

#include <cstdint>

namespace switchyard {

// The smallest integer that is not less than value / divisor. `value` is at least 0, `divisor` at least 1, and their
// sum does not overflow.
constexpr int64_t CeilDiv(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace switchyard
