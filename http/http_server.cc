#include "http/http_server.h"

// Turns off Asio's fences around handlers: one thread needs none, and ThreadSanitizer does not understand them.
#define BOOST_ASIO_DISABLE_FENCED_BLOCK

#include <fcntl.h>
#include <prometheus/text_serializer.h>
#include <sys/socket.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/bind_handler.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http.hpp>
#include <chrono>
#include <limits>
#include <list>
#include <optional>
#include <thread>

#include "base/process/port_connections.h"
#include "base/unique_fd.h"
#include "rpc/address.h"

namespace switchyard {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr std::chrono::seconds kPatience(5);            // for a connection, from its start to its end
constexpr std::chrono::milliseconds kAcceptPause(100);  // after the system ran out of descriptors or memory
constexpr int kMaxConnections = 256;                    // at a time
constexpr uint32_t kMaxHeaderBytes = 8 * 1024;          // of the request line, and of the header fields

using Request = http::request<http::empty_body>;
using Response = http::response<http::string_body>;

error_code LastError() { return error_code(errno, boost::system::system_category()); }

Response Text(http::status status, std::string body, const char* type = "text/plain; charset=utf-8") {
  Response response(status, 11);
  response.set(http::field::content_type, type);
  response.body() = std::move(body);
  return response;
}

// Answers requests by their path.
class Pages {
 public:
  Pages(HttpServer::CollectFn collect, HttpServer::ReadyFn is_ready)
      : collect_(std::move(collect)), is_ready_(std::move(is_ready)) {}

  Response Answer(const Request& request) const {
    const bool is_head = request.method() == http::verb::head;
    if (!is_head && request.method() != http::verb::get) {
      Response response = Text(http::status::method_not_allowed, "GET and HEAD only\n");
      response.set(http::field::allow, "GET, HEAD");
      return Finished(std::move(response), false);
    }
    const beast::string_view target = request.target();
    return Finished(PageOrError(target.substr(0, target.find('?'))), is_head);
  }

  // The answer to a request that could not be parsed; nullopt when the connection ended or failed, so that no answer is
  // due.
  static std::optional<Response> Refuse(error_code error) {
    if (error == http::error::header_limit || error == http::error::buffer_overflow) {
      return Finished(Text(http::status::request_header_fields_too_large, "header too large\n"), false);
    }
    if (error.category() != http::make_error_code(http::error::bad_method).category() ||
        error == http::error::end_of_stream || error == http::error::partial_message) {
      return std::nullopt;
    }
    return Finished(Text(http::status::bad_request, "bad request\n"), false);
  }

 private:
  static Response Finished(Response response, bool is_head) {
    response.keep_alive(false);
    response.prepare_payload();
    if (is_head) response.body().clear();  // the Content-Length field keeps its length
    return response;
  }

  Response PageOrError(beast::string_view path) const {
    try {
      return Page(path);
    } catch (...) {
      return Text(http::status::internal_server_error, "this page could not be made\n");
    }
  }

  Response Page(beast::string_view path) const {
    if (path == "/metrics") {
      return Text(http::status::ok, prometheus::TextSerializer().Serialize(collect_()),
                  "text/plain; version=0.0.4; charset=utf-8");
    }
    if (path == "/livez") return Text(http::status::ok, "live\n");
    if (path == "/readyz") {
      const absl::Status ready = is_ready_();
      if (ready.ok()) return Text(http::status::ok, "ready\n");
      return Text(http::status::service_unavailable, absl::StrCat("not ready: ", ready.message(), "\n"));
    }
    return Text(http::status::not_found, "not here; try /metrics, /livez or /readyz\n");
  }

  const HttpServer::CollectFn collect_;
  const HttpServer::ReadyFn is_ready_;
};

// One request and its answer. Only the asynchronous operation that it waits for keeps it alive.
class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  Connection(tcp::socket socket, const Pages& pages) : stream_(std::move(socket)), pages_(pages) {
    parser_.header_limit(kMaxHeaderBytes);
    parser_.body_limit(std::numeric_limits<uint64_t>::max());  // bodies are never read
  }

