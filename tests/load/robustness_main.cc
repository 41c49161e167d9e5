// Runs the storms at full size, one after the other, each with an honest caller that is measured before and during it.
// Prints a table in Markdown. tests/load/run.sh builds and runs it.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <optional>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/clock.h"
#include "tests/load/cancel_storm.h"
#include "tests/load/half_open.h"
#include "tests/load/honest_caller.h"
#include "tests/load/server_watch.h"

namespace switchyard {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

struct Settings {
  std::string attack = "tests/load/attack";
  std::string checkpoint = "tests/testdata/jargon-moe";
  int64_t cancels = 100'000;
  double cancel_rate = 1000;
  int half_open = 1000;
  int64_t huge_bytes = int64_t{1} << 30;
  int overload_seconds = 120;
  int soak_seconds = 240;
  int baseline_seconds = 15;
  std::vector<std::string> only;
  std::vector<std::string> server_flags;
};
Settings settings;  // from the command line

// A layer that computes for long on few bytes, so that even ten times the peak is few calls.
constexpr char kHeavyModel[] = "heavy=synthetic:dim=128,hidden=4096,experts=8,topk=8,layers=1,dtype=fp32";
constexpr int64_t kDim = 128;
constexpr int64_t kHeavyRows = 32;
constexpr milliseconds kHonestPeriod{10};
constexpr double kMib = 1 << 20;

// ---- Output

struct Row {
  std::string storm, honest_before, honest_during, server, verdict;
};

class Table {
 public:
  void Print(const Row& row) {
    if (!has_head_) {
      std::printf("| storm | honest caller before: p50, p99 | during | server | verdict |\n|---|---|---|---|---|\n");
      has_head_ = true;
    }
    std::printf("| %s | %s | %s | %s | %s |\n", row.storm.c_str(), row.honest_before.c_str(), row.honest_during.c_str(),
                row.server.c_str(), row.verdict.c_str());
    std::fflush(stdout);
  }

 private:
  bool has_head_ = false;
};

std::string Format(const char* format, double value) {
  char text[64];
  std::snprintf(text, sizeof(text), format, value);
  return text;
}

std::string Show(const HonestReport& report) {
  std::string text = Format("%.1f ms, ", report.P50Ms()) + Format("%.1f ms", report.P99Ms());
  absl::StrAppend(&text, " of ", report.answered);
  if (report.retries > 0) absl::StrAppend(&text, ", ", report.retries, " retries");
  if (report.failed > 0) absl::StrAppend(&text, ", ", report.failed, " FAILED: ", report.first_failure);
  if (report.wrong > 0) absl::StrAppend(&text, ", ", report.wrong, " WRONG");
  return text;
}

// Takes the conditions that have to hold, each with a name, and lists the names of those that do not.
std::string Verdict(const std::vector<std::pair<bool, std::string>>& demands) {
  std::vector<std::string> missed;
  for (const auto& [holds, name] : demands) {
    if (!holds) missed.push_back(name);
  }
  return missed.empty() ? "holds" : "MISSED: " + absl::StrJoin(missed, ", ");
}

std::pair<bool, std::string> Unharmed(const HonestReport& report) {
  return {report.failed == 0 && report.wrong == 0, "honest calls failed"};
}
std::pair<bool, std::string> P99Within(const HonestReport& before, const HonestReport& during) {
  return {during.P99Ms() < 2 * before.P99Ms(), "honest p99 under 2×"};
}

// ---- Parts

// A misbehaving client at the lowest priority, as if it were on another machine.
class Attack {
 public:
  static Attack Start(const ServerProcess& server, std::vector<std::string> arguments) {
    std::vector<std::string> all = {"-n", "19", settings.attack};
    all.insert(all.end(), arguments.begin(), arguments.end());
    all.push_back("--target=" + server.grpc_address());
    return Attack(ChildProcess::Start("/usr/bin/nice", all).value());
  }

  // Waits for the end of the client; returns its output.
  std::map<std::string, std::string> Finish() {
    std::map<std::string, std::string> output;
    for (std::string line; !(line = process_->ReadLine()).empty();) {
      const size_t at = line.find('=');
      output[line.substr(0, at)] = line.substr(std::min(line.size(), at + 1));
    }
    process_->Wait();
    return output;
  }

 private:
  explicit Attack(std::unique_ptr<ChildProcess> process) : process_(std::move(process)) {}

