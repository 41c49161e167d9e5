// The identity of a request. The log and the traces show its id, its distributed trace and its sender. The queue uses
// its client, and the deadline of its caller.
//
// The id comes from the caller's metadata: `x-request-id`, or else the trace id of a W3C `traceparent`. Without either
// the front makes up an id, which is unique among the ids of this process and most likely among those of all processes.
// Ids from callers end up in log lines, so they are cut and cleaned first.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "server/requests/admission.h"

namespace switchyard {

// The trace and the caller's span in it, as in https://www.w3.org/TR/trace-context.
struct TraceParent {
  std::string trace_id;  // 32 lower-case hexadecimal digits, not all 0
  std::string span_id;   // 16 lower-case hexadecimal digits, not all 0
};

struct RequestIdentity {
  std::string id;                    // not empty, graphic ASCII
  std::optional<TraceParent> trace;  // the caller's trace, if the caller has one
  std::string peer;                  // the sender's address, such as "ipv4:127.0.0.1:4711"
  // The value of its metadata x-client-id, up to 64 bytes; else the identity in its certificate; else its connection.
  std::string client;
  // Whom its rows and bytes count for; the sender is never taken from metadata.
  std::shared_ptr<const Holder> holder;
  SteadyTime deadline = SteadyTime::max();  // the deadline of the call
};

inline constexpr size_t kMaxRequestIdBytes = 128;

// Parses "version-traceid-spanid-flags". Returns nullopt if that is not well-formed. In versions after 00 more fields
// may follow.
std::optional<TraceParent> ParseTraceParent(std::string_view header);

// The first kMaxRequestIdBytes of `text`, with '_' for every byte that is not graphic ASCII, a quote or a backslash.
std::string CleanId(std::string_view text);

// Makes the identity of a request from its metadata and its peer; metadata that the request does not have are empty.
RequestIdentity Identify(std::string_view request_id, std::string_view traceparent, std::string peer);

}  // namespace switchyard
