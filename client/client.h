// The C++ client of a Switchyard front.
//
//   SY_ASSIGN_OR_RETURN(std::unique_ptr<Client> client, Client::Connect("127.0.0.1:8001", {}));
//   HostMatrix rows = ...;  // [T, hidden_dim], any of the four types
//   SY_ASSIGN_OR_RETURN(ForwardResult result,
//                       client->Forward({.model = "jargon-moe", .layer = "3", .rows = rows.view()}));
//   Use(result.rows.view());  // [T, hidden_dim], the same type as the rows sent
//
// Errors carry the server's own code and message (proto/switchyard.proto says what each code of Forward means). A call
// that got no answer ends with UNAVAILABLE (no server listens, connection lost, draining) or DEADLINE_EXCEEDED.
//
// A Client owns one connection. The first call makes it, and a later call makes it again after it breaks. Many calls
// share it; open several clients when one connection is not enough.
//
// Use client/forward_stream.h for many small calls in succession.
//
// Thread-safety: every method may be called from any thread, also while others are in progress.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "base/status.h"
#include "base/tensor/buffer.h"
#include "moe/gating/routing.h"
#include "proto/switchyard.pb.h"

namespace switchyard {

struct ClientOptions {
  // Time from a call to its answer, retries included. ForwardArgs::timeout overrides it for one call.
  absl::Duration timeout = absl::Seconds(30);

  // How often one call may be sent in all, 1 to 5. Every call is idempotent. A call that failed with UNAVAILABLE is
  // sent again after a growing pause, or after the pause the server asks for with grpc-retry-pushback-ms, as long as
  // the deadline allows. With 1 the caller sees every failure, as load tests need.
  int max_attempts = 3;

  // The largest answer accepted. The server has a limit of its own for requests.
  int64_t max_message_bytes = int64_t{1} << 30;

  // TLS is used when any of these is set. Files are PEM and are read by Connect.
  bool tls = false;      // verifies against the system's roots, unless tls_ca is set
  std::string tls_ca;    // roots that the server's certificate must lead to
  std::string tls_cert;  // the client's certificate, with tls_key, for a server that asks for one
  std::string tls_key;

  // The first token of this file (see rpc/token_list.h) is sent with every call. Without TLS, the target must be on
  // this machine.
  std::string token_file;

  bool uses_tls() const { return tls || !tls_ca.empty() || !tls_cert.empty() || !tls_key.empty(); }
};

struct ForwardArgs {
  std::string model;
  std::string layer;
  // [T, hidden_dim] in host memory; T at least 1.
  ConstMatrixView rows;
  // Keeps `rows` alive. When set, the rows are sent from where they lie, without a copy. They must not change until the
  // last owner is released. That may be after the call has ended, because a call whose deadline passes does not wait
  // for the kernel to take the bytes. When null, Forward or ForwardAsync copies the rows once before sending them.
  std::shared_ptr<const void> rows_owner = nullptr;
  bool return_routing = false;
  // gate_index chooses one of the layer's gates. top_k is the number of experts per row; 0 means the gate's own number.
  // capacity_factor limits, as Tutel's capacity factor, how many of these rows an expert may take; nullopt means the
  // gate's own rule. See proto/switchyard.proto.
  int gate_index = 0;
  int top_k = 0;
  std::optional<double> capacity_factor = std::nullopt;
  bool return_balance_loss = false;
  // Whether the result has stats. When unset, results of Forward have them and results of a ForwardStream do not.
  std::optional<bool> return_stats = std::nullopt;
  // Priority 1 goes before all others, 2 is normal and 3 is background work; 0 means 2. queue_timeout is how long the
  // request may wait in the front's queue; zero means the front's default.
  int priority = 0;
  absl::Duration queue_timeout = absl::ZeroDuration();
  // Zero means ClientOptions::timeout.
  absl::Duration timeout = absl::ZeroDuration();
  // Sent as the metadata x-request-id and shown in the server's log: visible ASCII, at most 128 characters. When empty,
  // the client makes one up. Must be empty on a ForwardStream, which has one request id for all its requests.
  std::string request_id = "";
};

struct ForwardResult {
  HostMatrix rows;                     // shape and type of ForwardArgs::rows
  Routing routing;                     // empty unless return_routing was set; a dropped choice is expert -1, weight 0
  std::optional<double> balance_loss;  // when return_balance_loss was set
  v1::ForwardStats stats;              // zeros unless the answer has stats
};

class ForwardStream;
struct ForwardStreamOptions;

// Type URL of the status payload that holds the server's binary error details, when it sent any.
inline constexpr char kStatusDetailsUrl[] = "switchyard.v1/grpc-status-details-bin";

class Client {
 public:
  using ForwardCallback = std::function<void(absl::StatusOr<ForwardResult>)>;

  // `target` is HOST:PORT, [IPV6]:PORT or unix:PATH. InvalidArgument for another form or impossible options, NotFound
  // for files that cannot be read. Does not wait for the server: if no front is there, the first call ends with
  // UNAVAILABLE.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& target, const ClientOptions& options);
  // Waits for the calls in flight and their callbacks.
  ~Client();

  // Runs one MoE layer on the rows and waits for the answer.
  absl::StatusOr<ForwardResult> Forward(const ForwardArgs& args);

  // Like Forward, but returns at once. `done` runs exactly once: on a gRPC thread, or on the caller's thread when
  // `args` cannot be sent at all. It must neither block nor destroy the client.
  void ForwardAsync(const ForwardArgs& args, ForwardCallback done);

  // Opens a stream on this client's connection; client/forward_stream.h declares and documents it. Returns at once. The
  // stream may outlive the client. InvalidArgument names an impossible option.
  absl::StatusOr<std::unique_ptr<ForwardStream>> OpenStream(const ForwardStreamOptions& options);

  // A zero timeout means ClientOptions::timeout.
  absl::StatusOr<v1::ListModelsResponse> ListModels(absl::Duration timeout = absl::ZeroDuration());
  absl::StatusOr<v1::GetStatusResponse> GetStatus(absl::Duration timeout = absl::ZeroDuration());

  // Both use the KServe API's repository calls. `name` is a checkpoint's name, or NAME.LAYER for one of its layers.
  // They return when the change is made, which may take long. The change is made even if the deadline passes before.
  // They are sent once, without retries.
  absl::Status LoadModel(const std::string& name, absl::Duration timeout = absl::ZeroDuration());
  absl::Status UnloadModel(const std::string& name, absl::Duration timeout = absl::ZeroDuration());

 private:
  class Impl;
  explicit Client(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
