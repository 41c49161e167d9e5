#include "moe/plan/plan_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>

#include "moe/plan/testing.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

// Exactly the encoded bytes on the heap, so that a sanitizer sees any read behind them.
std::vector<int32_t> Encode(const RankPlanView& plan) {
  std::vector<int32_t> words(EncodedSize(plan) / 4);
  EncodeRankPlan(plan, reinterpret_cast<std::byte*>(words.data()));
  return words;
}

absl::StatusOr<RankPlanView> Decode(const std::vector<int32_t>& words, const PlanLimits& limits) {
  return DecodeRankPlan(std::as_bytes(std::span(words)), limits);
}

PlanLimits LimitsOf(const PlanCase& plan_case, int rank) {
  return {.num_ranks = plan_case.placement.num_ranks(),
          .num_slots = static_cast<int>(plan_case.placement.experts_of(rank).size()),
          .max_home_rows = plan_case.routing.num_rows,
          .max_rows = plan_case.routing.num_rows};
}

template <typename T>
std::vector<T> Copy(std::span<const T> values) {
  return {values.begin(), values.end()};
}

void ExpectEqual(const RankPlanView& a, const RankPlanView& b) {
  EXPECT_EQ(a.num_ranks, b.num_ranks);
  EXPECT_EQ(a.num_home_rows, b.num_home_rows);
  EXPECT_EQ(a.num_chunks, b.num_chunks);
  EXPECT_EQ(Copy(a.send_offsets), Copy(b.send_offsets));
  EXPECT_EQ(Copy(a.send_rows), Copy(b.send_rows));
  EXPECT_EQ(Copy(a.recv_offsets), Copy(b.recv_offsets));
  EXPECT_EQ(Copy(a.expert_offsets), Copy(b.expert_offsets));
  EXPECT_EQ(Copy(a.pair_rows), Copy(b.pair_rows));
  EXPECT_EQ(Copy(a.pair_weights), Copy(b.pair_weights));
}

bool OffsetsHold(std::span<const int32_t> offsets, size_t num_segments, int64_t total) {
  return offsets.size() == num_segments + 1 && offsets.front() == 0 && offsets.back() == total &&
         std::is_sorted(offsets.begin(), offsets.end());
}

bool SegmentsHold(std::span<const int32_t> offsets, std::span<const int32_t> indices, int64_t bound) {
  for (size_t segment = 0; segment + 1 < offsets.size(); ++segment) {
    for (int32_t i = offsets[segment]; i < offsets[segment + 1]; ++i) {
      if (indices[i] < 0 || indices[i] >= bound) return false;
      if (i > offsets[segment] && indices[i] <= indices[i - 1]) return false;
    }
  }
  return true;
}

// Everything an engine relies on when it indexes without checks.
bool InvariantsHold(const RankPlanView& plan, const PlanLimits& limits) {
  return plan.num_ranks == limits.num_ranks && plan.num_slots() == limits.num_slots && plan.num_home_rows >= 0 &&
         plan.num_home_rows <= limits.max_home_rows && plan.num_recv_rows() <= limits.max_rows &&
         plan.num_chunks >= 1 && plan.num_chunks <= kMaxChunks && plan.pair_weights.size() == plan.pair_rows.size() &&
         OffsetsHold(plan.send_offsets, limits.num_ranks, plan.num_send_rows()) &&
         OffsetsHold(plan.recv_offsets, limits.num_ranks, plan.num_recv_rows()) &&
         OffsetsHold(plan.expert_offsets, limits.num_slots, plan.num_pairs()) &&
         SegmentsHold(plan.send_offsets, plan.send_rows, plan.num_home_rows) &&
         SegmentsHold(plan.expert_offsets, plan.pair_rows, plan.num_recv_rows());
}

