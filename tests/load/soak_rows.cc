// Row 15: all storms at once, at low rates, while workers are killed and models come and go; and how the tests end
// under ThreadSanitizer.
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <random>
#include <set>
#include <thread>

#include "tests/load/cancel_storm.h"
#include "tests/load/row_parts.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

// Least-squares slope of memory over time, in MiB per hour.
double SlopeMibPerHour(const std::vector<std::pair<double, double>>& seconds_and_mib) {
  double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (const auto& [x, y] : seconds_and_mib) n += 1, sx += x, sy += y, sxx += x * x, sxy += x * y;
  return 3600 * (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

std::set<std::string> SharedMemory() {
  std::set<std::string> names;
  std::error_code gone;
  for (const auto& entry : fs::directory_iterator("/dev/shm", gone)) names.insert(entry.path().filename());
  return names;
}

// Loads and unloads a model over and over, until it is destroyed.
class Churn {
 public:
  explicit Churn(const ServerProcess& server)
      : client_(server.Connect({.timeout = absl::Seconds(60), .max_attempts = 1})), thread_([this] { Run(); }) {}
  ~Churn() { Stop(); }
  void Stop() {
    stop_.store(true);
    if (thread_.joinable()) thread_.join();
  }
  int64_t count() const { return count_.load(); }
  int64_t failed() const { return failed_.load(); }

 private:
  void Run() {
    while (!stop_.load()) {
      for (const absl::Status& status :
           {client_->LoadModel("golden_mixtral"), client_->UnloadModel("golden_mixtral")}) {
        ++count_;
        failed_ += !status.ok();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
    }
  }

  const std::unique_ptr<Client> client_;
  std::atomic<bool> stop_{false};
  std::atomic<int64_t> count_{0}, failed_{0};
  std::thread thread_;
};

struct Watched {
  std::vector<std::pair<double, double>> memory;  // seconds and MiB, after the first third
  int64_t kills = 0;
};

Watched WatchAndKill(const ServerProcess& server, int64_t duration_s) {
  Watched watched;
  const auto client = server.Connect();
  std::mt19937 random(3);
  const SteadyTime begin = Clock::Real().Now();
  for (int64_t second = 1; second <= duration_s; ++second) {
    std::this_thread::sleep_until(begin + std::chrono::seconds(second));
    // The first third of the time fills pools and caches.
    if (second > duration_s / 3) {
      watched.memory.emplace_back(second, static_cast<double>(UsageOf(server.process().pid()).rss_bytes) / kMib);
    }
    const auto status = client->GetStatus();
    if (second % 20 != 0 || !status.ok() || status->state() != "serving") continue;
    kill(status->ranks(static_cast<int>(random() % 2)).pid(), SIGKILL);
    ++watched.kills;
  }
  return watched;
}

std::vector<pid_t> WorkersOf(const ServerProcess& server) {
  std::vector<pid_t> workers;
  const v1::GetStatusResponse status = OrDie(server.Connect()->GetStatus());
  for (const v1::Rank& rank : status.ranks()) workers.push_back(rank.pid());
  return workers;
}

int64_t NumAlive(const std::vector<pid_t>& processes) {
  int64_t count = 0;
  for (const pid_t process : processes) count += kill(process, 0) == 0;
  return count;
}

void PrintTsan(const ScorecardSettings& settings, Scorecard& card) {
  constexpr char kTsanTried[] = "every test tagged `tsan` under ThreadSanitizer", kTsanLimit[] = "no report";
  if (settings.tsan.empty()) {
    card.Print(15, NotRun(kTsanTried, kTsanLimit, "not asked for: `tests/load/run.sh --tsan`, or `tests/run.sh`"));
    return;
  }
  const bool has_passed = settings.tsan.find("fail") == std::string::npos;
  card.Print(15, {.tried = kTsanTried,
                  .limit = kTsanLimit,
                  .measured = settings.tsan,
                  .demands = {{has_passed, "no report"}},
                  .not_run = ""});
}

}  // namespace

void MeasureSoak(const ScorecardSettings& settings, Scorecard& card) {
  PrintTsan(settings, card);
  const int64_t duration_s = settings.is_quick ? 45 : int64_t{60} * settings.soak_minutes;
  const std::set<std::string> shared_before = SharedMemory();
  const auto server = StartServer(settings, {"--model_repository=" + settings.testdata});
  const HonestWork work = GoldenWork("m", settings.checkpoint(), 1, 8);
  HonestCaller honest(*server, work, kHonestPeriod);
  const HonestReport before = MeasureCalm(settings, honest);
  const ProcessUsage usage_before = UsageOf(server->process().pid());
  const auto rate = [&](int64_t per_s, int64_t calls_per_s) -> std::vector<std::string> {
    return {absl::StrCat("--rate=", per_s), absl::StrCat("--calls=", calls_per_s * duration_s)};
  };
  const auto attack = [&](std::vector<std::string> arguments, const std::vector<std::string>& more) {
    arguments.insert(arguments.end(), more.begin(), more.end());
    return Attack(settings, *server, arguments);
  };
  Attack cancels = attack({"cancel", "--layer=2", "--rows=20"}, rate(200, 200));
  Attack streams =
      attack({"cancel", std::string("--method=") + kInferStreamMethod, "--layer=3", "--rows=20"}, rate(100, 100));
  Attack garbage = attack({"garbage"}, rate(200, 100));
  Attack load = attack({"load", "--rows=100", "--concurrency=4", "--deadline_ms=60000"},
                       {absl::StrCat("--seconds=", duration_s)});
  Churn churn(*server);
  const Watched watched = WatchAndKill(*server, duration_s);
  churn.Stop();
  const std::string codes = absl::StrCat("load ", Codes(load.Finish()), "; cancelled ", Codes(cancels.Finish()), ", ",
                                         Codes(streams.Finish()), "; garbage ", Codes(garbage.Finish()));
  const HonestReport during = honest.Take();
  const AdmittedWork left = WaitUntilIdle(*server, std::chrono::seconds(30));
  std::this_thread::sleep_for(std::chrono::seconds(2));  // connections of the attackers close
  const ProcessUsage usage = UsageOf(server->process().pid());
  const std::vector<pid_t> workers = WorkersOf(*server);
  const int exit_status = server->Stop();
  const int64_t alive = NumAlive(workers);
  std::set<std::string> shared = SharedMemory();
  for (const std::string& name : shared_before) shared.erase(name);
  const double slope = SlopeMibPerHour(watched.memory);
  const double watched_hours = static_cast<double>(watched.memory.size()) / 3600;
  // A slope per hour means nothing after minutes, so there the growth itself has to be small.
  const bool is_long = duration_s >= 1800;
  const double growth = slope * watched_hours;
  card.Print(15, {.tried = absl::StrCat("soak of ", duration_s, " s with ", watched.kills, " workers killed and ",
                                        churn.count(), " loads and unloads: ", codes),
                  .limit = is_long ? "memory slope < 1 MiB/h; no descriptor, thread, process or shared memory left"
                                   : "memory grows < 1 MiB; no descriptor, thread, process or shared memory left",
                  .measured = absl::StrCat(
                      "RSS ", Format("%.1f", watched.memory.front().second), " to ",
                      Format("%.1f", watched.memory.back().second), " MiB over the last two thirds, slope ",
                      Format("%.1f", slope), " MiB/h; descriptors ", usage_before.num_fds, " to ", usage.num_fds,
                      ", threads ", usage_before.num_threads, " to ", usage.num_threads, "; ", Leftover(left),
                      "; after the end ", alive, " workers and ", shared.size(), " objects of shared memory; ",
                      churn.failed(), " loads or unloads failed; ", ShowBoth(before, during)),
                  .demands = {Unharmed(during),
                              {settings.is_quick || (is_long ? slope < 1 : growth < 1),
                               is_long ? "memory slope < 1 MiB/h" : "memory grows < 1 MiB"},
                              {left.none(), "slots return to 0"},
                              {usage.num_fds <= usage_before.num_fds + 2, "no descriptor left"},
                              {usage.num_threads <= usage_before.num_threads + 4, "no thread left"},
                              {churn.failed() == 0, "loads and unloads"},
                              {exit_status == 0 && alive == 0 && shared.empty(), "nothing left after the end"}},
                  .not_run = ""});
}

}  // namespace switchyard
