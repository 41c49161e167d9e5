// Runs the simulated world with as many seeds as the tests have time for. `simulate` runs more.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "base/logging/logging.h"
#include "tests/simulation/world.h"

namespace switchyard::simulation {
namespace {

// The seeds of all shards together.
#if defined(__SANITIZE_ADDRESS__)
constexpr uint64_t kNumSeeds = 2'000;
#else
constexpr uint64_t kNumSeeds = 100'000;
#endif

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* const value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

// Each shard of a sharded test is one of these.
constexpr int kNumParts = 8;
class Simulation : public testing::TestWithParam<int> {};

TEST_P(Simulation, WhateverStrikesEveryRequestIsAnsweredOnceAndRightAndNothingIsLeft) {
  spdlog::set_level(spdlog::level::off);
  const uint64_t num_seeds = FromEnvironment("SWITCHYARD_SIMULATION_SEEDS", kNumSeeds);
  int64_t num_answers = 0;
  for (uint64_t seed = 1 + static_cast<uint64_t>(GetParam()); seed <= num_seeds; seed += kNumParts) {
    const Outcome outcome = RunWorld(seed);
    num_answers += outcome.num_answers;
    ASSERT_TRUE(outcome.ok()) << outcome.Report();
  }
  EXPECT_GT(num_answers, 0);
}

INSTANTIATE_TEST_SUITE_P(Seeds, Simulation, testing::Range(0, kNumParts));

TEST(SimulationReplay, AWrongAnswerIsFound) {
  spdlog::set_level(spdlog::level::off);
  int num_found = 0;
  for (uint64_t seed = 1; seed <= 20; ++seed) num_found += !RunWorld(seed, {.corrupts_results = true}).ok();
  EXPECT_GT(num_found, 10);
}

TEST(SimulationReplay, ASeedGivesTheSameRunAgain) {
  spdlog::set_level(spdlog::level::off);
  for (uint64_t seed = 1; seed <= 100; ++seed) {
    const Outcome first = RunWorld(seed), second = RunWorld(seed);
    ASSERT_EQ(first.hash, second.hash) << "seed " << seed;
    ASSERT_EQ(first.num_events, second.num_events) << "seed " << seed;
  }
}

}  // namespace
}  // namespace switchyard::simulation
