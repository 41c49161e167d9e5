#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <map>

#include "http/http_server.h"
#include "http/process_metrics.h"

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// What a server on this port answers to a GET.
std::string Get(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\n\r\n");
  EXPECT_EQ(send(fd, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string answer;
  char buffer[4096];
  for (ssize_t count; (count = recv(fd, buffer, sizeof(buffer), 0)) > 0;) answer.append(buffer, count);
  close(fd);
  return answer;
}

TEST(HttpServer, AnswersProbesAndScrapes) {
  bool is_ready = false;
  const ProcessMetrics process;
  auto server = HttpServer::Start(
      {"127.0.0.1", 0}, [&] { return process.Collect(); }, [&] { return is_ready; });
  ASSERT_TRUE(server.ok()) << server.status();
  const int port = (*server)->port();
  EXPECT_THAT(Get(port, "/livez"), AllOf(HasSubstr("HTTP/1.1 200 OK"), HasSubstr("live\n")));
  EXPECT_THAT(Get(port, "/readyz"), HasSubstr("HTTP/1.1 503 "));
  is_ready = true;
  EXPECT_THAT(Get(port, "/readyz"), HasSubstr("HTTP/1.1 200 OK"));
  EXPECT_THAT(Get(port, "/elsewhere"), HasSubstr("HTTP/1.1 404 "));
  EXPECT_THAT(Get(port, "/metrics"),
              AllOf(HasSubstr("text/plain; version=0.0.4"), HasSubstr("# TYPE process_cpu_seconds_total counter")));
  const auto second = HttpServer::Start(
      {"127.0.0.1", port}, [&] { return process.Collect(); }, [] { return true; });
  EXPECT_TRUE(absl::IsUnavailable(second.status()));
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("--http_port"));
}

TEST(ProcessMetrics, TellWhatIsSo) {
  std::map<std::string, double> values;
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
}

}  // namespace
}  // namespace switchyard
