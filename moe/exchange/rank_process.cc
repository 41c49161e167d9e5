#include "moe/exchange/rank_process.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

namespace switchyard {
namespace {

constexpr char kChildFlag[] = "--rank-process";
constexpr int kChildFd = 200;  // far from the parent's open descriptors, so that dup2 really copies
constexpr size_t kMaxPacketBytes = 64 << 10;

// The arguments in the form that posix_spawn takes.
std::vector<char*> Pointers(std::vector<std::string>& arguments) {
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  return pointers;
}

absl::StatusOr<pid_t> Spawn(std::vector<std::string> arguments, int child_fd) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, child_fd, kChildFd);
  pid_t pid = -1;
  const int error = posix_spawn(&pid, "/proc/self/exe", &actions, nullptr, Pointers(arguments).data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return ErrnoStatus(error, "posix_spawn of this program");
  return pid;
}

}  // namespace

absl::Status PacketChannel::Send(const std::string& packet) {
  if (packet.empty() || packet.size() > kMaxPacketBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a packet of ", packet.size(), " bytes"));
  }
  if (send(fd_.get(), packet.data(), packet.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(packet.size())) {
    return absl::OkStatus();
  }
  return absl::UnavailableError(absl::StrCat("the other process is gone: ", strerror(errno)));
}

absl::StatusOr<std::string> PacketChannel::Receive(std::chrono::milliseconds timeout) {
  pollfd readable{.fd = fd_.get(), .events = POLLIN, .revents = 0};
  const int num_ready = poll(&readable, 1, static_cast<int>(timeout.count()));
  if (num_ready < 0) return ErrnoStatus(errno, "poll");
  if (num_ready == 0) {
    return absl::DeadlineExceededError(absl::StrCat("the other process said nothing for ", timeout.count(), " ms"));
  }
  std::string packet(kMaxPacketBytes, '\0');
  const ssize_t received = recv(fd_.get(), packet.data(), packet.size(), 0);
  if (received <= 0) return absl::UnavailableError("the other process is gone");
  packet.resize(received);
  return packet;
}

absl::Status PacketChannel::SendAll(const std::vector<std::string>& packets) {
  for (const std::string& packet : packets) SY_RETURN_IF_ERROR(Send(packet));
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> PacketChannel::ReceiveAll(int num_packets) {
  std::vector<std::string> packets;
  for (int idx = 0; idx < num_packets; ++idx) {
    SY_ASSIGN_OR_RETURN(std::string packet, Receive());
    packets.push_back(std::move(packet));
  }
  return packets;
}

absl::StatusOr<RankProcess> RankProcess::Start(const std::vector<std::string>& arguments) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) return ErrnoStatus(errno, "socketpair");
  RankProcess process;
  process.channel_ = PacketChannel(UniqueFd(fds[0]));
  const UniqueFd child_fd(fds[1]);
  std::vector<std::string> all = {"rank", kChildFlag};
  all.insert(all.end(), arguments.begin(), arguments.end());
  SY_ASSIGN_OR_RETURN(process.pid_, Spawn(std::move(all), child_fd.get()));
  return process;
}

RankProcess::~RankProcess() {
  Kill();
  if (pid_ > 0) waitpid(pid_, nullptr, 0);
}

void RankProcess::Kill() {
  if (pid_ > 0) kill(pid_, SIGKILL);
}

std::optional<RankChild> RankChild::FromArguments(int argc, char** argv) {
  if (argc < 2 || std::strcmp(argv[1], kChildFlag) != 0) return std::nullopt;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  return RankChild{.arguments = std::vector<std::string>(argv + 2, argv + argc),
                   .channel = PacketChannel(UniqueFd(kChildFd))};
}

}  // namespace switchyard