// A plan with something in every array, and its limits.
struct Sample {
  PlanCase plan_case{"sample", RandomRouting(24, 3, 8, 5), Placement::Even(8, 3), HomeOffsets(24, 3)};
  StepPlan step = PlanStep(plan_case.routing, plan_case.placement, plan_case.home_offsets);
  PlanLimits limits = LimitsOf(plan_case, 1);
  RankPlanView plan() const { return step.ranks[1].view(); }
};

TEST(PlanCodecTest, RoundTrip) {
  for (const PlanCase& plan_case : PlanCases()) {
    SCOPED_TRACE(plan_case.name);
    const StepPlan step = PlanStep(plan_case.routing, plan_case.placement, plan_case.home_offsets);
    for (int rank = 0; rank < plan_case.placement.num_ranks(); ++rank) {
      const PlanLimits limits = LimitsOf(plan_case, rank);
      const RankPlanView plan = step.ranks[rank].view();
      const std::vector<int32_t> words = Encode(plan);
      const absl::StatusOr<RankPlanView> decoded = Decode(words, limits);
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      ExpectEqual(*decoded, plan);
      EXPECT_TRUE(InvariantsHold(*decoded, limits));
      EXPECT_LE(words.size() * 4, MaxEncodedSize(limits.num_ranks, limits.num_slots, plan_case.routing.top_k,
                                                 plan.num_home_rows, plan_case.routing.num_rows));
    }
  }
}

// The layout of docs/link.md, byte by byte.
TEST(PlanCodecTest, LayoutIsTheDocumentedOne) {
  const RankPlan plan{.num_home_rows = 2,
                      .num_chunks = 4,
                      .send_offsets = {0, 1, 3},
                      .send_rows = {1, 0, 1},
                      .recv_offsets = {0, 1, 2},
                      .expert_offsets = {0, 2},
                      .pair_rows = {0, 1},
                      .pair_weights = {1.0f, 0.5f}};
  const std::vector<int32_t> expected = {0x32505953, 2, 1, 2, 3, 2,          2,         4,  // header
                                         0,          1, 3, 0, 1, 2,          0,         2,  // offsets
                                         1,          0, 1, 0, 1, 0x3f800000, 0x3f000000};   // rows, pairs, weights
  EXPECT_EQ(Encode(plan.view()), expected);
}

TEST(PlanCodecTest, EveryTruncationIsRefused) {
  const Sample sample;
  const std::vector<int32_t> words = Encode(sample.plan());
  for (size_t num_bytes = 0; num_bytes < words.size() * 4; ++num_bytes) {
    std::vector<int32_t> copy(words.begin(), words.begin() + (num_bytes + 3) / 4);
    const auto bytes = std::as_bytes(std::span(copy)).first(num_bytes);
    EXPECT_EQ(DecodeRankPlan(bytes, sample.limits).status().code(), absl::StatusCode::kInvalidArgument) << num_bytes;
  }
}

TEST(PlanCodecTest, BytesBehindThePlanAreRefused) {
  const Sample sample;
  std::vector<int32_t> words = Encode(sample.plan());
  words.push_back(0);
  EXPECT_THAT(Decode(words, sample.limits).status().message(), HasSubstr("buffer"));
}

TEST(PlanCodecTest, MisalignedBufferIsRefused) {
  const Sample sample;
  const std::vector<int32_t> words = Encode(sample.plan());
  std::vector<int32_t> shifted(words.size() + 1);
  std::byte* const at = reinterpret_cast<std::byte*>(shifted.data()) + 1;
  std::memcpy(at, words.data(), words.size() * 4);
  const auto status = DecodeRankPlan({at, words.size() * 4}, sample.limits).status();
  EXPECT_THAT(status.message(), HasSubstr("aligned"));
}

