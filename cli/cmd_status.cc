#include <algorithm>
#include <chrono>
#include <numeric>
#include <thread>

#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "cli/command.h"
#include "cli/table.h"

namespace switchyard {
namespace {

constexpr char kStatusFooter[] = R"(
IMBALANCE is the load of a layer's busiest expert over the mean of all: 1 is even.

Examples:
  switchyard status
  switchyard status --wait_ready=60 && switchyard models
  switchyard status --format=json)";

constexpr std::chrono::milliseconds kPollInterval(100);

struct StatusFlags {
  FrontFlags front;
  double wait_ready_s = 0;
};

int64_t TotalRows(const v1::LayerLoad& load) {
  return std::accumulate(load.rows_per_expert().begin(), load.rows_per_expert().end(), int64_t{0});
}

// The largest load of an expert over the mean; 0 when no rows were computed.
double Imbalance(const v1::LayerLoad& load) {
  const int64_t total = TotalRows(load);
  if (total == 0) return 0;
  const int64_t largest = *std::max_element(load.rows_per_expert().begin(), load.rows_per_expert().end());
  return static_cast<double>(largest) * load.rows_per_expert_size() / static_cast<double>(total);
}

nlohmann::ordered_json RankJson(const v1::Rank& rank) {
  return {{"rank", rank.rank()},
          {"state", rank.state()},
          {"pid", rank.pid()},
          {"host", rank.host()},
          {"device", rank.device()},
          {"link", rank.link()},
          {"weight_bytes", rank.weight_bytes()},
          {"num_experts", rank.num_experts()},
          {"restarts", rank.restarts()},
          {"load_fraction", rank.load_fraction()}};
}

nlohmann::ordered_json LoadJson(const v1::LayerLoad& load) {
  return {{"model", load.model()},
          {"layer", load.layer()},
          {"imbalance", Imbalance(load)},
          {"rows_per_expert", std::vector<int64_t>(load.rows_per_expert().begin(), load.rows_per_expert().end())}};
}

void PrintStatusJson(const Console& console, const v1::GetStatusResponse& status) {
  nlohmann::ordered_json ranks = nlohmann::ordered_json::array();
  for (const v1::Rank& rank : status.ranks()) ranks.push_back(RankJson(rank));
  nlohmann::ordered_json layers = nlohmann::ordered_json::array();
  for (const v1::LayerLoad& load : status.layers()) layers.push_back(LoadJson(load));
  PrintJson(console, {{"version", status.version()},
                      {"state", status.state()},
                      {"epoch", status.epoch()},
                      {"recoveries", status.recoveries()},
                      {"queued_rows", status.queued_rows()},
                      {"queued_bytes", status.queued_bytes()},
                      {"steps_in_flight", status.steps_in_flight()},
                      {"ranks", std::move(ranks)},
                      {"layers", std::move(layers)}});
}

void PrintRanks(const Console& console, const v1::GetStatusResponse& status) {
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"RANK", kRight},
               {"STATE"},
               {"LOADED", kRight},
               {"HOST"},
               {"PID", kRight},
               {"DEVICE"},
               {"LINK"},
               {"EXPERTS", kRight},
               {"WEIGHTS", kRight},
               {"RESTARTS", kRight}});
  for (const v1::Rank& rank : status.ranks()) {
    table.AddRow({absl::StrCat(rank.rank()), rank.state(), absl::StrFormat("%.0f%%", 100 * rank.load_fraction()),
                  rank.host(), absl::StrCat(rank.pid()), rank.device(), rank.link(), absl::StrCat(rank.num_experts()),
                  absl::StrFormat("%.1f MiB", static_cast<double>(rank.weight_bytes()) / (1 << 20)),
                  absl::StrCat(rank.restarts())});
  }
  table.Print(*console.out);
}

void PrintLoads(const Console& console, const v1::GetStatusResponse& status) {
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"MODEL"}, {"LAYER"}, {"EXPERTS", kRight}, {"EXPERT ROWS", kRight}, {"IMBALANCE", kRight}});
  for (const v1::LayerLoad& load : status.layers()) {
    const int64_t total = TotalRows(load);
    table.AddRow({load.model(), load.layer(), absl::StrCat(load.rows_per_expert_size()), absl::StrCat(total),
                  total == 0 ? "-" : absl::StrFormat("%.2f", Imbalance(load))});
  }
  table.Print(*console.out);
}

void PrintStatusText(const Console& console, const v1::GetStatusResponse& status) {
  *console.out << absl::StreamFormat(
      "%s, version %s, epoch %d, %d recoveries; queued %d rows (%d bytes), %d steps in flight\n\n", status.state(),
      status.version(), status.epoch(), status.recoveries(), status.queued_rows(), status.queued_bytes(),
      status.steps_in_flight());
  PrintRanks(console, status);
  if (status.layers().empty()) return;
  *console.out << "\n";
  PrintLoads(console, status);
}

// Asks until the front serves. A front that is not reachable yet counts as not ready; any other error ends the wait.
absl::StatusOr<v1::GetStatusResponse> WaitUntilServing(Client* client, double wait_s) {
  const SteadyTime deadline = Clock::Real().Now() + std::chrono::microseconds(static_cast<int64_t>(wait_s * 1e6));
  std::string last_seen = "not reachable";
  while (true) {
    const int64_t left_us = MicrosBetween(Clock::Real().Now(), deadline);
    if (left_us <= 0) break;
    absl::StatusOr<v1::GetStatusResponse> status = client->GetStatus(absl::Microseconds(left_us));
    if (status.ok() && status->state() == "serving") return status;
    if (status.ok()) {
      last_seen = "state '" + status->state() + "'";
    } else if (!absl::IsUnavailable(status.status()) && !absl::IsDeadlineExceeded(status.status())) {
      return status;
    }
    std::this_thread::sleep_until(std::min(deadline, Clock::Real().Now() + kPollInterval));
  }
  return absl::DeadlineExceededError(absl::StrFormat("not serving after %g s: %s", wait_s, last_seen));
}

int RunStatus(const StatusFlags& flags, const Console& console) {
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectTo(flags.front, /*max_attempts=*/1);
  if (!client.ok()) return ReportUsageError(console, client.status());
  const absl::StatusOr<v1::GetStatusResponse> status =
      flags.wait_ready_s > 0 ? WaitUntilServing(client->get(), flags.wait_ready_s) : (*client)->GetStatus();
  if (!status.ok()) return ReportRpcError(console, flags.front.target, status.status());
  flags.front.json() ? PrintStatusJson(console, *status) : PrintStatusText(console, *status);
  return kExitOk;
}

}  // namespace

void AddStatusCommand(CLI::App* app, Console console, int* exit_code) {
  CLI::App* command =
      app->add_subcommand("status", "Shows the ranks, their progress, the epoch, the queue and the load.");
  auto flags = std::make_shared<StatusFlags>();
  AddFrontFlags(command, &flags->front);
  command->add_option("--wait_ready", flags->wait_ready_s, "Wait up to this many seconds until the front serves")
      ->check(CLI::Range(0.0, 1e6));
  command->footer(kStatusFooter);
  command->callback([flags, console, exit_code] { *exit_code = RunStatus(*flags, console); });
}

}  // namespace switchyard
