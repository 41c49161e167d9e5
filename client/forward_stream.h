// Many requests in flight on one stream: for engines that call layer after layer.
//
//   SY_ASSIGN_OR_RETURN(std::unique_ptr<ForwardStream> stream, client->OpenStream({}));
//   stream->Submit({.model = "jargon-moe", .layer = "3", .rows = rows.view(), .rows_owner = rows_owner},
//                  [](absl::StatusOr<ForwardResult> result) { … });   // as soon as it is answered
//   …
//   absl::Status end = stream->Close();                               // what is in flight is answered first
//
// Against Client::ForwardAsync, which opens a call for each request, it saves some of the time of every request, and
// answers that are ready together travel together. Requests are answered as they finish, in any order. What goes wrong
// with one ends it with its error, as a call of its own, and the stream goes on.
//
// The stream itself ends when the server drains or is gone, the connection breaks, or a message is larger than the
// server takes. Requests that are not answered then, and all later ones, end with what the stream ended with: mostly
// UNAVAILABLE. Every request is idempotent, so they may be submitted again on another stream of the same client, which
// connects again when it must; nothing is sent again without being asked for. Requests refused with RESOURCE_EXHAUSTED
// because the server's queue is full may be submitted again after RetryAfter.
//
// The server takes so many requests of a stream at a time (256), and holds back what comes beyond. That waits here and
// on the way, where its timeout goes on.
//
// Thread-safety: every method may be called from any thread. Callbacks run on threads of gRPC's and of this object, or
// on the caller's when a request cannot be sent at all; they may call Submit and Cancel, but must not block, Close the
// stream or destroy it.
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
  // Of requests without one of their own, from Submit to the answer. ClientOptions::timeout when zero.
  absl::Duration timeout = absl::ZeroDuration();
  // Requests submitted and not answered. One more ends at once with RESOURCE_EXHAUSTED.
  int max_in_flight = 4096;
  // As ForwardArgs::request_id, for all requests of the stream.
  std::string request_id = "";
};

// The payload of an error status that says in how many milliseconds, in decimal, the server wants to be asked again.
inline constexpr char kRetryAfterUrl[] = "switchyard.v1/retry-after-ms";
// The same as a duration; zero when the status does not say.
absl::Duration RetryAfter(const absl::Status& status);

class ForwardStream {
 public:
  using Callback = Client::ForwardCallback;

  // For Client::OpenStream. `authorization` is metadata of the stream; empty for none.
  static absl::StatusOr<std::unique_ptr<ForwardStream>> Open(const std::shared_ptr<grpc::ChannelInterface>& channel,
                                                             const std::string& authorization,
                                                             const ForwardStreamOptions& options);
  // Ends requests in flight with CANCELLED and waits for all callbacks.
  ~ForwardStream();

  // Sends a request and returns at once, with the number by which it can be cancelled. `done` is called exactly once,
  // perhaps before this returns.
  uint64_t Submit(const ForwardArgs& args, Callback done);

  // Submits a request and waits for its answer. Not from a callback.
  absl::StatusOr<ForwardResult> Forward(const ForwardArgs& args);

  // The request ends with CANCELLED, soon and perhaps before this returns, unless its answer is already on the way. Has
  // no effect on a request that has ended.
  void Cancel(uint64_t id);

  // Takes no more requests, waits for the answers to those in flight and for all callbacks, and ends the stream. OK, or
  // what the stream ended with before. May be called again.
  absl::Status Close();

  // OK while requests are taken.
  absl::Status status() const;

 private:
  class Impl;
  explicit ForwardStream(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
