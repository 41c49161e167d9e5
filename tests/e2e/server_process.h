// Real processes for end-to-end tests: a front with its workers, or workers that join one. They are started from the
// build's own binaries and end with the object.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "client/client.h"

namespace switchyard {

// A child process whose stderr goes to a file. It is killed with the object. Used by one thread at a time.
class ChildProcess {
 public:
  // `program` is a path, relative to the runfiles in tests that Bazel runs.
  // With `stderr_fd`, the process's stderr is that and not a file.
  static absl::StatusOr<std::unique_ptr<ChildProcess>> Start(const std::string& program,
                                                             const std::vector<std::string>& arguments,
                                                             int stderr_fd = -1);
  ~ChildProcess();

  pid_t pid() const { return pid_; }
  void Signal(int signal) const;
  // Waits for the end. Returns the exit status, or 128 + the signal that ended the process.
  int Wait();
  // Waits until the process has ended; false when it has not within `timeout`.
  bool WaitFor(std::chrono::milliseconds timeout) const;
  // The next line on its stdout, without the newline; empty at its end.
  std::string ReadLine();
  // Everything on its stderr so far.
  std::string Log() const;
  // Waits until that contains `text`, because a line comes a moment after the event that it tells of. Returns whether
  // it has come within 10 s.
  bool HasLogged(const std::string& text) const;

 private:
  ChildProcess() = default;

  pid_t pid_ = -1;
  int stdout_fd_ = -1;
  std::string log_path_;
};

// The programs in the runfiles.
inline constexpr char kServerProgram[] = "server/switchyard_server";
inline constexpr char kWorkerProgram[] = "worker/switchyard_worker";

// Waits until a front that was started with --await_workers says in its log where it awaits them; returns HOST:PORT.
// The error contains the end of the log.
absl::StatusOr<std::string> WaitForWorkerPort(const ChildProcess& front);

// The body of the answer to a GET at HOST:PORT, an IPv4 address; empty unless its status is 200.
std::string HttpGet(const std::string& address, const std::string& path);

// A serving front.
class ServerProcess {
 public:
  // Adds --port=0 --http_port=0, and --device=cpu unless `flags` name another device, and waits for the READY line. The
  // error contains the end of the log.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(const std::vector<std::string>& flags,
                                                              const std::string& program = kServerProgram);
  // Takes over a front that needed awaited workers to be started first.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> WaitUntilReady(std::unique_ptr<ChildProcess> process);

  ChildProcess& process() { return *process_; }
  const ChildProcess& process() const { return *process_; }
  const std::string& grpc_address() const { return grpc_address_; }
  const std::string& http_address() const { return http_address_; }

  std::unique_ptr<Client> Connect(ClientOptions options = {}) const;
  std::string Get(const std::string& path) const { return HttpGet(http_address_, path); }
  // Sends SIGTERM; returns the exit status.
  int Stop();

 private:
  std::unique_ptr<ChildProcess> process_;
  std::string grpc_address_, http_address_;
};

}  // namespace switchyard
