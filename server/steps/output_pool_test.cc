#include "server/steps/output_pool.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

namespace switchyard {
namespace {

constexpr StepId kStep{7};

TEST(OutputPool, LendsOnlySpares) {
  const auto pool = std::make_shared<OutputPool>(5, 3, std::vector<std::shared_ptr<const void>>{});
  std::vector<std::shared_ptr<const void>> loans;
  std::set<int> lent;
  for (int i = 0; i < 2; ++i) {
    const int output = pool->Take(StepId{i});
    loans.push_back(pool->Lend(output, StepId{i}));
    EXPECT_NE(loans.back(), nullptr);
    lent.insert(output);
  }
  std::set<int> taken;
  for (int i = 0; i < 3; ++i) taken.insert(pool->Take(kStep));
  EXPECT_EQ(taken.size(), 3u) << "every step has one";
  for (const int output : taken) EXPECT_FALSE(lent.contains(output));
  EXPECT_EQ(pool->Lend(*taken.begin(), kStep), nullptr);
  pool->Return(*taken.begin(), kStep);
  loans.pop_back();
  EXPECT_NE(pool->Lend(pool->Take(kStep), kStep), nullptr) << "a loan that ended leaves room for another";
}

TEST(OutputPool, AnOutputIsItsStepsAlone) {
  const auto pool = std::make_shared<OutputPool>(3, 1, std::vector<std::shared_ptr<const void>>{});
  const int output = pool->Take(StepId{1});
  EXPECT_TRUE(pool->BelongsTo(output, StepId{1}));
  EXPECT_FALSE(pool->BelongsTo(output, StepId{2}));
  EXPECT_EQ(pool->Lend(output, StepId{2}), nullptr);
  pool->Return(output, StepId{2});
  EXPECT_TRUE(pool->BelongsTo(output, StepId{1})) << "another step cannot give it back";
  std::shared_ptr<const void> loan = pool->Lend(output, StepId{1});
  ASSERT_NE(loan, nullptr);
  EXPECT_FALSE(pool->BelongsTo(output, StepId{1})) << "its rows are being read, so a late result must not be written";
  EXPECT_EQ(pool->Lend(output, StepId{1}), nullptr);
  pool->Return(output, StepId{1});
  EXPECT_NE(pool->Take(StepId{3}), output);
  loan.reset();
  EXPECT_EQ(pool->Take(StepId{4}), output);
}

TEST(OutputPool, ALoanLastsUntilItsLastOwnerIsGone) {
  const auto pool = std::make_shared<OutputPool>(2, 1, std::vector<std::shared_ptr<const void>>{});
  std::shared_ptr<const void> loan = pool->Lend(pool->Take(kStep), kStep);
  std::shared_ptr<const void> other = loan;
  loan.reset();
  EXPECT_EQ(pool->Lend(pool->Take(kStep), kStep), nullptr);
  other.reset();
}

TEST(OutputPool, ALoanKeepsTheMemory) {
  auto memory = std::make_shared<int>(7);
  const std::weak_ptr<int> watched = memory;
  auto pool = std::make_shared<OutputPool>(2, 1, std::vector<std::shared_ptr<const void>>{std::move(memory)});
  std::shared_ptr<const void> loan = pool->Lend(pool->Take(kStep), kStep);
  pool.reset();
  EXPECT_FALSE(watched.expired());
  loan.reset();
  EXPECT_TRUE(watched.expired());
}

TEST(OutputPool, StepsAndReadersOnManyThreads) {
  constexpr int kSteps = 3, kRounds = 2000;
  const auto pool = std::make_shared<OutputPool>(kSteps + 2, kSteps, std::vector<std::shared_ptr<const void>>{});
  int owners[kSteps + 2] = {};  // unsynchronised: an output has one user at a time
  std::vector<std::thread> threads;
  for (int i = 0; i < kSteps; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < kRounds; ++round) {
        const StepId step{round * kSteps + i};
        const int output = pool->Take(step);
        EXPECT_EQ(owners[output]++, 0);
        EXPECT_TRUE(pool->BelongsTo(output, step));
        if (auto loan = pool->Lend(output, step); loan != nullptr) {
          --owners[output];  // the reader is done; the loan ends after this
        } else {
          --owners[output];
          pool->Return(output, step);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace switchyard
