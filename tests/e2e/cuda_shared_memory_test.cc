// Rows and answers in GPU memory that a client shares, through a real front and the real CUDA driver. Needs a GPU.
// tests/conformance/cuda_shared_memory_test.py does the same with tritonclient.
#include <dlfcn.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>

#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "proto/inference.grpc.pb.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelInferResponse;

constexpr char kModel[] = "tests/testdata/jargon-moe";
constexpr int64_t kDim = 128;

struct IpcHandle {
  char bytes[64];
};

// The driver as a client uses it, with the primary context of GPU 0 as the thread's current one.
class Driver {
 public:
  Driver() : library_(dlopen("libcuda.so.1", RTLD_NOW)) {
    if (library_ == nullptr || Call("cuInit", 0u) != 0) return;
    int device = 0;
    void* context = nullptr;
    is_ready_ = Call("cuDeviceGet", &device, 0) == 0 && Call("cuDevicePrimaryCtxRetain", &context, device) == 0 &&
                Call("cuCtxSetCurrent", context) == 0;
  }
  bool is_ready() const { return is_ready_; }

  // The driver's result: 0 for success.
  template <typename... Arguments>
  int Call(const char* name, Arguments... arguments) const {
    auto* function = reinterpret_cast<int (*)(Arguments...)>(dlsym(library_, name));
    return function == nullptr ? -1 : function(arguments...);
  }

 private:
  void* const library_;
  bool is_ready_ = false;
};

// An allocation that other processes can open.
class CudaMemory {
 public:
  CudaMemory(const Driver& driver, size_t num_bytes) : driver_(driver) {
    EXPECT_EQ(driver_.Call("cuMemAlloc_v2", &address_, num_bytes), 0);
    EXPECT_EQ(driver_.Call("cuIpcGetMemHandle", &handle_, address_), 0);
  }
  ~CudaMemory() { EXPECT_EQ(driver_.Call("cuMemFree_v2", address_), 0); }

  std::string handle() const { return std::string(handle_.bytes, sizeof(handle_.bytes)); }
  void Put(const std::byte* from, size_t num_bytes) {
    EXPECT_EQ(driver_.Call("cuMemcpyHtoD_v2", address_, static_cast<const void*>(from), num_bytes), 0);
  }
  std::vector<std::byte> Get(size_t offset, size_t num_bytes) const {
    std::vector<std::byte> bytes(num_bytes);
    EXPECT_EQ(driver_.Call("cuMemcpyDtoH_v2", static_cast<void*>(bytes.data()), address_ + offset, num_bytes), 0);
    return bytes;
  }

 private:
  const Driver& driver_;
  unsigned long long address_ = 0;  // NOLINT(google-runtime-int): the driver's own type
  IpcHandle handle_ = {};
};

// A process that allocates memory and waits to be ended. It is forked before this process has threads or a context.
class MemoryOwner {
 public:
  explicit MemoryOwner(size_t num_bytes) {
    int ends[2];
    if (pipe(ends) != 0) return;
    pid_ = fork();
    if (pid_ == 0) {
      const Driver driver;
      if (!driver.is_ready()) _exit(1);
      const CudaMemory memory(driver, num_bytes);
      const std::string handle = memory.handle();
      const bool is_sent = write(ends[1], handle.data(), handle.size()) == static_cast<ssize_t>(handle.size());
      if (!is_sent) _exit(1);
      while (true) pause();
    }
    close(ends[1]);
    char bytes[sizeof(IpcHandle)];
    if (read(ends[0], bytes, sizeof(bytes)) == sizeof(bytes)) handle_.assign(bytes, sizeof(bytes));
    close(ends[0]);
  }
  ~MemoryOwner() { Kill(); }

  const std::string& handle() const { return handle_; }
  void Kill() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }

 private:
  pid_t pid_ = -1;
  std::string handle_;
};

class CudaSharedMemoryTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    owner_ = new MemoryOwner(1 << 20);
    auto server = ServerProcess::Start(
        {absl::StrCat("--model=m=", kModel), "--local_workers=1", "--compute_dtype=fp32", "--allow_client_shm"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = server->release();
    driver_ = new Driver();
  }
  static void TearDownTestSuite() {
    EXPECT_EQ(server_->Stop(), 0) << server_->process().Log();
    delete server_;
    delete owner_;
    delete driver_;
  }

  void SetUp() override {
    ASSERT_NE(server_, nullptr);
    if (!driver_->is_ready()) GTEST_SKIP() << "no CUDA driver, or no GPU";
    stub_ =
        GRPCInferenceService::NewStub(grpc::CreateChannel(server_->grpc_address(), grpc::InsecureChannelCredentials()));
  }

  grpc::Status Register(const std::string& name, const std::string& handle, int64_t device_id, uint64_t byte_size) {
    grpc::ClientContext context;
    inference::CudaSharedMemoryRegisterRequest request;
    request.set_name(name);
    request.set_raw_handle(handle);
    request.set_device_id(device_id);
    request.set_byte_size(byte_size);
    inference::CudaSharedMemoryRegisterResponse response;
    return stub_->CudaSharedMemoryRegister(&context, request, &response);
  }
  void UnregisterAll() {
    grpc::ClientContext context;
    inference::CudaSharedMemoryUnregisterResponse response;
    EXPECT_TRUE(stub_->CudaSharedMemoryUnregister(&context, {}, &response).ok());
  }

  // The rows lie at the beginning of a region, the output behind them.
  grpc::Status Infer(const std::string& region, int64_t num_rows) {
    ModelInferRequest request;
    request.set_model_name("m.1");
    auto& input = *request.add_inputs();
    input.set_name("hidden_states");
    input.set_datatype("FP32");
    input.add_shape(num_rows);
    input.add_shape(kDim);
    auto& output = *request.add_outputs();
    output.set_name("output");
    const auto place = [&](auto* tensor, int64_t offset) {
      auto& parameters = *tensor->mutable_parameters();
      parameters["shared_memory_region"].set_string_param(region);
      parameters["shared_memory_offset"].set_int64_param(offset);
      parameters["shared_memory_byte_size"].set_int64_param(num_rows * kDim * 4);
    };
    place(&input, 0);
    place(&output, num_rows * kDim * 4);
    grpc::ClientContext context;
    ModelInferResponse response;
    return stub_->ModelInfer(&context, request, &response);
  }

  void ExpectServesRightly(const std::string& region) {
    const auto golden = [](const std::string& what) {
      return LoadMatrix({absl::StrCat(kModel, "/golden.safetensors"), "model.layers.1.mlp." + what}).value();
    };
    const HostMatrix input = golden("input"), output = golden("output");
    const int64_t num_rows = input.view().num_rows;
    const size_t num_bytes = static_cast<size_t>(num_rows) * kDim * 4;
    CudaMemory memory(*driver_, 2 * num_bytes);
    memory.Put(input.view().data, num_bytes);
    const grpc::Status registered = Register(region, memory.handle(), 0, 2 * num_bytes);
    ASSERT_TRUE(registered.ok()) << registered.error_message();
    const grpc::Status status = Infer(region, num_rows);
    ASSERT_TRUE(status.ok()) << status.error_message();
    const std::vector<std::byte> answer = memory.Get(num_bytes, num_bytes);
    EXPECT_TRUE(Compare({answer.data(), DType::kF32, num_rows, kDim}, output.view(), {1e-4, 1e-5}).within_tolerance());
    UnregisterAll();
  }

  static MemoryOwner* owner_;
  static ServerProcess* server_;
  static Driver* driver_;
  std::unique_ptr<GRPCInferenceService::Stub> stub_;
};

MemoryOwner* CudaSharedMemoryTest::owner_ = nullptr;
ServerProcess* CudaSharedMemoryTest::server_ = nullptr;
Driver* CudaSharedMemoryTest::driver_ = nullptr;

TEST_F(CudaSharedMemoryTest, RowsAndAnswersOnTheGpu) { ExpectServesRightly("rows"); }

TEST_F(CudaSharedMemoryTest, MemoryIsRegisteredManyTimes) {
  for (int i = 0; i < 20; ++i) ExpectServesRightly(absl::StrCat("rows ", i));
}

TEST_F(CudaSharedMemoryTest, WrongRegistrationsAreRefused) {
  CudaMemory memory(*driver_, 4096);
  const auto expect = [&](const grpc::Status& status, const std::string& text) {
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
    EXPECT_NE(status.error_message().find(text), std::string::npos) << status.error_message();
  };
  expect(Register("x", memory.handle().substr(1), 0, 4096), "raw_handle");
  expect(Register("x", std::string(64, '\x7f'), 0, 4096), "raw_handle");
  expect(Register("x", memory.handle(), -1, 4096), "device_id");
  expect(Register("x", memory.handle(), 1 << 20, 4096), "device_id");
  expect(Register("x", memory.handle(), 0, 0), "byte_size");
  expect(Register("x", memory.handle(), 0, uint64_t{1} << 40), "byte_size");
  expect(Register("x", memory.handle(), 0, ~uint64_t{0}), "byte_size");
  ASSERT_TRUE(Register("x", memory.handle(), 0, 4096).ok());
  EXPECT_EQ(Register("x", memory.handle(), 0, 4096).error_code(), grpc::StatusCode::ALREADY_EXISTS);
  EXPECT_EQ(Infer("x", 5).error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_TRUE(Infer("x", 4).ok());
  UnregisterAll();
}

// The driver decides what happens to the dead client's requests. Other clients' requests go on.
TEST_F(CudaSharedMemoryTest, AClientThatDiesHarmsNobody) {
  ASSERT_EQ(owner_->handle().size(), sizeof(IpcHandle));
  const grpc::Status registered = Register("gone", owner_->handle(), 0, 1 << 20);
  ASSERT_TRUE(registered.ok()) << registered.error_message();
  EXPECT_TRUE(Infer("gone", 100).ok());
  owner_->Kill();
  const grpc::Status status = Infer("gone", 100);
  std::printf("after its owner's death: %s\n", status.ok() ? "OK" : status.error_message().c_str());
  UnregisterAll();
  ExpectServesRightly("rows");
}

}  // namespace
}  // namespace switchyard
