#include "worker/program.h"

#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "base/logging/logging.h"
#include "base/process/container_limits.h"
#include "base/process/deadlock_detection.h"
#include "base/process/exhausted.h"
#include "base/process/process_start.h"
#include "base/process/stop_signals.h"
#include "rpc/library_logs.h"
#include "rpc/version_line.h"
#include "worker/worker.h"

namespace switchyard {
namespace {

constexpr char kFooter[] =
    "Exit codes: 0 drained or stopped; 1 it cannot do its work (device lost, model not loadable): start it again after "
    "a pause; 2 wrong flags; 3 no front took it: start it again; 4 the front refused it (version, build, token): "
    "repair that first.\n\nExample: switchyard_worker --front=127.0.0.1:8003 --device=cpu";

void AddFlags(CLI::App& app, WorkerOptions& options, LoggingOptions& logging) {
  app.add_option("--front", options.front, "HOST:PORT, [IPV6]:PORT or unix:PATH of the server's worker port")
      ->required();
  app.add_option("--device", options.device, "auto, cpu, cuda or cuda:N")->capture_default_str();
  app.add_option(
         "--gpu_memory_limit", options.gpu_memory_limit,
         "GPU memory for weights and workspace at most, in bytes or with K, M, G, Ki, Mi, Gi; 0 for all that is free")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true))
      ->capture_default_str();
  app.add_flag("--allow_tf32", options.allow_tf32, "let fp32 products on a GPU round their inputs to TF32, for speed");
  app.add_option("--custom_expert", options.custom_expert,
                 "registered C++ expert that replaces the checkpoints' own (CPU); see docs/models.md");
  app.add_option("--threads", options.num_threads, "threads of the CPU engine; 0 for every core it may run on")
      ->capture_default_str();
  app.add_option(
      "--exchange_host", options.exchange_host,
      "address, name or interface of this machine at which other hosts' workers reach this one; default: the "
      "address from which it reaches --front");
  app.add_option("--worker_token_file", options.token_file, "file with the secret that the server asks of workers");
  app.add_option("--worker_tls_cert", options.tls.cert.path, "own certificate, to join over mutual TLS");
  app.add_option("--worker_tls_key", options.tls.key.path, "the certificate's key");
  app.add_option("--worker_tls_ca", options.tls.ca.path, "roots that the server's certificate must lead to");
  app.add_option("--http_port", options.http_port,
                 "port of /metrics, /livez and /readyz, which are not served without it; 0 takes a free one");
  app.add_option("--http_host", options.http_host, "address that they are served at")->capture_default_str();
  app.add_option("--join_timeout_ms", options.join_timeout_ms,
                 "how long to wait for a server that is not up yet, or has no rank free; then end with status 3")
      ->capture_default_str();
  app.add_option("--front_timeout_ms", options.front_timeout_ms,
                 "take the server for lost when it is silent for so long, not even pinging; 0 waits for ever")
      ->capture_default_str();
  app.add_option("--rejoin_timeout_ms", options.rejoin_timeout_ms,
                 "how long to keep the weights and try to join again when the server is lost; then, or at once with 0, "
                 "end with status 3")
      ->capture_default_str();
  app.add_option("--log_level", logging.level, "trace, debug, info, warn, error or off")->capture_default_str();
  app.add_option("--log_format", logging.format, "text or json")->capture_default_str();
  app.add_option("--local_index", options.local_index)->group("");
  app.add_option("--num_local_workers", options.num_local_workers)->group("");
  app.add_option("--link_fd", options.link_fd)->group("");
  app.add_option("--link_spin_us", options.link_spin_us)->group("");
}

// Returns a descriptor that becomes readable on the signals that ask this process to stop. A worker that a front
// started ignores what a terminal sends, because the front handles it and drains first. Another worker also stops when
// the terminal that it was started from is gone, unless it was started by nohup.
absl::StatusOr<UniqueFd> BlockStopSignals(bool started_by_front, const Inherited& inherited) {
  std::vector<int> stopping = {SIGTERM};
  if (started_by_front) {
    for (const int number : {SIGINT, SIGQUIT}) signal(number, SIG_IGN);
  } else {
    EndAtOnceOn(SIGQUIT);
    stopping.push_back(SIGINT);
    if (inherited.has_terminal && !inherited.ignores_hangup) stopping.push_back(SIGHUP);
  }
  const sigset_t signals = KeepSignalsForThisThread(stopping);
  UniqueFd fd(signalfd(-1, &signals, SFD_CLOEXEC));
  if (!fd.valid()) return ErrnoStatus(errno, "signalfd");
  return fd;
}

