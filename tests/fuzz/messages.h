// Corpora for the tests of this folder: valid messages with every field and kind of content that the readers know.
#pragma once

#include <string>
#include <vector>

#include "rpc/slice_stream.h"

namespace switchyard {

// Layer "0" of model "m" that the requests are for has rows of this many elements.
inline constexpr int64_t kFuzzDim = 8;

// ForwardRequest, serialized.
std::vector<std::string> ForwardCorpus();
// ModelInferRequest, serialized.
std::vector<std::string> InferCorpus();

std::string JoinChunks(const Chunks& chunks);

}  // namespace switchyard
