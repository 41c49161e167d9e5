#include "tests/fuzz/mutator.h"

#include <gtest/gtest.h>

#include <set>

#include "proto/inference.pb.h"

namespace switchyard {
namespace {

std::string Example() {
  inference::ModelInferRequest request;
  request.set_model_name("m.1");
  auto& input = *request.add_inputs();
  input.set_name("hidden_states");
  input.add_shape(-1);
  input.mutable_contents()->add_fp32_contents(1.5F);
  request.add_raw_input_contents("rows");
  return request.SerializeAsString();
}

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

TEST(SplitFields, JoinedAgainTheyAreTheMessage) {
  const std::vector<WireField> fields = SplitFields(Example());
  ASSERT_EQ(fields.size(), 3u);
  EXPECT_EQ(fields[0].payload, "m.1");
  std::string joined;
  for (const WireField& field : fields) AppendField(field, &joined);
  EXPECT_EQ(joined, Example());
  EXPECT_TRUE(SplitFields(Example().substr(0, 10)).empty());
}

TEST(Mutator, TheSameSeedGivesTheSameInputs) {
  Mutator one(7, {Example()}), other(7, {Example()}), third(8, {Example()});
  int different = 0;
  for (int i = 0; i < 100; ++i) {
    const std::string message = one.Next();
    EXPECT_EQ(message, other.Next());
    different += message != third.Next();
  }
  EXPECT_GT(different, 50);
}

// Inputs test little when all of them parse, none parses, or they repeat.
TEST(Mutator, InputsAreManyAndSomeOfThemParse) {
  Mutator mutator(1, {Example()});
  std::set<std::string> inputs;
  int parsed = 0;
  for (int i = 0; i < 10'000; ++i) {
    const std::string message = mutator.Next();
    inputs.insert(message);
    parsed += inference::ModelInferRequest().ParseFromString(message);
  }
  EXPECT_GT(inputs.size(), 5'000u);
  EXPECT_GT(parsed, 2'000);
  EXPECT_LT(parsed, 8'000);
}

TEST(Mutator, CutBytesAreTheSameBytes) {
  Mutator mutator(2, {Example()});
  for (int i = 0; i < 100; ++i) EXPECT_EQ(BytesOf(mutator.Cut(Example())), Example());
  EXPECT_EQ(BytesOf(mutator.Cut("")), "");
}

}  // namespace
}  // namespace switchyard
