#include "client/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/mutex.h"
#include "client/forward_codec.h"
#include "client/forward_stream.h"
#include "client/rpc_status.h"
#include "proto/inference.grpc.pb.h"
#include "proto/switchyard.grpc.pb.h"
#include "rpc/address.h"
#include "rpc/deadline.h"
#include "rpc/loopback.h"
#include "rpc/tls.h"
#include "rpc/token_list.h"
#include "rpc/wire_options.h"

namespace switchyard {
namespace {

constexpr char kForwardMethod[] = "/switchyard.v1.Switchyard/Forward";
constexpr size_t kMaxRequestIdChars = 128;
constexpr int kMaxAttempts = 5;  // gRPC's own limit

absl::Status CheckOptions(const ClientOptions& options) {
  if (options.timeout <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat("timeout: expected more than zero, found ", absl::FormatDuration(options.timeout)));
  }
  if (options.max_attempts < 1 || options.max_attempts > kMaxAttempts) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_attempts: expected 1 to ", kMaxAttempts, ", found ", options.max_attempts));
  }
  if (options.max_message_bytes < 1 || options.max_message_bytes > std::numeric_limits<int>::max()) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_message_bytes: expected 1 to 2147483647, found ", options.max_message_bytes));
  }
  return absl::OkStatus();
}

// gRPC aborts the process when metadata has characters outside visible ASCII.
absl::Status CheckRequestId(const std::string& request_id) {
  const bool visible = std::all_of(request_id.begin(), request_id.end(), [](char c) { return c > 0x20 && c < 0x7f; });
  if (visible && request_id.size() <= kMaxRequestIdChars) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("request_id: expected at most ", kMaxRequestIdChars,
                                                 " visible ASCII characters, found ", request_id.size(),
                                                 visible ? "" : " with others among them"));
}

bool StaysHere(const Address& target) { return target.is_unix() || IsLoopback(target.host); }

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(const ClientOptions& options) {
  const TlsFiles files = {{"tls_cert", options.tls_cert}, {"tls_key", options.tls_key}, {"tls_ca", options.tls_ca}};
  if (options.uses_tls()) return TlsChannelCredentials(files);
  return grpc::InsecureChannelCredentials();
}

// The value of the metadata `authorization`; empty when there is no token.
absl::StatusOr<std::string> MakeAuthorization(const Address& target, const ClientOptions& options) {
  if (options.token_file.empty()) return std::string();
  if (!options.uses_tls() && !StaysHere(target)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "token_file: expected TLS too, because the token would cross the network to ", target.ToString(), " in clear"));
  }
  SY_ASSIGN_OR_RETURN(const std::string token, ReadToken({"token_file", options.token_file}));
  return absl::StrCat("Bearer ", token);
}

std::string ServiceConfig(int max_attempts) {
  // Streams are not retried, because gRPC would have to keep everything that was sent on them.
  return absl::StrCat(R"({"methodConfig": [{"name": [{"service": "switchyard.v1.Switchyard"}], "retryPolicy": {)",
                      R"("maxAttempts": )", max_attempts, R"(, "initialBackoff": "0.1s", "maxBackoff": "2s", )",
                      R"("backoffMultiplier": 2, "retryableStatusCodes": ["UNAVAILABLE"]}}, )",
                      R"({"name": [{"service": "switchyard.v1.Switchyard", "method": "ForwardStream"}]}]})");
}

grpc::ChannelArguments ChannelArgs(const ClientOptions& options) {
  grpc::ChannelArguments args;
  args.SetMaxSendMessageSize(-1);
  args.SetMaxReceiveMessageSize(static_cast<int>(options.max_message_bytes));
  // Without this, all clients of a process would share one connection.
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  TuneChannel(&args);
  // With these, a restarted front is found again within a second; by default gRPC may take two minutes.
  args.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  args.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
  args.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  if (options.max_attempts > 1) {
    args.SetServiceConfigJSON(ServiceConfig(options.max_attempts));
    // gRPC retries only calls that fit this buffer. By default only calls below 256 KiB do.
    args.SetInt(GRPC_ARG_PER_RPC_RETRY_BUFFER_SIZE, std::numeric_limits<int>::max());
  }
  return args;
}

