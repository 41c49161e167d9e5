#include "http/http_server.h"

#include <CivetServer.h>
#include <prometheus/text_serializer.h>

#include <vector>

namespace switchyard {
namespace {

struct Answer {
  int code = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

// A GET handler around a function.
class Handler final : public CivetHandler {
 public:
  explicit Handler(std::function<Answer()> answer) : answer_(std::move(answer)) {}

  bool handleGet(CivetServer*, mg_connection* connection) override {
    const Answer answer = answer_();
    mg_printf(connection, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n",
              answer.code, mg_get_response_code_text(connection, answer.code), answer.content_type.c_str(),
              answer.body.size());
    mg_write(connection, answer.body.data(), answer.body.size());
    return true;
  }

 private:
  const std::function<Answer()> answer_;
};

class CivetHttpServer final : public HttpServer {
 public:
  CivetHttpServer(const std::vector<std::string>& civet_options, std::function<Answer()> metrics,
                  std::function<Answer()> ready)
      : metrics_(std::move(metrics)),
        live_([] { return Answer{.body = "live\n"}; }),
        ready_(std::move(ready)),
        unknown_([] { return Answer{.code = 404, .body = "not here; try /metrics, /livez or /readyz\n"}; }),
        server_(civet_options) {
    // Everything not named below. Without it CivetServer answers unknown paths itself, and crashes as it has no
    // document root.
    server_.addHandler("/", unknown_);
    server_.addHandler("/metrics", metrics_);
    server_.addHandler("/livez", live_);
    server_.addHandler("/readyz", ready_);
  }

  int port() const override {
    const std::vector<int> ports = const_cast<CivetServer&>(server_).getListeningPorts();
    return ports.empty() ? 0 : ports[0];
  }

 private:
  Handler metrics_, live_, ready_, unknown_;
  CivetServer server_;  // ends first, so that no handler runs on a dead object
};

std::string Endpoint(const HttpOptions& options) {
  const std::string host = options.host == "localhost" ? "127.0.0.1" : options.host;
  return absl::StrCat(host, ":", options.port);
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options, CollectFn collect,
                                                              std::function<bool()> is_ready) {
  auto metrics = [collect = std::move(collect)] {
    return Answer{.content_type = "text/plain; version=0.0.4; charset=utf-8",
                  .body = prometheus::TextSerializer().Serialize(collect())};
  };
  auto ready = [is_ready = std::move(is_ready)] {
    return is_ready() ? Answer{.body = "ready\n"} : Answer{.code = 503, .body = "not ready\n"};
  };
  try {
    return std::make_unique<CivetHttpServer>(
        std::vector<std::string>{"listening_ports", Endpoint(options), "num_threads", "4"}, metrics, ready);
  } catch (const CivetException& error) {
    return absl::UnavailableError(absl::StrCat("--http_port: cannot listen on ", Endpoint(options), ": ", error.what(),
                                               "; is the port in use? (0 takes a free one)"));
  }
}

}  // namespace switchyard
