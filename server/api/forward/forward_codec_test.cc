#include "server/api/forward/forward_codec.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>

namespace switchyard {
namespace {

// The bytes cut into slices of random sizes, empty ones included.
grpc::ByteBuffer Cut(const std::string& bytes, std::mt19937& random) {
  std::vector<grpc::Slice> slices;
  for (size_t begin = 0; begin < bytes.size();) {
    const size_t count = std::min<size_t>(bytes.size() - begin, random() % 40);
    slices.emplace_back(bytes.data() + begin, count);
    begin += count;
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

std::string ReadAll(ChunkedRows rows) {
  std::string bytes(rows.size_bytes() / 2 * 2, '\0');
  rows.ReadNext(DType::kBF16, bytes.size() / 2, DType::kBF16, reinterpret_cast<std::byte*>(bytes.data()));
  return bytes;
}

v1::ForwardRequest RandomRequest(std::mt19937& random) {
  v1::ForwardRequest request;
  request.set_model(std::string(random() % 20, 'm'));
  request.set_layer(std::to_string(random() % 100));
  request.set_dtype(static_cast<v1::DataType>(random() % 5));
  request.set_num_rows(static_cast<int64_t>(random()) - 1000);
  std::string* rows = request.mutable_rows();
  for (size_t i = 2 * (random() % 300); i > 0; --i) rows->push_back(static_cast<char>(random()));
  request.set_return_routing(random() % 2 == 0);
  request.set_return_balance_loss(random() % 2 == 0);
  request.set_gate_index(static_cast<int32_t>(random()) % 100);
  request.set_top_k(static_cast<int32_t>(random()));
  request.set_priority(static_cast<int32_t>(random()));
  request.set_queue_timeout_us(static_cast<int64_t>(random()) << 31);
  if (random() % 2 == 0) request.set_capacity_factor(static_cast<double>(random()) / 1000 - 5);
  request.set_timeout_us(static_cast<int64_t>(random()) - 1000);
  if (random() % 3 != 0) request.set_return_stats(random() % 2 == 0);
  return request;
}

void ExpectSame(const DecodedForward& decoded, const v1::ForwardRequest& request) {
  EXPECT_EQ(decoded.model, request.model());
  EXPECT_EQ(decoded.layer, request.layer());
  EXPECT_EQ(decoded.dtype, request.dtype());
  EXPECT_EQ(decoded.num_rows, request.num_rows());
  EXPECT_EQ(decoded.return_routing, request.return_routing());
  EXPECT_EQ(decoded.return_balance_loss, request.return_balance_loss());
  EXPECT_EQ(decoded.gate_idx, request.gate_index());
  EXPECT_EQ(decoded.top_k, request.top_k());
  EXPECT_EQ(decoded.capacity_factor.has_value(), request.has_capacity_factor());
  EXPECT_EQ(decoded.capacity_factor.value_or(0), request.capacity_factor());
  EXPECT_EQ(decoded.priority, request.priority());
  EXPECT_EQ(decoded.queue_timeout_us, request.queue_timeout_us());
  EXPECT_EQ(decoded.timeout_us, request.timeout_us());
  EXPECT_EQ(decoded.return_stats.has_value(), request.has_return_stats());
  EXPECT_EQ(decoded.return_stats.value_or(false), request.return_stats());
  EXPECT_EQ(ReadAll(decoded.rows), request.rows());
}

// Every byte of the message, in one piece.
std::string Joined(const grpc::ByteBuffer& message) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(message.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

int FuzzIterations() {
  const char* wanted = getenv("SWITCHYARD_FUZZ_ITERATIONS");
  return wanted == nullptr ? 100'000 : std::atoi(wanted);
}

// The bytes cut short, with some of them changed.
std::string Mutate(std::string bytes, std::mt19937& random) {
  bytes.resize(std::min<size_t>(bytes.size(), random() % 400));
  for (int change = random() % 5; change > 0 && !bytes.empty(); --change) {
    bytes[random() % std::min<size_t>(bytes.size(), 60)] = static_cast<char>(random());
  }
  return bytes;
}

TEST(DecodeForward, AgreesWithProtobufHoweverTheBytesAreCut) {
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    const v1::ForwardRequest request = RandomRequest(random);
    const auto decoded = DecodeForward(Cut(request.SerializeAsString(), random));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    ExpectSame(*decoded, request);
  }
}

TEST(DecodeForward, UnknownFieldsAreSkippedAndTheLastOfARepeatedFieldWins) {
  v1::ForwardRequest request;
  request.set_model("first");
  request.set_rows("abcd");
  std::string bytes = request.SerializeAsString();
  bytes += std::string("\xfa\x07\x03xyz", 6);  // field 127, three bytes
  request.set_model("second");
  request.set_rows("ef");
  bytes += request.SerializeAsString();
  std::mt19937 random(2);
  const auto decoded = DecodeForward(Cut(bytes, random));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->model, "second");
  EXPECT_EQ(ReadAll(decoded->rows), "ef");
}

TEST(DecodeForward, NamesThatAreTooLongOrNotTextAreRefused) {
  std::mt19937 random(4);
  for (const std::string& name : {std::string(1025, 'm'), std::string("\xff\xfe")}) {
    for (const char field : {'\x0a', '\x12'}) {
      std::string bytes(1, field);
      if (name.size() >= 128) bytes += static_cast<char>(name.size() % 128 | 128);
      bytes += static_cast<char>(name.size() >= 128 ? name.size() / 128 : name.size());
      const auto decoded = DecodeForward(Cut(bytes + name, random));
      EXPECT_TRUE(absl::IsInvalidArgument(decoded.status())) << decoded.status();
    }
  }
}

TEST(DecodeForward, EveryTruncationAndMutationIsRefusedOrDecodedWithinItsBytes) {
  std::mt19937 random(3);
  const int iterations = FuzzIterations();
  int refused = 0;
  for (int i = 0; i < iterations; ++i) {
    const std::string bytes = Mutate(RandomRequest(random).SerializeAsString(), random);
    const auto decoded = DecodeForward(Cut(bytes, random));
    if (!decoded.ok()) {
      EXPECT_TRUE(absl::IsInvalidArgument(decoded.status())) << decoded.status();
      ++refused;
    } else {
      EXPECT_LE(decoded->rows.size_bytes(), bytes.size());
      ReadAll(decoded->rows);
    }
  }
  EXPECT_GT(refused, iterations / 20);
}

TEST(EncodeForward, ProtobufReadsItBack) {
  v1::ForwardResponse rest;
  rest.set_dtype(v1::DATA_TYPE_BF16);
  rest.set_num_rows(3);
  rest.mutable_routing()->add_expert_ids(7);
  rest.mutable_stats()->set_gate_us(11);
  const std::string rows(100'000, 'r');
  const grpc::ByteBuffer encoded = EncodeForward(rest, {grpc::Slice(rows.substr(0, 5)), grpc::Slice(rows.substr(5))});
  v1::ForwardResponse parsed;
  ASSERT_TRUE(parsed.ParseFromString(Joined(encoded)));
  EXPECT_EQ(parsed.rows(), rows);
  EXPECT_EQ(parsed.num_rows(), 3);
  EXPECT_EQ(parsed.routing().expert_ids(0), 7);
  EXPECT_EQ(parsed.stats().gate_us(), 11);
}

v1::ForwardStreamRequest RandomStreamRequest(std::mt19937& random) {
  v1::ForwardStreamRequest message;
  message.set_id(random());
  *message.mutable_forward() = RandomRequest(random);
  return message;
}

TEST(DecodeStreamMessage, AgreesWithProtobufHoweverTheBytesAreCut) {
  std::mt19937 random(4);
  for (int round = 0; round < 500; ++round) {
    const v1::ForwardStreamRequest message = RandomStreamRequest(random);
    const DecodedStreamMessage decoded = DecodeStreamMessage(Cut(message.SerializeAsString(), random));
    EXPECT_EQ(decoded.id, message.id());
    EXPECT_FALSE(decoded.is_cancel);
    ASSERT_TRUE(decoded.forward.ok()) << decoded.forward.status();
    ExpectSame(*decoded.forward, message.forward());
  }
}

TEST(DecodeStreamMessage, TheLastActionCountsAndOneMustBeThere) {
  std::mt19937 random(5);
  v1::ForwardStreamRequest cancel;
  cancel.set_id(7);
  cancel.set_cancel(true);
  const std::string cancel_bytes = cancel.SerializeAsString();
  const std::string forward_bytes = RandomStreamRequest(random).SerializeAsString();
  EXPECT_TRUE(DecodeStreamMessage(Cut(cancel_bytes, random)).is_cancel);
  EXPECT_EQ(DecodeStreamMessage(Cut(cancel_bytes, random)).id, 7);
  EXPECT_TRUE(DecodeStreamMessage(Cut(forward_bytes + cancel_bytes, random)).is_cancel);
  const DecodedStreamMessage forward = DecodeStreamMessage(Cut(cancel_bytes + forward_bytes, random));
  EXPECT_FALSE(forward.is_cancel);
  EXPECT_TRUE(forward.forward.ok());
  v1::ForwardStreamRequest neither;
  neither.set_id(9);
  const DecodedStreamMessage empty = DecodeStreamMessage(Cut(neither.SerializeAsString(), random));
  EXPECT_EQ(empty.id, 9);
  EXPECT_EQ(empty.forward.status(),
            absl::InvalidArgumentError("the message is not a switchyard.v1.ForwardStreamRequest: action: expected "
                                       "forward or cancel, found neither"));
}

TEST(DecodeStreamMessage, PartsOfARequestAreOneUnlessACancelComesBetween) {
  std::mt19937 random(8);
  v1::ForwardStreamRequest first, second, cancel;
  first.mutable_forward()->set_model("m");
  first.mutable_forward()->set_rows("abcd");
  second.mutable_forward()->set_layer("3");
  cancel.set_cancel(true);
  const DecodedStreamMessage merged =
      DecodeStreamMessage(Cut(first.SerializeAsString() + second.SerializeAsString(), random));
  ASSERT_TRUE(merged.forward.ok()) << merged.forward.status();
  EXPECT_EQ(merged.forward->model, "m");
  EXPECT_EQ(merged.forward->layer, "3");
  EXPECT_EQ(ReadAll(merged.forward->rows), "abcd");
  const DecodedStreamMessage parted = DecodeStreamMessage(
      Cut(first.SerializeAsString() + cancel.SerializeAsString() + second.SerializeAsString(), random));
  ASSERT_TRUE(parted.forward.ok()) << parted.forward.status();
  EXPECT_EQ(parted.forward->model, "");
  EXPECT_EQ(parted.forward->rows.size_bytes(), 0u);
}

TEST(DecodeStreamMessage, ARequestThatIsLongerThanItsMessageIsRefusedWithItsId) {
  std::mt19937 random(6);
  const std::string head("\x08\x05\x12\x7f\x0a\x01m", 7);  // id 5, a request of 127 bytes, its model
  const DecodedStreamMessage decoded = DecodeStreamMessage(Cut(head, random));
  EXPECT_EQ(decoded.id, 5);
  EXPECT_TRUE(absl::IsInvalidArgument(decoded.forward.status())) << decoded.forward.status();
}

TEST(DecodeStreamMessage, EveryTruncationAndMutationIsRefusedOrDecodedWithinItsBytes) {
  std::mt19937 random(7);
  const int iterations = FuzzIterations();
  int refused = 0;
  for (int i = 0; i < iterations; ++i) {
    const std::string bytes = Mutate(RandomStreamRequest(random).SerializeAsString(), random);
    const DecodedStreamMessage decoded = DecodeStreamMessage(Cut(bytes, random));
    if (decoded.is_cancel) continue;
    if (!decoded.forward.ok()) {
      EXPECT_TRUE(absl::IsInvalidArgument(decoded.forward.status())) << decoded.forward.status();
      ++refused;
    } else {
      EXPECT_LE(decoded.forward->rows.size_bytes(), bytes.size());
      ReadAll(decoded.forward->rows);
    }
  }
  EXPECT_GT(refused, iterations / 20);
}

TEST(EncodeStream, ProtobufReadsItBack) {
  v1::ForwardResponse rest;
  rest.set_num_rows(3);
  rest.set_balance_loss(1.5);
  const std::string rows(100'000, 'r');
  v1::ForwardStreamResponse parsed;
  ASSERT_TRUE(parsed.ParseFromString(Joined(
      EncodeStreamForward(uint64_t{1} << 63, rest, {grpc::Slice(rows.substr(0, 5)), grpc::Slice(rows.substr(5))}))));
  EXPECT_EQ(parsed.id(), uint64_t{1} << 63);
  EXPECT_EQ(parsed.response().rows(), rows);
  EXPECT_EQ(parsed.response().num_rows(), 3);
  EXPECT_EQ(parsed.response().balance_loss(), 1.5);

  ASSERT_TRUE(parsed.ParseFromString(Joined(EncodeStreamError(8, absl::ResourceExhaustedError("queue full"), 50))));
  EXPECT_EQ(parsed.id(), 8);
  EXPECT_EQ(parsed.error().code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_EQ(parsed.error().message(), "queue full");
  EXPECT_EQ(parsed.error().retry_after_ms(), 50);

  const absl::Status quoting = absl::NotFoundError("no model 'caf\xe9'");
  ASSERT_TRUE(parsed.ParseFromString(Joined(EncodeStreamError(9, quoting, 0))));
  EXPECT_EQ(parsed.error().message(), "no model \\'caf\\351\\'");
}

}  // namespace
}  // namespace switchyard
