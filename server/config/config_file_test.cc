#include "server/config/config_file.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <set>
#include <sstream>

#include "proto/config.pb.h"
#include "server/config/flags.h"

namespace switchyard {
namespace {

constexpr char kSample[] = "deploy/switchyard.textproto";

std::string ErrorOf(const std::string& text) {
  const auto items = ParseServerConfig(text);
  return items.ok() ? "" : std::string(items.status().message());
}

void ExpectError(const std::string& text, const std::string& message) {
  EXPECT_NE(ErrorOf(text).find(message), std::string::npos) << ErrorOf(text);
}

// The options that a command line with --config gives, or the error.
struct Parsed {
  ServerOptions options;
  std::string error;
};

Parsed Parse(const std::string& config, std::vector<std::string> flags) {
  const std::string path = ::testing::TempDir() + "/config";
  std::ofstream(path) << config;
  flags.push_back("--config=" + path);
  Parsed parsed;
  CLI::App app;
  DefineFlags(app, &parsed.options);
  try {
    app.parse(std::vector<std::string>(flags.rbegin(), flags.rend()));
  } catch (const CLI::ParseError& error) {
    parsed.error = error.what();
  }
  return parsed;
}

TEST(ServerConfig, HasAFieldForEveryFlagAndAFlagForEveryField) {
  ServerOptions options;
  CLI::App app;
  DefineFlags(app, &options);
  std::set<std::string> flags, fields;
  for (const CLI::Option* option : app.get_options()) flags.insert(option->get_lnames().front());
  for (const char* of_the_program : {"help", "version", "config", "check_config"}) {
    EXPECT_EQ(flags.erase(of_the_program), 1u) << of_the_program;
  }
  const auto* descriptor = config::ServerConfig::descriptor();
  for (int i = 0; i < descriptor->field_count(); ++i) fields.insert(descriptor->field(i)->name());
  EXPECT_EQ(flags, fields);
}

TEST(ServerConfig, ValuesReachTheOptionsThroughTheFlags) {
  const Parsed parsed = Parse(R"(
      # two models
      model { name: "a" location: "/models/a" }
      model { name: "b" location: "synthetic:dim=8,hidden=8" }
      local_workers: 2 warmup: false allow_tf32: true
      gpu_memory_limit: "2Gi" max_queued_bytes: 2147483648
      host: "127.0.0.2"
  )",
                              {});
  ASSERT_EQ(parsed.error, "");
  const ServerOptions& options = parsed.options;
  ASSERT_EQ(options.models.size(), 2u);
  EXPECT_EQ(options.models[0].name, "a");
  EXPECT_EQ(options.models[1].location, "synthetic:dim=8,hidden=8");
  EXPECT_EQ(options.local_workers, 2);
  EXPECT_FALSE(options.warmup);
  EXPECT_TRUE(options.allow_tf32);
  EXPECT_EQ(options.gpu_memory_limit, int64_t{2} << 30);
  EXPECT_EQ(options.max_queued_bytes, int64_t{1} << 31);
  EXPECT_EQ(options.host, "127.0.0.2");
  EXPECT_EQ(options.port, 8001) << "a field that is not set keeps its default";
}

TEST(ServerConfig, TheCommandLineWins) {
  const Parsed parsed = Parse(R"(model { name: "a" location: "/a" } port: 1 local_workers: 2 warmup: false)",
                              {"--port=7", "--warmup=on", "--model=b=/b"});
  ASSERT_EQ(parsed.error, "");
  EXPECT_EQ(parsed.options.port, 7);
  EXPECT_TRUE(parsed.options.warmup);
  EXPECT_EQ(parsed.options.local_workers, 2);
  ASSERT_EQ(parsed.options.models.size(), 1u);
  EXPECT_EQ(parsed.options.models[0].name, "b");
}

TEST(ServerConfig, ErrorsNameThePlace) {
  ExpectError("local_workers: 2\nports: 1", "line 2, column ");
  ExpectError("local_workers: 2\nports: 1", "no field named \"ports\"");
  ExpectError("port: \"a\"", "line 1, column 7: Expected integer");
  ExpectError("port: 1\nport: 2", "line 2");
  ExpectError("warmup: maybe", "warmup");
  ExpectError("port: 99999999999", "line 1, column 7");
  ExpectError("model { name: \"m\"", "line 1");
  ExpectError(std::string((1 << 20) + 1, ' '), "at most 1 MiB");
  EXPECT_NE(Parse("\n\ncolour: 1", {}).error.find("--config: line 3"), std::string::npos);
  EXPECT_NE(Parse("model { name: \"a\" }", {}).error.find("--model=a="), std::string::npos);
  EXPECT_NE(Parse("gpu_memory_limit: \"much\"", {"--model=a=/a"}).error.find("gpu_memory_limit"), std::string::npos);
}

TEST(ServerConfig, TheSampleIsValid) {
  std::ifstream file(kSample);
  ASSERT_TRUE(file.good());
  std::stringstream text;
  text << file.rdbuf();
  const Parsed parsed = Parse(text.str(), {});
  EXPECT_EQ(parsed.error, "");
  EXPECT_TRUE(ValidateOptions(parsed.options).ok()) << ValidateOptions(parsed.options);
}

TEST(ServerConfig, GarbageIsRefusedOrParsedButNeverMore) {
  std::ifstream file(kSample);
  std::stringstream sample;
  sample << file.rdbuf();
  std::mt19937 random(7);
  const char* wanted = std::getenv("SWITCHYARD_FUZZ_ITERATIONS");  // as in //tests/fuzz
  const int64_t num_rounds = wanted == nullptr ? 20'000 : std::atoll(wanted);
  for (int64_t round = 0; round < num_rounds; ++round) {
    std::string text = sample.str();
    for (int change = random() % 8; change >= 0; --change) {
      const size_t at = random() % text.size();
      if (random() % 4 == 0) {
        text.insert(at, text.substr(random() % text.size(), random() % 64));
      } else if (random() % 4 == 0) {
        text.erase(at, random() % 64);
      } else {
        text[at] = static_cast<char>(random());
      }
      if (text.empty()) break;
    }
    const auto items = ParseServerConfig(text);
    EXPECT_TRUE(items.ok() || !items.status().message().empty());
  }
  EXPECT_NE(ErrorOf(std::string(100'000, '{')), "");
}

}  // namespace
}  // namespace switchyard
