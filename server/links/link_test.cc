// Tests the links; the tests play the worker's end of the protocol.
#include "server/links/link.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <limits>
#include <map>
#include <thread>

#include "base/mutex.h"
#include "base/notification.h"
#include "server/links/shm_link.h"
#include "server/links/stream_link.h"

namespace switchyard {
namespace {

constexpr int kSteps = 500;
constexpr int kSlots = 3;
constexpr std::chrono::microseconds kSpin(100);

// Answers every step by negating its input row, until the socket closes.
void PlayWorker(UniqueFd socket) {
  auto setup = ReceiveSetup(socket.get());
  ASSERT_TRUE(setup.ok()) << setup.status();
  const auto memory = SharedMemory::Attach(std::move(setup->memory_fd), setup->layout.total_bytes());
  ASSERT_TRUE(memory.ok()) << memory.status();
  while (true) {
    const auto step = ReceiveStep(socket.get());
    if (!step.ok()) return;
    int32_t value;
    std::memcpy(&value, memory->data() + setup->layout.input_offset(step->slot), sizeof(value));
    value = -value;
    std::memcpy(memory->data() + setup->layout.output_offset(step->output), &value, sizeof(value));
    ASSERT_TRUE(SendResult(socket.get(), {step->epoch, step->step_id, {1, 2, 3}, absl::OkStatus()}).ok());
  }
}

TEST(ShmLink, CarriesManyStepsInFlight) {
  auto buffers = *LinkBuffers::Create(LinkLayout::For(kSlots, 64, 64, 64));
  SocketPair sockets = *MakeSocketPair();
  std::thread worker([&] { PlayWorker(std::move(sockets.worker)); });
  Mutex mu;
  CondVar changed;
  std::vector<int> free_slots = {0, 1, 2};
  std::map<int64_t, int> slot_of_step;
  int answered = 0;
  auto on_result = [&](int rank, const ResultMessage& result, const RowChunks* rows) {
    EXPECT_EQ(rank, 5);
    EXPECT_EQ(rows, nullptr);
    EXPECT_EQ(result.times.expert_us, 2);
    MutexLock lock(&mu);
    const int slot = slot_of_step[result.step_id.value];
    int32_t value;
    std::memcpy(&value, buffers->output(slot), sizeof(value));
    EXPECT_EQ(value, -result.step_id.value);
    free_slots.push_back(slot);
    ++answered;
    changed.SignalAll();
  };
  auto link = *ShmLink::Start(5, std::move(sockets.front), *buffers, kSpin, on_result);
  for (int32_t step = 1; step <= kSteps; ++step) {
    int slot;
    {
      MutexLock lock(&mu);
      while (free_slots.empty()) changed.Wait(&mu);
      slot = free_slots.back();
      free_slots.pop_back();
      slot_of_step[step] = slot;
    }
    std::memcpy(buffers->input(slot), &step, sizeof(step));
    StepSubmission submission;
    submission.message = {Epoch{1}, StepId{step}, LayerId{0}, slot, slot, 1, 0};
    ASSERT_TRUE(link->connection()->Submit(submission).ok());
  }
  {
    MutexLock lock(&mu);
    while (answered < kSteps) changed.Wait(&mu);
  }
  const auto connection = link->connection();
  link.reset();
  worker.join();
  EXPECT_TRUE(absl::IsUnavailable(connection->Submit({}))) << "a connection outlives its link, and only fails";
}

TEST(ShmLink, AWorkerThatDiesLeavesTheRowsToItsReplacement) {
  auto buffers = *LinkBuffers::Create(LinkLayout::For(kSlots, 64, 64, 64));
  const int32_t value = 7;
  std::memcpy(buffers->input(1), &value, sizeof(value));
  {
    SocketPair sockets = *MakeSocketPair();
    auto link =
        *ShmLink::Start(0, std::move(sockets.front), *buffers, kSpin, [](int, const ResultMessage&, auto) { FAIL(); });
    sockets.worker.reset();  // dies before it answers
  }
  SocketPair sockets = *MakeSocketPair();
  std::thread worker([&] { PlayWorker(std::move(sockets.worker)); });
  Notification answered;
  auto link = *ShmLink::Start(0, std::move(sockets.front), *buffers, kSpin,
                              [&](int, const ResultMessage&, auto) { answered.Notify(); });
  StepSubmission submission;
  submission.message = {Epoch{2}, StepId{1}, LayerId{0}, 1, 1, 1, 0};
  ASSERT_TRUE(link->connection()->Submit(submission).ok());
  answered.WaitForNotification();
  int32_t result;
  std::memcpy(&result, buffers->output(1), sizeof(result));
  EXPECT_EQ(result, -7);
  link.reset();
  worker.join();
}

class RecordingChannel final : public WorkerChannel {
 public:
  void Send(worker::FrontMessage message) override { sent.push_back(std::move(message)); }
  void Close(const absl::Status&) override {}
  std::vector<worker::FrontMessage> sent;
};

TEST(StreamLink, SendsThePlanAndExactlyTheHomeRows) {
  auto buffers = *LinkBuffers::Create(LinkLayout::For(2, 64, 64, 64));
  for (int i = 0; i < 24; ++i) buffers->input(1)[i] = static_cast<std::byte>(i);
  buffers->plan(1)[0] = std::byte{99};
  auto channel = std::make_shared<RecordingChannel>();
  const auto connection = MakeStreamConnection(channel, buffers.get());
  StepSubmission submission;
  submission.message = {Epoch{4}, StepId{8}, LayerId{2}, 1, 1, 3, 1};
  submission.row_bytes = 8;
  ASSERT_TRUE(connection->Submit(submission).ok());
  const worker::StepRequest& step = channel->sent.at(0).step();
  EXPECT_EQ(step.epoch(), 4);
  EXPECT_EQ(step.step_id(), 8);
  EXPECT_EQ(step.layer_id(), 2);
  EXPECT_EQ(step.plan(), std::string(1, 99));
  ASSERT_EQ(step.rows().size(), 24u);
  EXPECT_EQ(step.rows()[23], 23);
}

TEST(StreamLink, ParsesResults) {
  worker::StepResult wire;
  wire.set_epoch(3);
  wire.set_step_id(9);
  wire.set_code(static_cast<int>(absl::StatusCode::kInternal));
  wire.set_message("engine");
  wire.mutable_times()->set_combine_us(5);
  const ResultMessage result = ParseStreamResult(wire);
  EXPECT_EQ(result.epoch, Epoch{3});
  EXPECT_EQ(result.step_id, StepId{9});
  EXPECT_EQ(result.status, absl::InternalError("engine"));
  EXPECT_EQ(result.times.combine_us, 5);
}

TEST(StreamLink, AWorkersNumbersAndReasonsAreBounded) {
  worker::StepResult wire;
  wire.set_code(static_cast<int>(absl::StatusCode::kInternal));
  wire.set_message(std::string(1 << 20, 'm'));
  wire.mutable_times()->set_combine_us(std::numeric_limits<int64_t>::max());
  wire.mutable_times()->set_dispatch_us(-1);
  const ResultMessage result = ParseStreamResult(wire);
  EXPECT_LT(result.status.message().size(), 3000u);
  EXPECT_LE(result.times.combine_us, int64_t{24} * 3600 * 1'000'000);
  EXPECT_EQ(result.times.dispatch_us, 0);
}

}  // namespace
}  // namespace switchyard
