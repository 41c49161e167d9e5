#include "server/group/membership/exchange_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard {
namespace {

using testing::HasSubstr;

worker::Hello Cpu(const std::string& host) {
  worker::Hello hello;
  for (const char* exchange : {"shm", "tcp", "gloo"}) hello.add_exchanges(exchange);
  hello.set_host_identity(host);
  return hello;
}

worker::Hello Gpu(const std::string& host) {
  worker::Hello hello;
  for (const char* exchange : {"direct", "nccl"}) hello.add_exchanges(exchange);
  hello.set_host_identity(host);
  return hello;
}

absl::StatusOr<std::string> Choose(const std::string& wanted, const std::vector<worker::Hello>& workers) {
  std::vector<const worker::Hello*> pointers;
  for (const worker::Hello& worker : workers) pointers.push_back(&worker);
  return ChooseExchange(wanted, pointers);
}

TEST(ExchangeChoiceTest, AutoUsesSharedMemoryOnOneHostAndTheNetworkBetweenHosts) {
  EXPECT_EQ(*Choose("auto", {Cpu("a")}), "shm");
  EXPECT_EQ(*Choose("auto", {Cpu("a"), Cpu("a"), Cpu("a")}), "shm");
  EXPECT_EQ(*Choose("auto", {Cpu("a"), Cpu("a"), Cpu("b")}), "tcp");
  EXPECT_EQ(*Choose("auto", {Gpu("a"), Gpu("a")}), "direct");
  EXPECT_EQ(*Choose("auto", {Gpu("a"), Gpu("b")}), "nccl");
}

TEST(ExchangeChoiceTest, WorkersThatDoNotKnowTheirHostShareNoMemory) {
  EXPECT_EQ(*Choose("auto", {Cpu(""), Cpu("")}), "tcp");
  EXPECT_FALSE(Choose("shm", {Cpu(""), Cpu("")}).ok());
}

TEST(ExchangeChoiceTest, TheFlagIsObeyed) {
  for (const char* exchange : {"shm", "tcp", "gloo"}) EXPECT_EQ(*Choose(exchange, {Cpu("a"), Cpu("a")}), exchange);
  EXPECT_EQ(*Choose("gloo", {Cpu("a"), Cpu("b")}), "gloo");
  for (const char* exchange : {"direct", "nccl"}) EXPECT_EQ(*Choose(exchange, {Gpu("a"), Gpu("a")}), exchange);
}

TEST(ExchangeChoiceTest, WhatAWorkerLacksIsNamed) {
  EXPECT_THAT(Choose("shm", {Cpu("a"), Cpu("b")}).status().message(), HasSubstr("shares no memory"));
  EXPECT_THAT(Choose("direct", {Gpu("a"), Gpu("b")}).status().message(), HasSubstr("shares no memory"));
  EXPECT_THAT(Choose("nccl", {Cpu("a")}).status().message(),
              HasSubstr("its exchange is 'shm, tcp, gloo', this front needs 'nccl' (--exchange=nccl)"));
  EXPECT_THAT(Choose("auto", {Cpu("a"), Gpu("a")}).status().message(),
              HasSubstr("its exchange is 'direct, nccl', this front needs 'shm, tcp, gloo'"));
  EXPECT_FALSE(Choose("auto", {worker::Hello()}).ok());
}

}  // namespace
}  // namespace switchyard
