#include "server/admission.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace switchyard {
namespace {

TEST(Admission, RefusesBeyondEitherBudgetAndNamesIt) {
  Admission admission(10, 100);
  EXPECT_TRUE(admission.Admit(6, 60).ok());
  const absl::Status rows = admission.Admit(5, 1);
  EXPECT_TRUE(absl::IsResourceExhausted(rows));
  EXPECT_NE(std::string(rows.message()).find("--max_queued_rows=10"), std::string::npos) << rows;
  const absl::Status bytes = admission.Admit(1, 41);
  EXPECT_TRUE(absl::IsResourceExhausted(bytes));
  EXPECT_NE(std::string(bytes.message()).find("--max_queued_bytes=100"), std::string::npos) << bytes;
  EXPECT_TRUE(admission.Admit(4, 40).ok());
  admission.Release(6, 60);
  EXPECT_TRUE(admission.Admit(6, 60).ok());
  EXPECT_EQ(admission.held().rows, 10);
  EXPECT_EQ(admission.held().requests, 2);
}

TEST(Admission, WaitsUntilTheLastRequestLeaves) {
  Admission admission(10, 100);
  ASSERT_TRUE(admission.Admit(1, 1).ok());
  EXPECT_FALSE(admission.WaitUntilEmpty(std::chrono::milliseconds(1)));
  std::thread leaver([&] { admission.Release(1, 1); });
  EXPECT_TRUE(admission.WaitUntilEmpty(std::chrono::hours(1)));
  leaver.join();
}

TEST(Admission, ConcurrentCallersNeverExceedTheBudget) {
  Admission admission(3, 1000);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 2000; ++round) {
        if (!admission.Admit(1, 10).ok()) continue;
        EXPECT_LE(admission.held().rows, 3);
        admission.Release(1, 10);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(admission.held().bytes, 0);
}

}  // namespace
}  // namespace switchyard
