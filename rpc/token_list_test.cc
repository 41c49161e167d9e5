#include "rpc/token_list.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>

namespace switchyard {
namespace {

constexpr std::chrono::milliseconds kLookPeriod{100};

FlagFile File(const std::string& text) {
  const std::string path = ::testing::TempDir() + "/tokens";
  std::ofstream(path + ".new") << text;
  std::rename((path + ".new").c_str(), path.c_str());
  return {"--auth_token_file", path};
}

TEST(TokenList, HasWhatTheFileHas) {
  const auto tokens = TokenList::Open(File("# ours\nfirst\n\n  alice:second \r\nlast"));
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  for (const char* token : {"first", "second", "last"}) EXPECT_TRUE((*tokens)->Has(token)) << token;
  for (const char* other : {"", "firs", "first ", "alice", "alice:second", "# ours"}) {
    EXPECT_FALSE((*tokens)->Has(other)) << other;
  }
}

TEST(TokenList, ATokenIsTheSameOnlyWhole) {
  EXPECT_TRUE(SameToken("secret", "secret"));
  for (const char* other : {"", "secre", "secret ", "Secret", "secrets"}) {
    EXPECT_FALSE(SameToken(other, "secret")) << other;
  }
}

TEST(TokenList, RefusesFilesThatLetNobodyIn) {
  const auto message = [](const std::string& text) {
    const auto tokens = TokenList::Open(File(text));
    return tokens.ok() ? "" : std::string(tokens.status().message());
  };
  EXPECT_NE(message("").find("holds no token"), std::string::npos);
  EXPECT_NE(message("# none\n").find("--auth_token_file="), std::string::npos);
  EXPECT_NE(message("good\ntwo words\n").find("line 2"), std::string::npos);
  EXPECT_NE(message("alice:\n").find("line 1"), std::string::npos);
  EXPECT_NE(message("umläut\n").find("visible ASCII"), std::string::npos);
  EXPECT_TRUE(absl::IsNotFound(TokenList::Open({"--auth_token_file", "/absent/tokens"}).status()));
}

TEST(TokenList, FollowsTheFile) {
  FakeClock clock;
  const FlagFile file = File("old");
  const auto tokens = TokenList::Open(file, clock);
  ASSERT_TRUE(tokens.ok());
  File("new");
  EXPECT_TRUE((*tokens)->Has("old"));  // not looked at yet
  clock.Advance(kLookPeriod);
  EXPECT_FALSE((*tokens)->Has("old"));
  EXPECT_TRUE((*tokens)->Has("new"));

  File("not a token");
  clock.Advance(kLookPeriod);
  EXPECT_TRUE((*tokens)->Has("new")) << "a bad file changes nothing";
  std::remove(file.path.c_str());
  clock.Advance(kLookPeriod);
  EXPECT_TRUE((*tokens)->Has("new")) << "nor does a missing one";
  File("# all revoked");
  clock.Advance(kLookPeriod);
  EXPECT_FALSE((*tokens)->Has("new"));
}

TEST(BearerToken, IsWhatFollowsTheScheme) {
  EXPECT_EQ(BearerToken("Bearer abc"), "abc");
  EXPECT_EQ(BearerToken("bearer  abc "), "abc");
  for (const char* other : {"", "abc", "Basic abc", "Bearerabc", "Bearer "}) EXPECT_EQ(BearerToken(other), "") << other;
}

TEST(ReadToken, IsTheFirstOne) {
  EXPECT_EQ(ReadToken(File("# mine\nalice:abc\ndef\n")).value(), "abc");
  EXPECT_TRUE(absl::IsInvalidArgument(ReadToken(File("\n")).status()));
}

}  // namespace
}  // namespace switchyard
