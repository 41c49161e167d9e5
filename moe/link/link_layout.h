// The layout of a link's shared memory, in one struct that both sides use.
//
// A link has a few slots, one per step in flight. Each slot holds the step's input rows (home rows of this rank, in the
// compute type) and its encoded plan. There are more outputs than slots, so that output rows may stay in place for a
// while after their step, until they are sent to the callers:
//
//   slot 0: [ input | plan ]  slot 1: [ input | plan ]  …  output 0: [ rows ]  output 1: [ rows ]  …
//
// Every part starts on a page, so that a worker may page-lock and DMA it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/status.h"

namespace switchyard {

struct LinkLayout {
  int32_t num_slots = 0;
  int32_t num_outputs = 0;
  uint64_t input_bytes = 0;
  uint64_t plan_bytes = 0;
  uint64_t output_bytes = 0;

  // A layout with parts of at least the given sizes, rounded up to whole pages, and num_slots + num_spares outputs.
  static LinkLayout For(int num_slots, size_t input_bytes, size_t plan_bytes, size_t output_bytes, int num_spares = 0);

  uint64_t slot_bytes() const { return input_bytes + plan_bytes; }
  uint64_t total_bytes() const { return slot_bytes() * num_slots + output_bytes * num_outputs; }
  uint64_t input_offset(int slot) const { return slot_bytes() * slot; }
  uint64_t plan_offset(int slot) const { return input_offset(slot) + input_bytes; }
  uint64_t output_offset(int output) const { return slot_bytes() * num_slots + output_bytes * output; }

  // InvalidArgument unless the sizes are page multiples and the total cannot overflow. Call it on a received layout.
  absl::Status Validate() const;
};

}  // namespace switchyard
