// Marks refusals of requests for which there is no room at the moment, as opposed to requests that will never fit.
// Their callers are told after how long to try again.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/cord.h"

namespace switchyard {

inline constexpr int64_t kPushbackMs = 50;

namespace internal {
inline constexpr char kPushbackPayload[] = "switchyard/pushback";
}

// Returns the refusal, marked as temporary. A payload carries the mark; Annotate drops it.
inline absl::Status WithPushback(absl::Status refusal) {
  refusal.SetPayload(internal::kPushbackPayload, absl::Cord());
  return refusal;
}

// How many milliseconds the caller should wait; 0 if the status is not marked.
inline int64_t PushbackMs(const absl::Status& status) {
  return status.GetPayload(internal::kPushbackPayload).has_value() ? kPushbackMs : 0;
}

}  // namespace switchyard
