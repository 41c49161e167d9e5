#include "server/api/kserve/kserve_infer_request.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "server/models/testing.h"

namespace switchyard {
namespace {

using inference::ModelInferRequest;
using testing::ElementsAre;
using testing::HasSubstr;

constexpr int64_t kDim = 8;
constexpr InferLimits kLimits = {.max_request_bytes = 1 << 20, .max_batch_rows = 64};

std::vector<InferOutput> OutputsOf(const InferRequest& infer) {
  std::vector<InferOutput> outputs;
  for (const WantedOutput& wanted : infer.outputs) outputs.push_back(wanted.output);
  return outputs;
}

class InferRequestTest : public testing::Test {
 protected:
  void SetUp() override {
    table_ = TableOf({{"m", "synthetic:dim=8,hidden=8,experts=6,topk=2,layers=1"}});
    models_ = std::make_unique<KserveModels>([this] { return table_; });
    request_.set_model_name("m.0");
    auto& input = *request_.add_inputs();
    input.set_name("hidden_states");
    SetRows("FP32", 3, 3 * kDim * 4);
  }

  void SetRows(const std::string& datatype, int64_t num_rows, size_t num_bytes) {
    auto& input = *request_.mutable_inputs(0);
    input.set_datatype(datatype);
    input.clear_shape();
    input.add_shape(num_rows);
    input.add_shape(kDim);
    request_.clear_raw_input_contents();
    request_.add_raw_input_contents(std::string(num_bytes, '\0'));
  }
  inference::InferParameter& Parameter(const char* name) { return (*request_.mutable_parameters())[name]; }

  absl::StatusOr<InferRequest> Make(const InferLimits& limits = kLimits) {
    const grpc::Slice slice(request_.SerializeAsString());
    auto decoded = DecodeInfer(grpc::ByteBuffer(&slice, 1));
    EXPECT_TRUE(decoded.ok()) << decoded.status();
    return MakeInferRequest(*std::move(decoded), *models_->entries()[0], limits, access_);
  }
  void ExpectError(absl::StatusCode code, const std::string& text, const InferLimits& limits = kLimits) {
    const auto infer = Make(limits);
    EXPECT_EQ(infer.status().code(), code) << infer.status();
    EXPECT_THAT(std::string(infer.status().message()), HasSubstr(text));
  }
  void ExpectInvalid(const std::string& text) { ExpectError(absl::StatusCode::kInvalidArgument, text); }

