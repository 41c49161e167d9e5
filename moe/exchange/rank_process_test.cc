#include "moe/exchange/rank_process.h"

#include <gtest/gtest.h>

namespace switchyard {
namespace {

// Sends its arguments to the parent, then echoes every packet, until the parent is gone.
int Echo(RankChild& child) {
  if (!child.channel.SendAll(child.arguments).ok()) return 1;
  while (true) {
    const absl::StatusOr<std::string> packet = child.channel.Receive();
    if (!packet.ok() || !child.channel.Send(*packet).ok()) return 0;
  }
}

TEST(RankProcessTest, ChildGetsItsArgumentsAndPackets) {
  absl::StatusOr<RankProcess> process = RankProcess::Start({"first", "second one"});
  ASSERT_TRUE(process.ok()) << process.status();
  const auto arguments = process->channel().ReceiveAll(2);
  ASSERT_TRUE(arguments.ok()) << arguments.status();
  EXPECT_EQ(*arguments, (std::vector<std::string>{"first", "second one"}));
  for (const size_t num_bytes : {size_t{1}, size_t{1000}, size_t{64} << 10}) {
    const std::string packet(num_bytes, '\0');
    ASSERT_TRUE(process->channel().Send(packet).ok());
    const auto echoed = process->channel().Receive();
    ASSERT_TRUE(echoed.ok()) << echoed.status();
    EXPECT_EQ(*echoed, packet);
  }
}

TEST(RankProcessTest, KilledChildIsNoticed) {
  absl::StatusOr<RankProcess> process = RankProcess::Start({});
  ASSERT_TRUE(process.ok()) << process.status();
  process->Kill();
  EXPECT_EQ(process->channel().Receive().status().code(), absl::StatusCode::kUnavailable);
}

TEST(RankProcessTest, SilenceIsNoticed) {
  absl::StatusOr<RankProcess> process = RankProcess::Start({});
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_EQ(process->channel().Receive(std::chrono::milliseconds(1)).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(RankProcessTest, EmptyAndHugePacketsAreRefused) {
  absl::StatusOr<RankProcess> process = RankProcess::Start({});
  ASSERT_TRUE(process.ok()) << process.status();
  EXPECT_EQ(process->channel().Send("").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(process->channel().Send(std::string(100'000, 'x')).code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace

int Main(int argc, char** argv) {
  if (std::optional<RankChild> child = RankChild::FromArguments(argc, argv)) return Echo(*child);
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}

}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::Main(argc, argv); }
