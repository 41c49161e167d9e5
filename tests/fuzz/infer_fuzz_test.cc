// Mutated ModelInferRequests, alone or as messages of a stream, from bytes to the request that the front would run.
// DecodeInfer reads everything that protobuf reads with the same result, or refuses it for its size. The decoded
// request is refused or consistent.
#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <gtest/gtest.h>

#include "proto/inference.pb.h"
#include "server/api/kserve/kserve_infer_request.h"
#include "server/models/testing.h"
#include "tests/fuzz/messages.h"
#include "tests/fuzz/mutator.h"

namespace switchyard {
namespace {

using inference::ModelInferRequest;

// Serializes map entries in a fixed order, so that equal messages give equal bytes, also with NaN.
std::string Canonical(const ModelInferRequest& request) {
  std::string bytes;
  google::protobuf::io::StringOutputStream stream(&bytes);
  google::protobuf::io::CodedOutputStream output(&stream);
  output.SetSerializationDeterministic(true);
  request.SerializeToCodedStream(&output);
  output.Trim();
  return bytes;
}

template <typename Elements>
std::string Packed(const Elements& elements) {
  return std::string(reinterpret_cast<const char*>(elements.data()), elements.size() * sizeof(elements[0]));
}

void ExpectSame(const DecodedInfer& decoded, ModelInferRequest parsed) {
  ASSERT_EQ(decoded.raw.size(), parsed.raw_input_contents_size());
  for (size_t i = 0; i < decoded.raw.size(); ++i) EXPECT_EQ(JoinChunks(decoded.raw[i]), parsed.raw_input_contents(i));
  parsed.clear_raw_input_contents();
  ASSERT_EQ(decoded.typed.size(), parsed.inputs_size());
  for (size_t i = 0; i < decoded.typed.size(); ++i) {
    const inference::InferTensorContents& contents = parsed.inputs(i).contents();
    EXPECT_EQ(decoded.typed[i].is_set, parsed.inputs(i).has_contents());
    EXPECT_EQ(JoinChunks(decoded.typed[i].fp32), Packed(contents.fp32_contents()));
    EXPECT_EQ(JoinChunks(decoded.typed[i].fp64), Packed(contents.fp64_contents()));
    parsed.mutable_inputs(i)->clear_contents();
  }
  EXPECT_EQ(Canonical(decoded.head), Canonical(parsed));
}

// DecodeInfer has size limits that protobuf does not have.
bool IsRefusedForItsSize(const absl::Status& status) {
  const std::string message(status.message());
  return message.find("more than") != std::string::npos;
}

// Memory of the size that the corpus names; these tests neither read nor write it.
class FakeRegion final : public SharedMemoryRegion {
 public:
  FakeRegion() : SharedMemoryRegion({.byte_size = kByteSize}) {}
  absl::Status Read(uint64_t, std::span<std::byte>) const override { return absl::InternalError("read"); }
  absl::Status Write(uint64_t, std::span<const std::byte>) const override { return absl::InternalError("written"); }

  static constexpr uint64_t kByteSize = 100;
};

class InferFuzz : public testing::Test {
 protected:
  static constexpr InferLimits kLimits = {.max_request_bytes = 1 << 20, .max_batch_rows = 64};

  void SetUp() override {
    google::protobuf::SetLogHandler(nullptr);
    const auto table = TableOf({{"m", "synthetic:dim=8,hidden=8,experts=6,topk=2,layers=1"}});
    models_ = std::make_unique<KserveModels>([table] { return table; });
    ASSERT_TRUE(memory_.registry().Add("me", "rows", std::make_shared<FakeRegion>()).ok());
  }

  // Returns true when the front would run the request.
  bool CheckRequest(DecodedInfer decoded) {
    const auto entry = models_->Find(decoded.head.model_name(), decoded.head.model_version());
    if (!entry.ok()) {
      ExpectSendable(entry.status());
      return false;
    }
    const auto infer = MakeInferRequest(std::move(decoded), **entry, kLimits, {&memory_, "me"});
    if (!infer.ok()) {
      EXPECT_TRUE(absl::IsInvalidArgument(infer.status()) || absl::IsNotFound(infer.status())) << infer.status();
      ExpectSendable(infer.status());
      return false;
    }
    Request& request = *infer->request;
    const size_t num_elements = request.ask.num_rows * kFuzzDim;
    EXPECT_EQ(infer->num_bytes, num_elements * SizeOf(request.ask.dtype));
    if (infer->rows_place.has_value()) {
      EXPECT_EQ(infer->rows_place->byte_size, static_cast<uint64_t>(infer->num_bytes));
      ExpectInside(*infer->rows_place);
    } else {
      EXPECT_EQ(request.progress.rows.size_bytes(), static_cast<size_t>(infer->num_bytes));
      std::vector<float> rows(num_elements);
      request.progress.rows.ReadNext(request.ask.dtype, num_elements, DType::kF32,
                                     reinterpret_cast<std::byte*>(rows.data()));
    }
    for (const WantedOutput& output : infer->outputs) {
      if (output.place.has_value()) ExpectInside(*output.place);
    }
    EXPECT_GE(request.ask.top_k, 1);
    EXPECT_LE(request.ask.top_k, 6);
    EXPECT_FALSE(infer->outputs.empty());
    EXPECT_GE(request.ask.queue_timeout.count(), 0);
    return true;
  }

  // The message must fit headers, whose size is limited, and be valid as a string of a message.
  static void ExpectSendable(const absl::Status& status) {
    const std::string message(status.message());
    EXPECT_LT(message.size(), 4096u) << message;
    EXPECT_TRUE(google::protobuf::internal::IsStructurallyValidUTF8(message)) << message;
  }

  static void ExpectInside(const TensorPlace& place) {
    ASSERT_LE(place.offset, FakeRegion::kByteSize);
    EXPECT_LE(place.byte_size, FakeRegion::kByteSize - place.offset);
  }

  ClientMemory memory_{1 << 20};
  std::unique_ptr<KserveModels> models_;
};

TEST_F(InferFuzz, MutatedRequestsAreRefusedOrReadAsProtobufDoes) {
  Mutator mutator(20260802, InferCorpus());
  const int64_t iterations = FuzzIterations(50'000);
  int64_t agreed = 0, refused = 0, runnable = 0;
  for (int64_t i = 0; i < iterations; ++i) {
    const std::string bytes = mutator.Next();
    auto decoded = DecodeInfer(mutator.Cut(bytes));
    ModelInferRequest parsed;
    if (parsed.ParseFromString(bytes) && !IsRefusedForItsSize(decoded.status())) {
      ASSERT_TRUE(decoded.ok()) << decoded.status() << "; input " << i;
      ExpectSame(*decoded, parsed);
      ++agreed;
    }
    if (decoded.ok()) {
      runnable += CheckRequest(*std::move(decoded));
    } else {
      EXPECT_TRUE(absl::IsInvalidArgument(decoded.status())) << decoded.status();
      ExpectSendable(decoded.status());
      ++refused;
    }
    ASSERT_FALSE(HasFailure()) << "input " << i;
  }
  EXPECT_GT(agreed, iterations / 10);
  EXPECT_GT(refused, iterations / 10);
  EXPECT_GT(runnable, iterations / 100);
  std::printf("%ld inputs: %ld read as by protobuf, %ld refused by the decoder, %ld to be run\n", iterations, agreed,
              refused, runnable);
}

}  // namespace
}  // namespace switchyard
