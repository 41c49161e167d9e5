#include "server/steps/output_pool.h"

#include <gtest/gtest.h>

#include <set>
#include <thread>

namespace switchyard {
namespace {

TEST(OutputPool, LendsOnlySpares) {
  const auto pool = std::make_shared<OutputPool>(5, 3, std::vector<std::shared_ptr<const void>>{});
  std::vector<std::shared_ptr<const void>> loans;
  std::set<int> lent;
  for (int i = 0; i < 2; ++i) {
    const int output = pool->Take();
    loans.push_back(pool->Lend(output));
    EXPECT_NE(loans.back(), nullptr);
    lent.insert(output);
  }
  std::set<int> taken;
  for (int i = 0; i < 3; ++i) taken.insert(pool->Take());
  EXPECT_EQ(taken.size(), 3u) << "every step has one";
  for (const int output : taken) EXPECT_FALSE(lent.contains(output));
  EXPECT_EQ(pool->Lend(*taken.begin()), nullptr);
  pool->Return(*taken.begin());
  loans.pop_back();
  EXPECT_NE(pool->Lend(pool->Take()), nullptr) << "a loan that ended leaves room for another";
}

TEST(OutputPool, ALoanLastsUntilItsLastOwnerIsGone) {
  const auto pool = std::make_shared<OutputPool>(2, 1, std::vector<std::shared_ptr<const void>>{});
  std::shared_ptr<const void> loan = pool->Lend(pool->Take());
  std::shared_ptr<const void> other = loan;
  loan.reset();
  EXPECT_EQ(pool->Lend(pool->Take()), nullptr);
  other.reset();
}

TEST(OutputPool, ALoanKeepsTheMemory) {
  auto memory = std::make_shared<int>(7);
  const std::weak_ptr<int> watched = memory;
  auto pool = std::make_shared<OutputPool>(2, 1, std::vector<std::shared_ptr<const void>>{std::move(memory)});
  std::shared_ptr<const void> loan = pool->Lend(pool->Take());
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
    threads.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) {
        const int output = pool->Take();
        EXPECT_EQ(owners[output]++, 0);
        if (auto loan = pool->Lend(output); loan != nullptr) {
          --owners[output];  // the reader is done; the loan ends after this
        } else {
          --owners[output];
          pool->Return(output);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace switchyard
