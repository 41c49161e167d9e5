#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/socket.h>

#include <map>
#include <stdexcept>

#include "base/unique_fd.h"
#include "http/http_server.h"
#include "http/process_metrics.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::EndsWith;
using testing::HasSubstr;
using testing::SizeIs;
using testing::StartsWith;

UniqueFd Connect(int port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  return fd;
}

// Whether a server listens on this port of ::1. Not valid where there is no IPv6.
std::optional<bool> ListensOnIpv6(int port) {
  UniqueFd fd(socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in6 address = {};
  address.sin6_family = AF_INET6;
  address.sin6_addr = in6addr_loopback;
  if (!fd.valid() || bind(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return std::nullopt;
  address.sin6_port = htons(static_cast<uint16_t>(port));
  return connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
}

void Send(const UniqueFd& fd, const std::string& bytes) {
  EXPECT_EQ(send(fd.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL), static_cast<ssize_t>(bytes.size()));
}

// All that a server on this port sends back.
std::string Ask(int port, const std::string& request) {
  const UniqueFd fd = Connect(port);
  Send(fd, request);
  std::string answer;
  char buffer[4096];
  for (ssize_t count; (count = recv(fd.get(), buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, count);
  return answer;
}

std::string Get(int port, const std::string& path) {
  return Ask(port, absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n"));
}

// A server that is ready and has no metrics.
std::unique_ptr<HttpServer> PlainServer() {
  auto server = HttpServer::Start(
      {"127.0.0.1", 0}, [] { return std::vector<prometheus::MetricFamily>(); }, [] { return absl::OkStatus(); });
  EXPECT_TRUE(server.ok()) << server.status();
  return server.ok() ? *std::move(server) : nullptr;
}

TEST(HttpServer, AnswersProbesAndScrapes) {
  absl::Status ready = absl::UnavailableError("it starts");
  const ProcessMetrics process;
  auto server = HttpServer::Start(
      {"127.0.0.1", 0}, [&] { return process.Collect(); }, [&] { return ready; });
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  EXPECT_THAT(Get(port, "/livez"), AllOf(HasSubstr("HTTP/1.1 200 OK"), HasSubstr("live\n")));
  EXPECT_THAT(Get(port, "/readyz"), AllOf(HasSubstr("HTTP/1.1 503 "), EndsWith("\r\n\r\nnot ready: it starts\n")));
  ready = absl::OkStatus();
  EXPECT_THAT(Get(port, "/readyz"), HasSubstr("HTTP/1.1 200 OK"));
  EXPECT_THAT(Get(port, "/elsewhere"), HasSubstr("HTTP/1.1 404 "));
  EXPECT_THAT(Get(port, "/metrics"),
              AllOf(HasSubstr("text/plain; version=0.0.4"), HasSubstr("# TYPE process_cpu_seconds_total counter")));
  const auto second = HttpServer::Start(
      {"127.0.0.1", port}, [&] { return process.Collect(); }, [] { return absl::OkStatus(); });
  EXPECT_TRUE(absl::IsUnavailable(second.status()));
  EXPECT_EQ(second.status().message(),
            absl::StrCat("--http_port: cannot listen on 127.0.0.1:", port,
                         ": Address already in use; is the port in use? (0 takes a free one)"));
}

TEST(HttpServer, TakesNamesOfHosts) {
  const auto server = HttpServer::Start(
      {"localhost", 0}, [] { return std::vector<prometheus::MetricFamily>(); }, [] { return absl::OkStatus(); });
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_GT((*server)->port(), 0);
}

TEST(HttpServer, EveryWildcardMeansIpv4AndIpv6) {
  for (const char* host : {"0.0.0.0", "::", "[::]"}) {
    auto server = HttpServer::Start(
        {host, 0}, [] { return std::vector<prometheus::MetricFamily>(); }, [] { return absl::OkStatus(); });
    ASSERT_TRUE(server.ok()) << server.status();
    EXPECT_THAT(Get((*server)->port(), "/livez"), EndsWith("live\n"));
    EXPECT_TRUE(ListensOnIpv6((*server)->port()).value_or(true)) << host;
  }
}

TEST(HttpServer, HostsThatCannotBeAreRefused) {
  for (const char* host : {"", "127.0.0.1:80", "a b"}) {
    const auto server = HttpServer::Start(
        {host, 0}, [] { return std::vector<prometheus::MetricFamily>(); }, [] { return absl::OkStatus(); });
    EXPECT_THAT(std::string(server.status().message()), HasSubstr("expected an IPv4 address")) << host;
  }
}

TEST(HttpServer, IgnoresQueriesAndVersions) {
  const auto server = PlainServer();
  EXPECT_THAT(Get(server->port(), "/livez?verbose=1"), AllOf(HasSubstr("200 OK"), EndsWith("\r\n\r\nlive\n")));
  EXPECT_THAT(Ask(server->port(), "GET /readyz HTTP/1.1\r\nHost: here\r\n\r\n"),
              AllOf(HasSubstr("Connection: close"), EndsWith("\r\n\r\nready\n")));
}

TEST(HttpServer, TakesGetAndHeadOnly) {
  const auto server = PlainServer();
  EXPECT_THAT(Ask(server->port(), "HEAD /livez HTTP/1.1\r\nHost: here\r\n\r\n"),
              AllOf(StartsWith("HTTP/1.1 200 OK"), HasSubstr("Content-Length: 5\r\n"), EndsWith("\r\n\r\n")));
  const std::string body(100'000, 'x');  // the server does not read it, and yet the answer arrives
  EXPECT_THAT(
      Ask(server->port(), absl::StrCat("POST /livez HTTP/1.1\r\nContent-Length: ", body.size(), "\r\n\r\n", body)),
      AllOf(StartsWith("HTTP/1.1 405 "), HasSubstr("Allow: GET, HEAD\r\n")));
}

TEST(HttpServer, AnswersOnceHoweverManyRangesAreAskedFor) {
  const auto server = PlainServer();
  std::string ranges = "bytes=0-";
  for (int i = 0; i < 1000; ++i) ranges += ",0-";
  EXPECT_THAT(Ask(server->port(), absl::StrCat("GET /livez HTTP/1.1\r\nRange: ", ranges, "\r\n\r\n")),
              AllOf(StartsWith("HTTP/1.1 200 OK"), EndsWith("\r\n\r\nlive\n"), SizeIs(testing::Lt(300))));
}

TEST(HttpServer, RefusesLargeHeadersAndNonsense) {
  const auto server = PlainServer();
  const std::string large(20'000, 'x');
  EXPECT_THAT(Ask(server->port(), absl::StrCat("GET /livez HTTP/1.1\r\nX-Large: ", large, "\r\n\r\n")),
              StartsWith("HTTP/1.1 431 "));
  EXPECT_THAT(Get(server->port(), "/" + large), StartsWith("HTTP/1.1 431 "));
  EXPECT_THAT(Ask(server->port(), "\x16\x03\x01\r\n\r\n"), StartsWith("HTTP/1.1 400 "));
}

TEST(HttpServer, SlowCallersHoldUpNobody) {
  auto server = PlainServer();
  std::vector<UniqueFd> callers;
  for (int i = 0; i < 300; ++i) {
    callers.push_back(Connect(server->port()));
    if (i % 2 == 0) Send(callers.back(), "GET /li");
  }
  EXPECT_THAT(Get(server->port(), "/livez"), HasSubstr("live\n"));
  server.reset();
}

// The listening socket of this process at `port`; -1 for none.
int ListenerAt(int port) {
  for (int fd = 0; fd < 1024; ++fd) {
    int listens = 0;
    socklen_t size = sizeof(listens);
    sockaddr_in address = {};
    socklen_t address_size = sizeof(address);
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens != 0 &&
        getsockname(fd, reinterpret_cast<sockaddr*>(&address), &address_size) == 0 && ntohs(address.sin_port) == port) {
      return fd;
    }
  }
  return -1;
}

TEST(HttpServer, OpensAListenerThatFailsAgain) {
  const auto server = PlainServer();
  ASSERT_EQ(shutdown(ListenerAt(server->port()), SHUT_RDWR), 0);
  std::string answer;
  for (int i = 0; i < 1000 && answer.empty(); ++i) {
    const UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(server->port()));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
      answer = Get(server->port(), "/livez");
    } else {
      poll(nullptr, 0, 5);
    }
  }
  EXPECT_THAT(answer, HasSubstr("live\n"));
}

TEST(HttpServer, OutlivesWhatItsFunctionsThrow) {
  const auto server = HttpServer::Start(
      {"127.0.0.1", 0}, []() -> std::vector<prometheus::MetricFamily> { throw std::runtime_error("no metrics"); },
      []() -> absl::Status { throw std::runtime_error("not known"); });
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT(Get((*server)->port(), "/metrics"), StartsWith("HTTP/1.1 500 "));
  EXPECT_THAT(Get((*server)->port(), "/readyz"), StartsWith("HTTP/1.1 500 "));
  EXPECT_THAT(Get((*server)->port(), "/livez"), StartsWith("HTTP/1.1 200 "));
}

TEST(ProcessMetrics, TellWhatIsSo) {
  std::map<std::string, double> values;
  const auto server = PlainServer();
  const UniqueFd open = Connect(server->port());
  EXPECT_THAT(Get(server->port(), "/livez"), HasSubstr("live\n"));  // after the first was accepted
  for (const auto& family : ProcessMetrics().Collect()) {
    const auto& metric = family.metric.at(0);
    values[family.name] = metric.gauge.value + metric.counter.value;
  }
  EXPECT_GT(values.at("process_resident_memory_bytes"), 1 << 20);
  EXPECT_GT(values.at("process_virtual_memory_bytes"), values.at("process_resident_memory_bytes"));
  EXPECT_GE(values.at("process_cpu_seconds_total"), 0);
  const auto now = static_cast<double>(time(nullptr));
  EXPECT_NEAR(values.at("process_start_time_seconds"), now, 120);
  EXPECT_GE(values.at("process_open_fds"), 3);
  EXPECT_GE(values.at("process_max_fds"), values.at("process_open_fds"));
  EXPECT_GE(values.at("switchyard_connections"), 1);
  EXPECT_EQ(values.at("switchyard_connections_refused_total"), 0);
  EXPECT_EQ(values.at("switchyard_log_lines_dropped_total"), 0);
}

}  // namespace
}  // namespace switchyard
