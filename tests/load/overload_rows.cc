// Rows 8 and 9: requests whose deadline passes in the queue, and more requests than the server can serve.
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "proto/switchyard.grpc.pb.h"
#include "rpc/deadline.h"
#include "tests/load/overload.h"
#include "tests/load/row_parts.h"

namespace switchyard {
namespace {

constexpr int64_t kOverloadRows = 32;  // of each request

// The sum of a metric's values whose lines start so.
double SumOf(const ServerProcess& server, const std::string& line_start) {
  double sum = 0;
  for (const absl::string_view line : absl::StrSplit(server.Get("/metrics"), '\n')) {
    double value = 0;
    if (absl::StartsWith(line, line_start) && absl::SimpleAtod(line.substr(line.rfind(' ') + 1), &value)) sum += value;
  }
  return sum;
}

// Measures the server's answers per second to callers other than the honest one. The attacking callers share its cores
// and count only the answers that reach them in time, which under overload depends on themselves as well.
class AnswerRate {
 public:
  explicit AnswerRate(const ServerProcess& server) : server_(server), before_(NumAnswered()) {}
  double Take(const HonestReport& honest) const {
    const double seconds = MicrosBetween(begin_, Clock::Real().Now()) / 1e6;
    return (NumAnswered() - before_ - static_cast<double>(honest.answered)) / seconds;
  }

 private:
  double NumAnswered() const { return SumOf(server_, "switchyard_requests_total{code=\"OK\""); }

  const ServerProcess& server_;
  const double before_;
  const SteadyTime begin_ = Clock::Real().Now();
};

struct Overloaded {
  std::string name;
  std::vector<std::string> flags;
  int deadline_ms;
};

// A caller of the usual priority that counts as the same client as the attacking callers. These run at the lowest
// priority and see what their own load leaves them, so they cannot tell how long the server takes to refuse.
class RefusalProbe {
 public:
  explicit RefusalProbe(const ServerProcess& server)
      : stub_(v1::Switchyard::NewStub(grpc::CreateChannel(server.grpc_address(), grpc::InsecureChannelCredentials()))),
        thread_([this] { Run(); }) {}
  ~RefusalProbe() { Stop(); }

  // Returns the times of the refusals.
  const LatencyHistogram& Stop() {
    stop_.store(true);
    if (thread_.joinable()) thread_.join();
    return latency_;
  }

 private:
  void Run() {
    v1::ForwardRequest request;
    request.set_model("heavy");
    request.set_layer("0");
    request.set_dtype(v1::DATA_TYPE_FP32);
    request.set_num_rows(kOverloadRows);
    request.set_rows(std::string(kOverloadRows * kHeavyDim * sizeof(float), '\0'));
    while (!stop_.load()) {
      grpc::ClientContext context;
      context.set_deadline(DeadlineAfter(absl::Seconds(10)));
      context.AddMetadata("x-client-id", kOverloadClient);
      v1::ForwardResponse response;
      const SteadyTime begin = Clock::Real().Now();
      const grpc::Status status = stub_->Forward(&context, request, &response);
      if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) latency_.Record(Clock::Real().Now() - begin);
      std::this_thread::sleep_for(kHonestPeriod);
    }
  }

  const std::unique_ptr<v1::Switchyard::Stub> stub_;
  LatencyHistogram latency_;  // of the thread, until Stop
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

double Ms(std::chrono::nanoseconds time) { return std::chrono::duration<double, std::milli>(time).count(); }

// The peak in a closed loop, then ten times its rate.
void MeasureOverloadOnce(const ScorecardSettings& settings, const Overloaded& overloaded, Scorecard& card) {
  std::vector<std::string> flags = overloaded.flags;
  flags.insert(flags.end(), {kHeavyModel, "--max_batch_rows=256"});
  const auto server = StartServer(settings, flags);
  const HonestWork work = OrDie(ObservedWork(*server, "heavy", "0", 4, kHeavyDim));
  HonestCaller honest(*server, work, kHonestPeriod * 5);
  const auto load = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"load", "--model=heavy", absl::StrCat("--rows=", kOverloadRows),
                                         absl::StrCat("--deadline_ms=", overloaded.deadline_ms)});
    return Attack(settings, *server, arguments).Finish();
  };
  honest.WaitForCalls(10);
  honest.Take();
  const AnswerRate peak_rate(*server);
  const auto peak = load({"--concurrency=16", absl::StrCat("--seconds=", settings.Size(15, 4))});
  const HonestReport before = honest.Take();
  const double answered_at_peak = peak_rate.Take(before);
  const double peak_per_s = Number(peak, "goodput_per_s");
  ResetPeakRss(server->process().pid());
  const ProcessUsage usage_before = UsageOf(server->process().pid());
  const AnswerRate storm_rate(*server);
  const int64_t storm_s = settings.Size(120, 8);
  RefusalProbe probe(*server);
  const auto storm = load({absl::StrCat("--rate=", 10 * peak_per_s), absl::StrCat("--seconds=", storm_s)});
  const LatencyHistogram refusals = probe.Stop();
  const HonestReport during = honest.Take();
  const double answered = storm_rate.Take(during);
  const AdmittedWork left = WaitUntilIdle(*server, std::chrono::seconds(30));
  const ProcessUsage usage = UsageOf(server->process().pid());
  const double goodput = Number(storm, "goodput_per_s");
  const double refusal_ms = Ms(refusals.Percentile(99));
  const double growth = static_cast<double>(usage.peak_rss_bytes - usage_before.rss_bytes) / kMib;
  card.Print(
      9, {.tried = absl::StrCat("10× overload for ", storm_s, " s, ", overloaded.name),
          .limit = "goodput ≥ 90 % of peak; refusals < 10 ms with pushback; honest p99 < 2×",
          .measured = absl::StrCat(
              "offered ", Format("%.0f", Number(storm, "offered_per_s")), "/s, ", Codes(storm), "; goodput ",
              Format("%.1f", goodput), "/s of peak ", Format("%.1f", peak_per_s),
              "/s = ", Format("%.0f %%", 100 * goodput / peak_per_s), " at the caller; answered in time by the server ",
              Format("%.1f", answered), "/s of ", Format("%.1f", answered_at_peak),
              "/s = ", Format("%.0f %%", 100 * answered / answered_at_peak), "; refusals p50 ",
              Format("%.1f", Ms(refusals.Percentile(50))), " ms, p99 ", Format("%.1f", refusal_ms), " ms of ",
              refusals.count(), " at a caller of the usual priority, ", Format("%.1f", Number(storm, "refusal_p50_ms")),
              " and ", Format("%.1f", Number(storm, "refusal_p99_ms")), " ms at those that overload; peak RSS ",
              Format("%+.1f", growth), " MiB; ", Leftover(left), "; ", ShowBoth(before, during)),
          .demands = {Unharmed(during),
                      P99Within(settings, before, during),
                      {settings.is_quick || answered >= 0.9 * answered_at_peak, "goodput ≥ 90 % of peak"},
                      {settings.is_quick || goodput >= 0.9 * peak_per_s, "the same at the caller"},
                      {Number(storm, "refused_without_pushback") == 0, "pushback"},
                      {settings.is_quick || refusal_ms < 10, "refusals < 10 ms"},
                      {left.none(), "slots return to 0"}},
          .not_run = ""});
}

