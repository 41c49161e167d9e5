// Ranks as processes, for tests and benchmarks of GPU communicators.
//
// CUDA does not survive fork(), so a child is a fresh run of the same executable, told by its first argument. Parent
// and child talk in packets over a socket. A child dies with its parent.
//
//   int main(int argc, char** argv) {
//     if (std::optional<RankChild> child = RankChild::FromArguments(argc, argv)) return RunRank(*child);
//     …
//     SY_ASSIGN_OR_RETURN(RankProcess process, RankProcess::Start({"exchange", "1"}));
//
// Thread-safety: a channel may be sent to by one thread and received from by another.
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
  // DEADLINE_EXCEEDED when nothing comes.
  absl::StatusOr<std::string> Receive(std::chrono::milliseconds timeout = std::chrono::minutes(1));

  // A fixed number of packets, one after another.
  absl::Status SendAll(const std::vector<std::string>& packets);
  absl::StatusOr<std::vector<std::string>> ReceiveAll(int num_packets);

 private:
  UniqueFd fd_;
};

// The child, as its parent sees it. Killed, and waited for, when destroyed.
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

  // SIGKILL. Returns at once; the channel's next Receive() tells when it is done.
  void Kill();

 private:
  pid_t pid_ = -1;
  PacketChannel channel_;
};

// The child, as it sees itself.
struct RankChild {
  std::vector<std::string> arguments;
  PacketChannel channel;

  // Nothing in a process that RankProcess did not start.
  static std::optional<RankChild> FromArguments(int argc, char** argv);
};

}  // namespace switchyard
