#include "server/group/membership/rank_progress.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace switchyard {
namespace {

using worker::ThreadProgress;

// Threads of a worker. More in a pong are a mistake of the worker.
constexpr const char* kThreadNames[] = {"step", "completion"};
constexpr int kMaxThreads = 2;
constexpr int kLastingTicks = 5;

bool IsWait(ThreadProgress::Activity activity) {
  return activity == ThreadProgress::WAITING || activity == ThreadProgress::CONNECTING;
}

std::string Describe(const ThreadProgress& thread) {
  const std::string peer = thread.peer() < 0 ? "" : absl::StrCat("rank ", thread.peer());
  switch (thread.activity()) {
    case ThreadProgress::WORKING:
      return thread.step_id() == 0 ? "computes" : absl::StrCat("computes (step ", thread.step_id(), " or later)");
    case ThreadProgress::WAITING:
      return absl::StrCat("waits for ", peer.empty() ? "its device or a peer" : peer);
    case ThreadProgress::CONNECTING:
      return absl::StrCat("connects to ", peer.empty() ? "its peers" : peer);
    default:
      return "does nothing";
  }
}

}  // namespace

void RankProgress::OnPong(const worker::Pong& pong) {
  threads_.resize(std::min(pong.threads_size(), kMaxThreads));
  for (size_t i = 0; i < threads_.size(); ++i) {
    threads_[i].last = pong.threads(static_cast<int>(i));
    threads_[i].is_heard = true;
  }
}

void RankProgress::OnTick() {
  for (Thread& thread : threads_) {
    if (!thread.is_heard) continue;
    thread.is_heard = false;
    const bool is_still = thread.last.moves() == thread.moves_at_tick;
    const bool may_be = thread.last.activity() == ThreadProgress::CONNECTING;
    thread.num_still_ticks = is_still && !may_be ? thread.num_still_ticks + 1 : 0;
    const bool is_same_wait = IsWait(thread.last.activity()) && thread.last.num_waits() == thread.wait_at_tick;
    thread.num_wait_ticks = is_same_wait ? thread.num_wait_ticks + 1 : 0;
    thread.moves_at_tick = thread.last.moves();
    thread.wait_at_tick = thread.last.num_waits();
  }
}

std::optional<std::string> RankProgress::StandsStill(int num_ticks) const {
  for (size_t i = 0; i < threads_.size(); ++i) {
    if (threads_[i].num_still_ticks < num_ticks) continue;
    return absl::StrCat("its ", kThreadNames[i], " thread stands still, although its process answers pings; it ",
                        Describe(threads_[i].last));
  }
  return std::nullopt;
}

RankProgress::State RankProgress::state() const {
  if (threads_.empty()) return {.text = "does not say what it does"};
  const auto busy = std::find_if(threads_.begin(), threads_.end(),
                                 [](const Thread& thread) { return thread.last.activity() != ThreadProgress::IDLE; });
  const Thread& shown = busy == threads_.end() ? threads_.front() : *busy;
  return {shown.last.activity(), shown.last.peer(), shown.num_wait_ticks >= kLastingTicks, Describe(shown.last)};
}

Blame FindBlame(const std::vector<const RankProgress*>& progress, const std::vector<int>& owing, Debt debt,
                bool blame_working) {
  Blame blame;
  std::vector<std::string> texts;
  for (const int rank : owing) {
    const RankProgress::State state = progress[rank]->state();
    texts.push_back(absl::StrCat("rank ", rank, " ", state.text));
    const bool waits = IsWait(state.activity) && debt == Debt::kOfAll;
    // Many short waits are progress.
    const bool works = state.activity == ThreadProgress::WORKING || (waits && !state.is_lasting);
    if (works && !blame_working) {
      blame.is_working = true;
    } else if (!waits) {
      blame.guilty.push_back(rank);
    }
  }
  blame.text = absl::StrJoin(texts, ", ");
  return blame;
}

std::string NameRanks(const std::vector<int>& ranks) {
  return absl::StrCat(ranks.size() == 1 ? "rank " : "ranks ", absl::StrJoin(ranks, ", "));
}

}  // namespace switchyard
