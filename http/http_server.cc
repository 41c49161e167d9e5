#include "http/http_server.h"

#include <httplib.h>
#include <prometheus/text_serializer.h>

#include <thread>

namespace switchyard {
namespace {

constexpr int kNumThreads = 4;
constexpr time_t kPatienceSeconds = 2;  // with callers that do not send or do not read; what a stop waits for at most

class HttplibServer final : public HttpServer {
 public:
  HttplibServer(CollectFn collect, std::function<bool()> is_ready)
      : collect_(std::move(collect)), is_ready_(std::move(is_ready)) {
    Configure();
    Route();
  }

  ~HttplibServer() override {
    server_.stop();
    if (thread_.joinable()) thread_.join();
  }

  // False when the address cannot be had; errno says why.
  bool Listen(const HttpOptions& options) {
    port_ = options.port;
    if (port_ == 0) {
      port_ = server_.bind_to_any_port(options.host);
    } else if (!server_.bind_to_port(options.host, port_)) {
      port_ = -1;
    }
    if (port_ < 0) return false;
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::yield();  // a stop before that would be lost
    return true;
  }

  int port() const override { return port_; }

 private:
  void Configure() {
    server_.new_task_queue = [] { return new httplib::ThreadPool(kNumThreads); };
    // Not what the library sets, with which two servers could share a port.
    server_.set_socket_options([](int socket) {
      const int yes = 1;
      setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    });
    server_.set_keep_alive_max_count(1);  // no thread waits for a caller's next request
    server_.set_read_timeout(kPatienceSeconds);
    server_.set_write_timeout(kPatienceSeconds);
    server_.set_payload_max_length(4096);
  }

  void Route() {
    server_.Get("/metrics", [this](const httplib::Request&, httplib::Response& response) {
      response.set_content(prometheus::TextSerializer().Serialize(collect_()),
                           "text/plain; version=0.0.4; charset=utf-8");
    });
    server_.Get("/livez", [](const httplib::Request&, httplib::Response& response) { Say("live\n", &response); });
    server_.Get("/readyz", [this](const httplib::Request&, httplib::Response& response) {
      const bool ready = is_ready_();
      response.status = ready ? 200 : 503;
      Say(ready ? "ready\n" : "not ready\n", &response);
    });
    server_.set_error_handler([](const httplib::Request&, httplib::Response& response) {
      if (response.status == 404) Say("not here; try /metrics, /livez or /readyz\n", &response);
    });
  }

  static void Say(const char* text, httplib::Response* response) {
    response->set_content(text, "text/plain; charset=utf-8");
  }

  const CollectFn collect_;
  const std::function<bool()> is_ready_;
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options, CollectFn collect,
                                                              std::function<bool()> is_ready) {
  auto server = std::make_unique<HttplibServer>(std::move(collect), std::move(is_ready));
  if (!server->Listen(options)) {
    return absl::UnavailableError(absl::StrCat("--http_port: cannot listen on ", options.host, ":", options.port, ": ",
                                               strerror(errno), "; is the port in use? (0 takes a free one)"));
  }
  return server;
}

}  // namespace switchyard
