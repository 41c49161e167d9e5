// Clients that share memory and abuse it, beside others, with real processes. tests/conformance/shared_memory_test.py
// tests the answers of each call.
#include <fcntl.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>
#include <thread>

#include "base/unique_fd.h"
#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "proto/inference.grpc.pb.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using inference::ModelStreamInferResponse;

constexpr char kModel[] = "tests/testdata/jargon-moe";
constexpr int64_t kDim = 128;
constexpr int64_t kRowBytes = kDim * 4;
// So many rows that the threads for long copies copy them.
constexpr int64_t kManyRows = 2000;

// A shared memory object with room for the rows of a request and of its answer, registered under its own name.
class SharedRows {
 public:
  SharedRows(GRPCInferenceService::Stub* stub, const std::string& name, int64_t num_rows)
      : stub_(stub),
        name_(name),
        num_bytes_(num_rows * kRowBytes),
        key_(absl::StrCat("/switchyard_e2e_", std::random_device()(), "_", name)),
        fd_(shm_open(key_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600)) {
    Resize(2 * num_bytes_);
    EXPECT_TRUE(Register().ok());
  }
  ~SharedRows() { shm_unlink(key_.c_str()); }

  void Resize(int64_t num_bytes) { EXPECT_EQ(ftruncate(fd_.get(), num_bytes), 0); }
  int64_t full_size() const { return 2 * num_bytes_; }

  grpc::Status Register() {
    grpc::ClientContext context;
    inference::SystemSharedMemoryRegisterRequest request;
    request.set_name(name_);
    request.set_key(key_);
    request.set_byte_size(static_cast<uint64_t>(full_size()));
    inference::SystemSharedMemoryRegisterResponse response;
    return stub_->SystemSharedMemoryRegister(&context, request, &response);
  }
  grpc::Status Unregister() {
    grpc::ClientContext context;
    inference::SystemSharedMemoryUnregisterRequest request;
    request.set_name(name_);
    inference::SystemSharedMemoryUnregisterResponse response;
    return stub_->SystemSharedMemoryUnregister(&context, request, &response);
  }

  void Put(ConstMatrixView rows) {
    ASSERT_EQ(pwrite(fd_.get(), rows.data, rows.num_rows * kRowBytes, 0), rows.num_rows * kRowBytes);
  }
  std::vector<std::byte> Answer(int64_t num_rows) const {
    std::vector<std::byte> bytes(num_rows * kRowBytes);
    EXPECT_EQ(pread(fd_.get(), bytes.data(), bytes.size(), num_bytes_), bytes.size());
    return bytes;
  }

  ModelInferRequest Request(int64_t num_rows, const std::string& id = "") const {
    ModelInferRequest request;
    request.set_model_name("m.1");
    request.set_id(id);
    auto& input = *request.add_inputs();
    input.set_name("hidden_states");
    input.set_datatype("FP32");
    input.add_shape(num_rows);
    input.add_shape(kDim);
    Place(0, num_rows, &input);
    auto& output = *request.add_outputs();
    output.set_name("output");
    Place(num_bytes_, num_rows, &output);
    return request;
  }

 private:
  template <typename Tensor>
  void Place(int64_t offset, int64_t num_rows, Tensor* tensor) const {
    auto& parameters = *tensor->mutable_parameters();
    parameters["shared_memory_region"].set_string_param(name_);
    parameters["shared_memory_offset"].set_int64_param(offset);
    parameters["shared_memory_byte_size"].set_int64_param(num_rows * kRowBytes);
  }

  GRPCInferenceService::Stub* const stub_;
  const std::string name_;
  const int64_t num_bytes_;
  const std::string key_;
  const UniqueFd fd_;
};

class SharedMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    auto server = ServerProcess::Start(
        {absl::StrCat("--model=m=", kModel), "--local_workers=2", "--compute_dtype=fp32", "--allow_client_shm"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    stub_ =
        GRPCInferenceService::NewStub(grpc::CreateChannel(server_->grpc_address(), grpc::InsecureChannelCredentials()));
  }

  // Golden rows that go through a region of their own must give the recorded output.
  void ExpectServesRightly(SharedRows& rows) {
    const auto golden = [](const std::string& what) {
      return LoadMatrix({absl::StrCat(kModel, "/golden.safetensors"), "model.layers.1.mlp." + what}).value();
    };
    const HostMatrix input = golden("input"), output = golden("output");
    const int64_t num_rows = input.view().num_rows;
    rows.Put(input.view());
    grpc::ClientContext context;
    ModelInferResponse response;
    const grpc::Status status = stub_->ModelInfer(&context, rows.Request(num_rows), &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    const std::vector<std::byte> answer = rows.Answer(num_rows);
    EXPECT_TRUE(Compare({answer.data(), DType::kF32, num_rows, kDim}, output.view(), {1e-4, 1e-5}).within_tolerance());
  }

  // Sends requests on streams that are given up at any time, while their memory is resized and unregistered.
  void Abuse(int seed) {
    std::mt19937 random(seed);
    SharedRows rows(stub_.get(), absl::StrCat("abused_", seed), kManyRows);
    for (int i = 0; i < 40; ++i) {
      grpc::ClientContext context;
      const auto stream = stub_->ModelStreamInfer(&context);
      for (int request = 0; request < 8; ++request) {
        stream->Write(rows.Request(request % 2 == 0 ? kManyRows : 1 + random() % 100));
        if (random() % 3 == 0) rows.Resize(static_cast<int64_t>(random() % rows.full_size()));
        if (random() % 3 == 0) rows.Resize(rows.full_size());
        if (random() % 8 == 0) {
          EXPECT_TRUE(rows.Unregister().ok());
        }
        if (random() % 4 == 0) rows.Register();  // may fail: already registered, or the object is too short
      }
      if (i % 2 == 0) context.TryCancel();
      stream->WritesDone();
      ModelStreamInferResponse response;
      while (stream->Read(&response)) {
      }
      const grpc::Status status = stream->Finish();
      EXPECT_TRUE(status.ok() || status.error_code() == grpc::StatusCode::CANCELLED) << status.error_message();
    }
  }

  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<GRPCInferenceService::Stub> stub_;
};

TEST_F(SharedMemoryTest, WhoAbusesItHarmsNobodyElse) {
  SharedRows honest(stub_.get(), "honest", 512);
  std::atomic<int> abusing{2};
  std::vector<std::thread> abusers;
  for (int i = 0; i < 2; ++i) {
    abusers.emplace_back([&, i] {
      Abuse(i);
      --abusing;
    });
  }
  do {
    ExpectServesRightly(honest);
  } while (abusing.load() > 0);
  for (std::thread& abuser : abusers) abuser.join();
  const auto client = server_->Connect();
  while (client->GetStatus()->queued_rows() > 0) std::this_thread::yield();
  EXPECT_EQ(server_->Stop(), 0) << server_->process().Log();
}

// SIGTERM still answers requests whose rows were read, with their output.
TEST_F(SharedMemoryTest, DrainAnswersWhatIsInFlight) {
  constexpr int kCount = 20;
  SharedRows rows(stub_.get(), "rows", kManyRows);
  grpc::ClientContext context;
  const auto stream = stub_->ModelStreamInfer(&context);
  for (int i = 0; i < kCount; ++i) ASSERT_TRUE(stream->Write(rows.Request(kManyRows, std::to_string(i))));
  ModelStreamInferResponse response;
  ASSERT_TRUE(stream->Read(&response));
  server_->process().Signal(SIGTERM);
  int answered = 1;
  for (; answered < kCount && stream->Read(&response); ++answered) {
    const bool is_late = response.error_message().rfind("UNAVAILABLE: the server is draining", 0) == 0;
    EXPECT_TRUE(response.error_message().empty() || is_late) << response.error_message();
  }
  EXPECT_EQ(answered, kCount);
  EXPECT_EQ(server_->process().Wait(), 0);
}

}  // namespace
}  // namespace switchyard
