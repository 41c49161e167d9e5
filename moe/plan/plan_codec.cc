#include "moe/plan/plan_codec.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <cstring>
#include <vector>

namespace switchyard {
namespace {

// The arrays are used in place, so the host must be of the layout's own byte order.
static_assert(std::endian::native == std::endian::little);

constexpr int32_t kMagic = 0x32505953;  // "SYP2" in memory

struct Header {
  int32_t magic;
  int32_t num_ranks;
  int32_t num_slots;
  int32_t num_home_rows;
  int32_t num_send_rows;
  int32_t num_recv_rows;
  int32_t num_pairs;
  int32_t num_chunks;
};
static_assert(sizeof(Header) == 32);

// Bytes of a whole plan. 64-bit sums of non-negative 32-bit counts cannot overflow.
int64_t PlanBytes(int64_t num_ranks, int64_t num_slots, int64_t num_send_rows, int64_t num_pairs) {
  const int64_t num_words = 2 * (num_ranks + 1) + num_send_rows + (num_slots + 1) + 2 * num_pairs;
  return static_cast<int64_t>(sizeof(Header)) + 4 * num_words;
}

template <typename T>
std::byte* Append(std::span<const T> values, std::byte* out) {
  static_assert(sizeof(T) == 4);
  if (values.empty()) return out;  // memcpy takes no null pointer, not even for 0 bytes
  std::memcpy(out, values.data(), values.size_bytes());
  return out + values.size_bytes();
}

// Cuts arrays off the front of the words after the header, whose total size is already known to fit.
class ArrayReader {
 public:
  explicit ArrayReader(const std::byte* cursor) : cursor_(cursor) {}

  template <typename T>
  std::span<const T> Take(size_t count) {
    const std::span<const T> array(reinterpret_cast<const T*>(cursor_), count);
    cursor_ += array.size_bytes();
    return array;
  }

