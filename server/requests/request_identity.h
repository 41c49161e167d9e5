// Who a request is: for the log and for traces its id, the distributed trace that it is part of, and who sent it; for
// the queue its client, and how long the caller waits.
//
// The id comes from the caller's metadata: `x-request-id`; else the trace id of a W3C `traceparent`; else one is made
// up, unique among this process's and, most likely, everybody's. What a caller sends ends up in log lines, so it is cut
// and cleaned first.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace switchyard {

// The trace and the caller's span in it, of https://www.w3.org/TR/trace-context.
struct TraceParent {
  std::string trace_id;  // 32 lower-case hexadecimal digits, not all 0
  std::string span_id;   // 16 of them
};

struct RequestIdentity {
  std::string id;                    // not empty, graphic ASCII
  std::optional<TraceParent> trace;  // when the caller is in one
  std::string peer;                  // its address, "ipv4:127.0.0.1:4711"
  // What its metadata x-client-id says, up to 64 bytes; else the identity that its certificate shows; else its
  // connection.
  std::string client;
  SteadyTime deadline = SteadyTime::max();  // the call's
};

inline constexpr size_t kMaxRequestIdBytes = 128;

// "version-traceid-spanid-flags". None unless it is well-formed; of later versions than 00, more may follow.
std::optional<TraceParent> ParseTraceParent(std::string_view header);

// The first kMaxRequestIdBytes of `text`, with '_' for every byte that is not graphic ASCII, a quote or a backslash.
std::string CleanId(std::string_view text);

// The identity of a request whose metadata has these; empty for what is not there.
RequestIdentity Identify(std::string_view request_id, std::string_view traceparent, std::string peer);

}  // namespace switchyard
