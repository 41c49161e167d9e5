#include "server/observe/trace_settings.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

int CountSampled(TraceSettings& settings, const std::string& model, int num_requests) {
  int sampled = 0;
  for (int i = 0; i < num_requests; ++i) sampled += settings.Sample(model) ? 1 : 0;
  return sampled;
}

TEST(TraceSettings, AreOffAtFirstAndShowEverySetting) {
  TraceSettings settings("/tmp/trace.json");
  EXPECT_EQ(settings.Show("m.1"), (TraceValues{{"log_frequency", {"0"}},
                                               {"trace_count", {"-1"}},
                                               {"trace_file", {"/tmp/trace.json"}},
                                               {"trace_level", {"OFF"}},
                                               {"trace_mode", {"triton"}},
                                               {"trace_rate", {"1000"}}}));
  EXPECT_FALSE(settings.is_any_on());
  EXPECT_EQ(CountSampled(settings, "m.1", 5000), 0);
}

TEST(TraceSettings, RateAndCountDecideWhichRequestsAreTraced) {
  TraceSettings settings("f");
  ASSERT_TRUE(settings.Update("", {{"trace_level", {"TIMESTAMPS"}}, {"trace_rate", {"10"}}}).ok());
  EXPECT_EQ(CountSampled(settings, "m.1", 100), 10);
  ASSERT_TRUE(settings.Update("", {{"trace_count", {"3"}}}).ok());
  EXPECT_EQ(CountSampled(settings, "m.1", 20), 2);
  EXPECT_THAT(settings.Show("")["trace_count"], ElementsAre("1"));
  EXPECT_EQ(CountSampled(settings, "m.2", 1000), 1);
  EXPECT_THAT(settings.Show("")["trace_count"], ElementsAre("0"));
}

TEST(TraceSettings, AModelsOwnComeBeforeThoseOfAll) {
  TraceSettings settings("f");
  ASSERT_TRUE(settings.Update("m.1", {{"trace_level", {"TIMESTAMPS"}}, {"trace_rate", {"2"}}}).ok());
  EXPECT_TRUE(settings.is_any_on());
  EXPECT_EQ(CountSampled(settings, "m.1", 10), 5);
  EXPECT_EQ(CountSampled(settings, "m.2", 10), 0);
  ASSERT_TRUE(settings.Update("", {{"trace_rate", {"5"}}, {"trace_count", {"1"}}}).ok());
  EXPECT_THAT(settings.Show("m.1")["trace_rate"], ElementsAre("2"));
  EXPECT_EQ(CountSampled(settings, "m.1", 10), 1) << "the count of all is its own too";
  ASSERT_TRUE(settings.Update("m.1", {{"trace_level", {}}, {"trace_rate", {}}}).ok());
  EXPECT_EQ(settings.Show("m.1"), settings.Show(""));
  EXPECT_FALSE(settings.is_any_on());
}

TEST(TraceSettings, NoValueTakesASettingBack) {
  TraceSettings settings("f");
  ASSERT_TRUE(settings
                  .Update("", {{"trace_level", {"TIMESTAMPS"}},
                               {"trace_rate", {"3"}},
                               {"trace_count", {"7"}},
                               {"log_frequency", {"2"}}})
                  .ok());
  EXPECT_EQ(settings.log_frequency(), 2);
  ASSERT_TRUE(
      settings.Update("", {{"trace_level", {}}, {"trace_rate", {}}, {"trace_count", {}}, {"log_frequency", {}}}).ok());
  EXPECT_EQ(settings.Show(""), TraceSettings("f").Show(""));
}

TEST(TraceSettings, WrongOnesAreNamedAndNothingChanges) {
  TraceSettings settings("f");
  const TraceValues before = settings.Show("");
  const std::vector<std::pair<TraceValues, std::string>> cases = {
      {{{"trace_level", {"TENSORS"}}}, "trace_level: expected OFF or TIMESTAMPS"},
      {{{"trace_level", {"OFF", "TIMESTAMPS"}}}, "found OFF, TIMESTAMPS"},
      {{{"trace_rate", {"0"}}}, "trace_rate: expected a number of at least 1, found 0"},
      {{{"trace_rate", {"1", "2"}}}, "found 1, 2"},
      {{{"trace_rate", {"99999999999999999999"}}}, "trace_rate: expected a number"},
      {{{"trace_count", {"-2"}}}, "trace_count: expected a number of at least -1"},
      {{{"log_frequency", {"often"}}}, "log_frequency: expected a number of at least 0, found often"},
      {{{"log_frequency", {"5"}}, {"trace_file", {"/etc/passwd"}}}, "trace_file: it is set at the start"},
      {{{"trace_mode", {"opentelemetry"}}}, "trace_mode: it is set at the start"},
      {{{"colour", {"red"}}}, "found 'colour'"},
  };
  for (const auto& [changes, text] : cases) {
    const absl::Status status = settings.Update("", changes);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr(text));
    EXPECT_EQ(settings.Show(""), before);
  }
  EXPECT_TRUE(absl::IsInvalidArgument(settings.Update("m.1", {{"log_frequency", {"5"}}})));
  const absl::Status no_file = TraceSettings("").Update("", {{"trace_level", {"TIMESTAMPS"}}});
  EXPECT_TRUE(absl::IsFailedPrecondition(no_file));
  EXPECT_THAT(std::string(no_file.message()), HasSubstr("--trace_file"));
}

}  // namespace
}  // namespace switchyard
