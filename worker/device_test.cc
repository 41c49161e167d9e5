#include "worker/device.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

WorkerOptions Options(const std::string& device, int local_index = -1, int num_local_workers = 1) {
  WorkerOptions options;
  options.device = device;
  options.local_index = local_index;
  options.num_local_workers = num_local_workers;
  return options;
}

int Chosen(const WorkerOptions& options, int num_gpus) { return ChooseGpu(options, num_gpus, "none here").value(); }

absl::Status Refusal(const WorkerOptions& options, int num_gpus) {
  return ChooseGpu(options, num_gpus, "none here").status();
}

TEST(ChooseGpuTest, LocalWorkersTakeAGpuEach) {
  for (const char* device : {"cuda", "auto"}) {
    EXPECT_EQ(Chosen(Options(device, 0, 2), 2), 0);
    EXPECT_EQ(Chosen(Options(device, 1, 2), 2), 1);
    EXPECT_EQ(Chosen(Options(device), 8), 0) << "from elsewhere";
  }
}

TEST(ChooseGpuTest, ANumberIsTaken) {
  EXPECT_EQ(Chosen(Options("cuda:3"), 4), 3);
  EXPECT_EQ(Chosen(Options("cuda:1", 0, 1), 2), 1);
  EXPECT_EQ(Chosen(Options("cpu"), 4), -1);
}

TEST(ChooseGpuTest, AutoFallsBackToTheCpuForAllWorkersOrNone) {
  EXPECT_EQ(Chosen(Options("auto"), 0), -1);
  for (int worker = 0; worker < 3; ++worker) EXPECT_EQ(Chosen(Options("auto", worker, 3), 2), -1);
}

TEST(ChooseGpuTest, MissingGpusAreNamed) {
  EXPECT_THAT(Refusal(Options("cuda"), 0).message(), AllOf(HasSubstr("none here"), HasSubstr("--device=cpu")));
  EXPECT_THAT(Refusal(Options("cuda:0"), 0).message(), HasSubstr("none here"));
  EXPECT_THAT(Refusal(Options("cuda", 0, 4), 2).message(),
              AllOf(HasSubstr("4 workers"), HasSubstr("has 2"), HasSubstr("--local_workers=2")));
  EXPECT_THAT(Refusal(Options("cuda:2"), 2).message(), HasSubstr("has 2 GPUs, numbered from 0"));
  EXPECT_THAT(Refusal(Options("cuda:0", 1, 2), 2).message(), HasSubstr("cannot share one GPU"));
  EXPECT_EQ(Refusal(Options("cuda"), 0).code(), absl::StatusCode::kFailedPrecondition);
}

TEST(ChooseGpuTest, OtherNamesAreNone) {
  for (const char* device : {"", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1x", "CPU"}) {
    EXPECT_EQ(Refusal(Options(device), 2).code(), absl::StatusCode::kInvalidArgument) << device;
  }
}

TEST(OpenDeviceTest, TheCpuIsAlwaysThere) {
  WorkerOptions options = Options("cpu");
  options.front = "127.0.0.1:8003";
  const auto cpu = OpenDevice(options);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  EXPECT_EQ((*cpu)->name(), "cpu");
  EXPECT_EQ((*cpu)->exchange_names().front(), "shm");
  for (const std::string& exchange : (*cpu)->exchange_names()) {
    const auto factory = (*cpu)->MakeExchange(exchange);
    ASSERT_TRUE(factory.ok()) << factory.status();
    EXPECT_TRUE((*factory)->Prepare(0, 2).ok());
  }
  EXPECT_EQ((*cpu)->MakeExchange("nccl").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE((*cpu)->MakeEngine(DType::kF32).ok());
  std::vector<std::byte> memory(4096);
  EXPECT_TRUE((*cpu)->LockMemory(memory.data(), memory.size()).ok());
}

// With --exchange_host=eth9, Gloo dereferenced null.
TEST(WorkerOptionsTest, AddressesThatCannotBeAreRefusedByFlag) {
  const auto refusal = [](const std::string& front, const std::string& http_host, const std::string& exchange_host) {
    WorkerOptions options;
    options.front = front;
    options.http_host = http_host;
    options.exchange_host = exchange_host;
    return std::string(CheckOptions(options).message());
  };
  EXPECT_EQ(refusal("127.0.0.1:8003", "::", ""), "");
  EXPECT_EQ(refusal("[::1]:8003", "[::1]", "lo"), "");
  EXPECT_THAT(refusal("", "::", ""), HasSubstr("--front=HOST:PORT"));
  EXPECT_THAT(refusal("front", "::", ""), HasSubstr("--front=front: expected"));
  EXPECT_THAT(refusal("front:1", "a:b", ""), HasSubstr("--http_host=a:b: expected"));
  EXPECT_THAT(refusal("front:1", "::", "eth9"), HasSubstr("--exchange_host=eth9: expected"));
}

TEST(WorkerOptionsTest, TheExchangeIsReachedWhereTheFrontIs) {
  WorkerOptions options;
  options.front = "127.0.0.1:8003";
  EXPECT_EQ(*ExchangeAddress(options), "127.0.0.1");
  options.exchange_host = "lo";
  EXPECT_EQ(*ExchangeAddress(options), "127.0.0.1");
}

}  // namespace
}  // namespace switchyard
