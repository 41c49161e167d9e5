// A digest of an expert's weights as they were read, by which the front notices that a worker reads another checkpoint
// than the others, or than the worker before it.
//
// It covers the type and shape of every matrix, every byte of a matrix of up to kWholeBytes, and of a larger one 64
// bytes of every 4096, because hashing all of them would slow loading down. These move from block to block, so that
// they meet every row and every column of a usual matrix. The same stored weights give the same digest on any host, for
// any device and compute type, because it is taken before an engine sees the weights.
//
// So another training, another quantisation or another expert gives another digest. A few bytes that a disk has damaged
// may not, and somebody who makes weights to fit a digest can do so.
#pragma once

#include <cstddef>
#include <cstdint>

#include "moe/weights/weight_source.h"

namespace switchyard {

inline constexpr size_t kWholeBytes = 64 << 10;

uint64_t DigestOf(const ExpertWeights& weights);

}  // namespace switchyard
