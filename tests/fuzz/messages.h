// Corpora for the tests of this folder: valid messages with every field and every kind of content that the readers
// know.
#pragma once

#include <string>
#include <vector>

#include "rpc/slice_stream.h"

namespace switchyard {

// Row width, in elements, of the layer "0" of model "m" that the requests name.
inline constexpr int64_t kFuzzDim = 8;

// Serialized ForwardRequests.
std::vector<std::string> ForwardCorpus();
// Serialized ModelInferRequests.
std::vector<std::string> InferCorpus();

std::string JoinChunks(const Chunks& chunks);

}  // namespace switchyard
