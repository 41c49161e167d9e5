#include "server/api/kserve/kserve_infer_codec.h"

#include <gmock/gmock.h>
#include <google/protobuf/stubs/logging.h>
#include <google/protobuf/util/message_differencer.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <random>

namespace switchyard {
namespace {

using google::protobuf::util::MessageDifferencer;
using inference::ModelInferRequest;

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

std::string Join(const Chunks& chunks) {
  std::string bytes;
  for (const auto& chunk : chunks) bytes.append(reinterpret_cast<const char*>(chunk.data()), chunk.size());
  return bytes;
}

std::string RandomBytes(size_t count, std::mt19937& random) {
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

template <typename Parameters>
void AddParameters(Parameters* parameters, std::mt19937& random) {
  for (int i = random() % 4; i > 0; --i) {
    auto& parameter = (*parameters)[std::string(random() % 5, 'p') + std::to_string(i)];
    if (random() % 2 == 0) parameter.set_int64_param(static_cast<int64_t>(random()) - 1000);
    if (random() % 3 == 0) parameter.set_string_param("text");
    if (random() % 3 == 0) parameter.set_double_param(0.5);
  }
}

void FillContents(inference::InferTensorContents* contents, std::mt19937& random) {
  for (int i = random() % 50; i > 0; --i) contents->add_fp32_contents(static_cast<float>(random()) / 1000);
  for (int i = random() % 10; i > 0; --i) contents->add_fp64_contents(static_cast<double>(random()) / 1000);
  if (random() % 4 == 0) contents->add_int_contents(static_cast<int32_t>(random()));
  if (random() % 4 == 0) contents->add_bytes_contents("bytes");
}

ModelInferRequest RandomRequest(std::mt19937& random) {
  ModelInferRequest request;
  request.set_model_name("m." + std::to_string(random() % 100));
  if (random() % 2 == 0) request.set_model_version("1");
  request.set_id(std::string(random() % 30, 'i'));
  AddParameters(request.mutable_parameters(), random);
  for (int i = random() % 3; i > 0; --i) {
    auto& input = *request.add_inputs();
    input.set_name("hidden_states");
    input.set_datatype("FP32");
    input.add_shape(static_cast<int64_t>(random()) - 100);
    input.add_shape(random() % 300);
    AddParameters(input.mutable_parameters(), random);
    if (random() % 2 == 0) FillContents(input.mutable_contents(), random);
  }
  for (int i = random() % 3; i > 0; --i) {
    auto& output = *request.add_outputs();
    output.set_name("output");
    AddParameters(output.mutable_parameters(), random);
  }
  for (int i = random() % 3; i > 0; --i) request.add_raw_input_contents(RandomBytes(random() % 300, random));
  return request;
}

std::string Packed(const auto& elements) {
  return std::string(reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(elements[0]));
}

void ExpectSame(const DecodedInfer& decoded, ModelInferRequest request) {
  ASSERT_EQ(decoded.raw.size(), request.raw_input_contents_size());
  for (size_t i = 0; i < decoded.raw.size(); ++i) EXPECT_EQ(Join(decoded.raw[i]), request.raw_input_contents(i));
  request.clear_raw_input_contents();
  ASSERT_EQ(decoded.typed.size(), request.inputs_size());
  for (size_t i = 0; i < decoded.typed.size(); ++i) {
    const TypedContents& typed = decoded.typed[i];
    const inference::InferTensorContents& contents = request.inputs(i).contents();
    EXPECT_EQ(typed.is_set, request.inputs(i).has_contents());
    EXPECT_EQ(Join(typed.fp32), Packed(contents.fp32_contents()));
    EXPECT_EQ(Join(typed.fp64), Packed(contents.fp64_contents()));
    EXPECT_EQ(typed.other_field != 0, contents.int_contents_size() + contents.bytes_contents_size() > 0);
    request.mutable_inputs(i)->clear_contents();
  }
  EXPECT_TRUE(MessageDifferencer::Equals(decoded.head, request)) << decoded.head.DebugString();
}

TEST(DecodeInfer, AgreesWithProtobufHoweverTheBytesAreCut) {
  std::mt19937 random(1);
  for (int round = 0; round < 1000; ++round) {
    const ModelInferRequest request = RandomRequest(random);
    const auto decoded = DecodeInfer(Cut(request.SerializeAsString(), random));
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    ExpectSame(*decoded, request);
  }
}

TEST(DecodeInfer, FieldsInAnyOrderAndUnknownOnesAreRead) {
  std::mt19937 random(2);
  ModelInferRequest tensors, rest;
  tensors.add_raw_input_contents("rows");
  rest.set_model_name("m.1");
  rest.add_inputs()->set_name("hidden_states");
  const std::string unknown("\xfa\x07\x03xyz", 6);  // field 127, three bytes
  const auto decoded =
      DecodeInfer(Cut(tensors.SerializeAsString() + unknown + rest.SerializeAsString() + unknown, random));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_EQ(decoded->head.model_name(), "m.1");
  EXPECT_EQ(decoded->head.inputs(0).name(), "hidden_states");
  ASSERT_EQ(decoded->raw.size(), 1);
  EXPECT_EQ(Join(decoded->raw[0]), "rows");
}

// Protobuf's writers pack these fields, but readers must take both forms.
TEST(DecodeInfer, UnpackedTypedContentsAreRead) {
  const float one = 1.5F, two = -2;
  std::string contents;
  for (const float& element : {one, two}) {
    contents += '\x35';  // field 6, four bytes
    contents.append(reinterpret_cast<const char*>(&element), sizeof(element));
  }
  std::string input = std::string("\x2a") + static_cast<char>(contents.size()) + contents;
  const std::string bytes = std::string("\x2a") + static_cast<char>(input.size()) + input;
  std::mt19937 random(3);
  const auto decoded = DecodeInfer(Cut(bytes, random));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  ASSERT_EQ(decoded->typed.size(), 1);
  EXPECT_EQ(Join(decoded->typed[0].fp32), Packed(std::vector<float>{one, two}));
}

void ExpectRefused(const std::string& bytes, const std::string& text) {
  std::mt19937 random(4);
  const grpc::Slice slice(bytes);
  const auto decoded = DecodeInfer(grpc::ByteBuffer(&slice, 1));
  ASSERT_FALSE(decoded.ok());
  EXPECT_TRUE(absl::IsInvalidArgument(decoded.status()));
  EXPECT_THAT(std::string(decoded.status().message()), testing::HasSubstr(text));
}

TEST(DecodeInfer, WhatWouldTakeMuchMoreMemoryThanItsBytesIsRefused) {
  std::string inputs, raw, unpacked;
  for (int i = 0; i < 100'000; ++i) {
    inputs += std::string("\x2a\x00", 2);
    raw += std::string("\x3a\x00", 2);
  }
  for (int i = 0; i < 2'000'000; ++i) unpacked += std::string("\x35\0\0\0\0", 5);
  ExpectRefused(inputs, "take more than 65536 bytes");
  ExpectRefused(raw, "raw_input_contents: more than 64 entries");
  inference::ModelInferRequest::InferInputTensor input;
  input.mutable_contents()->ParseFromString("");
  std::string field;
  const auto append_length = [](size_t length, std::string* to) {
    for (; length >= 128; length >>= 7) to->push_back(static_cast<char>(length | 128));
    to->push_back(static_cast<char>(length));
  };
  field = "\x2a";
  append_length(unpacked.size(), &field);
  field += unpacked;
  std::string whole = "\x2a";
  append_length(field.size(), &whole);
  ExpectRefused(whole + field, "pieces");
}

TEST(DecodeInfer, TextThatIsNotUtf8IsRefused) { ExpectRefused("\x0a\x02\xff\xfe", "UTF-8"); }

TEST(DecodeInfer, EveryTruncationAndMutationIsRefusedOrDecodedWithinItsBytes) {
  google::protobuf::SetLogHandler(nullptr);
  std::mt19937 random(5);
  const char* wanted = getenv("SWITCHYARD_FUZZ_ITERATIONS");
  const int iterations = wanted == nullptr ? 100'000 : std::atoi(wanted);
  int refused = 0, agreed = 0;
  for (int i = 0; i < iterations; ++i) {
    std::string bytes = RandomRequest(random).SerializeAsString();
    bytes.resize(std::min<size_t>(bytes.size(), random() % 800));
    for (int change = random() % 5; change > 0 && !bytes.empty(); --change) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    const auto decoded = DecodeInfer(Cut(bytes, random));
    if (!decoded.ok()) {
      EXPECT_TRUE(absl::IsInvalidArgument(decoded.status())) << decoded.status();
      ++refused;
      continue;
    }
    size_t num_bytes = 0;
    for (const Chunks& chunks : decoded->raw) num_bytes += Join(chunks).size();
    for (const TypedContents& typed : decoded->typed) num_bytes += Join(typed.fp32).size() + Join(typed.fp64).size();
    EXPECT_LE(num_bytes, bytes.size());
    // When protobuf can read the bytes too, both read the same.
    ModelInferRequest parsed;
    if (parsed.ParseFromString(bytes) && decoded->raw.size() == parsed.raw_input_contents_size()) {
      for (size_t r = 0; r < decoded->raw.size(); ++r) EXPECT_EQ(Join(decoded->raw[r]), parsed.raw_input_contents(r));
      EXPECT_EQ(decoded->head.model_name(), parsed.model_name());
      ++agreed;
    }
  }
  EXPECT_GT(refused, iterations / 20);
  EXPECT_GT(agreed, iterations / 20);
}

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  return bytes;
}

inference::ModelInferResponse ExampleHead() {
  inference::ModelInferResponse head;
  head.set_model_name("m.1");
  head.set_id("7");
  head.add_outputs()->set_name("output");
  head.add_outputs()->set_name("expert_ids");
  (*head.mutable_parameters())["balance_loss"].set_double_param(1.25);
  return head;
}

TEST(EncodeInfer, ProtobufReadsItBack) {
  const std::string rows(100'000, 'r');
  for (const auto& tensors : {std::vector<std::string>{rows, "ids"}, {""}, {}}) {
    std::vector<TensorSlices> slices;  // each tensor in two slices
    for (const std::string& tensor : tensors) {
      const size_t half = tensor.size() / 2;
      slices.push_back({grpc::Slice(tensor.substr(0, half)), grpc::Slice(tensor.substr(half))});
    }
    inference::ModelInferResponse expected = ExampleHead(), unary;
    for (const std::string& tensor : tensors) expected.add_raw_output_contents(tensor);
    ASSERT_TRUE(unary.ParseFromString(BytesOf(EncodeInfer(ExampleHead(), slices))));
    EXPECT_TRUE(MessageDifferencer::Equals(unary, expected));
    inference::ModelStreamInferResponse streamed;
    ASSERT_TRUE(streamed.ParseFromString(BytesOf(EncodeStreamInfer(ExampleHead(), slices))));
    EXPECT_EQ(streamed.error_message(), "");
    EXPECT_TRUE(MessageDifferencer::Equals(streamed.infer_response(), expected));
  }
}

TEST(EncodeStreamError, SaysTheCodeAndWhoseItIs) {
  inference::ModelInferResponse head;
  head.set_id("7");
  inference::ModelStreamInferResponse response;
  ASSERT_TRUE(response.ParseFromString(BytesOf(EncodeStreamError(head, absl::NotFoundError("no such model")))));
  EXPECT_EQ(response.error_message(), "NOT_FOUND: no such model");
  EXPECT_EQ(response.infer_response().id(), "7");
}

}  // namespace
}  // namespace switchyard