TEST(PlanCodecTest, LimitsAreEnforced) {
  const Sample sample;
  const std::vector<int32_t> words = Encode(sample.plan());
  const auto message = [&](auto change) {
    PlanLimits limits = sample.limits;
    change(limits);
    return std::string(Decode(words, limits).status().message());
  };
  EXPECT_THAT(message([](PlanLimits& limits) { ++limits.num_ranks; }), HasSubstr("num_ranks"));
  EXPECT_THAT(message([](PlanLimits& limits) { --limits.num_slots; }), HasSubstr("num_slots"));
  EXPECT_THAT(message([](PlanLimits& limits) { limits.max_home_rows = 7; }), HasSubstr("num_home_rows"));
  EXPECT_THAT(message([](PlanLimits& limits) { limits.max_rows = 3; }), HasSubstr("num_recv_rows"));
}

TEST(PlanCodecTest, EveryNumberOfChunksArrivesAndNoOther) {
  const Sample sample;
  RankPlanView plan = sample.plan();
  for (plan.num_chunks = -1; plan.num_chunks <= kMaxChunks + 1; ++plan.num_chunks) {
    const std::vector<int32_t> words = Encode(plan);
    const auto decoded = Decode(words, sample.limits);
    if (plan.num_chunks >= 1 && plan.num_chunks <= kMaxChunks) {
      ASSERT_TRUE(decoded.ok()) << decoded.status();
      EXPECT_EQ(decoded->num_chunks, plan.num_chunks);
    } else {
      EXPECT_THAT(decoded.status().message(), HasSubstr("num_chunks: expected 1 to 8"));
    }
  }
}

TEST(PlanCodecTest, ReceivedRowWithoutExpertIsRefused) {
  const RankPlan plan{.num_home_rows = 0,
                      .send_offsets = {0, 0},
                      .send_rows = {},
                      .recv_offsets = {0, 2},
                      .expert_offsets = {0, 1, 2},
                      .pair_rows = {0, 0},
                      .pair_weights = {1.0f, 1.0f}};
  const auto status =
      Decode(Encode(plan.view()), {.num_ranks = 1, .num_slots = 2, .max_home_rows = 4, .max_rows = 4}).status();
  EXPECT_THAT(status.message(), HasSubstr("received row 1 has no expert"));
}

// Replaces any single word by any of the values that break readers: the plan is refused or still sound.
TEST(PlanCodecTest, HostileWordsAreRefusedOrHarmless) {
  const Sample sample;
  const std::vector<int32_t> words = Encode(sample.plan());
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max(), kMin = std::numeric_limits<int32_t>::min();
  for (size_t i = 0; i < words.size(); ++i) {
    for (const int32_t value : {0, 1, -1, kMax, kMin, kMax - 1, 1 << 30, words[i] + 1, words[i] - 1}) {
      std::vector<int32_t> hostile = words;
      hostile[i] = value;
      const auto decoded = Decode(hostile, sample.limits);
      EXPECT_TRUE(!decoded.ok() || InvariantsHold(*decoded, sample.limits)) << i << " = " << value;
    }
  }
}

TEST(PlanCodecTest, RandomMutationsAreRefusedOrHarmless) {
  const Sample sample;
  const std::vector<int32_t> words = Encode(sample.plan());
  std::mt19937 random(20240601);
  int num_accepted = 0;
  for (int round = 0; round < 200'000; ++round) {
    std::vector<int32_t> mutated = words;
    for (uint32_t change = 0; change <= random() % 4; ++change) {
      std::byte* const bytes = reinterpret_cast<std::byte*>(mutated.data());
      const size_t at = random() % (mutated.size() * 4);
      if (random() % 2 == 0) {
        bytes[at] ^= static_cast<std::byte>(1u << random() % 8);
      } else {
        mutated[at / 4] = static_cast<int32_t>(random() % 32) - 4;
      }
    }
    if (random() % 16 == 0) mutated.resize(random() % (2 * mutated.size()));
    const auto decoded = Decode(mutated, sample.limits);
    if (!decoded.ok()) continue;
    ++num_accepted;
    ASSERT_TRUE(InvariantsHold(*decoded, sample.limits)) << "round " << round;
  }
  EXPECT_GT(num_accepted, 1000);  // weights may be anything, so some survive
}

}  // namespace
}  // namespace switchyard
