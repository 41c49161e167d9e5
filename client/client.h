// The C++ client of a Switchyard front.
//
//   SY_ASSIGN_OR_RETURN(std::unique_ptr<Client> client, Client::Connect("127.0.0.1:8001", {}));
//   HostMatrix rows = ...;  // [T, hidden_dim], any of the four types
//   SY_ASSIGN_OR_RETURN(ForwardResult result,
//                       client->Forward({.model = "jargon-moe", .layer = "3", .rows = rows.view()}));
//   Use(result.rows.view());  // [T, hidden_dim], the same type as the rows sent
//
// Errors carry the server's own code and message (see proto/switchyard.proto for what each code of Forward means). A
// call that got no answer is UNAVAILABLE (nobody listens, connection lost, draining) or DEADLINE_EXCEEDED.
//
// A Client owns one connection, made by the first call and made again after it breaks. Many calls share it; open
// several clients when one connection is not enough.
//
// For many small calls in succession there is client/forward_stream.h.
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
  // From the call to its answer, retries included. A ForwardArgs may set its own.
  absl::Duration timeout = absl::Seconds(30);

  // How often one call may be sent in all, 1 to 5. Every call is idempotent, so one that failed with UNAVAILABLE is
  // sent again after a growing pause, or after the one the server asks for with grpc-retry-pushback-ms, as long as the
  // deadline allows. 1 shows every failure, which load tests want.
  int max_attempts = 3;

  // The largest answer accepted. The server has a limit of its own for requests.
  int64_t max_message_bytes = int64_t{1} << 30;

  // TLS when any of these is set. Files are PEM and are read by Connect.
  bool tls = false;      // against the system's roots, unless there is tls_ca
  std::string tls_ca;    // roots that the server's certificate must lead to
  std::string tls_cert;  // own certificate, with tls_key, for a server that asks for one
  std::string tls_key;

  // A file whose first token (see rpc/token_list.h) goes with every call. Without TLS only to this machine.
  std::string token_file;

  bool uses_tls() const { return tls || !tls_ca.empty() || !tls_cert.empty() || !tls_key.empty(); }
};

struct ForwardArgs {
  std::string model;
  std::string layer;
  // [T, hidden_dim] in host memory; T at least 1.
  ConstMatrixView rows;
  // What keeps `rows` alive. When set, the rows are sent from where they lie, without a copy, and must not change until
  // the last owner is released (which may be after the call has ended: a call whose deadline passes does not wait for
  // the kernel to take the bytes). When null, the rows are copied once before Forward or ForwardAsync sends them.
  std::shared_ptr<const void> rows_owner = nullptr;
  bool return_routing = false;
  // Which of the layer's gates, how many experts per row (0: the gate's own number) and, as Tutel's capacity factor,
  // how many of these rows an expert may take (nullopt: the gate's own rule); see proto/switchyard.proto.
  int gate_index = 0;
  int top_k = 0;
  std::optional<double> capacity_factor = std::nullopt;
  bool return_balance_loss = false;
  // Whether the result has stats. When unset, those of Forward do and those of a ForwardStream do not.
  std::optional<bool> return_stats = std::nullopt;
  // 1 goes before all others, 2 is the usual, 3 is background work; 0 is the usual. And how long the request may wait
  // in the front's queue, where zero is for the front to say.
  int priority = 0;
  absl::Duration queue_timeout = absl::ZeroDuration();
  // ClientOptions::timeout when zero.
  absl::Duration timeout = absl::ZeroDuration();
  // Sent as the metadata x-request-id and shown in the server's log: visible ASCII, at most 128 characters. When empty
  // the client makes up one. Not on a ForwardStream, which has one for all.
  std::string request_id = "";
};

struct ForwardResult {
  HostMatrix rows;                     // shape and type of ForwardArgs::rows
  Routing routing;                     // empty unless return_routing was set; a dropped choice is expert -1, weight 0
  std::optional<double> balance_loss;  // of return_balance_loss
  v1::ForwardStats stats;              // zeros unless return_stats
};

class ForwardStream;
struct ForwardStreamOptions;

// The payload of an error status that holds the server's binary error details, when it sent any.
inline constexpr char kStatusDetailsUrl[] = "switchyard.v1/grpc-status-details-bin";

class Client {
 public:
  using ForwardCallback = std::function<void(absl::StatusOr<ForwardResult>)>;

  // `target` is HOST:PORT, [IPV6]:PORT or unix:PATH. InvalidArgument for another form or impossible options, NotFound
  // for files that cannot be read. Does not wait for the server: a front that is not there shows as UNAVAILABLE at the
  // first call.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& target, const ClientOptions& options);
  // Waits for the calls in flight and their callbacks.
  ~Client();

  // Runs one MoE layer on the rows and waits for the answer.
  absl::StatusOr<ForwardResult> Forward(const ForwardArgs& args);

  // As Forward, but returns at once; `done` runs exactly once, on a thread of gRPC's, or on the caller's when `args`
  // cannot be sent at all. It must neither block nor destroy the client.
  void ForwardAsync(const ForwardArgs& args, ForwardCallback done);

  // Opens a stream on this client's connection (include client/forward_stream.h, which says all about it). Returns at
  // once; the stream may outlive the client. InvalidArgument names an impossible option.
  absl::StatusOr<std::unique_ptr<ForwardStream>> OpenStream(const ForwardStreamOptions& options);

  // A zero timeout means ClientOptions::timeout.
  absl::StatusOr<v1::ListModelsResponse> ListModels(absl::Duration timeout = absl::ZeroDuration());
  absl::StatusOr<v1::GetStatusResponse> GetStatus(absl::Duration timeout = absl::ZeroDuration());

  // Through the KServe API's repository calls. `name` is a checkpoint's, or NAME.LAYER for one of its layers. They
  // return when the change is made, which may take long, and is made also when the deadline passes before. Sent once.
  absl::Status LoadModel(const std::string& name, absl::Duration timeout = absl::ZeroDuration());
  absl::Status UnloadModel(const std::string& name, absl::Duration timeout = absl::ZeroDuration());

 private:
  class Impl;
  explicit Client(std::unique_ptr<Impl> impl);

  const std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