// One Forward in progress: everything that gRPC reads or writes until it has called back.
struct ForwardCall {
  grpc::ClientContext context;
  grpc::ByteBuffer request;
  grpc::ByteBuffer response;
  ConstMatrixView request_rows;  // only its shape and type are used
  Client::ForwardCallback done;

  absl::StatusOr<ForwardResult> Result(const grpc::Status& status) {
    if (!status.ok()) return FromRpcStatus(status);
    return DecodeForwardResponse(&response, request_rows);
  }
};

// Counts the calls whose callback has not returned. Thread-safe.
class InFlight {
 public:
  void Begin() {
    MutexLock lock(&mu_);
    ++num_calls_;
  }
  void End() {
    MutexLock lock(&mu_);
    if (--num_calls_ == 0) none_.SignalAll();
  }
  void WaitForNone() {
    MutexLock lock(&mu_);
    while (num_calls_ > 0) none_.Wait(&mu_);
  }

 private:
  Mutex mu_;
  CondVar none_;
  int64_t num_calls_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace

class Client::Impl {
 public:
  Impl(const std::string& target, const std::shared_ptr<grpc::ChannelCredentials>& credentials,
       std::string authorization, const ClientOptions& options)
      : Impl(grpc::CreateCustomChannel(target, credentials, ChannelArgs(options)), std::move(authorization), options) {}

  // Waits because gRPC's own threads must not destroy a channel, and the last reference to it might be dropped on one
  // of them.
  ~Impl() { in_flight_.WaitForNone(); }

  void ForwardAsync(const ForwardArgs& args, ForwardCallback done) {
    if (absl::Status status = CheckRequestId(args.request_id); !status.ok()) return done(std::move(status));
    absl::StatusOr<grpc::ByteBuffer> request = EncodeForwardRequest(args);
    if (!request.ok()) return done(std::move(request).status());
    auto* call = new ForwardCall;  // OnForwardDone owns it
    call->request = *std::move(request);
    call->request_rows = args.rows;
    call->done = std::move(done);
    PrepareContext(args.timeout, &call->context);
    call->context.AddMetadata(kRequestIdKey, args.request_id.empty() ? NextRequestId() : args.request_id);
    in_flight_.Begin();
    forward_stub_.UnaryCall(&call->context, kForwardMethod, grpc::StubOptions(), &call->request, &call->response,
                            [this, call](grpc::Status status) { OnForwardDone(call, status); });
  }

  absl::StatusOr<std::unique_ptr<ForwardStream>> OpenStream(ForwardStreamOptions options) {
    if (options.timeout == absl::ZeroDuration()) options.timeout = options_.timeout;
    SY_RETURN_IF_ERROR(CheckRequestId(options.request_id));
    if (options.request_id.empty()) options.request_id = NextRequestId();
    return ForwardStream::Open(channel_, authorization_, options);
  }

  // Makes one of the two calls that change which models are served.
  template <typename Request, typename Response>
  absl::Status Change(grpc::Status (inference::GRPCInferenceService::Stub::*method)(grpc::ClientContext*,
                                                                                    const Request&, Response*),
                      const std::string& name, absl::Duration timeout) {
    grpc::ClientContext context;
    PrepareContext(timeout, &context);
    Request request;
    request.set_model_name(name);
    Response response;
    return FromRpcStatus((kserve_stub_.*method)(&context, request, &response));
  }

