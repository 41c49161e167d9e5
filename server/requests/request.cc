#include "server/requests/request.h"

#include <algorithm>
#include <cstring>

#include "base/tensor/convert.h"
#include "moe/gating/capacity.h"

namespace switchyard {

bool Request::IsRoutedWhole() const {
  return CanDropChoices(ask.capacity) || ask.return_balance_loss ||
         !ask.layer->spec.gate_at(ask.gate_idx).experts_of_choices.empty();
}

absl::Status WhyExpired(const Request& request, SteadyTime now) {
  const int64_t waited_us = MicrosBetween(request.ask.arrival, now);
  if (request.ask.timeout_us > 0 && waited_us >= request.ask.timeout_us) {
    return absl::DeadlineExceededError(absl::StrCat("timeout: not answered within ", request.ask.timeout_us, " us"));
  }
  if (now >= request.ask.deadline) {
    return absl::DeadlineExceededError(absl::StrCat("the call's deadline passed, after ", waited_us, " us"));
  }
  // The queue timeout is of the first rows; those that follow have to leave in time for the answer only.
  if (request.progress.has_left || request.ask.queue_timeout.count() == 0 ||
      waited_us < request.ask.queue_timeout.count()) {
    const bool of_timeout = request.ask.timeout_us > 0 &&
                            MicrosBetween(request.ask.arrival, request.ask.deadline) >= request.ask.timeout_us;
    return absl::DeadlineExceededError(
        absl::StrCat(of_timeout ? absl::StrCat("timeout: not answered within ", request.ask.timeout_us, " us, which")
                                : "the call's deadline",
                     " cannot be met any more, after ", waited_us, " us in the queue"));
  }
  return absl::DeadlineExceededError(absl::StrCat("queue timeout: still queued after ", waited_us,
                                                  " us, the timeout is ", request.ask.queue_timeout.count(), " us"));
}

size_t ChunkedRows::size_bytes() const {
  size_t total = 0;
  for (const auto& chunk : chunks_) total += chunk.size();
  return total;
}

ChunkedRows::Position ChunkedRows::SkipNext(size_t num_bytes) {
  const Position begin = next_;
  while (num_bytes > 0) {
    const size_t taken = std::min(num_bytes, chunks_[next_.chunk_idx].size() - next_.offset);
    num_bytes -= taken;
    next_.offset += taken;
    if (next_.offset == chunks_[next_.chunk_idx].size()) next_ = {next_.chunk_idx + 1, 0};
  }
  return begin;
}

ChunkedRows::Position ChunkedRows::ReadAt(Position at, DType from, size_t num_elements, DType to,
                                          std::byte* dst) const {
  const size_t from_size = SizeOf(from), to_size = SizeOf(to);
  while (num_elements > 0) {
    const auto rest = chunks_[at.chunk_idx].subspan(at.offset);
    const size_t whole = std::min(num_elements, rest.size() / from_size);
    ConvertElements(from, rest.data(), to, dst, whole);
    dst += whole * to_size;
    num_elements -= whole;
    at.offset += whole * from_size;
    if (num_elements == 0) break;
    // The next element begins in this chunk's last bytes, if any are left, and ends in later ones.
    std::byte element[8];
    size_t filled = 0;
    while (filled < from_size) {
      const auto part = chunks_[at.chunk_idx].subspan(at.offset);
      const size_t taken = std::min(from_size - filled, part.size());
      std::memcpy(element + filled, part.data(), taken);
      filled += taken;
      at.offset += taken;
      if (at.offset == chunks_[at.chunk_idx].size()) at = {at.chunk_idx + 1, 0};
    }
    ConvertElements(from, element, to, dst, 1);
    dst += to_size;
    --num_elements;
  }
  return at;
}

}  // namespace switchyard
