#include "worker/group_member.h"

#include <gtest/gtest.h>

#include <limits>

#include "moe/exchange/in_process.h"

namespace switchyard {
namespace {

class GroupMemberTest : public testing::Test {
 protected:
  std::unique_ptr<GroupMember> MakeMember() {
    return std::make_unique<GroupMember>(
        [](const std::string&) {
          return absl::StatusOr<std::unique_ptr<CommunicatorFactory>>(CreateInProcessFactory());
        },
        [this](Epoch epoch) { epoch_ = epoch.value; });
  }
  // Forms a group of one rank.
  static absl::Status Form(GroupMember& member, Epoch epoch) {
    member.Announce(epoch);
    SY_ASSIGN_OR_RETURN(const std::string address, member.Prepare(epoch, "any", /*rank=*/0, /*size=*/1));
    return member.Connect(epoch, {address});
  }

  int64_t epoch_ = -1;
};

TEST_F(GroupMemberTest, TellsInWhichGroupItIs) {
  const auto member = MakeMember();
  ASSERT_TRUE(Form(*member, Epoch{3}).ok());
  EXPECT_EQ(epoch_, 3);
  ASSERT_NE(member->communicator(), nullptr);
  member->Announce(Epoch{4});
  EXPECT_EQ(epoch_, 0) << "the group is over, and no other is formed yet";
  ASSERT_TRUE(Form(*member, Epoch{5}).ok());
  EXPECT_EQ(epoch_, 5);
  member->Announce(Epoch{std::numeric_limits<int64_t>::max()});
  EXPECT_EQ(epoch_, 0);
}

TEST_F(GroupMemberTest, AGroupThatIsOverWhileItFormsIsNone) {
  const auto member = MakeMember();
  const auto address = member->Prepare(Epoch{1}, "any", 0, 1);
  ASSERT_TRUE(address.ok()) << address.status();
  member->Announce(Epoch{2});
  EXPECT_TRUE(absl::IsAborted(member->Connect(Epoch{1}, {*address})));
  EXPECT_EQ(epoch_, 0);
  EXPECT_EQ(member->communicator(), nullptr);
}

TEST_F(GroupMemberTest, AnotherFrontBeginsWithTheFirstEpochAgain) {
  auto member = MakeMember();
  ASSERT_TRUE(Form(*member, Epoch{7}).ok());
  member->Announce(Epoch{std::numeric_limits<int64_t>::max()});
  EXPECT_FALSE(Form(*member, Epoch{1}).ok()) << "its front is gone";
  member = MakeMember();
  EXPECT_TRUE(Form(*member, Epoch{1}).ok());
  EXPECT_EQ(epoch_, 1);
}

}  // namespace
}  // namespace switchyard
