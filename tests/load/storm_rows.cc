// Rows 5 to 7: huge messages, cancelled calls and half-open connections, each with an honest caller that is measured
// before and during it.
#include <thread>

#include "absl/strings/str_join.h"
#include "tests/load/cancel_storm.h"
#include "tests/load/half_open.h"
#include "tests/load/row_parts.h"

namespace switchyard {
namespace {

struct Huge {
  const char* name;
  const char* what;
  const char* method;
  std::vector<std::string> flags;  // of the server
};

// Returns the code that the call ends with.
std::string SendHuge(const ScorecardSettings& settings, const ServerProcess& server, const Huge& huge,
                     int64_t num_bytes) {
  const auto output = Attack(settings, server,
                             {"huge", std::string("--method=") + huge.method, std::string("--what=") + huge.what,
                              absl::StrCat("--bytes=", num_bytes)})
                          .Finish();
  const std::string codes = Codes(output);
  return codes.substr(codes.find(' ') + 1);
}

void MeasureHuge(const ScorecardSettings& settings, const Huge& huge, Scorecard& card) {
  const auto server = StartServer(settings, huge.flags);
  const HonestWork work = GoldenWork("m", settings.checkpoint(), 1, 8);
  HonestCaller honest(*server, work, kHonestPeriod);
  const HonestReport before = MeasureCalm(settings, honest);
  const pid_t pid = server->process().pid();
  const ProcessUsage usage_before = UsageOf(pid);
  ResetPeakRss(pid);
  const int64_t num_bytes = settings.Size(int64_t{1} << 30, int64_t{1} << 29);
  const int64_t wanted_us = settings.Size(5'000'000, 0);
  // One message after the other, so that the honest caller makes enough calls beside them.
  std::map<std::string, int64_t> codes;
  int64_t num_messages = 0;
  const SteadyTime begin = Clock::Real().Now();
  while (num_messages == 0 || MicrosBetween(begin, Clock::Real().Now()) < wanted_us) {
    ++num_messages;
    ++codes[SendHuge(settings, *server, huge, num_bytes)];
  }
  const double elapsed_s = MicrosBetween(begin, Clock::Real().Now()) / 1e6;
  const HonestReport during = honest.Take();
  const double growth = static_cast<double>(UsageOf(pid).peak_rss_bytes - usage_before.rss_bytes) / kMib;
  const int64_t num_refused = codes["RESOURCE_EXHAUSTED"] + codes["INVALID_ARGUMENT"] + codes["UNIMPLEMENTED"];
  std::vector<std::string> shown;
  for (const auto& [code, count] : codes) {
    if (count > 0) shown.push_back(absl::StrCat(count, " ", code));
  }
  card.Print(5, {.tried = absl::StrCat(num_bytes >> 20, " MiB ", huge.name, " to `", huge.method, "` ",
                                       absl::StrJoin(huge.flags, " ")),
                 .limit = "refused; memory grows < 64 MiB; honest p99 < 2×",
                 .measured = absl::StrCat(absl::StrJoin(shown, ", "), " in ", Format("%.1f", elapsed_s),
                                          " s; peak RSS ", Format("%+.1f", growth), " MiB; ", ShowBoth(before, during)),
                 .demands = {{num_refused == num_messages, "refused"},
                             {growth < 64, "memory grows < 64 MiB"},
                             Unharmed(during),
                             P99Within(settings, before, during)},
                 .not_run = ""});
}

void MeasureCancelled(const ScorecardSettings& settings, const ServerProcess& server, HonestCaller& honest,
                      const HonestReport& before, const char* method, Scorecard& card) {
  const int64_t num_calls = settings.Size(25'000, 1000);
  const auto attack = [&](int64_t calls) {
    return Attack(settings, server,
                  {"cancel", std::string("--method=") + method, "--layer=2", "--rows=4", "--rate=1000",
                   absl::StrCat("--calls=", calls)})
        .Finish();
  };
  attack(num_calls / 10);  // lets memory pools grow to their size
  WaitUntilIdle(server, std::chrono::seconds(10));
  const pid_t pid = server.process().pid();
  const ProcessUsage usage_before = UsageOf(pid);
  honest.Take();
  const SteadyTime begin = Clock::Real().Now();
  const auto output = attack(num_calls);
  const double elapsed_s = MicrosBetween(begin, Clock::Real().Now()) / 1e6;
  const HonestReport during = honest.Take();
  const AdmittedWork left = WaitUntilIdle(server, std::chrono::seconds(10));
  const ProcessUsage usage = UsageOf(pid);
  const double growth = static_cast<double>(usage.rss_bytes - usage_before.rss_bytes) / kMib;
  card.Print(6, {.tried = absl::StrCat(num_calls, " calls of `", method, "` opened and cancelled"),
                 .limit = "honest p99 < 2×; slots return to 0; no leak",
                 .measured = absl::StrCat(Format("%.0f", static_cast<double>(num_calls) / elapsed_s), "/s: ",
                                          Codes(output), "; ", Leftover(left), ", RSS ", Format("%+.1f", growth),
                                          " MiB, ", usage.num_fds, " descriptors; ", ShowBoth(before, during)),
                 .demands = {Unharmed(during),
                             P99Within(settings, before, during),
                             {left.none(), "slots return to 0"},
                             {growth < 16, "no leak"}},
                 .not_run = ""});
}

}  // namespace

void MeasureHugeMessages(const ScorecardSettings& settings, Scorecard& card) {
  // Limits for senders that are not trusted, see docs/operations.md.
  const std::vector<std::string> usual,
      strict = {"--max_request_bytes=8388608", "--grpc_memory_bytes=16777216", "--max_queued_bytes=8388608"};
  MeasureHuge(settings, {"in one message", "plain", kForwardMethod, usual}, card);
  for (const char* method : {kForwardMethod, kInferMethod, kInferStreamMethod}) {
    MeasureHuge(settings, {"in one message", "plain", method, strict}, card);
  }
  MeasureHuge(settings, {"of zeros, compressed,", "gzip", kInferMethod, strict}, card);
  std::vector<std::string> uncompressed = strict;
  uncompressed.emplace_back("--compression=off");
  MeasureHuge(settings, {"of zeros, compressed,", "gzip", kInferMethod, uncompressed}, card);
  MeasureHuge(settings, {"of unknown fields", "fields", "/inference.GRPCInferenceService/ServerLive", strict}, card);
}

void MeasureCancelledCalls(const ScorecardSettings& settings, Scorecard& card) {
  const auto server = StartServer(settings);
  const HonestWork work = GoldenWork("m", settings.checkpoint(), 1, 8);
  HonestCaller honest(*server, work, kHonestPeriod);
  const HonestReport before = MeasureCalm(settings, honest);
  for (const char* method : {kForwardMethod, kInferMethod, kForwardStreamMethod, kInferStreamMethod}) {
    MeasureCancelled(settings, *server, honest, before, method, card);
  }
}

void MeasureHalfOpen(const ScorecardSettings& settings, Scorecard& card) {
  const auto num_connections = static_cast<int>(settings.Size(1000, 100));
  const auto server = StartServer(settings);
  const HonestWork work = GoldenWork("m", settings.checkpoint(), 1, 8);
  HonestCaller honest(*server, work, kHonestPeriod);
  const HonestReport before = MeasureCalm(settings, honest);
  const ProcessUsage usage_before = UsageOf(server->process().pid());
  auto connections = OrDie(HalfOpenConnections::Open(server->grpc_address(), num_connections));
  const SteadyTime begin = Clock::Real().Now();
  honest.Take();
  const int closed = connections.WaitUntilClosed(num_connections, std::chrono::milliseconds(15'000));
  const double closed_after_s = MicrosBetween(begin, Clock::Real().Now()) / 1e6;
  std::this_thread::sleep_until(begin + std::chrono::seconds(settings.Size(15, 11)));
  const HonestReport during = honest.Take();
  const ProcessUsage usage = UsageOf(server->process().pid());
  card.Print(7, {.tried = absl::StrCat(num_connections, " half-open connections"),
                 .limit = "honest p99 < 2×; closed within 10 s",
                 .measured = absl::StrCat(closed, " closed by the server within ", Format("%.1f", closed_after_s),
                                          " s, ", usage.num_fds - usage_before.num_fds, " more descriptors; ",
                                          ShowBoth(before, during)),
                 .demands = {Unharmed(during),
                             P99Within(settings, before, during),
                             {closed == num_connections && closed_after_s <= 10.5, "closed within 10 s"}},
                 .not_run = ""});
}

}  // namespace switchyard
