// Many requests in flight on one stream: for engines that call layer after layer.
//
//   SY_ASSIGN_OR_RETURN(std::unique_ptr<ForwardStream> stream, client->OpenStream({}));
//   stream->Submit({.model = "jargon-moe", .layer = "3", .rows = rows.view(), .rows_owner = rows_owner},
//                  [](absl::StatusOr<ForwardResult> result) { … });   // as soon as it is answered
//   …
//   absl::Status end = stream->Close();                               // requests in flight are answered first
//
// A stream saves time on every request over Client::ForwardAsync, which opens a call for each. Answers that are ready
// together are sent together. Requests are answered as they finish, in any order. A request that fails ends with its
// own error, like a call, and the stream goes on.
//
// The stream itself ends when the server drains or is gone, the connection breaks, or a message is larger than the
// server takes. Requests that are not answered then, and all later ones, end with the stream's status, mostly
// UNAVAILABLE. Every request is idempotent, so they may be submitted again on another stream of the same client, which
// reconnects when it must. The stream itself sends nothing again. Requests refused with RESOURCE_EXHAUSTED because the
// server's queue is full may be submitted again after RetryAfter.
//
// The server takes at most 256 requests of a stream at a time, and reads no further ones meanwhile. These wait in the
// client and on the way, and their timeouts go on.
//
// Thread-safety: every method may be called from any thread. Callbacks run on gRPC's threads and on this object's, or
// on the caller's thread when a request cannot be sent at all. They may call Submit and Cancel, but must not block,
// Close the stream or destroy it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "client/client.h"

namespace grpc {
class ChannelInterface;
}

namespace switchyard {

struct ForwardStreamOptions {
  // Timeout, from Submit to the answer, of requests that set none. Zero means ClientOptions::timeout.
  absl::Duration timeout = absl::ZeroDuration();
  // The most requests that may be submitted and not answered. One more ends at once with RESOURCE_EXHAUSTED.
  int max_in_flight = 4096;
  // Like ForwardArgs::request_id, for all requests of the stream.
  std::string request_id = "";
};

// Type URL of the status payload that says in how many milliseconds, in decimal, the server wants to be asked again.
inline constexpr char kRetryAfterUrl[] = "switchyard.v1/retry-after-ms";
// The same as a duration; zero when the status does not say.
absl::Duration RetryAfter(const absl::Status& status);

class ForwardStream {
 public:
  using Callback = Client::ForwardCallback;

  // Client::OpenStream calls this. `authorization` is the stream's metadata of that name; empty for none.
  static absl::StatusOr<std::unique_ptr<ForwardStream>> Open(const std::shared_ptr<grpc::ChannelInterface>& channel,
                                                             const std::string& authorization,
                                                             const ForwardStreamOptions& options);
  // Ends requests in flight with CANCELLED and waits for all callbacks.
  ~ForwardStream();

  // Sends a request and returns at once, with the number by which it can be cancelled. `done` is called exactly once,
  // perhaps before this returns.
  uint64_t Submit(const ForwardArgs& args, Callback done);

  // Submits a request and waits for its answer. Must not be called from a callback.
  absl::StatusOr<ForwardResult> Forward(const ForwardArgs& args);

  // The request ends with CANCELLED, soon and perhaps before this returns, unless its answer is already on the way.
  // Cancel has no effect on a request that has ended.
  void Cancel(uint64_t id);

  // Takes no more requests, waits for the answers to those in flight and for all callbacks, and ends the stream.
  // Returns OK, or the status with which the stream had ended before. May be called again.
  absl::Status Close();

  // OK while the stream takes requests; afterwards the reason why it does not.
  absl::Status status() const;

 private:
  class Impl;
  explicit ForwardStream(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
