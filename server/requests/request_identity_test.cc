#include "server/requests/request_identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard {
namespace {

constexpr char kTrace[] = "0af7651916cd43dd8448eb211c80319c";
constexpr char kSpan[] = "b7ad6b7169203331";
constexpr char kHeader[] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

TEST(TraceParent, PartsOfAWellFormedHeader) {
  const auto parent = ParseTraceParent(kHeader);
  ASSERT_TRUE(parent.has_value());
  EXPECT_EQ(parent->trace_id, kTrace);
  EXPECT_EQ(parent->span_id, kSpan);
  EXPECT_TRUE(ParseTraceParent("cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-what-comes-later").has_value());
}

TEST(TraceParent, AnythingElseIsNone) {
  const std::string header = kHeader;
  for (size_t size = 0; size < header.size(); ++size) EXPECT_FALSE(ParseTraceParent(header.substr(0, size))) << size;
  for (size_t i = 0; i < header.size(); ++i) {
    std::string wrong = header;
    wrong[i] = 'G';
    EXPECT_FALSE(ParseTraceParent(wrong)) << i;
  }
  EXPECT_FALSE(ParseTraceParent(header + "-"));
  EXPECT_FALSE(ParseTraceParent("ff" + header.substr(2)));
  EXPECT_FALSE(ParseTraceParent("cc" + header.substr(2) + "x"));
  EXPECT_FALSE(ParseTraceParent("00-00000000000000000000000000000000-b7ad6b7169203331-01"));
  EXPECT_FALSE(ParseTraceParent("00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01"));
  EXPECT_FALSE(ParseTraceParent("00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01"));
}

TEST(RequestIdentity, TheCallersIdThenItsTraceThenOneOfOurs) {
  EXPECT_EQ(Identify("mine-7", kHeader, "").id, "mine-7");
  EXPECT_EQ(Identify("mine-7", kHeader, "").trace->trace_id, kTrace);
  EXPECT_EQ(Identify("", kHeader, "").id, kTrace);
  const RequestIdentity made = Identify("", "nonsense", "ipv4:1.2.3.4:5");
  EXPECT_FALSE(made.trace.has_value());
  EXPECT_EQ(made.peer, "ipv4:1.2.3.4:5");
  EXPECT_THAT(made.id, testing::MatchesRegex("[0-9a-f]{16}-[0-9a-f]+"));
  EXPECT_NE(Identify("", "", "").id, Identify("", "", "").id);
}

TEST(RequestIdentity, WhatACallerSendsIsCutAndCleaned) {
  EXPECT_EQ(Identify("a b\nc\"d\\e\x7f\xc3\xa9~", "", "").id, "a_b_c_d_e___~");
  EXPECT_EQ(Identify(std::string(100'000, 'x'), "", "").id.size(), kMaxRequestIdBytes);
}

}  // namespace
}  // namespace switchyard
