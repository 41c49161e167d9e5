#include "server/api/kserve/control/log_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/logging/logging.h"

namespace switchyard {
namespace {

using testing::HasSubstr;

class LogSettingsTest : public testing::Test {
 protected:
  void SetUp() override { spdlog::set_level(spdlog::level::info); }
  void TearDown() override { spdlog::set_level(spdlog::level::info); }

  void Set(const std::string& name, bool value) { (*request_.mutable_settings())[name].set_bool_param(value); }
  void SetVerbose(uint32_t level) { (*request_.mutable_settings())["log_verbose_level"].set_uint32_param(level); }
  spdlog::level::level_enum Change() {
    EXPECT_TRUE(ChangeLogSettings(request_).ok());
    request_.clear_settings();
    return spdlog::get_level();
  }

  inference::LogSettingsRequest request_;
};

TEST_F(LogSettingsTest, SwitchesMakeOneLevel) {
  SetVerbose(1);
  EXPECT_EQ(Change(), spdlog::level::debug);
  SetVerbose(5);
  EXPECT_EQ(Change(), spdlog::level::trace);
  EXPECT_EQ(CurrentLogSettings().settings().at("log_verbose_level").uint32_param(), 2);
  SetVerbose(0);
  EXPECT_EQ(Change(), spdlog::level::info);
  Set("log_info", false);
  EXPECT_EQ(Change(), spdlog::level::warn);
  Set("log_warning", false);
  EXPECT_EQ(Change(), spdlog::level::err);
  EXPECT_FALSE(CurrentLogSettings().settings().at("log_warning").bool_param());
  EXPECT_TRUE(CurrentLogSettings().settings().at("log_error").bool_param());
  Set("log_error", false);
  EXPECT_EQ(Change(), spdlog::level::off);
  Set("log_error", true);
  Set("log_warning", true);
  Set("log_info", true);
  EXPECT_EQ(Change(), spdlog::level::info);
}

TEST_F(LogSettingsTest, NothingAskedChangesNothing) {
  spdlog::set_level(spdlog::level::trace);
  EXPECT_EQ(Change(), spdlog::level::trace);
}

TEST_F(LogSettingsTest, TimesOfLinesCanChange) {
  ASSERT_TRUE(SetUpLogging({}).ok());
  EXPECT_EQ(CurrentLogSettings().settings().at("log_format").string_param(), "default");
  EXPECT_EQ(CurrentLogSettings().settings().at("log_file").string_param(), "");
  (*request_.mutable_settings())["log_format"].set_string_param("ISO8601");
  ASSERT_TRUE(ChangeLogSettings(request_).ok());
  EXPECT_EQ(CurrentLogSettings().settings().at("log_format").string_param(), "ISO8601");
  (*request_.mutable_settings())["log_format"].set_string_param("prose");
  EXPECT_THAT(std::string(ChangeLogSettings(request_).message()), HasSubstr("found 'prose'"));
  ASSERT_TRUE(SetUpLogging({.format = "json"}).ok());
  (*request_.mutable_settings())["log_format"].set_string_param("default");
  const absl::Status json = ChangeLogSettings(request_);
  EXPECT_TRUE(absl::IsFailedPrecondition(json));
  EXPECT_THAT(std::string(json.message()), HasSubstr("log_format: lines are JSON"));
}

TEST_F(LogSettingsTest, AWrongSettingIsNamedAndNothingChanges) {
  SetVerbose(1);
  (*request_.mutable_settings())["log_file"].set_string_param("/tmp/x");
  const absl::Status unknown = ChangeLogSettings(request_);
  EXPECT_TRUE(absl::IsInvalidArgument(unknown));
  EXPECT_THAT(std::string(unknown.message()), HasSubstr("log_file: the log goes to stderr"));
  request_.clear_settings();
  (*request_.mutable_settings())["log_info"].set_uint32_param(1);
  EXPECT_THAT(std::string(ChangeLogSettings(request_).message()), HasSubstr("log_info: expected a bool"));
  EXPECT_EQ(spdlog::get_level(), spdlog::level::info);
}

}  // namespace
}  // namespace switchyard