 private:
  const std::byte* cursor_;
};

absl::Status Wrong(absl::string_view field, absl::string_view problem) {
  return absl::InvalidArgumentError(absl::StrCat("step plan: ", field, ": ", problem));
}

absl::Status CheckCount(absl::string_view field, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return Wrong(field, absl::StrCat("expected ", min, " to ", max, ", got ", value));
}

absl::Status CheckHeader(const Header& header, const PlanLimits& limits) {
  if (header.magic != kMagic) return Wrong("magic", absl::StrCat("expected ", kMagic, ", got ", header.magic));
  SY_RETURN_IF_ERROR(CheckCount("num_chunks", header.num_chunks, 1, kMaxChunks));
  SY_RETURN_IF_ERROR(CheckCount("num_ranks", header.num_ranks, limits.num_ranks, limits.num_ranks));
  SY_RETURN_IF_ERROR(CheckCount("num_slots", header.num_slots, limits.num_slots, limits.num_slots));
  SY_RETURN_IF_ERROR(CheckCount("num_home_rows", header.num_home_rows, 0, limits.max_home_rows));
  SY_RETURN_IF_ERROR(
      CheckCount("num_send_rows", header.num_send_rows, 0, int64_t{header.num_home_rows} * limits.num_ranks));
  SY_RETURN_IF_ERROR(CheckCount("num_recv_rows", header.num_recv_rows, 0, limits.max_rows));
  // Every received row has a pair, and no more than one with each expert.
  return CheckCount("num_pairs", header.num_pairs, header.num_recv_rows,
                    int64_t{header.num_recv_rows} * limits.num_slots);
}

// Offsets start with 0, never decrease, and end with `total`.
absl::Status CheckOffsets(absl::string_view field, std::span<const int32_t> offsets, int64_t total) {
  if (offsets.front() != 0) return Wrong(field, absl::StrCat("must start with 0, got ", offsets.front()));
  for (size_t i = 1; i < offsets.size(); ++i) {
    if (offsets[i] < offsets[i - 1]) {
      return Wrong(field, absl::StrCat("entry ", i, " decreases from ", offsets[i - 1], " to ", offsets[i]));
    }
  }
  if (offsets.back() != total) return Wrong(field, absl::StrCat("must end with ", total, ", got ", offsets.back()));
  return absl::OkStatus();
}

// Each segment of `indices` increases strictly, within [0, bound).
absl::Status CheckSegments(absl::string_view field, std::span<const int32_t> offsets, std::span<const int32_t> indices,
                           int64_t bound) {
  for (size_t segment = 0; segment + 1 < offsets.size(); ++segment) {
    int32_t previous = -1;
    for (int32_t i = offsets[segment]; i < offsets[segment + 1]; ++i) {
      if (indices[i] <= previous || indices[i] >= bound) {
        return Wrong(field, absl::StrCat("entry ", i, " of segment ", segment, " is ", indices[i],
                                         ", expected an index above ", previous, " and below ", bound));
      }
      previous = indices[i];
    }
  }
  return absl::OkStatus();
}

// A received row that no expert computes would come back as the old contents of the partial sums' memory.
absl::Status CheckEveryRowHasPair(std::span<const int32_t> pair_rows, int64_t num_recv_rows) {
  std::vector<bool> has_pair(num_recv_rows);
  for (const int32_t row : pair_rows) has_pair[row] = true;
  const auto missing = std::find(has_pair.begin(), has_pair.end(), false);
  if (missing == has_pair.end()) return absl::OkStatus();
  return Wrong("pair_rows", absl::StrCat("received row ", missing - has_pair.begin(), " has no expert"));
}

RankPlanView ViewArrays(const Header& header, const std::byte* arrays) {
  ArrayReader reader(arrays);
  RankPlanView plan;
  plan.num_ranks = header.num_ranks;
  plan.num_home_rows = header.num_home_rows;
  plan.num_chunks = header.num_chunks;
  plan.send_offsets = reader.Take<int32_t>(header.num_ranks + 1);
  plan.recv_offsets = reader.Take<int32_t>(header.num_ranks + 1);
  plan.expert_offsets = reader.Take<int32_t>(header.num_slots + 1);
  plan.send_rows = reader.Take<int32_t>(header.num_send_rows);
  plan.pair_rows = reader.Take<int32_t>(header.num_pairs);
  plan.pair_weights = reader.Take<float>(header.num_pairs);
  return plan;
}

absl::Status CheckArrays(const Header& header, const RankPlanView& plan) {
  SY_RETURN_IF_ERROR(CheckOffsets("send_offsets", plan.send_offsets, header.num_send_rows));
  SY_RETURN_IF_ERROR(CheckOffsets("recv_offsets", plan.recv_offsets, header.num_recv_rows));
  SY_RETURN_IF_ERROR(CheckOffsets("expert_offsets", plan.expert_offsets, header.num_pairs));
  SY_RETURN_IF_ERROR(CheckSegments("send_rows", plan.send_offsets, plan.send_rows, header.num_home_rows));
  SY_RETURN_IF_ERROR(CheckSegments("pair_rows", plan.expert_offsets, plan.pair_rows, header.num_recv_rows));
  return CheckEveryRowHasPair(plan.pair_rows, header.num_recv_rows);
}

}  // namespace

size_t EncodedSize(const RankPlanView& plan) {
  return PlanBytes(plan.num_ranks, plan.num_slots(), plan.num_send_rows(), plan.num_pairs());
}

size_t MaxEncodedSize(int num_ranks, int num_slots, int top_k, int64_t max_home_rows, int64_t max_rows) {
  return PlanBytes(num_ranks, num_slots, max_home_rows * std::min(num_ranks, top_k),
                   max_rows * std::min(num_slots, top_k));
}

void EncodeRankPlan(const RankPlanView& plan, std::byte* out) {
  assert(reinterpret_cast<uintptr_t>(out) % alignof(int32_t) == 0);
  const Header header{.magic = kMagic,
                      .num_ranks = plan.num_ranks,
                      .num_slots = plan.num_slots(),
                      .num_home_rows = static_cast<int32_t>(plan.num_home_rows),
                      .num_send_rows = static_cast<int32_t>(plan.num_send_rows()),
                      .num_recv_rows = static_cast<int32_t>(plan.num_recv_rows()),
                      .num_pairs = static_cast<int32_t>(plan.num_pairs()),
                      .num_chunks = plan.num_chunks};
  std::memcpy(out, &header, sizeof(header));
  out = Append(plan.send_offsets, out + sizeof(header));
  out = Append(plan.recv_offsets, out);
  out = Append(plan.expert_offsets, out);
  out = Append(plan.send_rows, out);
  out = Append(plan.pair_rows, out);
  Append(plan.pair_weights, out);
}

absl::StatusOr<RankPlanView> DecodeRankPlan(std::span<const std::byte> bytes, const PlanLimits& limits) {
  if (reinterpret_cast<uintptr_t>(bytes.data()) % alignof(int32_t) != 0) {
    return Wrong("buffer", "must be aligned to 4 bytes");
  }
  if (bytes.size() < sizeof(Header)) {
    return Wrong("header", absl::StrCat("expected ", sizeof(Header), " bytes, got ", bytes.size()));
  }
  Header header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  SY_RETURN_IF_ERROR(CheckHeader(header, limits));
  const int64_t expected = PlanBytes(header.num_ranks, header.num_slots, header.num_send_rows, header.num_pairs);
  if (static_cast<int64_t>(bytes.size()) != expected) {
    return Wrong("buffer", absl::StrCat("its counts need ", expected, " bytes, got ", bytes.size()));
  }
  const RankPlanView plan = ViewArrays(header, bytes.data() + sizeof(header));
  SY_RETURN_IF_ERROR(CheckArrays(header, plan));
  return plan;
}

}  // namespace switchyard
