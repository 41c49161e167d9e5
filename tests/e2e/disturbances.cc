#include "tests/e2e/disturbances.h"

#include <linux/filter.h>
#include <netinet/in.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace switchyard {
namespace {

std::string CommandLine(pid_t pid) {
  std::ifstream file(absl::StrCat("/proc/", pid, "/cmdline"));
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

pid_t FindThread(pid_t pid, const std::string& name) {
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat("/proc/", pid, "/task"))) {
    std::ifstream file(entry.path() / "comm");
    std::string found;
    if (std::getline(file, found) && found == name) return std::stoi(entry.path().filename());
  }
  return -1;
}

StoppedThread::StoppedThread(pid_t tid) : tid_(tid) {
  if (ptrace(PTRACE_SEIZE, tid_, nullptr, nullptr) != 0 || ptrace(PTRACE_INTERRUPT, tid_, nullptr, nullptr) != 0 ||
      waitpid(tid_, nullptr, __WALL) != tid_) {
    error_ = errno;
  }
}

StoppedThread::~StoppedThread() {
  if (!Reap()) ptrace(PTRACE_DETACH, tid_, nullptr, nullptr);
}

bool StoppedThread::Reap() {
  int status = 0;
  if (!has_ended_ && waitpid(tid_, &status, __WALL | WNOHANG) == tid_) {
    has_ended_ = WIFEXITED(status) || WIFSIGNALED(status);
  }
  return has_ended_;
}

int DropPacketsFromPeers(pid_t worker) {
  const std::string command = CommandLine(worker);
  const UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, worker, 0)));
  sock_filter drop = BPF_STMT(BPF_RET | BPF_K, 0);
  const sock_fprog program = {1, &drop};
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(absl::StrCat("/proc/", worker, "/fd"))) {
    const int number = std::stoi(entry.path().filename());
    const UniqueFd fd(static_cast<int>(syscall(SYS_pidfd_getfd, pidfd.get(), number, 0)));
    sockaddr_storage peer = {};
    socklen_t size = sizeof(peer);
    if (!fd.valid() || getpeername(fd.get(), reinterpret_cast<sockaddr*>(&peer), &size) != 0) continue;
    if (peer.ss_family != AF_INET && peer.ss_family != AF_INET6) continue;  // in both, the port is at the same place
    const int port = ntohs(reinterpret_cast<const sockaddr_in&>(peer).sin_port);
    if (command.find(absl::StrCat("--front=127.0.0.1:", port)) != std::string::npos) continue;
    count += setsockopt(fd.get(), SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)) == 0;
  }
  return count;
}

}  // namespace switchyard
