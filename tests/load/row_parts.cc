#include "tests/load/row_parts.h"

#include <unistd.h>

#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"

namespace switchyard {

std::unique_ptr<ServerProcess> StartServer(const ScorecardSettings& settings, std::vector<std::string> flags) {
  flags.push_back("--model=m=" + settings.checkpoint());
  flags.emplace_back("--local_workers=2");
  flags.emplace_back("--compute_dtype=fp32");
  flags.push_back("--device=" + settings.device);
  flags.insert(flags.end(), settings.server_flags.begin(), settings.server_flags.end());
  return OrDie(ServerProcess::Start(flags, settings.server));
}

void Die(const absl::Status& why) {
  std::fprintf(stderr, "%s\n", why.ToString().c_str());
  std::exit(2);
}

int64_t WaitForStatus(Client& client, const std::function<bool(const v1::GetStatusResponse&)>& condition) {
  constexpr int64_t kPatienceUs = 120'000'000;
  const SteadyTime begin = Clock::Real().Now();
  while (true) {
    const auto status = client.GetStatus();
    const int64_t waited_us = MicrosBetween(begin, Clock::Real().Now());
    if (status.ok() && condition(*status)) return waited_us;
    if (waited_us > kPatienceUs) {
      Die(absl::DeadlineExceededError(absl::StrCat("nothing happened for two minutes; the last status was ",
                                                   status.ok() ? status->ShortDebugString() : "an error")));
    }
    usleep(1000);
  }
}

int64_t WaitForNewGroup(Client& client, const v1::GetStatusResponse& before) {
  return WaitForStatus(client, [&](const v1::GetStatusResponse& status) {
    return status.state() == "serving" && status.epoch() > before.epoch();
  });
}

int64_t WaitForLoss(Client& client, const v1::GetStatusResponse& before) {
  return WaitForStatus(client, [&](const v1::GetStatusResponse& status) {
    return status.state() != "serving" || status.epoch() > before.epoch();
  });
}

HonestReport MeasureCalm(const ScorecardSettings& settings, HonestCaller& honest) {
  honest.WaitForCalls(10);
  honest.Take();
  std::this_thread::sleep_for(std::chrono::seconds(settings.Size(15, 2)));
  return honest.Take();
}

std::string Show(const HonestReport& report) {
  std::string text = Format("%.1f ms, ", report.P50Ms()) + Format("%.1f ms", report.P99Ms());
  absl::StrAppend(&text, " of ", report.answered);
  if (report.retries > 0) absl::StrAppend(&text, ", ", report.retries, " retries");
  if (report.failed > 0) absl::StrAppend(&text, ", ", report.failed, " FAILED: ", report.first_failure);
  if (report.wrong > 0) absl::StrAppend(&text, ", ", report.wrong, " WRONG");
  return text;
}

std::string ShowBoth(const HonestReport& before, const HonestReport& during) {
  return absl::StrCat("honest p50, p99: ", Show(before), " before; ", Show(during), " during");
}

Demand Unharmed(const HonestReport& report) {
  return {report.failed == 0 && report.wrong == 0, "every honest call answered, and rightly"};
}
Demand P99Within(const ScorecardSettings& settings, const HonestReport& before, const HonestReport& during) {
  return {settings.is_quick || during.P99Ms() < 2 * before.P99Ms(), "honest p99 < 2×"};
}

std::string Leftover(const AdmittedWork& work) {
  return work.none() ? "nothing admitted left" : absl::StrCat(work.requests, " requests and ", work.rows, " rows LEFT");
}

Attack::Attack(const ScorecardSettings& settings, const ServerProcess& server, std::vector<std::string> arguments) {
  std::vector<std::string> all = {"-n", "19", settings.attack};
  all.insert(all.end(), arguments.begin(), arguments.end());
  all.push_back("--target=" + server.grpc_address());
  process_ = OrDie(ChildProcess::Start("/usr/bin/nice", all));
}

std::map<std::string, std::string> Attack::Finish() {
  std::map<std::string, std::string> output;
  for (std::string line; !(line = process_->ReadLine()).empty();) {
    const size_t at = line.find('=');
    output[line.substr(0, at)] = line.substr(std::min(line.size(), at + 1));
  }
  process_->Wait();
  return output;
}

double Number(const std::map<std::string, std::string>& output, const std::string& key) {
  const auto it = output.find(key);
  double value = 0;
  return it != output.end() && absl::SimpleAtod(it->second, &value) ? value : 0;
}

std::string Codes(const std::map<std::string, std::string>& output) {
  std::vector<std::string> codes;
  for (const auto& [key, value] : output) {
    if (isupper(key[0])) codes.push_back(absl::StrCat(value, " ", key));
  }
  return absl::StrJoin(codes, ", ");
}

}  // namespace switchyard
