#include "moe/linear/row_chunks.h"

namespace switchyard {

int64_t NextChunkRows(int64_t remaining) {
  // Full chunks stop early enough to leave a remainder that two or three exact chunks share evenly.
  if (remaining == kFullChunkRows || remaining >= kFullChunkRows + kMaxExactRows) return kFullChunkRows;
  const int64_t num_chunks = (remaining + kMaxExactRows - 1) / kMaxExactRows;
  return (remaining + num_chunks - 1) / num_chunks;
}

}  // namespace switchyard
