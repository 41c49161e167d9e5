// How many rows of a GEMM one library primitive takes.
//
// oneDNN compiles a primitive for every number of rows. Any count up to kMaxExactRows gets its own; more rows are cut
// into chunks of kFullChunkRows and a remainder in equal parts, so that a shape needs at most kMaxExactRows + 1
// primitives (about 100 KiB of code each) and no chunk is inefficiently small.
#pragma once

#include <cstdint>

namespace switchyard {

inline constexpr int64_t kMaxExactRows = 128;
inline constexpr int64_t kFullChunkRows = 256;

// Rows of the next chunk when `remaining` > 0 are left; never more than remaining or kFullChunkRows.
int64_t NextChunkRows(int64_t remaining);

}  // namespace switchyard
