// Tests the warm-up before a front is ready, which makes its first callers wait no longer than later ones.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <utility>

#include "base/clock.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr char kModel[] =
    "--model=m=synthetic:dim=512,hidden=512,experts=16,topk=4,act=silu,glu=1,bias=0,dtype=bf16,layers=2";
constexpr int64_t kDim = 512;

// Milliseconds that one call with `num_rows` rows to a layer takes.
double Call(Client* client, const std::string& layer, int64_t num_rows) {
  HostMatrix rows = HostMatrix::Allocate(DType::kBF16, num_rows, kDim);
  for (size_t i = 0; i < rows.buffer.size(); ++i) rows.buffer.data()[i] = std::byte(i % 0x40);  // small numbers
  const SteadyTime begin = Clock::Real().Now();
  EXPECT_TRUE(client->Forward({.model = "m", .layer = layer, .rows = rows.view()}).ok());
  return MicrosBetween(begin, Clock::Real().Now()) / 1e3;
}

// Prints the latency of first and later calls, for the reader: machines are too different to assert it.
void PrintLatencies(const char* what, Client* client) {
  EXPECT_TRUE(client->GetStatus().ok());  // makes the connection
  for (const auto& [layer, num_rows] : {std::pair("0", 1), {"1", 64}}) {
    const double first = Call(client, layer, num_rows);
    std::printf("%s: %d rows: first call %.2f ms, second %.2f ms\n", what, num_rows, first,
                Call(client, layer, num_rows));
  }
}

TEST(WarmUp, RunsBeforeReadyAndCountsNowhere) {
  const auto server = ServerProcess::Start({kModel, "--local_workers=2", "--max_batch_rows=256"});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE((*server)->process().HasLogged("warm-up: "));
  // 4 steps, and a few more for layers whose first step was slow.
  EXPECT_THAT((*server)->process().Log(), testing::ContainsRegex("warm-up: ([4-9]|1[0-9]) steps in "));
  const auto client = (*server)->Connect();
  const auto shows = [&](const std::string& line) {
    return (*server)->Get("/metrics").find(line) != std::string::npos;
  };
  EXPECT_FALSE(shows("switchyard_steps_total{layer=\"0\",model=\"m\"} 1"));
  Call(client.get(), "0", 1);
  EXPECT_TRUE(shows("switchyard_steps_total{layer=\"0\",model=\"m\"} 1")) << (*server)->Get("/metrics");
}

TEST(WarmUp, IsForTheFirstCallers) {
  for (const char* flag : {"--warmup=on", "--warmup=off"}) {
    const auto server = ServerProcess::Start({kModel, "--local_workers=2", "--max_batch_rows=256", flag});
    ASSERT_TRUE(server.ok()) << server.status();
    PrintLatencies(flag, (*server)->Connect().get());
    const bool is_on = std::string(flag) == "--warmup=on";
    EXPECT_EQ((*server)->Stop(), 0);  // with which the log is whole
    EXPECT_EQ((*server)->process().Log().find("warm-up: ") != std::string::npos, is_on);
  }
}

}  // namespace
}  // namespace switchyard
