#include "worker/welcome.h"

namespace switchyard {

absl::Status CheckWelcome(const worker::Welcome& welcome) {
  if (welcome.num_ranks() < 1 || welcome.num_ranks() > kMaxRanks) {
    return absl::InvalidArgumentError(
        absl::StrCat("the front's Welcome has ", welcome.num_ranks(), " ranks, expected 1 to ", kMaxRanks));
  }
  if (welcome.rank() >= 0 && welcome.rank() < welcome.num_ranks()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the front's Welcome makes this worker rank ", welcome.rank(),
                                                 ", expected 0 to ", welcome.num_ranks() - 1));
}

}  // namespace switchyard
