#include "worker/welcome.h"

#include <gtest/gtest.h>

#include <limits>

namespace switchyard {
namespace {

absl::Status Check(int rank, int num_ranks) {
  worker::Welcome welcome;
  welcome.set_rank(rank);
  welcome.set_num_ranks(num_ranks);
  return CheckWelcome(welcome);
}

TEST(Welcome, IsOfAGroupThatCanBe) {
  EXPECT_TRUE(Check(0, 1).ok());
  EXPECT_TRUE(Check(kMaxRanks - 1, kMaxRanks).ok());
  constexpr int kLargest = std::numeric_limits<int>::max(), kSmallest = std::numeric_limits<int>::min();
  for (const int num_ranks : {kLargest, kSmallest, -1, 0, kMaxRanks + 1}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Check(0, num_ranks))) << num_ranks;
  }
  for (const int rank : {kLargest, kSmallest, -1, 2}) EXPECT_TRUE(absl::IsInvalidArgument(Check(rank, 2))) << rank;
}

}  // namespace
}  // namespace switchyard
