#include "cli/command.h"

namespace switchyard {

void AddFrontFlags(CLI::App* command, FrontFlags* flags) {
  command->add_option("--target", flags->target, "HOST:PORT or unix:PATH of the front")->capture_default_str();
  command->add_option("--timeout_ms", flags->timeout_ms, "Deadline of each call, retries included")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40))
      ->capture_default_str();
  command->add_option("--format", flags->format, "text for people, json for scripts")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  command->add_flag("--tls", flags->tls, "Connect over TLS, trusting the system's roots; implied by the flags below");
  command->add_option("--tls_ca", flags->tls_ca, "PEM file of roots to trust instead");
  command->add_option("--tls_cert", flags->tls_cert,
                      "PEM file of the certificate to show to a front that asks for one");
  command->add_option("--tls_key", flags->tls_key, "PEM file of its key");
  command->add_option("--token_file", flags->token_file, "File whose first token goes with every call");
}

absl::StatusOr<std::unique_ptr<Client>> ConnectTo(const FrontFlags& flags, int max_attempts) {
  return Client::Connect(flags.target, {.timeout = flags.timeout(),
                                        .max_attempts = max_attempts,
                                        .tls = flags.tls,
                                        .tls_ca = flags.tls_ca,
                                        .tls_cert = flags.tls_cert,
                                        .tls_key = flags.tls_key,
                                        .token_file = flags.token_file});
}

int ReportUsageError(const Console& console, const absl::Status& status) {
  *console.err << "switchyard: " << status.message() << "\n";
  return kExitUsage;
}

int ReportRpcError(const Console& console, const std::string& target, const absl::Status& status) {
  *console.err << "switchyard: " << target << ": " << absl::StatusCodeToString(status.code()) << ": "
               << status.message() << "\n";
  return kExitRpc;
}

void PrintJson(const Console& console, const nlohmann::ordered_json& json) {
  *console.out << json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
}

std::string TypeName(v1::DataType dtype) {
  switch (dtype) {
    case v1::DATA_TYPE_FP64:
      return std::string(DTypeName(DType::kF64));
    case v1::DATA_TYPE_FP32:
      return std::string(DTypeName(DType::kF32));
    case v1::DATA_TYPE_FP16:
      return std::string(DTypeName(DType::kF16));
    case v1::DATA_TYPE_BF16:
      return std::string(DTypeName(DType::kBF16));
    default:
      return "unknown";
  }
}

}  // namespace switchyard
