#include "server/group/worker_message.h"

#include <gtest/gtest.h>

#include <string>

namespace switchyard {
namespace {

// The bytes in slices of at most `slice_bytes`.
grpc::ByteBuffer Cut(const std::string& bytes, size_t slice_bytes) {
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size(); begin += slice_bytes) {
    slices.emplace_back(bytes.substr(begin, slice_bytes));
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string Joined(const RowChunks& rows) {
  std::string bytes;
  for (const auto& chunk : rows) bytes.append(reinterpret_cast<const char*>(chunk.data()), chunk.size());
  return bytes;
}

worker::WorkerMessage Result() {
  worker::WorkerMessage message;
  worker::StepResult& result = *message.mutable_step_result();
  result.set_epoch(3);
  result.set_step_id(1LL << 40);
  result.set_rows(std::string(1000, 'r'));
  result.mutable_times()->set_expert_us(17);
  return message;
}

TEST(WorkerMessage, ReadsAResultWhereverItIsCut) {
  const worker::WorkerMessage sent = Result();
  for (const size_t slice_bytes : {1, 7, 100, 5000}) {
    const auto received = DecodeWorkerMessage(Cut(sent.SerializeAsString(), slice_bytes));
    ASSERT_TRUE(received.ok()) << received.status();
    worker::WorkerMessage whole = received->message;
    EXPECT_TRUE(whole.step_result().rows().empty());
    whole.mutable_step_result()->set_rows(Joined(received->rows));
    EXPECT_EQ(whole.SerializeAsString(), sent.SerializeAsString());
  }
}

TEST(WorkerMessage, ReadsOtherMessagesAsProtobufDoes) {
  worker::WorkerMessage sent;
  sent.mutable_hello()->set_host("h");
  const auto received = DecodeWorkerMessage(Cut(sent.SerializeAsString(), 2));
  ASSERT_TRUE(received.ok()) << received.status();
  EXPECT_EQ(received->message.SerializeAsString(), sent.SerializeAsString());
  EXPECT_TRUE(received->rows.empty());
}

TEST(WorkerMessage, ReadsAResultWithoutRows) {
  worker::WorkerMessage sent;
  sent.mutable_step_result()->set_code(14);
  const auto received = DecodeWorkerMessage(Cut(sent.SerializeAsString(), 100));
  ASSERT_TRUE(received.ok()) << received.status();
  EXPECT_EQ(received->message.step_result().code(), 14);
}

// A pong of two bytes for each thread would take 30 times as much memory once it is parsed.
TEST(WorkerMessage, RefusesFieldsThatAreTooLarge) {
  worker::WorkerMessage sent;
  for (size_t i = 0; i <= kMaxFieldBytes / 2; ++i) sent.mutable_pong()->add_threads();
  EXPECT_FALSE(DecodeWorkerMessage(Cut(sent.SerializeAsString(), 1 << 20)).ok());
  sent = Result();
  sent.mutable_step_result()->set_rows(std::string(kMaxFieldBytes + 1, 'r'));
  EXPECT_TRUE(DecodeWorkerMessage(Cut(sent.SerializeAsString(), 1 << 20)).ok()) << "rows may be larger";
  sent.mutable_step_result()->set_message(std::string(kMaxFieldBytes + 1, 'm'));
  EXPECT_FALSE(DecodeWorkerMessage(Cut(sent.SerializeAsString(), 1 << 20)).ok());
}

TEST(WorkerMessage, RefusesEveryCutMessageAndLyingLengths) {
  const std::string bytes = Result().SerializeAsString();
  for (size_t length = 1; length < bytes.size(); length += 13) {
    EXPECT_FALSE(DecodeWorkerMessage(Cut(bytes.substr(0, length), 100)).ok()) << length;
  }
  // A step_result (field 8) of 4 GiB less one byte.
  EXPECT_FALSE(DecodeWorkerMessage(Cut("\x42\xff\xff\xff\xff\x0f", 100)).ok());
}

}  // namespace
}  // namespace switchyard
