#include "server/load_display.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "moe/base/logging.h"

namespace switchyard {
namespace {

constexpr std::chrono::seconds kLogPeriod{5};
constexpr int kUsualColumns = 80;

int StderrColumns() {
  winsize size = {};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : kUsualColumns;
}

// One write, so that no other line comes in between. A terminal that is gone shows nothing.
void DrawOnStderr(std::string_view text) {
  if (write(STDERR_FILENO, text.data(), text.size()) < 0) return;
}

bool HasReported(const RankLoad& rank, int model_idx) { return rank.progress.models_size() > model_idx; }

bool HasLoaded(const RankLoad& rank, int model_idx) {
  if (rank.state == RankLoad::State::kLoaded) return true;
  if (!HasReported(rank, model_idx)) return false;
  const worker::ModelProgress& model = rank.progress.models(model_idx);
  return model.bytes_done() >= model.bytes_total();
}

}  // namespace

LoadOutput StderrLoadOutput(const std::string& log_format) {
  LoadOutput output;
  if (StderrIsTerminal() && log_format == "text" && spdlog::should_log(spdlog::level::info)) {
    output.draw = DrawOnStderr;
    output.num_columns = StderrColumns;
  } else {
    output.log = [](const std::string& line) { spdlog::info("{}", line); };
  }
  return output;
}

LoadDisplay::LoadDisplay(std::vector<std::string> model_names, LoadOutput output)
    : model_names_(std::move(model_names)), output_(std::move(output)) {}

LoadDisplay::~LoadDisplay() {
  if (line_is_open_) output_.draw("\n");
}

void LoadDisplay::Update(const std::vector<RankLoad>& ranks, SteadyTime now) {
  const auto is_loading = [](const RankLoad& rank) { return rank.state == RankLoad::State::kLoading; };
  if (!session_.has_value()) {
    if (std::none_of(ranks.begin(), ranks.end(), is_loading)) return;
    session_.emplace(Session{std::vector<bool>(ranks.size()), 0, ProgressMeter(now), now});
  }
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (ranks[i].state != RankLoad::State::kLoaded) session_->takes_part[i] = true;
  }
  while (session_->model_idx < static_cast<int>(model_names_.size())) {
    const Sum sum = SumOf(ranks);
    Show(sum, session_->meter.Update(now, sum.bytes_done, sum.bytes_total), now);
    if (!sum.is_loaded) return;
    ++session_->model_idx;
    session_->meter = ProgressMeter(now);
  }
  session_.reset();
}

LoadDisplay::Sum LoadDisplay::SumOf(const std::vector<RankLoad>& ranks) const {
  Sum sum;
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (!session_->takes_part[i]) continue;
    sum.is_loaded = sum.is_loaded && HasLoaded(ranks[i], session_->model_idx);
    if (!HasReported(ranks[i], session_->model_idx)) continue;
    const worker::ModelProgress& model = ranks[i].progress.models(session_->model_idx);
    sum.bytes_done += model.bytes_done();
    sum.bytes_total += model.bytes_total();
  }
  return sum;
}

std::string LoadDisplay::Label() const {
  const std::vector<bool>& takes_part = session_->takes_part;
  const auto num_ranks = std::count(takes_part.begin(), takes_part.end(), true);
  const std::string& name = model_names_[session_->model_idx];
  if (num_ranks == static_cast<int64_t>(takes_part.size())) return name;
  return absl::StrCat(name, " on ", num_ranks, " of ", takes_part.size(), " ranks");
}

void LoadDisplay::Show(const Sum& sum, const Progress& progress, SteadyTime now) {
  // Before the first report nothing is known; and bytes all done are not all there are while a rank has not reported.
  if (!sum.is_loaded && progress.is_done()) return;
  if (output_.draw != nullptr) return Draw(sum, progress);
  if (!sum.is_loaded && now - session_->last_line < kLogPeriod) return;
  session_->last_line = now;
  output_.log(absl::StrCat("model ", Label(), ": ", sum.is_loaded ? "loaded " : "", ProgressText(progress)));
}

void LoadDisplay::Draw(const Sum& sum, const Progress& progress) {
  const std::string bar = ProgressBar(Label(), progress, output_.num_columns());
  output_.draw(absl::StrCat(absl::string_view(kEraseLine.data(), kEraseLine.size()), bar, sum.is_loaded ? "\n" : ""));
  line_is_open_ = !sum.is_loaded;
}

}  // namespace switchyard
