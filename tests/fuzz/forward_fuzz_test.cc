// Mutated ForwardRequests: what protobuf reads, DecodeForward reads the same; everything else is refused or read within
// its bytes.
#include <gtest/gtest.h>

#include <bit>

#include "proto/switchyard.pb.h"
#include "server/rpc/forward_codec.h"
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
  EXPECT_EQ(decoded.capacity_factor.has_value(), parsed.has_capacity_factor());
  // As bits, for NaN is not equal to itself.
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

}  // namespace
}  // namespace switchyard
