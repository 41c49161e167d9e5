#include "worker/front_channel.h"

#include <cstdlib>

#include "rpc/address.h"
#include "rpc/tls.h"
#include "rpc/token_list.h"

namespace switchyard {
namespace {

// The front's port refuses messages that are too large, so the worker only lifts gRPC's default limit of 4 MB.
constexpr int kUnlimitedMessage = -1;

}  // namespace

absl::StatusOr<std::string> TokenForFront(const WorkerOptions& options) {
  if (options.token_file.empty()) {
    const char* inherited = getenv("SWITCHYARD_WORKER_TOKEN");  // set by a front for the workers it starts
    return std::string(inherited == nullptr ? "" : inherited);
  }
  return ReadToken({"--worker_token_file", options.token_file});
}

absl::StatusOr<std::shared_ptr<grpc::Channel>> ConnectToFront(const WorkerOptions& options) {
  SY_ASSIGN_OR_RETURN(const Address front, ParseAddress(options.front, "--front"));
  grpc::ChannelArguments args;
  args.SetMaxReceiveMessageSize(kUnlimitedMessage);
  args.SetMaxSendMessageSize(kUnlimitedMessage);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // A proxy in the environment is for traffic to the outside. It would read the token of the workers.
  args.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  if (!options.tls.cert.given()) {
    return grpc::CreateCustomChannel(front.ToString(), grpc::InsecureChannelCredentials(), args);
  }
  SY_ASSIGN_OR_RETURN(const auto credentials, TlsChannelCredentials(options.tls));
  return grpc::CreateCustomChannel(front.ToString(), credentials, args);
}

}  // namespace switchyard
