#include "base/escape_controls.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/logging.h"

namespace switchyard {
namespace {

TEST(EscapeControls, LeavesPlainText) {
  for (const char* text : {"", "a model: 'x' \\ \"y\"", "größer als 日本 🙂"})
    EXPECT_EQ(EscapeControls(text), text);
}

TEST(EscapeControls, EscapesEveryControl) {
  EXPECT_EQ(EscapeControls("a\nb\r\tc"), "a\\nb\\r\\tc");
  EXPECT_EQ(EscapeControls("\x1b[2J\x7f"), "\\x1b[2J\\x7f");
  EXPECT_EQ(EscapeControls(std::string_view("\0", 1)), "\\x00");
  EXPECT_EQ(EscapeControls("\xc2\x9b"), "\\xc2\\x9b");  // U+009B, which terminals take for ESC [
}

TEST(EscapeControls, EscapesWhatIsNotUtf8) {
  EXPECT_EQ(EscapeControls("a\xff"), "a\\xff");
  EXPECT_EQ(EscapeControls("\xe2\x82"), "\\xe2\\x82");           // cut short
  EXPECT_EQ(EscapeControls("\xc0\x8a"), "\\xc0\\x8a");           // a newline in two bytes
  EXPECT_EQ(EscapeControls("\xed\xa0\x80"), "\\xed\\xa0\\x80");  // a surrogate
  EXPECT_EQ(EscapeControls("\xf4\x90\x80\x80"), "\\xf4\\x90\\x80\\x80");
}

TEST(Logging, ALineOfTextStaysOneLine) {
  const std::string path = testing::TempDir() + "/log";
  const int before = dup(STDERR_FILENO);
  ASSERT_NE(freopen(path.c_str(), "w", stderr), nullptr);
  ASSERT_TRUE(SetUpLogging({"info", "text", "front"}).ok());
  spdlog::info("unknown model {}", "m\n2026-01-01 00:00:00.000000 I [front] forged\x1b[2J");
  spdlog::default_logger()->flush();
  ASSERT_EQ(dup2(before, STDERR_FILENO), STDERR_FILENO);
  std::stringstream text;
  text << std::ifstream(path).rdbuf();
  const std::string line = text.str();
  EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
  EXPECT_NE(line.find("m\\n2026-01-01 00:00:00.000000 I [front] forged\\x1b[2J"), std::string::npos) << line;
}

}  // namespace
}  // namespace switchyard
