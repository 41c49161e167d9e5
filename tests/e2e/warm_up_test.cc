// What a front does before it is ready, so that its first callers wait no longer than the others.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "moe/base/clock.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr char kModel[] =
    "--model=m=synthetic:dim=512,hidden=512,experts=16,topk=4,act=silu,glu=1,bias=0,dtype=bf16,layers=2";

// Milliseconds of one call with `num_rows` rows.
double Call(Client* client, int64_t num_rows) {
  HostMatrix rows = HostMatrix::Allocate(DType::kBF16, num_rows, 512);
  std::fill_n(rows.buffer.data(), rows.buffer.size(), std::byte{0x3c});
  const SteadyTime begin = Clock::Real().Now();
  EXPECT_TRUE(client->Forward({.model = "m", .layer = "0", .rows = rows.view()}).ok());
  return MicrosBetween(begin, Clock::Real().Now()) / 1e3;
}

TEST(WarmUp, RunsBeforeReadyAndCountsNowhere) {
  const auto server = ServerProcess::Start({kModel, "--local_workers=2"});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_NE((*server)->process().Log().find("warm-up: 4 steps in "), std::string::npos);
  const auto steps = [&](const std::string& line) {
    return (*server)->Get("/metrics").find(line) != std::string::npos;
  };
  EXPECT_FALSE(steps("switchyard_steps_total{layer=\"0\",model=\"m\"} 1"));
  const double first = Call((*server)->Connect().get(), 1);
  EXPECT_TRUE(steps("switchyard_steps_total{layer=\"0\",model=\"m\"} 1")) << (*server)->Get("/metrics");
  std::printf("with warm-up: first call %.2f ms, then %.2f ms\n", first, Call((*server)->Connect().get(), 1));
}

TEST(WarmUp, CanBeLeftOut) {
  const auto server = ServerProcess::Start({kModel, "--local_workers=2", "--warmup=off"});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ((*server)->process().Log().find("warm-up"), std::string::npos);
  const double first = Call((*server)->Connect().get(), 1);
  std::printf("without warm-up: first call %.2f ms, then %.2f ms\n", first, Call((*server)->Connect().get(), 1));
}

}  // namespace
}  // namespace switchyard