  std::shared_ptr<const ModelTable> table_;
  std::unique_ptr<KserveModels> models_;
  ModelInferRequest request_;
  MemoryAccess access_;
};

TEST_F(InferRequestTest, EveryTypeOfRows) {
  for (const auto& [name, dtype] :
       {std::pair("FP64", DType::kF64), {"FP32", DType::kF32}, {"FP16", DType::kF16}, {"BF16", DType::kBF16}}) {
    const int64_t num_bytes = 5 * kDim * static_cast<int64_t>(SizeOf(dtype));
    SetRows(name, 5, num_bytes);
    const auto infer = Make();
    ASSERT_TRUE(infer.ok()) << infer.status();
    EXPECT_EQ(infer->request->ask.dtype, dtype);
    EXPECT_EQ(infer->request->ask.num_rows, 5);
    EXPECT_EQ(infer->num_bytes, num_bytes);
    EXPECT_EQ(infer->request->ask.layer, table_->layers()[0]->layer);
    EXPECT_THAT(OutputsOf(*infer), ElementsAre(InferOutput::kRows));
    EXPECT_FALSE(infer->request->ask.return_routing);
  }
}

TEST_F(InferRequestTest, TypedContentsAreTheSameRows) {
  request_.clear_raw_input_contents();
  std::vector<float> sent;
  for (int i = 0; i < 3 * kDim; ++i) sent.push_back(static_cast<float>(i) / 3);
  request_.mutable_inputs(0)->mutable_contents()->mutable_fp32_contents()->Add(sent.begin(), sent.end());
  auto infer = Make();
  ASSERT_TRUE(infer.ok()) << infer.status();
  std::vector<float> read(sent.size());
  infer->request->progress.rows.ReadNext(DType::kF32, read.size(), DType::kF32,
                                         reinterpret_cast<std::byte*>(read.data()));
  EXPECT_EQ(read, sent);

  request_.mutable_inputs(0)->mutable_contents()->add_fp64_contents(1);
  ExpectInvalid("inputs hidden_states: contents: expected fp32_contents alone");
  request_.mutable_inputs(0)->mutable_contents()->clear_fp64_contents();
  request_.mutable_inputs(0)->set_datatype("BF16");
  ExpectInvalid("BF16 has no typed contents");
  request_.mutable_inputs(0)->set_datatype("FP32");
  request_.add_raw_input_contents("");
  ExpectInvalid("expected none beside raw_input_contents");
}

TEST_F(InferRequestTest, OutputsInTheOrderAskedForAndOnce) {
  for (const char* name : {"expert_weights", "output", "expert_ids", "output"}) request_.add_outputs()->set_name(name);
  const auto infer = Make();
  ASSERT_TRUE(infer.ok()) << infer.status();
  EXPECT_THAT(OutputsOf(*infer), ElementsAre(InferOutput::kExpertWeights, InferOutput::kRows, InferOutput::kExpertIds));
  EXPECT_TRUE(infer->request->ask.return_routing);
  request_.add_outputs()->set_name("logits");
  ExpectInvalid("found 'logits'");
}

TEST_F(InferRequestTest, Parameters) {
  Parameter("top_k").set_int64_param(3);
  Parameter("timeout").set_uint64_param(1'000);
  Parameter("capacity_factor").set_int64_param(2);
  Parameter("balance_loss").set_bool_param(true);
  Parameter("priority").set_uint64_param(std::numeric_limits<uint64_t>::max());
  Parameter("colour").set_string_param("green");
  Parameter("nothing");
  const auto infer = Make();
  ASSERT_TRUE(infer.ok()) << infer.status();
  EXPECT_EQ(infer->request->ask.top_k, 3);
  EXPECT_EQ(infer->request->ask.queue_timeout, std::chrono::microseconds(1'000));
  EXPECT_EQ(infer->request->ask.priority, Priority::kBackground);
  EXPECT_EQ(infer->request->ask.capacity.rule, CapacityRule::kTutel);
  EXPECT_EQ(infer->request->ask.capacity.factor, 2);
  EXPECT_TRUE(infer->request->ask.return_balance_loss);
  EXPECT_FALSE(infer->marks_final);
}

TEST_F(InferRequestTest, WrongParametersAreNamed) {
  Parameter("top_k").set_int64_param(7);
  ExpectInvalid("top_k: expected 1 to 6 experts");
  Parameter("top_k").set_string_param("2");
  ExpectInvalid("parameters top_k: expected an integer, found a string");
  Parameter("top_k").set_uint64_param(std::numeric_limits<uint64_t>::max());
  ExpectInvalid("top_k");
  Parameter("top_k").clear_parameter_choice();
  ExpectInvalid("parameters top_k: expected an integer, found none");
  Parameter("top_k").set_int64_param(0);
  Parameter("capacity_factor").set_double_param(std::nan(""));
  ExpectInvalid("capacity_factor");
  Parameter("capacity_factor").set_bool_param(true);
  ExpectInvalid("parameters capacity_factor: expected a number, found a bool");
  request_.mutable_parameters()->erase("capacity_factor");
  Parameter("timeout").set_int64_param(-5);
  ExpectInvalid("parameters: timeout: expected 0 or more, found -5");
  Parameter("timeout").set_int64_param(0);
  Parameter("priority").set_int64_param(-1);
  ExpectInvalid("parameters: priority: expected 0 or more, found -1");
}

TEST_F(InferRequestTest, Priorities) {
  const Priority expected[] = {Priority::kUsual, Priority::kHigh, Priority::kUsual, Priority::kBackground,
                               Priority::kBackground};
  for (int level = 0; level < 5; ++level) {
    Parameter("priority").set_int64_param(level);
    EXPECT_EQ(Make()->request->ask.priority, expected[level]) << level;
  }
}

TEST_F(InferRequestTest, ShapesMustMatchTheBytesWithoutOverflow) {
  SetRows("FP32", 3, 3 * kDim * 4 - 1);
  ExpectInvalid("inputs hidden_states: expected 3 × 32 bytes for shape [3, 8] of FP32, found 95");
  SetRows("FP32", (int64_t{1} << 59) + 3, 3 * kDim * 4);  // times 32 bytes is 3 · 32 modulo 2^64
  ExpectInvalid("inputs hidden_states: expected");
  SetRows("FP32", std::numeric_limits<int64_t>::max(), 32);
  ExpectInvalid("inputs hidden_states: expected");
  SetRows("FP32", 0, 0);
  ExpectInvalid("shape: expected [rows, 8] with at least 1 row, found [0, 8]");
  SetRows("FP32", -3, 96);
  ExpectInvalid("found [-3, 8]");
  request_.mutable_inputs(0)->add_shape(1);
  ExpectInvalid("found [-3, 8, 1]");
  SetRows("FP32", 3, 96);
  ExpectError(absl::StatusCode::kResourceExhausted,
              "inputs hidden_states: 96 bytes, the limit --max_request_bytes is 95",
              {.max_request_bytes = 95, .max_batch_rows = 64});
}

TEST_F(InferRequestTest, OneInputOfTheRightName) {
  request_.mutable_inputs(0)->set_name("pixels");
  ExpectInvalid("inputs: expected 1 input, 'hidden_states', found 'pixels'");
  request_.mutable_inputs(0)->set_name("hidden_states");
  request_.add_raw_input_contents("");
  ExpectInvalid("raw_input_contents: expected 1 entry, one for each input, found 2");
  request_.add_inputs()->set_name("hidden_states");
  ExpectInvalid("found 'hidden_states', 'hidden_states'");
  request_.clear_inputs();
  ExpectInvalid("found none");
}

TEST_F(InferRequestTest, SharedMemoryIsRefusedWithoutItsName) {
  (*request_.mutable_inputs(0)->mutable_parameters())["shared_memory_region"].set_string_param("secret");
  const auto infer = Make();
  EXPECT_EQ(infer.status().code(), absl::StatusCode::kUnimplemented);
  EXPECT_THAT(std::string(infer.status().message()), testing::Not(HasSubstr("secret")));
}

// ---- Shared memory that the caller may use

// A region of 1000 bytes without an object; these tests copy nothing.
class FakeRegion final : public SharedMemoryRegion {
 public:
  FakeRegion() : SharedMemoryRegion({.byte_size = 1000}) {}
  absl::Status Read(uint64_t, std::span<std::byte>) const override { return absl::InternalError("read"); }
  absl::Status Write(uint64_t, std::span<const std::byte>) const override { return absl::InternalError("written"); }
};

class InferRequestInSharedMemoryTest : public InferRequestTest {
 protected:
  void SetUp() override {
    InferRequestTest::SetUp();
    access_ = {&memory_, "me"};
    ASSERT_TRUE(memory_.registry().Add("me", "x", std::make_shared<FakeRegion>()).ok());
  }
  template <typename Tensor>
  void Place(Tensor* tensor, int64_t num_bytes, int64_t offset) {
    auto& parameters = *tensor->mutable_parameters();
    parameters["shared_memory_region"].set_string_param("x");
    parameters["shared_memory_byte_size"].set_int64_param(num_bytes);
    parameters["shared_memory_offset"].set_int64_param(offset);
  }
  void PlaceInput(int64_t num_bytes, int64_t offset = 0) {
    request_.clear_raw_input_contents();
    Place(request_.mutable_inputs(0), num_bytes, offset);
  }
  void AddOutput(const char* name, int64_t num_bytes, int64_t offset = 0) {
    auto* output = request_.add_outputs();
    output->set_name(name);
    Place(output, num_bytes, offset);
  }

  ClientMemory memory_{1 << 20};
};

TEST_F(InferRequestInSharedMemoryTest, RowsAreFoundThereAndNotRead) {
  PlaceInput(96, 904);
  const auto infer = Make();
  ASSERT_TRUE(infer.ok()) << infer.status();
  ASSERT_TRUE(infer->rows_place.has_value());
  EXPECT_EQ(infer->rows_place->offset, 904);
  EXPECT_EQ(infer->num_bytes, 96);
  EXPECT_EQ(infer->request->ask.num_rows, 3);
}

TEST_F(InferRequestInSharedMemoryTest, TheShapeMustBeThatOfTheBytes) {
  PlaceInput(95);
  ExpectInvalid("inputs hidden_states: expected 3 × 32 bytes for shape [3, 8] of FP32, found 95");
  PlaceInput(97);
  ExpectInvalid("found 97");
  PlaceInput(96);
  request_.mutable_inputs(0)->set_shape(0, (int64_t{1} << 59) + 3);
  ExpectInvalid("inputs hidden_states: expected");
  request_.mutable_inputs(0)->set_shape(0, 3);
  ExpectError(absl::StatusCode::kResourceExhausted, "--max_request_bytes is 95",
              {.max_request_bytes = 95, .max_batch_rows = 64});
}

TEST_F(InferRequestInSharedMemoryTest, ItTakesNoOtherContents) {
  PlaceInput(96);
  request_.add_raw_input_contents(std::string(96, ' '));
  ExpectInvalid("inputs hidden_states: contents: expected none beside shared memory");
  request_.clear_raw_input_contents();
  request_.mutable_inputs(0)->mutable_contents();
  ExpectInvalid("inputs hidden_states: contents: expected none beside shared memory");
}

TEST_F(InferRequestInSharedMemoryTest, OutputsNeedRoom) {
  AddOutput("output", 96, 0);
  AddOutput("expert_ids", 24, 96);
  AddOutput("expert_weights", 800, 200);
  const auto infer = Make();
  ASSERT_TRUE(infer.ok()) << infer.status();
  EXPECT_EQ(infer->outputs[1].place->offset, 96);
  (*request_.mutable_outputs(0)->mutable_parameters())["shared_memory_byte_size"].set_int64_param(95);
  ExpectInvalid("outputs output: parameters shared_memory_byte_size: expected 96 or more, found 95");
  (*request_.mutable_outputs(0)->mutable_parameters())["shared_memory_byte_size"].set_int64_param(1001);
  ExpectInvalid("outputs output: shared memory: expected a range within the region's 1000 bytes");
  request_.mutable_outputs()->DeleteSubrange(0, 1);
  Parameter("top_k").set_int64_param(3);
  ExpectInvalid("outputs expert_ids: parameters shared_memory_byte_size: expected 36 or more, found 24");
}

TEST_F(InferRequestInSharedMemoryTest, AnOutputHasOnePlace) {
  AddOutput("output", 96, 0);
  AddOutput("output", 96, 200);
  ExpectInvalid("outputs output: expected once, because it is in shared memory, found again");
}

}  // namespace
}  // namespace switchyard