// The threads of a worker that serves, besides those of its engine: gRPC's, and those of docs/architecture.md.
constexpr int kThreadsAtLeast = 16;

// Loading allocates and frees an expert's tensors over and over. By default glibc would come to keep such blocks in its
// heap, between packed weights that stay, so that a third of the process's memory would be holes. Blocks from this size
// on are mapped instead, and go back to the system when they are freed.
void KeepLargeBlocksOutOfTheHeap() { mallopt(M_MMAP_THRESHOLD, 1 << 20); }

// When the front dies, even by SIGKILL, its workers must not stay behind. A front that was dead before the signal was
// asked for has closed its end of the link. The process id of the parent would not say so, because the parent may be a
// script between the two.
absl::Status DieWithTheFront(int link_fd) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  pollfd link = {link_fd, 0, 0};
  if (link_fd < 0 || poll(&link, 1, 0) == 0 || (link.revents & POLLHUP) == 0) return absl::OkStatus();
  return absl::UnavailableError("the front that started this worker has ended");
}

// libgomp reads these variables once, before main. So a worker that nobody has set them for begins anew with them, as a
// front does for its own workers. When that fails, the worker goes on, only slower.
void BeginAnewWithThreadWaiting(const WorkerOptions& options, char** argv) {
  const int threads = options.num_threads > 0 ? options.num_threads : OwnCpuShare().num_threads;
  std::vector<std::string> settings = ThreadWaiting(threads);
  if (settings.empty()) return;
  char path[PATH_MAX] = {};
  if (readlink("/proc/self/exe", path, sizeof(path) - 1) < 0) return;
  if (absl::StartsWith(basename(path), "ld-")) return;  // run by a loader, whose arguments are not known here
  for (std::string& setting : settings) putenv(setting.data());
  execv(path, argv);
  for (const std::string& setting : settings) unsetenv(setting.substr(0, setting.find('=')).c_str());
}

absl::StatusOr<WorkerEnd> RunWorker(const WorkerOptions& options, const LoggingOptions& logging,
                                    const Inherited& inherited, DeviceOpener open_device) {
  SY_RETURN_IF_ERROR(SetUpLogging(logging));
  TakeOverLibraryLogs();
  KeepLargeBlocksOutOfTheHeap();
  const bool started_by_front = options.local_index >= 0;
  if (started_by_front) SY_RETURN_IF_ERROR(DieWithTheFront(options.link_fd));
  SY_RETURN_IF_ERROR(CheckThreads(kThreadsAtLeast + options.num_threads));
  SY_ASSIGN_OR_RETURN(const UniqueFd stop_fd, BlockStopSignals(started_by_front, inherited));
  SY_ASSIGN_OR_RETURN(auto worker, Worker::Create(options, open_device));
  return worker->Run(stop_fd.get());
}

WorkerEnd CheckAndRunWorker(const WorkerOptions& options, const LoggingOptions& logging, const Inherited& inherited,
                            DeviceOpener open_device) {
  if (absl::Status checked = CheckOptions(options); !checked.ok()) return {ExitCode::kUsage, checked};
  const auto end = RunWorker(options, logging, inherited, open_device);
  if (end.ok()) return *end;
  return {absl::IsInvalidArgument(end.status()) ? ExitCode::kUsage : ExitCode::kError, end.status()};
}

}  // namespace

int RunWorkerProgram(int argc, char** argv, DeviceOpener open_device) {
  const Inherited inherited = PrepareProcess(ProgramKind::kService);
  NameLimitsAtTheEnd("switchyard_worker");
  StopLookingForDeadlocks();
  WorkerOptions options;
  LoggingOptions logging;
  CLI::App app{"switchyard_worker: holds a share of the experts and runs steps for a switchyard_server."};
  app.set_version_flag("--version", VersionLine("switchyard_worker"));
  app.footer(kFooter);
  AddFlags(app, options, logging);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return static_cast<int>(app.exit(error) == 0 ? ExitCode::kOk : ExitCode::kUsage);
  }
  if (options.local_index < 0) BeginAnewWithThreadWaiting(options, argv);
  logging.process = options.local_index >= 0 ? absl::StrCat("worker ", options.local_index) : "worker";
  const WorkerEnd end = CheckAndRunWorker(options, logging, inherited, open_device);
  if (end.code != ExitCode::kOk) {
    const std::string erase(StderrIsTerminal() ? kEraseLine : "");
    WriteToLog(absl::StrCat(erase, "switchyard_worker: ", end.why.message(), "\n"));
  }
  return static_cast<int>(end.code);
}

}  // namespace switchyard
