#include "tests/simulation/event_loop.h"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace switchyard::simulation {

void EventLoop::At(SteadyTime when, Event event) {
  events_.push({std::max(when, now_), num_added_++, std::move(event)});
}

bool EventLoop::RunNext() {
  if (events_.empty()) return false;
  const SteadyTime when = events_.top().when;
  Event event = std::move(events_.top().event);
  events_.pop();
  if (when > now_) {
    clock_.Advance(when - now_);
    now_ = when;
  }
  ++num_run_;
  event();
  if (after_each_ != nullptr) after_each_();
  return true;
}

void EventLoop::Note(const char* what, int64_t first, int64_t second, int64_t third) {
  uint64_t text = 0;
  for (const char* at = what; *at != 0; ++at) text = text * 131 + static_cast<unsigned char>(*at);
  for (const uint64_t part : {static_cast<uint64_t>(elapsed().count()), text, static_cast<uint64_t>(first),
                              static_cast<uint64_t>(second), static_cast<uint64_t>(third)}) {
    hash_ = Mix(hash_ * 3 + part);
  }
  if (!prints_) return;
  std::printf("%14.6f  %-26s %ld %ld %ld\n", static_cast<double>(elapsed().count()) * 1e-9, what, first, second, third);
}

void EventLoop::Print(const std::string& text) const {
  if (prints_) std::printf("%14.6f  %s\n", static_cast<double>(elapsed().count()) * 1e-9, text.c_str());
}

}  // namespace switchyard::simulation
