#include "base/heartbeat.h"

#include <gtest/gtest.h>

#include <thread>

#include "base/notification.h"

namespace switchyard {
namespace {

using Activity = Heartbeat::Activity;

// Runs `work` on a thread that `heartbeat` watches; the thread then waits, without a beat, until the end of this.
class Watched {
 public:
  template <typename Work>
  Watched(Heartbeat* heartbeat, Work work)
      : thread_([this, heartbeat, work] {
          heartbeat->WatchThisThread();
          work();
          done_.Notify();
          end_.WaitForNotification();
        }) {
    done_.WaitForNotification();
  }
  ~Watched() {
    end_.Notify();
    thread_.join();
  }

 private:
  Notification done_, end_;
  std::thread thread_;
};

TEST(HeartbeatTest, AThreadThatDoesNothingDoesNotMove) {
  Heartbeat heartbeat;
  EXPECT_FALSE(heartbeat.is_watching());
  const Watched thread(&heartbeat, [] {});
  ASSERT_TRUE(heartbeat.is_watching());
  // The thread may still be on its way into the wait.
  Heartbeat::View before, after = heartbeat.Look();
  do {
    before = after;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    after = heartbeat.Look();
  } while (after.moves != before.moves);
  EXPECT_EQ(after.activity, Activity::kIdle);
  EXPECT_EQ(after.peer, Heartbeat::kNoPeer);
}

TEST(HeartbeatTest, BeatsAreMoves) {
  Heartbeat heartbeat;
  heartbeat.WatchThisThread();
  const int64_t before = heartbeat.Look().moves;
  Heartbeat::Beat();
  EXPECT_GT(heartbeat.Look().moves, before);
}

TEST(HeartbeatTest, CpuTimeCountsWithoutBeats) {
  Heartbeat heartbeat;
  int64_t before = 0;
  const Watched thread(&heartbeat, [&] {
    before = heartbeat.Look().moves;
    while (heartbeat.Look().moves == before) {
    }
  });
  EXPECT_GT(heartbeat.Look().moves, before);
}

TEST(HeartbeatTest, ScopesSayWhatIsDoneForWhom) {
  Heartbeat heartbeat;
  heartbeat.WatchThisThread();
  heartbeat.SetStep(Epoch{3}, StepId{17});
  const int64_t num_waits = heartbeat.Look().num_waits;
  {
    const Heartbeat::Doing working(Activity::kWorking);
    EXPECT_EQ(heartbeat.Look().activity, Activity::kWorking);
    {
      const Heartbeat::Doing waiting(Activity::kWaiting, 2);
      EXPECT_EQ(heartbeat.Look().activity, Activity::kWaiting);
      EXPECT_EQ(heartbeat.Look().peer, 2);
      EXPECT_EQ(heartbeat.Look().num_waits, num_waits + 1);
    }
    EXPECT_EQ(heartbeat.Look().activity, Activity::kWorking);
    EXPECT_EQ(heartbeat.Look().peer, Heartbeat::kNoPeer);
  }
  EXPECT_EQ(heartbeat.Look().activity, Activity::kIdle);
  EXPECT_EQ(heartbeat.Look().epoch, Epoch{3});
  EXPECT_EQ(heartbeat.Look().step, StepId{17});
}

TEST(HeartbeatTest, OtherThreadsTouchNothing) {
  Heartbeat heartbeat;
  const Watched thread(&heartbeat, [] {});
  std::thread([] {
    Heartbeat::Beat();
    const Heartbeat::Doing waiting(Activity::kWaiting, 1);
  }).join();
  EXPECT_EQ(heartbeat.Look().num_waits, 0);
}

}  // namespace
}  // namespace switchyard
