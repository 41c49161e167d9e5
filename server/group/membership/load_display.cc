#include "server/group/membership/load_display.h"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "base/logging/logging.h"

namespace switchyard {
namespace {

constexpr std::chrono::seconds kLogPeriod{5};
constexpr int kUsualColumns = 80;

int StderrColumns() {
  winsize size = {};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : kUsualColumns;
}

bool HasLoaded(const RankLoad& rank) {
  if (rank.state == RankLoad::State::kLoaded) return true;
  return rank.has_reported && rank.bytes_done >= rank.bytes_total;
}

}  // namespace

LoadOutput StderrLoadOutput(const std::string& log_format) {
  LoadOutput output;
  if (StderrIsTerminal() && log_format == "text" && spdlog::should_log(spdlog::level::info)) {
    output.draw = WriteToLog;  // one write, so that no other line comes in between
    output.num_columns = StderrColumns;
  } else {
    output.log = [](const std::string& line) { spdlog::info("{}", line); };
  }
  return output;
}

LoadDisplay::LoadDisplay(LoadOutput output) : output_(std::move(output)) {}

LoadDisplay::~LoadDisplay() {
  if (line_is_open_) output_.draw("\n");
}

void LoadDisplay::Update(const std::vector<ModelLoad>& models, SteadyTime now) {
  UpdateSessions(models);
  for (const ModelLoad& model : models) {
    const auto found = sessions_.find(model.id);
    if (found == sessions_.end()) continue;
    Session& session = found->second;
    const Sum sum = SumOf(model, session);
    if (sum.is_loaded && session.is_told) continue;
    if (!current_.has_value() || current_->id != model.id) current_.emplace(Current{model.id, ProgressMeter(now), now});
    session.is_told = sum.is_loaded;
    Show(LabelOf(model, session), sum, current_->meter.Update(now, sum.bytes_done, sum.bytes_total), now);
    if (!sum.is_loaded) return;
    current_.reset();
  }
}

void LoadDisplay::UpdateSessions(const std::vector<ModelLoad>& models) {
  std::map<ModelId, Session> sessions;
  for (const ModelLoad& model : models) {
    const auto is_in = [](RankLoad::State state) { return [=](const RankLoad& rank) { return rank.state == state; }; };
    const auto old = sessions_.find(model.id);
    const bool begins = std::any_of(model.ranks.begin(), model.ranks.end(), is_in(RankLoad::State::kLoading));
    if (old == sessions_.end() && !begins) continue;
    Session session = old == sessions_.end() ? Session{std::vector<bool>(model.ranks.size())} : old->second;
    for (size_t i = 0; i < model.ranks.size(); ++i) {
      if (model.ranks[i].state != RankLoad::State::kLoaded) session.takes_part[i] = true;
    }
    // A session ends when every rank has the model and that has been shown.
    const bool ends = std::all_of(model.ranks.begin(), model.ranks.end(), is_in(RankLoad::State::kLoaded));
    if (!ends || !session.is_told) sessions.emplace(model.id, std::move(session));
  }
  sessions_ = std::move(sessions);
  // The loading of the model that was being shown was given up.
  if (current_.has_value() && !sessions_.contains(current_->id)) {
    current_.reset();
    if (line_is_open_) output_.draw("\n");
    line_is_open_ = false;
  }
}

LoadDisplay::Sum LoadDisplay::SumOf(const ModelLoad& model, const Session& session) {
  Sum sum;
  for (size_t i = 0; i < model.ranks.size(); ++i) {
    if (!session.takes_part[i]) continue;
    sum.is_loaded = sum.is_loaded && HasLoaded(model.ranks[i]);
    sum.bytes_done += model.ranks[i].bytes_done;
    sum.bytes_total += model.ranks[i].bytes_total;
  }
  return sum;
}

std::string LoadDisplay::LabelOf(const ModelLoad& model, const Session& session) {
  const auto num_ranks = std::count(session.takes_part.begin(), session.takes_part.end(), true);
  if (num_ranks == static_cast<int64_t>(session.takes_part.size())) return model.name;
  return absl::StrCat(model.name, " on ", num_ranks, " of ", session.takes_part.size(), " ranks");
}

void LoadDisplay::Show(const std::string& label, const Sum& sum, const Progress& progress, SteadyTime now) {
  // Show nothing before the first report. Also show nothing when all reported bytes are done but a rank has not
  // reported yet, because the total is still incomplete then.
  if (!sum.is_loaded && progress.is_done()) return;
  if (output_.draw != nullptr) return Draw(label, sum, progress);
  if (!sum.is_loaded && now - current_->last_line < kLogPeriod) return;
  current_->last_line = now;
  output_.log(absl::StrCat("model ", label, ": ", sum.is_loaded ? "loaded " : "", ProgressText(progress)));
}

void LoadDisplay::Draw(const std::string& label, const Sum& sum, const Progress& progress) {
  const std::string bar = ProgressBar(label, progress, output_.num_columns());
  output_.draw(absl::StrCat(absl::string_view(kEraseLine.data(), kEraseLine.size()), bar, sum.is_loaded ? "\n" : ""));
  line_is_open_ = !sum.is_loaded;
}

}  // namespace switchyard
