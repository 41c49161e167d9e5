#include "base/progress.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace switchyard {
namespace {

constexpr std::chrono::seconds kRateWindow{10};
constexpr int kShortestBar = 8;
constexpr int kLongestBar = 40;

double SecondsBetween(SteadyTime begin, SteadyTime end) { return std::chrono::duration<double>(end - begin).count(); }

// The first `num_bytes` bytes of `text`, or fewer where the cut would split a character of several bytes.
std::string CutAt(std::string text, size_t num_bytes) {
  if (text.size() <= num_bytes) return text;
  while (num_bytes > 0 && (text[num_bytes] & 0xC0) == 0x80) --num_bytes;
  return text.substr(0, num_bytes);
}

double Fraction(const Progress& progress) {
  if (progress.is_done()) return 1;
  return static_cast<double>(std::max<int64_t>(progress.bytes_done, 0)) / progress.bytes_total;
}

std::string Bar(double fraction, int num_columns) {
  const int num_full = static_cast<int>(fraction * num_columns);
  return absl::StrCat("[", std::string(num_full, '#'), std::string(num_columns - num_full, '-'), "]");
}

}  // namespace

Progress ProgressMeter::Update(SteadyTime now, int64_t bytes_done, int64_t bytes_total) {
  if (!samples_.empty() && bytes_done < samples_.back().bytes_done) {
    samples_.clear();
    begin_ = {now, bytes_done};
  }
  if (samples_.empty()) samples_.push_back(begin_);
  samples_.push_back({now, bytes_done});
  // Keeps one sample just outside the window, so that the rate covers the whole window.
  while (samples_.size() > 2 && now - samples_[1].time >= kRateWindow) samples_.pop_front();

  Progress progress = {bytes_done, bytes_total, SecondsBetween(begin_.time, now), 0, std::nullopt};
  const Sample from = progress.is_done() ? begin_ : samples_.front();
  const double seconds = SecondsBetween(from.time, now);
  if (seconds > 0) progress.bytes_per_second = (bytes_done - from.bytes_done) / seconds;
  if (progress.bytes_per_second > 0) {
    progress.seconds_left = (bytes_total - bytes_done) / progress.bytes_per_second;
  }
  return progress;
}

std::string BytesText(double num_bytes) {
  if (num_bytes < 1024) return absl::StrFormat("%.0f B", num_bytes);
  for (const char* unit : {"KiB", "MiB"}) {
    num_bytes /= 1024;
    // A value that would print as 1024.0 is shown as 1.0 of the next unit.
    if (num_bytes < 1023.95) return absl::StrFormat("%.1f %s", num_bytes, unit);
  }
  return absl::StrFormat("%.1f GiB", num_bytes / 1024);
}

std::string DurationText(double seconds) {
  if (seconds < 9.995 && seconds != std::floor(seconds)) return absl::StrFormat("%.2f s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 60) return absl::StrFormat("%d s", whole);
  if (whole < 3600) return absl::StrFormat("%d min %02d s", whole / 60, whole % 60);
  return absl::StrFormat("%d h %02d min", whole / 3600, whole % 3600 / 60);
}

std::string ProgressText(const Progress& progress) {
  const std::string rate =
      progress.bytes_per_second > 0 ? absl::StrCat(", ", BytesText(progress.bytes_per_second), "/s") : std::string();
  if (progress.is_done()) {
    return absl::StrCat(BytesText(progress.bytes_done), " in ", DurationText(progress.seconds), rate);
  }
  const std::string left = progress.seconds_left.has_value()
                               ? absl::StrCat(", ", DurationText(std::ceil(*progress.seconds_left)), " left")
                               : std::string();
  return absl::StrCat(BytesText(progress.bytes_done), " of ", BytesText(progress.bytes_total), rate, left);
}

std::string ProgressBar(std::string_view label, const Progress& progress, int num_columns) {
  const std::string begin(label);
  // Rounded down, so that only a finished transfer shows 100 %.
  const int percent = static_cast<int>(Fraction(progress) * 100);
  const std::string end = absl::StrCat(absl::StrFormat("%3d %%  ", percent), ProgressText(progress));
  const int most = std::max(num_columns - 1, 0);
  const int room = most - static_cast<int>(begin.size() + 2 + 2 + 2 + end.size());
  const std::string bar =
      room >= kShortestBar ? absl::StrCat(Bar(Fraction(progress), std::min(room, kLongestBar)), "  ") : std::string();
  return CutAt(absl::StrCat(begin, "  ", bar, end), most);
}

}  // namespace switchyard
