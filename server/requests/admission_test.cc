#include "server/requests/admission.h"

#include <gtest/gtest.h>

#include <map>
#include <string>
#include <thread>
#include <vector>

#include "server/requests/pushback.h"

namespace switchyard {
namespace {

TEST(Admission, RefusesBeyondEitherBudgetAndNamesIt) {
  Admission admission(10, 100);
  EXPECT_TRUE(admission.Admit({"a"}, 6, 60).ok());
  const absl::Status rows = admission.Admit({"a"}, 5, 1);
  EXPECT_TRUE(absl::IsResourceExhausted(rows));
  EXPECT_GT(PushbackMs(rows), 0);
  EXPECT_NE(std::string(rows.message()).find("--max_queued_rows=10"), std::string::npos) << rows;
  const absl::Status bytes = admission.Admit({"a"}, 1, 41);
  EXPECT_TRUE(absl::IsResourceExhausted(bytes));
  EXPECT_NE(std::string(bytes.message()).find("--max_queued_bytes=100"), std::string::npos) << bytes;
  EXPECT_TRUE(admission.Admit({"b"}, 4, 40).ok());
  admission.Release({"a"}, 6, 60);
  EXPECT_TRUE(admission.Admit({"a"}, 6, 60).ok());
  EXPECT_EQ(admission.held().rows, 10);
  EXPECT_EQ(admission.held().requests, 2);
}

TEST(Admission, WhatNeverFitsIsNotToBeTriedAgain) {
  Admission admission(10, 100);
  for (const absl::Status& status : {admission.Admit({"a"}, 11, 1), admission.Admit({"a"}, 1, 101)}) {
    EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
    EXPECT_EQ(PushbackMs(status), 0) << status;
    EXPECT_NE(std::string(status.message()).find("send fewer"), std::string::npos) << status;
  }
  EXPECT_EQ(admission.held().requests, 0);
}

TEST(Admission, BytesCountUntilTheAnswerIsGone) {
  Admission admission(10, 100);
  ASSERT_TRUE(admission.Admit({"a"}, 5, 60).ok());
  admission.ReleaseRows({"a"}, 5);
  EXPECT_EQ(admission.held().requests, 0);
  EXPECT_EQ(admission.held().bytes, 60);
  EXPECT_TRUE(admission.WaitUntilEmpty(std::chrono::milliseconds(0))) << "it is answered";
  EXPECT_TRUE(absl::IsResourceExhausted(admission.Admit({"a"}, 1, 41)));
  EXPECT_TRUE(admission.Admit({"b"}, 1, 30).ok());
  admission.ReleaseBytes({"a"}, 60);
  EXPECT_TRUE(admission.Admit({"a"}, 1, 41).ok());
  EXPECT_EQ(admission.held().bytes, 71);
}

TEST(Admission, WaitsUntilTheLastRequestLeaves) {
  Admission admission(10, 100);
  ASSERT_TRUE(admission.Admit({"a"}, 1, 1).ok());
  EXPECT_FALSE(admission.WaitUntilEmpty(std::chrono::milliseconds(1)));
  std::thread leaver([&] { admission.Release({"a"}, 1, 1); });
  EXPECT_TRUE(admission.WaitUntilEmpty(std::chrono::hours(1)));
  leaver.join();
}

TEST(Admission, ConcurrentCallersNeverExceedTheBudget) {
  Admission admission(3, 1000);
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < 2000; ++round) {
        if (!admission.Admit({"a"}, 1, 10).ok()) continue;
        EXPECT_LE(admission.held().rows, 3);
        admission.Release({"a"}, 1, 10);
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(admission.held().bytes, 0);
}

TEST(Admission, NoClientTakesEverything) {
  Admission admission(9000, 1 << 20);
  absl::Status status;
  while (status.ok()) status = admission.Admit({"greedy"}, 1, 1);
  EXPECT_NEAR(admission.held().rows, 8000, 8);
  EXPECT_TRUE(absl::IsResourceExhausted(status));
  EXPECT_NE(std::string(status.message()).find("this client holds"), std::string::npos) << status;
  EXPECT_TRUE(admission.Admit({"other"}, 900, 900).ok());
}

TEST(Admission, GreedyClientsShareWhateverCameFirst) {
  Admission admission(17000, 1 << 20);
  std::map<std::string, int64_t> rows;
  const auto admit = [&](const std::string& client) { rows[client] += admission.Admit({client}, 1, 1).ok(); };
  for (int i = 0; i < 17000; ++i) admit("first");
  // Whenever a request of the first client is answered, both clients ask for the free room.
  for (int i = 0; i < 20000; ++i) {
    admission.Release({"first"}, 1, 1);
    --rows["first"];
    admit("first");
    admit("second");
  }
  EXPECT_NEAR(rows["first"], 8000, 16);
  EXPECT_NEAR(rows["second"], 8000, 16);
}

TEST(Admission, ManyClientIdsOfOneSenderTakeNoMoreThanOneClient) {
  Admission admission(9000, 1 << 20);
  int64_t admitted = 0;
  absl::Status last;
  for (int i = 0; i < 9000; ++i) {
    const absl::Status status = admission.Admit({"connection", std::to_string(i)}, 1, 1);
    admitted += status.ok() ? 1 : 0;
    last = status;
  }
  EXPECT_NEAR(admitted, 8000, 8);
  EXPECT_NE(std::string(last.message()).find("this sender holds"), std::string::npos) << last;
  EXPECT_TRUE(admission.Admit({"another connection", "honest"}, 900, 900).ok());
  // One client id over several connections is one client.
  EXPECT_FALSE(admission.Admit({"a third connection", "honest"}, 50, 50).ok());
  for (int i = 0; i < admitted; ++i) admission.Release({"connection", std::to_string(i)}, 1, 1);
  admission.Release({"another connection", "honest"}, 900, 900);
  EXPECT_EQ(admission.held().rows, 0);
  EXPECT_TRUE(admission.Admit({"connection", "again"}, 9000, 1).ok());
}

TEST(Admission, AClientThatHoldsNothingMayTakeTheWholeBudget) {
  Admission admission(10, 100);
  EXPECT_TRUE(admission.Admit({"a"}, 10, 100).ok());
}

}  // namespace
}  // namespace switchyard
