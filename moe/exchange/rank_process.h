// Runs ranks as processes, for tests and benchmarks of GPU communicators.
//
// CUDA does not survive fork(), so a child is a fresh run of the same executable, which recognises by its first
// argument that it is a child. Parent and child talk in packets over a socket. A child dies with its parent.
//
//   int main(int argc, char** argv) {
//     if (std::optional<RankChild> child = RankChild::FromArguments(argc, argv)) return RunRank(*child);
//     …
//     SY_ASSIGN_OR_RETURN(RankProcess process, RankProcess::Start({"exchange", "1"}));
//
// Thread-safety: one thread may send on a channel while another receives.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/status.h"
#include "base/unique_fd.h"

namespace switchyard {

// One end of the socket. Packets of 1 byte to 64 KiB.
class PacketChannel {
 public:
  PacketChannel() = default;
  explicit PacketChannel(UniqueFd fd) : fd_(std::move(fd)) {}

  // UNAVAILABLE when the other end is gone.
  absl::Status Send(const std::string& packet);
  // DEADLINE_EXCEEDED when no packet arrives within `timeout`, UNAVAILABLE when the other end is gone.
  absl::StatusOr<std::string> Receive(std::chrono::milliseconds timeout = std::chrono::minutes(1));

  // Send, or receive, several packets one after another.
  absl::Status SendAll(const std::vector<std::string>& packets);
  absl::StatusOr<std::vector<std::string>> ReceiveAll(int num_packets);

 private:
  UniqueFd fd_;
};

// The parent's handle of a child. Its destructor kills the child and waits for its end.
class RankProcess {
 public:
  RankProcess() = default;
  static absl::StatusOr<RankProcess> Start(const std::vector<std::string>& arguments);
  RankProcess(RankProcess&& other) noexcept
      : pid_(std::exchange(other.pid_, -1)), channel_(std::move(other.channel_)) {}
  RankProcess& operator=(RankProcess&& other) noexcept {
    std::swap(pid_, other.pid_);
    std::swap(channel_, other.channel_);
    return *this;
  }
  ~RankProcess();

  PacketChannel& channel() { return channel_; }

  // Sends SIGKILL and returns at once. When the child is dead, Receive() on its channel returns UNAVAILABLE.
  void Kill();

 private:
  pid_t pid_ = -1;
  PacketChannel channel_;
};

// The child's own view: its arguments and its channel to the parent.
struct RankChild {
  std::vector<std::string> arguments;
  PacketChannel channel;

  // nullopt in a process that RankProcess did not start.
  static std::optional<RankChild> FromArguments(int argc, char** argv);
};

}  // namespace switchyard