  std::unique_ptr<ChildProcess> process_;
};

double Number(const std::map<std::string, std::string>& output, const std::string& key) {
  const auto it = output.find(key);
  double value = 0;
  return it != output.end() && absl::SimpleAtod(it->second, &value) ? value : 0;
}

// Lists the codes with their counts.
std::string Codes(const std::map<std::string, std::string>& output) {
  std::vector<std::string> codes;
  for (const auto& [key, value] : output) {
    if (isupper(key[0])) codes.push_back(absl::StrCat(value, " ", key));
  }
  return absl::StrJoin(codes, ", ");
}

std::unique_ptr<ServerProcess> StartServer(std::vector<std::string> flags = {}) {
  flags.push_back("--model=m=" + settings.checkpoint);
  flags.emplace_back("--local_workers=2");
  flags.emplace_back("--compute_dtype=fp32");
  flags.insert(flags.end(), settings.server_flags.begin(), settings.server_flags.end());
  auto server = ServerProcess::Start(flags);
  if (!server.ok()) std::fprintf(stderr, "%s\n", std::string(server.status().message()).c_str());
  return *std::move(server);
}

HonestReport Measure(HonestCaller& honest, seconds duration) {
  honest.Take();
  std::this_thread::sleep_for(duration);
  return honest.Take();
}

std::string Leftover(const AdmittedWork& work) {
  return work.none() ? "nothing admitted left" : absl::StrCat(work.requests, " requests and ", work.rows, " rows LEFT");
}

// ---- Storms

void CancelStorms(Table& table) {
  const auto server = StartServer();
  const HonestWork work = GoldenWork("m", settings.checkpoint, 1, 8);
  HonestCaller honest(*server, work, kHonestPeriod);
  const std::string rate = absl::StrCat("--rate=", settings.cancel_rate);
  const auto attack = [&](const char* method, int64_t calls) {
    return Attack::Start(*server, {"cancel", std::string("--method=") + method, "--layer=2", "--rows=4", rate,
                                   absl::StrCat("--calls=", calls)})
        .Finish();
  };
  const HonestReport before = Measure(honest, seconds(settings.baseline_seconds));
  for (const char* method : {kForwardMethod, kInferMethod, kForwardStreamMethod, kInferStreamMethod}) {
    attack(method, settings.cancels / 40);  // lets memory pools grow to their size
    WaitUntilIdle(*server, seconds(10));
    const ProcessUsage usage_before = UsageOf(server->process().pid());
    honest.Take();
    const SteadyTime begin = Clock::Real().Now();
    const auto output = attack(method, settings.cancels / 4);
    const double elapsed_s = MicrosBetween(begin, Clock::Real().Now()) / 1e6;
    const HonestReport during = honest.Take();
    const AdmittedWork left = WaitUntilIdle(*server, seconds(10));
    const ProcessUsage usage = UsageOf(server->process().pid());
    const double growth = (usage.rss_bytes - usage_before.rss_bytes) / kMib;
    table.Print(
        {absl::StrCat(settings.cancels / 4, " cancelled calls of `", method, "` at ",
                      Format("%.0f", settings.cancels / 4 / elapsed_s), "/s: ", Codes(output)),
         Show(before), Show(during),
         absl::StrCat(Leftover(left), ", RSS ", Format("%+.1f", growth), " MiB, ", usage.num_fds, " descriptors"),
         Verdict({Unharmed(during),
                  P99Within(before, during),
                  {left.none(), "slots return to 0"},
                  {growth < 16, "no leak"}})});
  }
}

void HalfOpenStorm(Table& table) {
  const auto server = StartServer();
  const HonestWork work = GoldenWork("m", settings.checkpoint, 1, 8);
  HonestCaller honest(*server, work, kHonestPeriod);
  const HonestReport before = Measure(honest, seconds(settings.baseline_seconds));
  const ProcessUsage usage_before = UsageOf(server->process().pid());
  auto connections = *HalfOpenConnections::Open(server->grpc_address(), settings.half_open);
  const SteadyTime begin = Clock::Real().Now();
  honest.Take();
  const int closed = connections.WaitUntilClosed(settings.half_open, milliseconds(15'000));
  const double closed_after_s = MicrosBetween(begin, Clock::Real().Now()) / 1e6;
  std::this_thread::sleep_until(begin + seconds(settings.baseline_seconds));
  const HonestReport during = honest.Take();
  const ProcessUsage usage = UsageOf(server->process().pid());
  table.Print({absl::StrCat(settings.half_open, " half-open connections"), Show(before), Show(during),
               absl::StrCat(closed, " closed by the server within ", Format("%.1f", closed_after_s), " s, RSS ",
                            Format("%+.1f", (usage.rss_bytes - usage_before.rss_bytes) / kMib), " MiB, ",
                            usage.num_fds - usage_before.num_fds, " more descriptors"),
               Verdict({Unharmed(during),
                        P99Within(before, during),
                        {closed == settings.half_open && closed_after_s <= 11, "closed within 10 s"}})});
}

struct Huge {
  const char* name;
  const char* what;
  const char* method;
  std::vector<std::string> flags;  // of the server
};

void HugeMessage(Table& table, const Huge& huge) {
  const auto server = StartServer(huge.flags);
  const HonestWork work = GoldenWork("m", settings.checkpoint, 1, 8);
  HonestCaller honest(*server, work, kHonestPeriod);
  const HonestReport before = Measure(honest, seconds(settings.baseline_seconds));
  const ProcessUsage usage_before = UsageOf(server->process().pid());
  ResetPeakRss(server->process().pid());
  const SteadyTime begin = Clock::Real().Now();
  const auto output =
      Attack::Start(*server, {"huge", std::string("--method=") + huge.method, std::string("--what=") + huge.what,
                              absl::StrCat("--bytes=", settings.huge_bytes)})
          .Finish();
  const double elapsed_s = MicrosBetween(begin, Clock::Real().Now()) / 1e6;
  honest.WaitForCalls(100);
  const HonestReport during = honest.Take();
  const ProcessUsage usage = UsageOf(server->process().pid());
  const double growth = (usage.peak_rss_bytes - usage_before.rss_bytes) / kMib;
  const bool refused =
      output.count("RESOURCE_EXHAUSTED") + output.count("INVALID_ARGUMENT") + output.count("UNIMPLEMENTED") > 0;
  table.Print(
      {absl::StrCat(settings.huge_bytes, " ", huge.name, " to `", huge.method, "` ", absl::StrJoin(huge.flags, " "),
                    ": ", Codes(output), " after ", Format("%.1f", elapsed_s), " s"),
       Show(before), Show(during),
       absl::StrCat("peak RSS ", Format("%+.1f", growth), " MiB, ",
                    Format("%+.1f", (usage.rss_bytes - usage_before.rss_bytes) / kMib), " MiB afterwards"),
       Verdict({Unharmed(during),
                P99Within(before, during),
                {refused, "refused"},
                {growth < 64, "memory grows < 64 MiB"}})});
}

void HugeMessages(Table& table) {
  // Limits for senders that are not trusted, see docs/operations.md.
  const std::vector<std::string> usual,
      strict = {"--max_request_bytes=8388608", "--grpc_memory_bytes=16777216", "--max_queued_bytes=8388608"};
  HugeMessage(table, {"bytes in one message", "plain", kForwardMethod, usual});
  for (const char* method : {kForwardMethod, kInferMethod, kInferStreamMethod}) {
    HugeMessage(table, {"bytes in one message", "plain", method, strict});
  }
  HugeMessage(table, {"bytes of zeros, compressed", "gzip", kInferMethod, strict});
  std::vector<std::string> uncompressed = strict;
  uncompressed.emplace_back("--compression=off");
  HugeMessage(table, {"bytes of zeros, compressed", "gzip", kInferMethod, uncompressed});
  HugeMessage(table, {"bytes of unknown fields", "fields", "/inference.GRPCInferenceService/ServerLive", strict});
}

// The number of requests that the server answered, by its own count.
double NumAnswered(ServerProcess& server) {
  double sum = 0;
  for (const absl::string_view line : absl::StrSplit(server.Get("/metrics"), '\n')) {
    double value = 0;
    if (absl::StartsWith(line, "switchyard_requests_total{code=\"OK\"") &&
        absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value)) {
      sum += value;
    }
  }
  return sum;
}

// Measures the server's answers per second to callers other than the honest one. The attacking callers share its cores
// and count only the answers that reach them in time, which under overload depends on themselves as well.
class AnswerRate {
 public:
  explicit AnswerRate(ServerProcess& server) : server_(server), before_(NumAnswered(server)) {}
  double Take(const HonestReport& honest) const {
    const double seconds = MicrosBetween(begin_, Clock::Real().Now()) / 1e6;
    return (NumAnswered(server_) - before_ - static_cast<double>(honest.answered)) / seconds;
  }

 private:
  ServerProcess& server_;
  const double before_;
  const SteadyTime begin_ = Clock::Real().Now();
};

// Runs one overload on one server: the peak in a closed loop, then ten times its rate.
void OverloadOnce(Table& table, const std::string& name, const std::vector<std::string>& flags, int deadline_ms) {
  std::vector<std::string> all = flags;
  all.push_back(std::string("--model=") + kHeavyModel);
  all.emplace_back("--max_batch_rows=256");
  const auto server = StartServer(all);
  const auto work = ObservedWork(*server, "heavy", "0", 4, kDim);
  HonestCaller honest(*server, *work, kHonestPeriod * 5);
  const std::vector<std::string> common = {"load", "--model=heavy", absl::StrCat("--rows=", kHeavyRows),
                                           absl::StrCat("--deadline_ms=", deadline_ms)};
  const auto load = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), common.begin(), common.end());
    return Attack::Start(*server, arguments).Finish();
  };
  honest.WaitForCalls(10);
  honest.Take();
  const AnswerRate peak_rate(*server);
  const auto peak = load({"--concurrency=16", absl::StrCat("--seconds=", settings.baseline_seconds)});
  const HonestReport before = honest.Take();
  const double answered_at_peak = peak_rate.Take(before);
  const double peak_per_s = Number(peak, "goodput_per_s");
  ResetPeakRss(server->process().pid());
  const ProcessUsage usage_before = UsageOf(server->process().pid());
  const AnswerRate storm_rate(*server);
  const auto storm =
      load({absl::StrCat("--rate=", 10 * peak_per_s), absl::StrCat("--seconds=", settings.overload_seconds)});
  const HonestReport during = honest.Take();
  const double answered = storm_rate.Take(during);
  const AdmittedWork left = WaitUntilIdle(*server, seconds(30));
  const ProcessUsage usage = UsageOf(server->process().pid());
  const double goodput = Number(storm, "goodput_per_s");
  const double refusal_ms = Number(storm, "refusal_p99_ms");
  table.Print(
      {absl::StrCat("10× overload for ", settings.overload_seconds, " s, ", name, ": offered ",
                    Format("%.0f", Number(storm, "offered_per_s")), "/s, ", Codes(storm)),
       Show(before), Show(during),
       absl::StrCat("goodput ", Format("%.1f", goodput), "/s of peak ", Format("%.1f", peak_per_s),
                    "/s = ", Format("%.0f %%", 100 * goodput / peak_per_s),
                    " at the caller; answered in time by the server ", Format("%.1f", answered), "/s of ",
                    Format("%.1f", answered_at_peak), "/s = ", Format("%.0f %%", 100 * answered / answered_at_peak),
                    "; refusals p50 ", Format("%.1f", Number(storm, "refusal_p50_ms")), " ms, p99 ",
                    Format("%.1f", refusal_ms), " ms at the caller; peak RSS ",
                    Format("%+.1f", (usage.peak_rss_bytes - usage_before.rss_bytes) / kMib), " MiB; ", Leftover(left)),
       Verdict({Unharmed(during),
                P99Within(before, during),
                {answered >= 0.9 * answered_at_peak, "goodput ≥ 90 % of peak"},
                {goodput >= 0.9 * peak_per_s, "the same at the caller"},
                {Number(storm, "refused_without_pushback") == 0, "pushback"},
                {refusal_ms < 10, "refusals < 10 ms"},
                {left.none(), "slots return to 0"}})});
}