  void Start() {
    stream_.expires_after(kPatience);  // limits everything that follows
    http::async_read_header(stream_, buffer_, parser_, Then(&Connection::OnRequest));
  }

  void Close() { stream_.close(); }

 private:
  using Step = void (Connection::*)(error_code, size_t);
  std::function<void(error_code, size_t)> Then(Step step) {
    return beast::bind_front_handler(step, shared_from_this());
  }

  void OnRequest(error_code error, size_t /*bytes*/) {
    response_ = error ? Pages::Refuse(error) : pages_.Answer(parser_.get());
    if (response_.has_value()) http::async_write(stream_, *response_, Then(&Connection::OnAnswered));
  }

  void OnAnswered(error_code error, size_t /*bytes*/) {
    if (error) return;
    stream_.socket().shutdown(tcp::socket::shutdown_send, error);
    if (!error) Discard();
  }

  // Reads and drops the rest, such as a body, until the caller closes: if this side closed first, with bytes unread,
  // the caller could lose the answer.
  void Discard() {
    buffer_.clear();
    stream_.async_read_some(buffer_.prepare(kMaxHeaderBytes), Then(&Connection::OnDiscarded));
  }

  void OnDiscarded(error_code error, size_t /*bytes*/) {
    if (!error) Discard();
  }

  beast::tcp_stream stream_;
  const Pages& pages_;
  beast::flat_buffer buffer_{kMaxHeaderBytes};
  http::request_parser<http::empty_body> parser_;
  std::optional<Response> response_;
};

std::vector<tcp::endpoint> Resolve(asio::io_context& io, const HttpOptions& options, error_code* error) {
  const auto port = static_cast<uint16_t>(options.port);
  if (IsWildcard(options.host)) return {{tcp::v6(), port}, {tcp::v4(), port}};
  const auto address = asio::ip::make_address(options.host, *error);
  if (!*error) return {tcp::endpoint(address, port)};
  std::vector<tcp::endpoint> endpoints;
  for (const auto& entry :
       tcp::resolver(io).resolve(options.host, std::to_string(options.port), tcp::resolver::passive, *error)) {
    endpoints.push_back(entry.endpoint());
  }
  return endpoints;
}

class BeastServer final : public HttpServer {
 public:
  BeastServer(CollectFn collect, ReadyFn is_ready) : pages_(std::move(collect), std::move(is_ready)) {}

  ~BeastServer() override {
    io_.stop();
    if (thread_.joinable()) thread_.join();
  }

  error_code Start(const HttpOptions& options) {
    if (const error_code error = Listen(options)) return error;
    AwaitCaller();
    thread_ = std::thread([this] { Run(); });
    return {};
  }

  int port() const override { return endpoint_.port(); }

 private:
  error_code Listen(const HttpOptions& options) {
    if (options.port < 0 || options.port > std::numeric_limits<uint16_t>::max()) {
      return make_error_code(boost::system::errc::invalid_argument);
    }
    error_code error;
    for (const tcp::endpoint& endpoint : Resolve(io_, options, &error)) {
      error = ListenAt(endpoint);
      // An IPv6 socket takes IPv4 callers too; only where there is no IPv6 is the next endpoint of a wildcard needed.
      if (!error || error == boost::system::errc::address_in_use) break;
    }
    if (!error) endpoint_ = acceptor_.local_endpoint(error);
    return error;
  }

  // Opens descriptors here, and not through Asio, because Asio would let the processes that this one starts inherit
  // them.
  error_code ListenAt(const tcp::endpoint& endpoint) {
    UniqueFd fd(socket(endpoint.protocol().family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    const int yes = 1, no = 0;
    const bool is_v6 = endpoint.protocol() == tcp::v6();
    if (!fd.valid() || setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) != 0 ||
        (is_v6 && setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &no, sizeof(no)) != 0) ||
        bind(fd.get(), endpoint.data(), static_cast<socklen_t>(endpoint.size())) != 0 ||
        listen(fd.get(), SOMAXCONN) != 0) {
      return LastError();
    }
    error_code error;
    acceptor_.assign(endpoint.protocol(), fd.get(), error);
    if (error) return error;
    fd.release();
    return error;
  }

