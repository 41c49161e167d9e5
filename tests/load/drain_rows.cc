// Row 10: SIGTERM under load.
#include <unistd.h>

#include <atomic>
#include <map>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "base/mutex.h"
#include "tests/load/row_parts.h"

namespace switchyard {
namespace {

constexpr char kRefused[] = "refused as draining", kNoServer[] = "no server";

// Callers that go on until a server is gone, and note how their calls fail. A server that drains refuses all that
// comes, so a call after a refusal was not accepted. A request that was accepted and is lost fails before its caller
// has been refused, and with something else than that no connection could be made.
class Callers {
 public:
  Callers(const ServerProcess& server, const HonestWork& work) : server_(server), work_(work) {
    for (int i = 0; i < 8; ++i) threads_.emplace_back([this] { Run(); });
  }
  ~Callers() {
    for (std::thread& thread : threads_) thread.join();
  }

  void WaitForAnswers(int64_t count) const {
    while (answered_.load() < count) usleep(500);
  }
  // Waits until each caller has seen that the server is gone; adds the failures by kind. Returns how many accepted
  // requests were lost.
  int64_t Join(std::map<std::string, int64_t>* failures) {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    MutexLock lock(&mu_);
    for (const auto& [kind, count] : failures_) (*failures)[kind] += count;
    return lost_;
  }
  int64_t answered() const { return answered_.load(); }

 private:
  static std::string Kind(const absl::Status& status) {
    const std::string message(status.message());
    if (!absl::IsUnavailable(status)) return status.ToString();
    if (absl::StrContains(message, "draining")) return kRefused;
    if (absl::StrContains(message, "connect")) return kNoServer;
    return absl::StrCat("UNAVAILABLE: ", message);
  }

  void Run() {
    const auto client = server_.Connect(kOneAttempt);
    for (std::string kind; kind.empty() || kind == kRefused;) {
      const auto result = client->Forward({.model = work_.model, .layer = work_.layer, .rows = work_.rows.view()});
      if (result.ok()) {
        ++answered_;
        continue;
      }
      const bool was_refused = kind == kRefused;
      kind = Kind(result.status());
      MutexLock lock(&mu_);
      ++failures_[kind];
      lost_ += !absl::IsUnavailable(result.status()) || (!was_refused && kind != kRefused && kind != kNoServer);
    }
  }

  const ServerProcess& server_;
  const HonestWork& work_;
  std::vector<std::thread> threads_;
  std::atomic<int64_t> answered_{0};
  Mutex mu_;
  std::map<std::string, int64_t> failures_ ABSL_GUARDED_BY(mu_);
  int64_t lost_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace

void MeasureDrains(const ScorecardSettings& settings, Scorecard& card) {
  const int64_t num_drains = settings.Size(100, 3);
  const HonestWork work = GoldenWork("m", settings.checkpoint(), 1, 100);
  std::mt19937 random(25);
  std::map<std::string, int64_t> failures;
  int64_t answered = 0, lost = 0, bad_exits = 0, given_up = 0, slowest_us = 0;
  for (int64_t i = 0; i < num_drains; ++i) {
    const auto server = StartServer(settings);
    Callers callers(*server, work);
    callers.WaitForAnswers(20 + static_cast<int64_t>(random() % 40));
    const SteadyTime begin = Clock::Real().Now();
    bad_exits += server->Stop() != 0;
    slowest_us = std::max(slowest_us, MicrosBetween(begin, Clock::Real().Now()));
    lost += callers.Join(&failures);
    answered += callers.answered();
    given_up += absl::StrContains(server->process().Log(), "are given up");
  }
  std::vector<std::string> kinds;
  for (const auto& [kind, count] : failures) kinds.push_back(absl::StrCat(count, " ", kind));
  card.Print(10,
             {.tried = absl::StrCat("SIGTERM under the load of eight callers, ", num_drains, " times"),
              .limit = "no accepted request lost; exit ≤ 30 s",
              .measured = absl::StrCat(answered, " answers, ", lost, " accepted requests lost; then ",
                                       absl::StrJoin(kinds, ", "), "; ", bad_exits, " exits other than 0, ", given_up,
                                       " drains that gave requests up; exit "
                                       "within ",
                                       slowest_us / 1000, " ms"),
              .demands = {{lost == 0, absl::StrCat("no accepted request lost (", lost, ")")},
                          {bad_exits == 0, "exit status 0"},
                          {given_up == 0, "no request given up"},
                          {slowest_us <= 30'000'000, "exit ≤ 30 s"}},
              .not_run = ""});
}

}  // namespace switchyard
