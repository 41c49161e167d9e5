#include "server/group/membership/exchange_choice.h"

#include <algorithm>

#include "absl/strings/str_join.h"

namespace switchyard {
namespace {

// Exchanges through memory that the workers share.
bool NeedsSharedMemory(const std::string& exchange) { return exchange == "shm" || exchange == "direct"; }

bool ShareMemory(const std::vector<const worker::Hello*>& workers) {
  const std::string& host = workers.front()->host_identity();
  return !host.empty() && std::all_of(workers.begin(), workers.end(),
                                      [&](const worker::Hello* worker) { return worker->host_identity() == host; });
}

bool AllHave(const std::vector<const worker::Hello*>& workers, const std::string& exchange) {
  return std::all_of(workers.begin(), workers.end(), [&](const worker::Hello* worker) {
    return std::find(worker->exchanges().begin(), worker->exchanges().end(), exchange) != worker->exchanges().end();
  });
}

bool CanUse(const std::vector<const worker::Hello*>& workers, const std::string& exchange) {
  return AllHave(workers, exchange) && (!NeedsSharedMemory(exchange) || ShareMemory(workers));
}

}  // namespace

absl::StatusOr<std::string> ChooseExchange(const std::string& wanted,
                                           const std::vector<const worker::Hello*>& workers) {
  if (wanted != "auto") {
    if (CanUse(workers, wanted)) return wanted;
    if (AllHave(workers, wanted)) {
      return absl::FailedPreconditionError(absl::StrCat(
          "it shares no memory with the other workers, being on another host, in another network namespace or of "
          "another user, and this front has --exchange=",
          wanted, "; use --exchange=auto"));
    }
  }
  for (const std::string& exchange : workers.front()->exchanges()) {
    if (wanted == "auto" && CanUse(workers, exchange)) return exchange;
  }
  const std::string needed = wanted == "auto" ? absl::StrJoin(workers.front()->exchanges(), ", ") : wanted;
  return absl::FailedPreconditionError(absl::StrCat("its exchange is '",
                                                    absl::StrJoin(workers.back()->exchanges(), ", "),
                                                    "', this front needs '", needed, "' (--exchange=", wanted, ")"));
}

}  // namespace switchyard
