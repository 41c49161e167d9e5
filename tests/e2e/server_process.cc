#include "tests/e2e/server_process.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

#include "base/unique_fd.h"

extern char** environ;

namespace switchyard {
namespace {

std::string NewLogPath() {
  static int count = 0;
  const char* folder = getenv("TEST_TMPDIR");
  return absl::StrCat(folder == nullptr ? "/tmp" : folder, "/process-", getpid(), "-", ++count, ".log");
}

// The value of KEY=VALUE in the READY line.
std::string Field(const std::string& line, const std::string& key) {
  const size_t begin = line.find(key + "=");
  if (begin == std::string::npos) return "";
  const size_t value = begin + key.size() + 1;
  return line.substr(value, line.find(' ', value) - value);
}

std::string Tail(const std::string& text) { return text.size() > 4000 ? text.substr(text.size() - 4000) : text; }

}  // namespace

absl::StatusOr<std::unique_ptr<ChildProcess>> ChildProcess::Start(const std::string& program,
                                                                  const std::vector<std::string>& arguments,
                                                                  int stderr_fd) {
  std::unique_ptr<ChildProcess> process(new ChildProcess);
  process->log_path_ = NewLogPath();
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return ErrnoStatus(errno, "pipe");
  UniqueFd writer(ends[1]);
  process->stdout_fd_ = ends[0];
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, writer.get(), STDOUT_FILENO);
  if (stderr_fd >= 0) {
    posix_spawn_file_actions_adddup2(&actions, stderr_fd, STDERR_FILENO);
  } else {
    posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, process->log_path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC,
                                     0600);
  }
  std::vector<std::string> strings = {program};
  strings.insert(strings.end(), arguments.begin(), arguments.end());
  std::vector<char*> argv;
  for (std::string& text : strings) argv.push_back(text.data());
  argv.push_back(nullptr);
  const int error = posix_spawn(&process->pid_, program.c_str(), &actions, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return ErrnoStatus(error, absl::StrCat("starting ", program));
  return process;
}

ChildProcess::~ChildProcess() {
  if (pid_ > 0) {
    Signal(SIGKILL);
    Wait();
  }
  if (stdout_fd_ >= 0) close(stdout_fd_);
}

void ChildProcess::Signal(int signal) const { kill(pid_, signal); }

int ChildProcess::Wait() {
  int status = 0;
  while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
  }
  pid_ = -1;
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

bool ChildProcess::WaitFor(std::chrono::milliseconds timeout) const {
  const UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, pid_, 0)));
  pollfd polled = {pidfd.get(), POLLIN, 0};
  return poll(&polled, 1, static_cast<int>(timeout.count())) == 1;
}

std::string ChildProcess::ReadLine() {
  std::string line;
  char letter;
  while (read(stdout_fd_, &letter, 1) == 1 && letter != '\n') line += letter;
  return line;
}

std::string ChildProcess::Log() const {
  std::ifstream file(log_path_);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

bool ChildProcess::HasLogged(const std::string& text) const {
  for (int i = 0; i < 5000; ++i) {
    if (Log().find(text) != std::string::npos) return true;
    usleep(2000);
  }
  return false;
}

absl::StatusOr<std::string> WaitForWorkerPort(const ChildProcess& front) {
  constexpr char kBefore[] = " workers on ";
  for (int i = 0; i < 3000; ++i) {
    const std::string log = front.Log();
    const size_t waiting = log.find("waiting for ");
    const size_t begin = waiting == std::string::npos ? waiting : log.find(kBefore, waiting);
    const size_t end = begin == std::string::npos ? begin : log.find('\n', begin);
    if (end != std::string::npos) return log.substr(begin + std::strlen(kBefore), end - begin - std::strlen(kBefore));
    usleep(10'000);
  }
  return absl::DeadlineExceededError(absl::StrCat("the front awaits no workers\n", Tail(front.Log())));
}

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(const std::vector<std::string>& flags,
                                                                    const std::string& program) {
  std::vector<std::string> all = {"--port=0", "--http_port=0"};
  all.insert(all.end(), flags.begin(), flags.end());
  const auto is_device = [](const std::string& flag) { return flag.rfind("--device=", 0) == 0; };
  if (std::none_of(flags.begin(), flags.end(), is_device)) all.emplace_back("--device=cpu");
  SY_ASSIGN_OR_RETURN(auto process, ChildProcess::Start(program, all));
  return WaitUntilReady(std::move(process));
}

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::WaitUntilReady(std::unique_ptr<ChildProcess> process) {
  auto server = std::make_unique<ServerProcess>();
  server->process_ = std::move(process);
  const std::string line = server->process_->ReadLine();
  if (line.rfind("READY ", 0) != 0) {
    const int exit_status = server->process_->Wait();
    return absl::InternalError(
        absl::StrCat("the server ended with status ", exit_status, "\n", Tail(server->process_->Log())));
  }
  server->grpc_address_ = Field(line, "grpc");
  server->http_address_ = Field(line, "http");
  return server;
}

std::unique_ptr<Client> ServerProcess::Connect(ClientOptions options) const {
  return Client::Connect(grpc_address_, options).value();
}

std::string HttpGet(const std::string& http_address, const std::string& path) {
  const size_t colon = http_address.rfind(':');
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(http_address.c_str() + colon + 1)));
  inet_pton(AF_INET, http_address.substr(0, colon).c_str(), &address.sin_addr);
  UniqueFd socket_fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (connect(socket_fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) return "";
  const std::string request = absl::StrCat("GET ", path, " HTTP/1.0\r\nHost: test\r\n\r\n");
  if (send(socket_fd.get(), request.data(), request.size(), 0) < 0) return "";
  std::string answer;
  char bytes[4096];
  for (ssize_t count; (count = recv(socket_fd.get(), bytes, sizeof(bytes), 0)) > 0;) answer.append(bytes, count);
  const size_t body = answer.find("\r\n\r\n");
  if (answer.find(" 200 ") == std::string::npos || body == std::string::npos) return "";
  return answer.substr(body + 4);
}

int ServerProcess::Stop() {
  process_->Signal(SIGTERM);
  return process_->Wait();
}

}  // namespace switchyard
