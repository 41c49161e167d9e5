#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>

#include "base/clock.h"
#include "moe/link/link_layout.h"
#include "moe/link/shared_memory.h"
#include "moe/link/spin_wait.h"
#include "moe/link/step_socket.h"

namespace switchyard {
namespace {

TEST(LinkLayout, PartsAreWholePagesAndDoNotOverlap) {
  const LinkLayout layout = LinkLayout::For(3, 5000, 1, 4096, /*num_spares=*/2);
  EXPECT_TRUE(layout.Validate().ok());
  EXPECT_EQ(layout.plan_offset(0), 8192u);
  EXPECT_EQ(layout.input_offset(1), 12288u);
  EXPECT_EQ(layout.output_offset(0), 3 * 12288u);
  EXPECT_EQ(layout.output_offset(4), 3 * 12288u + 4 * 4096u);
  EXPECT_EQ(layout.total_bytes(), 3 * 12288u + 5 * 4096u);
}

TEST(LinkLayout, RefusesWhatCouldOverflow) {
  LinkLayout layout = LinkLayout::For(1, 1, 1, 1);
  layout.input_bytes = uint64_t{1} << 63;
  EXPECT_TRUE(absl::IsInvalidArgument(layout.Validate()));
  layout = LinkLayout::For(0, 1, 1, 1);
  EXPECT_TRUE(absl::IsInvalidArgument(layout.Validate()));
  layout = LinkLayout::For(1, 1, 1, 1, /*num_spares=*/1000);
  EXPECT_TRUE(absl::IsInvalidArgument(layout.Validate()));
  layout = LinkLayout::For(2, 1, 1, 1, /*num_spares=*/-1);
  EXPECT_TRUE(absl::IsInvalidArgument(layout.Validate())) << "fewer outputs than steps";
}

TEST(SharedMemory, CannotBeResized) {
  SharedMemory memory = *SharedMemory::Create(8192);
  EXPECT_NE(ftruncate(memory.fd(), 0), 0);
  EXPECT_NE(ftruncate(memory.fd(), 1 << 20), 0);
}

TEST(SharedMemory, AttachRefusesUnsealedOrShortMemory) {
  UniqueFd unsealed(memfd_create("test", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ASSERT_EQ(ftruncate(unsealed.get(), 4096), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(SharedMemory::Attach(std::move(unsealed), 4096).status()));
  SharedMemory memory = *SharedMemory::Create(4096);
  EXPECT_TRUE(absl::IsFailedPrecondition(SharedMemory::Attach(UniqueFd(dup(memory.fd())), 8192).status()));
}

// As in real use, another process attaches to the memory, receives a step and writes its answer into the memory.
TEST(StepSocket, CarriesStepsAndResultsBetweenProcesses) {
  SocketPair sockets = *MakeSocketPair();
  const LinkLayout layout = LinkLayout::For(2, 4096, 4096, 4096);
  SharedMemory memory = *SharedMemory::Create(layout.total_bytes());
  const pid_t child = fork();
  if (child == 0) {
    sockets.front.reset();
    auto setup = ReceiveSetup(sockets.worker.get());
    auto attached = SharedMemory::Attach(std::move(setup->memory_fd), setup->layout.total_bytes());
    auto step = ReceiveStep(sockets.worker.get());
    attached->data()[setup->layout.output_offset(step->output)] =
        attached->data()[setup->layout.input_offset(step->slot)];
    ResultMessage result{step->epoch, step->step_id, {1, 2, 3}, absl::InternalError(std::string(600, 'x'))};
    const bool sent = SendResult(sockets.worker.get(), result).ok();
    _exit(sent && step->plan_bytes == 77 && step->layer == LayerId{5} ? 0 : 1);
  }
  sockets.worker.reset();
  memory.data()[layout.input_offset(0)] = std::byte{42};
  ASSERT_TRUE(SendSetup(sockets.front.get(), layout, memory.fd()).ok());
  ASSERT_TRUE(SendStep(sockets.front.get(), {Epoch{3}, StepId{9}, LayerId{5}, 0, 1, 4, 77}).ok());
  const auto result = ReceiveResult(sockets.front.get());
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->epoch, Epoch{3});
  EXPECT_EQ(result->step_id, StepId{9});
  EXPECT_EQ(result->times.expert_us, 2);
  EXPECT_EQ(result->status, absl::InternalError(std::string(512, 'x')));
  EXPECT_EQ(memory.data()[layout.output_offset(1)], std::byte{42});
  int exit_status = 0;
  ASSERT_EQ(waitpid(child, &exit_status, 0), child);
  EXPECT_EQ(exit_status, 0);
}

TEST(StepSocket, AClosedPeerIsUnavailable) {
  SocketPair sockets = *MakeSocketPair();
  sockets.worker.reset();
  EXPECT_TRUE(absl::IsUnavailable(ReceiveResult(sockets.front.get()).status()));
  EXPECT_TRUE(absl::IsUnavailable(SendStep(sockets.front.get(), {})));
}

TEST(StepSocket, MalformedMessagesAreRefused) {
  SocketPair sockets = *MakeSocketPair();
  const char junk[2048] = {};
  ASSERT_EQ(send(sockets.worker.get(), junk, 3, 0), 3);
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveResult(sockets.front.get()).status()));
  ASSERT_EQ(send(sockets.worker.get(), junk, sizeof(junk), 0), static_cast<ssize_t>(sizeof(junk)));
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveResult(sockets.front.get()).status()));
  ASSERT_EQ(send(sockets.worker.get(), junk, sizeof(LinkLayout), 0), static_cast<ssize_t>(sizeof(LinkLayout)));
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveSetup(sockets.front.get()).status())) << "no descriptor";
  // A result whose text length contradicts the message's size.
  std::string lying(64, '\xff');
  ASSERT_EQ(send(sockets.worker.get(), lying.data(), lying.size(), 0), 64);
  EXPECT_TRUE(absl::IsInvalidArgument(ReceiveResult(sockets.front.get()).status()));
}

// How often `spin` looks in vain when each look takes `look`.
int LooksInVain(SpinWait& spin, FakeClock& clock, std::chrono::microseconds look) {
  int looks = 0;
  EXPECT_FALSE(spin.Until([&] {
    clock.Advance(look);
    ++looks;
    return false;
  }));
  return looks;
}

constexpr std::chrono::microseconds kLongest(500);

TEST(SpinWait, SkipsWhatWasInVain) {
  FakeClock clock;
  SpinWait spin(kLongest, clock);
  const std::chrono::microseconds look(1);
  const int whole = LooksInVain(spin, clock, look);
  EXPECT_GT(whole, 10);
  EXPECT_EQ(LooksInVain(spin, clock, look), 1);
  EXPECT_EQ(LooksInVain(spin, clock, look), whole);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(LooksInVain(spin, clock, look), 1);
  int looks = 0;
  EXPECT_TRUE(spin.Until([&] { return ++looks == 3; }));
  EXPECT_EQ(LooksInVain(spin, clock, look), whole) << "a success makes up for it";
}

TEST(SpinWait, LooksOnceWhenItIsNotToSpin) {
  FakeClock clock;
  SpinWait spin(std::chrono::microseconds(0), clock);
  EXPECT_EQ(LooksInVain(spin, clock, std::chrono::microseconds(1)), 1);
  EXPECT_TRUE(spin.Until([] { return true; }));
}

TEST(SpinWait, EndsWhenAnotherThreadHadTheCore) {
  FakeClock clock;
  SpinWait spin(kLongest, clock);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(LooksInVain(spin, clock, std::chrono::microseconds(50)), 2);
}

}  // namespace
}  // namespace switchyard
