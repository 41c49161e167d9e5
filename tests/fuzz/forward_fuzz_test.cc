// Mutated ForwardRequests, alone and as messages of a stream. The codec reads everything that protobuf reads, with the
// same result. Everything else is refused or read within its bytes.
#include <gtest/gtest.h>

#include <bit>

#include "proto/switchyard.pb.h"
#include "server/api/forward/forward_codec.h"
#include "tests/fuzz/messages.h"
#include "tests/fuzz/mutator.h"

namespace switchyard {
namespace {

std::string ReadAll(ChunkedRows rows) {
  std::string bytes(rows.size_bytes() / 2 * 2, '\0');
  rows.ReadNext(DType::kBF16, bytes.size() / 2, DType::kBF16, reinterpret_cast<std::byte*>(bytes.data()));
  return bytes;
}

void ExpectSame(const DecodedForward& decoded, const v1::ForwardRequest& parsed) {
  EXPECT_EQ(decoded.model, parsed.model());
  EXPECT_EQ(decoded.layer, parsed.layer());
  EXPECT_EQ(decoded.dtype, parsed.dtype());
  EXPECT_EQ(decoded.num_rows, parsed.num_rows());
  EXPECT_EQ(decoded.return_routing, parsed.return_routing());
  EXPECT_EQ(decoded.return_balance_loss, parsed.return_balance_loss());
  EXPECT_EQ(decoded.gate_idx, parsed.gate_index());
  EXPECT_EQ(decoded.top_k, parsed.top_k());
  EXPECT_EQ(decoded.priority, parsed.priority());
  EXPECT_EQ(decoded.queue_timeout_us, parsed.queue_timeout_us());
  EXPECT_EQ(decoded.timeout_us, parsed.timeout_us());
  EXPECT_EQ(decoded.return_stats.has_value(), parsed.has_return_stats());
  EXPECT_EQ(decoded.return_stats.value_or(false), parsed.return_stats());
  EXPECT_EQ(decoded.capacity_factor.has_value(), parsed.has_capacity_factor());
  // Compares bits, because NaN is not equal to itself.
  EXPECT_EQ(std::bit_cast<uint64_t>(decoded.capacity_factor.value_or(0)),
            std::bit_cast<uint64_t>(parsed.capacity_factor()));
  EXPECT_EQ(decoded.rows.size_bytes(), parsed.rows().size());
  EXPECT_EQ(ReadAll(decoded.rows), parsed.rows().substr(0, parsed.rows().size() / 2 * 2));
}

TEST(ForwardFuzz, MutatedRequestsAreRefusedOrReadAsProtobufDoes) {
  google::protobuf::SetLogHandler(nullptr);
  Mutator mutator(20260801, ForwardCorpus());
  const int64_t iterations = FuzzIterations(50'000);
  int64_t agreed = 0, refused_by_both = 0;
  for (int64_t i = 0; i < iterations; ++i) {
    const std::string bytes = mutator.Next();
    const auto decoded = DecodeForward(mutator.Cut(bytes));
    v1::ForwardRequest parsed;
    if (parsed.ParseFromString(bytes)) {
      ASSERT_TRUE(decoded.ok()) << decoded.status() << "; input " << i;
      ExpectSame(*decoded, parsed);
      ++agreed;
    } else if (decoded.ok()) {
      EXPECT_LE(decoded->rows.size_bytes(), bytes.size());
      ReadAll(decoded->rows);
    } else {
      EXPECT_TRUE(absl::IsInvalidArgument(decoded.status())) << decoded.status();
      ++refused_by_both;
    }
    ASSERT_FALSE(HasFailure()) << "input " << i;
  }
  EXPECT_GT(agreed, iterations / 10);
  EXPECT_GT(refused_by_both, iterations / 10);
  std::printf("%ld inputs: %ld read alike, %ld refused by both, %ld refused by protobuf alone\n", iterations, agreed,
              refused_by_both, iterations - agreed - refused_by_both);
}

// Every message must get an answer that can be read.
void ExpectAnswerable(uint64_t id, const absl::Status& status) {
  std::vector<grpc::Slice> slices;
  ASSERT_TRUE(EncodeStreamError(id, status, 0).Dump(&slices).ok());
  ASSERT_EQ(slices.size(), 1u);
  v1::ForwardStreamResponse response;
  ASSERT_TRUE(response.ParseFromArray(slices[0].begin(), static_cast<int>(slices[0].size()))) << status;
  EXPECT_EQ(response.id(), id);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

void ExpectSameAction(const DecodedStreamMessage& decoded, const v1::ForwardStreamRequest& parsed) {
  EXPECT_EQ(decoded.id, parsed.id());
  EXPECT_EQ(decoded.is_cancel, parsed.has_cancel());
  if (parsed.has_forward()) {
    ASSERT_TRUE(decoded.forward.ok()) << decoded.forward.status();
    ExpectSame(*decoded.forward, parsed.forward());
  } else if (!parsed.has_cancel()) {
    EXPECT_TRUE(absl::IsInvalidArgument(decoded.forward.status()));
  }
}

std::vector<std::string> StreamCorpus() {
  std::vector<std::string> corpus;
  for (const std::string& request : ForwardCorpus()) {
    v1::ForwardStreamRequest message;
    message.set_id(corpus.size() + 1000);
    EXPECT_TRUE(message.mutable_forward()->ParseFromString(request));
    corpus.push_back(message.SerializeAsString());
  }
  v1::ForwardStreamRequest cancel;
  cancel.set_id(1000);
  cancel.set_cancel(true);
  corpus.push_back(cancel.SerializeAsString());
  return corpus;
}

TEST(ForwardFuzz, MutatedStreamMessagesAreAnsweredOrReadAsProtobufDoes) {
  google::protobuf::SetLogHandler(nullptr);
  Mutator mutator(20260807, StreamCorpus());
  const int64_t iterations = FuzzIterations(50'000);
  int64_t agreed = 0, refused = 0;
  for (int64_t i = 0; i < iterations; ++i) {
    const std::string bytes = mutator.Next();
    const DecodedStreamMessage decoded = DecodeStreamMessage(mutator.Cut(bytes));
    v1::ForwardStreamRequest parsed;
    if (parsed.ParseFromString(bytes)) {
      ExpectSameAction(decoded, parsed);
      ++agreed;
    }
    if (!decoded.is_cancel && !decoded.forward.ok()) {
      ExpectAnswerable(decoded.id, decoded.forward.status());
      ++refused;
    } else if (!decoded.is_cancel) {
      EXPECT_LE(decoded.forward->rows.size_bytes(), bytes.size());
      ReadAll(decoded.forward->rows);
    }
    ASSERT_FALSE(HasFailure()) << "input " << i;
  }
  EXPECT_GT(agreed, iterations / 10);
  EXPECT_GT(refused, iterations / 10);
}

}  // namespace
}  // namespace switchyard
