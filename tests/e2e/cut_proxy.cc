#include "tests/e2e/cut_proxy.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <vector>

#include "absl/strings/str_cat.h"

namespace switchyard {
namespace {

sockaddr_in ParseIpv4(const std::string& address) {
  const size_t colon = address.rfind(':');
  sockaddr_in parsed = {};
  parsed.sin_family = AF_INET;
  parsed.sin_port = htons(static_cast<uint16_t>(std::atoi(address.c_str() + colon + 1)));
  EXPECT_EQ(inet_pton(AF_INET, address.substr(0, colon).c_str(), &parsed.sin_addr), 1) << address;
  return parsed;
}

}  // namespace

CutProxy::CutProxy(std::string target)
    : target_(std::move(target)),
      listener_(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)),
      wake_(eventfd(0, EFD_CLOEXEC)) {
  const sockaddr_in any = ParseIpv4("127.0.0.1:0");
  EXPECT_EQ(bind(listener_.get(), reinterpret_cast<const sockaddr*>(&any), sizeof(any)), 0);
  EXPECT_EQ(listen(listener_.get(), 16), 0);
  thread_ = std::thread([this] { Loop(); });
}

CutProxy::~CutProxy() {
  stop_ = true;
  eventfd_write(wake_.get(), 1);
  thread_.join();
}

std::string CutProxy::address() const {
  sockaddr_in own = {};
  socklen_t size = sizeof(own);
  EXPECT_EQ(getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&own), &size), 0);
  return absl::StrCat("127.0.0.1:", ntohs(own.sin_port));
}

void CutProxy::Cut() {
  MutexLock lock(&mu_);
  for (const Connection& connection : connections_) {
    shutdown(connection.near.get(), SHUT_RDWR);
    shutdown(connection.far.get(), SHUT_RDWR);
  }
}

void CutProxy::Freeze() {
  MutexLock lock(&mu_);
  for (Connection& connection : connections_) connection.is_frozen = true;
  eventfd_write(wake_.get(), 1);
}

void CutProxy::Accept() {
  Connection made{UniqueFd(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC)),
                  UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0))};
  const sockaddr_in target = ParseIpv4(target_);
  if (connect(made.far.get(), reinterpret_cast<const sockaddr*>(&target), sizeof(target)) != 0) return;
  MutexLock lock(&mu_);
  connections_.push_back(std::move(made));
}

bool CutProxy::Pass(int from, int to) {
  char bytes[1 << 16];
  const ssize_t count = recv(from, bytes, sizeof(bytes), MSG_DONTWAIT);
  if (count <= 0) return false;
  for (ssize_t sent = 0; sent < count;) {
    const ssize_t more = send(to, bytes + sent, count - sent, MSG_NOSIGNAL);
    if (more <= 0) return false;
    sent += more;
  }
  return true;
}

void CutProxy::Loop() {
  while (!stop_) {
    std::vector<pollfd> polled = {{wake_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
    std::vector<std::list<Connection>::iterator> watched;  // in pairs of `polled`, after the first two
    {
      MutexLock lock(&mu_);
      for (auto each = connections_.begin(); each != connections_.end(); ++each) {
        if (each->is_frozen) continue;
        watched.push_back(each);
        for (const UniqueFd* fd : {&each->near, &each->far}) polled.push_back({fd->get(), POLLIN, 0});
      }
    }
    if (poll(polled.data(), polled.size(), -1) < 0) continue;
    if (polled[0].revents != 0) {
      eventfd_t count;
      eventfd_read(wake_.get(), &count);
      continue;
    }
    for (size_t i = 0; i < watched.size(); ++i) {
      const pollfd &near = polled[2 + 2 * i], &far = polled[3 + 2 * i];
      const bool is_open = (near.revents == 0 || Pass(near.fd, far.fd)) && (far.revents == 0 || Pass(far.fd, near.fd));
      if (is_open) continue;
      MutexLock lock(&mu_);
      connections_.erase(watched[i]);
    }
    if (polled[1].revents != 0) Accept();
  }
}

}  // namespace switchyard