void OverloadStorms(Table& table) {
  OverloadOnce(table, "deadlines of 1 s, the usual budgets", {}, 1000);
  OverloadOnce(table, "deadlines of 10 s, --max_queued_rows=2048", {"--max_queued_rows=2048"}, 10'000);
}

// Least-squares slope of memory over time, in MiB per hour.
double SlopeMibPerHour(const std::vector<std::pair<double, double>>& seconds_and_mib) {
  double n = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (const auto& [x, y] : seconds_and_mib) n += 1, sx += x, sy += y, sxx += x * x, sxy += x * y;
  return 3600 * (n * sxy - sx * sy) / (n * sxx - sx * sx);
}

// All storms at once, at low rates, while workers are killed.
void Soak(Table& table) {
  const auto server = StartServer();
  const HonestWork work = GoldenWork("m", settings.checkpoint, 1, 8);
  HonestCaller honest(*server, work, kHonestPeriod);
  const HonestReport before = Measure(honest, seconds(settings.baseline_seconds));
  const auto calls = [&](double rate) {
    return absl::StrCat("--calls=", static_cast<int64_t>(rate * settings.soak_seconds));
  };
  Attack cancels = Attack::Start(*server, {"cancel", "--layer=2", "--rows=20", "--rate=200", calls(200)});
  Attack streams = Attack::Start(*server, {"cancel", std::string("--method=") + kInferStreamMethod, "--layer=3",
                                           "--rows=20", "--rate=100", calls(100)});
  Attack garbage = Attack::Start(*server, {"garbage", "--rate=200", calls(100)});
  Attack load = Attack::Start(*server, {"load", "--rows=100", "--concurrency=4", "--deadline_ms=60000",
                                        absl::StrCat("--seconds=", settings.soak_seconds)});
  const auto client = server->Connect();
  std::mt19937 random(3);
  std::vector<std::pair<double, double>> memory;
  int kills = 0;
  const SteadyTime begin = Clock::Real().Now();
  for (int second = 1; second <= settings.soak_seconds; ++second) {
    std::this_thread::sleep_until(begin + seconds(second));
    // The first third of the time fills pools and caches.
    if (second > settings.soak_seconds / 3) {
      memory.emplace_back(second, UsageOf(server->process().pid()).rss_bytes / kMib);
    }
    const auto status = client->GetStatus();
    if (second % 20 != 0 || !status.ok() || status->state() != "serving") continue;
    kill(status->ranks(static_cast<int>(random() % 2)).pid(), SIGKILL);
    ++kills;
  }
  const HonestReport during = honest.Take();
  const std::string codes = absl::StrCat("load ", Codes(load.Finish()), "; cancelled ", Codes(cancels.Finish()), ", ",
                                         Codes(streams.Finish()), "; garbage ", Codes(garbage.Finish()));
  const AdmittedWork left = WaitUntilIdle(*server, seconds(30));
  const double growth = memory.back().second - memory.front().second;
  table.Print({absl::StrCat("soak of ", settings.soak_seconds, " s with ", kills, " workers killed: ", codes),
               Show(before), Show(during),
               absl::StrCat("RSS ", Format("%.0f", memory.front().second), " to ", Format("%.0f", memory.back().second),
                            " MiB over the last two thirds, slope ", Format("%.1f", SlopeMibPerHour(memory)),
                            " MiB/h; ", Leftover(left)),
               Verdict({Unharmed(during), {growth < 8, "no leak"}, {left.none(), "slots return to 0"}})});
  if (server->Stop() != 0) std::printf("the server did not end as asked\n");
}

int Main(int argc, char** argv) {
  CLI::App app{"Storms at full size, each with an honest caller measured before and during it."};
  app.add_option("--cancels", settings.cancels, "calls that are opened and cancelled, over four methods");
  app.add_option("--cancel_rate", settings.cancel_rate, "cancelled calls per second");
  app.add_option("--half_open", settings.half_open, "connections");
  app.add_option("--huge_bytes", settings.huge_bytes, "size of a message");
  app.add_option("--overload_seconds", settings.overload_seconds, "duration of each overload");
  app.add_option("--soak_seconds", settings.soak_seconds, "duration of the soak");
  app.add_option("--baseline_seconds", settings.baseline_seconds,
                 "duration of the calm load that storms are compared with");
  app.add_option("--attack", settings.attack, "the attacking program");
  app.add_option("--checkpoint", settings.checkpoint, "jargon-moe");
  app.add_option("--only", settings.only, "cancel, half_open, huge, overload or soak; repeat it for several");
  app.add_option("--server_flag", settings.server_flags,
                 "for every server, as --worker_threads=4; repeat it for several");
  CLI11_PARSE(app, argc, argv);
  const auto wanted = [&](const std::string& name) {
    return settings.only.empty() || std::count(settings.only.begin(), settings.only.end(), name) > 0;
  };
  Table table;
  if (wanted("cancel")) CancelStorms(table);
  if (wanted("half_open")) HalfOpenStorm(table);
  if (wanted("huge")) HugeMessages(table);
  if (wanted("overload")) OverloadStorms(table);
  if (wanted("soak")) Soak(table);
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::Main(argc, argv); }