  // Makes one of the two calls that carry no rows.
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::Switchyard::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                             Response*),
                                absl::Duration timeout) {
    grpc::ClientContext context;
    PrepareContext(timeout, &context);
    Response response;
    const grpc::Status status = (stub_.*method)(&context, Request(), &response);
    if (!status.ok()) return FromRpcStatus(status);
    return response;
  }

 private:
  Impl(std::shared_ptr<grpc::Channel> channel, std::string authorization, const ClientOptions& options)
      : options_(options),
        authorization_(std::move(authorization)),
        channel_(channel),
        request_id_prefix_(absl::StrFormat("%08x%08x", std::random_device()(), std::random_device()())),
        stub_(channel),
        kserve_stub_(channel),
        forward_stub_(channel) {}

  void OnForwardDone(ForwardCall* ended, const grpc::Status& status) {
    std::unique_ptr<ForwardCall> call(ended);
    absl::StatusOr<ForwardResult> result = call->Result(status);
    const ForwardCallback done = std::move(call->done);
    call.reset();  // first, because its context refers to the channel
    done(std::move(result));
    in_flight_.End();
  }

  void PrepareContext(absl::Duration timeout, grpc::ClientContext* context) const {
    context->set_deadline(DeadlineAfter(timeout > absl::ZeroDuration() ? timeout : options_.timeout));
    if (!authorization_.empty()) context->AddMetadata("authorization", authorization_);
  }

  std::string NextRequestId() {
    return absl::StrCat(request_id_prefix_, "-", num_requests_.fetch_add(1, std::memory_order_relaxed));
  }

  const ClientOptions options_;
  const std::string authorization_;
  const std::shared_ptr<grpc::Channel> channel_;
  const std::string request_id_prefix_;
  v1::Switchyard::Stub stub_;
  inference::GRPCInferenceService::Stub kserve_stub_;
  grpc::GenericStub forward_stub_;
  std::atomic<int64_t> num_requests_{0};
  InFlight in_flight_;
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::~Client() = default;

absl::StatusOr<std::unique_ptr<Client>> Client::Connect(const std::string& target, const ClientOptions& options) {
  SY_ASSIGN_OR_RETURN(const Address address, ParseAddress(target, "target"));
  SY_RETURN_IF_ERROR(CheckOptions(options));
  SY_ASSIGN_OR_RETURN(const auto credentials, MakeCredentials(options));
  SY_ASSIGN_OR_RETURN(std::string authorization, MakeAuthorization(address, options));
  return std::unique_ptr<Client>(
      new Client(std::make_unique<Impl>(address.ToString(), credentials, std::move(authorization), options)));
}

absl::StatusOr<ForwardResult> Client::Forward(const ForwardArgs& args) {
  Mutex mu;
  CondVar answered;
  std::optional<absl::StatusOr<ForwardResult>> result;
  ForwardAsync(args, [&](absl::StatusOr<ForwardResult> value) {
    MutexLock lock(&mu);
    result = std::move(value);
    answered.Signal();  // under the lock: the waiter may not destroy `answered` before we are done with it
  });
  MutexLock lock(&mu);
  while (!result.has_value()) answered.Wait(&mu);
  return *std::move(result);
}

void Client::ForwardAsync(const ForwardArgs& args, ForwardCallback done) { impl_->ForwardAsync(args, std::move(done)); }

absl::StatusOr<std::unique_ptr<ForwardStream>> Client::OpenStream(const ForwardStreamOptions& options) {
  return impl_->OpenStream(options);
}

absl::StatusOr<v1::ListModelsResponse> Client::ListModels(absl::Duration timeout) {
  return impl_->Call(&v1::Switchyard::Stub::ListModels, timeout);
}

absl::StatusOr<v1::GetStatusResponse> Client::GetStatus(absl::Duration timeout) {
  return impl_->Call(&v1::Switchyard::Stub::GetStatus, timeout);
}

absl::Status Client::LoadModel(const std::string& name, absl::Duration timeout) {
  return impl_->Change(&inference::GRPCInferenceService::Stub::RepositoryModelLoad, name, timeout);
}

absl::Status Client::UnloadModel(const std::string& name, absl::Duration timeout) {
  return impl_->Change(&inference::GRPCInferenceService::Stub::RepositoryModelUnload, name, timeout);
}

}  // namespace switchyard