// One burst of requests that expire in the queue, all with the same time limit.
struct Burst {
  int64_t unexpected = 0;      // calls that did not end with DEADLINE_EXCEEDED
  int64_t freed_after_us = 0;  // from the time limit until the queue was empty; negative when it was empty before
};

Burst Expire(Client& client, const ForwardArgs& args, int64_t num_calls, int64_t limit_us) {
  Burst burst;
  std::atomic<int64_t> ended{0}, unexpected{0};
  for (int64_t i = 0; i < num_calls; ++i) {
    client.ForwardAsync(args, [&](const absl::StatusOr<ForwardResult>& result) {
      unexpected += !absl::IsDeadlineExceeded(result.status());
      ++ended;
    });
  }
  const SteadyTime sent = Clock::Real().Now();
  WaitForStatus(client, [&](const v1::GetStatusResponse& status) {
    return status.queued_rows() == num_calls || ended.load() > 0;
  });
  WaitForStatus(client, [&](const v1::GetStatusResponse& status) { return status.queued_rows() == 0; });
  burst.freed_after_us = MicrosBetween(sent, Clock::Real().Now()) - limit_us;
  while (ended.load() < num_calls) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  burst.unexpected = unexpected;
  return burst;
}

}  // namespace

void MeasureExpiredRequests(const ScorecardSettings& settings, Scorecard& card) {
  const int64_t num_bursts = settings.Size(100, 5), num_calls = 10;
  // No step is begun before every request has expired.
  const auto server = StartServer(settings, {"--max_queue_delay_us=10000000"});
  const auto client = server->Connect(kOneAttempt);
  const HonestWork work = GoldenWork("m", settings.checkpoint(), 1, 1);
  const double steps_before = SumOf(*server, "switchyard_steps_total{");
  std::mt19937 random(24);
  int64_t unexpected = 0, slowest_us = 0;
  for (int64_t i = 0; i < num_bursts; ++i) {
    const int64_t limit_us = 100'000 + static_cast<int64_t>(random() % 200'000);
    ForwardArgs args{.model = "m", .layer = "1", .rows = work.rows.view()};
    // Half of them have a limit for the queue alone, and the others a deadline.
    (i % 2 == 0 ? args.queue_timeout : args.timeout) = absl::Microseconds(limit_us);
    const Burst burst = Expire(*client, args, num_calls, limit_us);
    unexpected += burst.unexpected;
    slowest_us = std::max(slowest_us, burst.freed_after_us);
  }
  const double steps = SumOf(*server, "switchyard_steps_total{") - steps_before;
  const AdmittedWork left = WaitUntilIdle(*server, std::chrono::seconds(10));
  card.Print(8, {.tried = absl::StrCat(num_bursts * num_calls,
                                       " requests whose deadline or queue timeout, of 100 to "
                                       "300 ms, passes in the queue"),
                 .limit = "slot freed < 50 ms; never dispatched",
                 .measured = absl::StrCat("slots free within ", Format("%.1f", static_cast<double>(slowest_us) / 1e3),
                                          " ms after the limit, ", Format("%.0f", steps), " steps run, ", unexpected,
                                          " calls that did not end with DEADLINE_EXCEEDED; ", Leftover(left)),
                 .demands = {{slowest_us < 50'000, "slot freed < 50 ms"},
                             {steps == 0, "never dispatched"},
                             {unexpected == 0, "DEADLINE_EXCEEDED"},
                             {left.none(), "slots return to 0"}},
                 .not_run = ""});
}

void MeasureOverload(const ScorecardSettings& settings, Scorecard& card) {
  MeasureOverloadOnce(settings, {"deadlines of 1 s, the usual budgets", {}, 1000}, card);
  MeasureOverloadOnce(settings, {"deadlines of 10 s, `--max_queued_rows=2048`", {"--max_queued_rows=2048"}, 10'000},
                      card);
}

}  // namespace switchyard