  void Run() {
    while (!io_.stopped()) {
      try {
        io_.run();
      } catch (const std::exception&) {
        // A connection ran out of memory. Nothing holds that connection any more.
      }
    }
  }

  void AwaitCaller() {
    acceptor_.async_wait(tcp::acceptor::wait_read, [this](error_code error) { error ? OpenAgain() : Accept(); });
  }

  void Accept() {
    UniqueFd fd(accept4(acceptor_.native_handle(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    const int error = errno;
    if (fd.valid()) {
      Admit(std::move(fd));
    } else if (error == EBADF || error == EINVAL || error == ENOTSOCK) {
      return OpenAgain();
    } else if (error == EMFILE && CloseOldest()) {
      // There is room again.
    } else if (error != EAGAIN && error != EINTR && error != ECONNABORTED) {
      return Pause(&BeastServer::AwaitCaller);
    }
    AwaitCaller();
  }

  // Waits before the next step, because an error such as too many open files would recur at once.
  void Pause(void (BeastServer::*next)()) {
    timer_.expires_after(kAcceptPause);
    timer_.async_wait([this, next](error_code) { (this->*next)(); });
  }

  // After the listening socket has failed.
  void OpenAgain() {
    error_code error;
    acceptor_.close(error);
    if (ListenAt(endpoint_)) return Pause(&BeastServer::OpenAgain);
    AwaitCaller();
  }

  // When there is no room, the oldest connection gives way. Callers that are served quickly are gone long before theirs
  // is the oldest.
  void Admit(UniqueFd fd) {
    connections_.remove_if([](const auto& connection) { return connection.expired(); });
    if (!counted_.HasRoomFor(fd.get())) {
      if (!CloseOldest()) {
        counted_.Refuse();
        return;
      }
      // Takes the number that is free now, because high ones say that descriptors are scarce.
      fd.reset(fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
    }
    try {
      tcp::socket socket(io_);
      socket.assign(endpoint_.protocol(), fd.get());
      counted_.Add(fd.release());
      auto connection = std::make_shared<Connection>(std::move(socket), pages_);
      connections_.push_back(connection);
      connection->Start();
    } catch (const std::exception&) {
      // This caller's connection is dropped, and the next caller is accepted.
    }
  }

  bool CloseOldest() {
    if (connections_.empty()) return false;
    if (const auto oldest = connections_.front().lock()) oldest->Close();
    connections_.pop_front();
    return true;
  }

  const Pages pages_;
  asio::io_context io_{1};  // declared before its users; its destruction drops the connections
  tcp::acceptor acceptor_{io_};
  asio::steady_timer timer_{io_};
  tcp::endpoint endpoint_;  // constant once it listens
  PortConnections counted_{PortKind::kHttp, kMaxConnections};
  std::list<std::weak_ptr<Connection>> connections_;  // the oldest one first
  std::thread thread_;
};

absl::Status CannotListen(const HttpOptions& options, const std::string& reason) {
  return absl::UnavailableError(absl::StrCat("--http_port: cannot listen on ", JoinHostPort(options.host, options.port),
                                             ": ", reason, "; is the port in use? (0 takes a free one)"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpOptions& options, CollectFn collect,
                                                              ReadyFn is_ready) {
  const absl::StatusOr<std::string> host = ParseHost(options.host, "host");
  if (!host.ok()) return CannotListen(options, std::string(host.status().message()));
  try {
    auto server = std::make_unique<BeastServer>(std::move(collect), std::move(is_ready));
    if (const error_code error = server->Start({*host, options.port})) return CannotListen(options, error.message());
    return server;
  } catch (const std::exception& error) {  // no descriptor or thread is available
    return CannotListen(options, error.what());
  }
}

}  // namespace switchyard
