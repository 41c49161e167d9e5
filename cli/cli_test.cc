// Runs whole command lines against a front in this process, and checks exit codes and what is printed.
#include "cli/cli.h"

#include <gmock/gmock.h>
#include <grpcpp/server_context.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdio>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>
#include <string>
#include <vector>

#include "client/fake_front.h"
#include "moe/weights/checkpoint/safetensors.h"
#include "rpc/version_line.h"

namespace switchyard {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

struct Printed {
  int exit_code = -1;
  std::string out;
  std::string err;
  json AsJson() const { return json::parse(out); }
};

Printed RunCommand(std::vector<std::string> arguments) {
  std::vector<const char*> argv = {"switchyard"};
  for (const std::string& argument : arguments) argv.push_back(argument.c_str());
  std::ostringstream out, err;
  Printed printed;
  printed.exit_code = RunCli(static_cast<int>(argv.size()), argv.data(), out, err);
  printed.out = out.str();
  printed.err = err.str();
  return printed;
}

// Three rows for layer "1" of the fake front, which doubles them.
class CliTest : public testing::Test {
 protected:
  CliTest() : file_(testing::TempDir() + "/cli_test.safetensors") {
    std::vector<float> x, twice, off;
    for (int i = 0; i < 12; ++i) {
      x.push_back(0.5f * static_cast<float>(i) - 2);
      twice.push_back(2 * x.back());
      off.push_back(twice.back() + (i == 6 ? 0.25f : 0));
    }
    const auto tensor = [](const char* name, const std::vector<float>& values, int64_t rows) {
      return TensorToWrite{
          name, "F32", {rows, static_cast<int64_t>(values.size()) / rows}, std::as_bytes(std::span(values))};
    };
    const std::vector<TensorToWrite> tensors = {tensor("x", x, 3), tensor("twice", twice, 3), tensor("off", off, 3),
                                                tensor("flat", twice, 2)};
    EXPECT_TRUE(WriteSafetensors(file_, tensors).ok());
  }

  std::vector<std::string> Infer(std::vector<std::string> more) const {
    std::vector<std::string> all = {"infer", "--target=" + front_.target(), "--model=tiny", "--layer=1",
                                    "--input=" + file_ + ":x"};
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  FakeFront front_;
  const std::string file_;
};

// A target on which no server listens.
std::string DeadTarget() { return FakeFront().target(); }

TEST_F(CliTest, InferWithinTolerance) {
  const Printed text = RunCommand(Infer({"--expect=" + file_ + ":twice"}));
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("tiny layer 1: 3 rows × 4, fp32"), HasSubstr("3 rows crossed ranks"),
                              HasSubstr("largest error: absolute 0.000e+00"), HasSubstr("PASS: 0 of 12 elements")));
  const Printed machine = RunCommand(Infer({"--expect=" + file_ + ":twice", "--format=json", "--repeat=3"}));
  EXPECT_EQ(machine.exit_code, 0) << machine.err;
  const json result = machine.AsJson();
  EXPECT_EQ(result["model"], "tiny");
  EXPECT_EQ(result["layer"], "1");
  EXPECT_EQ(result["rows"], 3);
  EXPECT_EQ(result["dtype"], "fp32");
  EXPECT_EQ(result["max_abs_error"], 0);
  EXPECT_EQ(result["within_tolerance"], true);
  EXPECT_EQ(result["rows_crossed"], 3);
  EXPECT_GT(result["latency_ms"], 0);
  EXPECT_EQ(front_.num_forwards(), 4);
}

TEST_F(CliTest, InferBeyondTolerance) {
  const Printed text = RunCommand(Infer({"--expect=" + file_ + ":off"}));
  EXPECT_EQ(text.exit_code, 1);
  EXPECT_THAT(text.out, AllOf(HasSubstr("absolute 2.500e-01 (row 1, column 2)"), HasSubstr("FAIL: 1 of 12 elements")));
  const Printed machine = RunCommand(Infer({"--expect=" + file_ + ":off", "--format=json"}));
  EXPECT_EQ(machine.exit_code, 1);
  EXPECT_EQ(machine.AsJson()["within_tolerance"], false);
  EXPECT_EQ(machine.AsJson()["elements_beyond_tolerance"], 1);
  EXPECT_EQ(RunCommand(Infer({"--expect=" + file_ + ":off", "--atol=0.25"})).exit_code, 0);
}

TEST_F(CliTest, InferSendsTheTypeAskedFor) {
  for (const char* dtype : {"fp64", "fp32", "fp16", "bf16"}) {
    const Printed printed =
        RunCommand(Infer({"--expect=" + file_ + ":twice", "--format=json", std::string("--dtype=") + dtype}));
    EXPECT_EQ(printed.exit_code, 0) << printed.err;
    EXPECT_EQ(printed.AsJson()["dtype"], dtype);
  }
}

TEST_F(CliTest, InferWritesOutputAndRouting) {
  const std::string path = testing::TempDir() + "/cli_out.safetensors";
  const Printed printed = RunCommand(Infer({"--output=" + path, "--routing", "--format=json"}));
  EXPECT_EQ(printed.exit_code, 0) << printed.err;
  EXPECT_EQ(printed.AsJson()["routing"]["expert_ids"], json::parse("[[0, 1], [1, 2], [2, 3]]"));
  EXPECT_FALSE(printed.AsJson().contains("max_abs_error"));
  const auto written = SafetensorsFile::Open(path);
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_THAT((*written)->names(), ElementsAre("output", "output.expert_ids", "output.expert_weights"));
  // The written file also serves as an expected output.
  EXPECT_EQ(RunCommand(Infer({"--expect=" + path + ":output", "--rtol=0", "--atol=0"})).exit_code, 0);
  EXPECT_EQ(RunCommand(Infer({"--output=" + path + ":mine"})).exit_code, 0);
  EXPECT_THAT((*SafetensorsFile::Open(path))->names(), ElementsAre("mine"));
  EXPECT_THAT(RunCommand(Infer({"--routing"})).out, HasSubstr("row 2:  2 × 0.750000  3 × 0.250000"));
}

TEST_F(CliTest, InferReportsWrongFilesAndFlags) {
  const auto usage_error = [&](std::vector<std::string> more) {
    const Printed printed = RunCommand(Infer(more));
    EXPECT_EQ(printed.exit_code, 2);
    EXPECT_EQ(printed.out, "");
    return printed.err;
  };
  EXPECT_THAT(usage_error({"--expect=nowhere"}), HasSubstr("--expect: expected FILE.safetensors:KEY"));
  EXPECT_THAT(usage_error({"--expect=" + file_ + ":none"}), HasSubstr("no tensor 'none'; there are: flat off twice x"));
  EXPECT_THAT(usage_error({"--expect=" + file_ + ":flat"}), HasSubstr("the shape of --input, [3, 4], found [2, 6]"));
  EXPECT_THAT(usage_error({"--output=/nowhere/at/all/out.safetensors"}), HasSubstr("--output: "));
  EXPECT_THAT(usage_error({"--dtype=int8"}), HasSubstr("--dtype"));
  EXPECT_THAT(usage_error({"--rtol=-1"}), HasSubstr("--rtol"));
  EXPECT_THAT(usage_error({"--frobnicate"}), HasSubstr("--frobnicate"));
}

TEST_F(CliTest, InferReportsWhatTheFrontRefuses) {
  Printed printed =
      RunCommand({"infer", "--target=" + front_.target(), "--model=tiny", "--layer=3", "--input=" + file_ + ":x"});
  EXPECT_EQ(printed.exit_code, 3);
  EXPECT_THAT(printed.err, HasSubstr("INVALID_ARGUMENT: rows: expected 6 columns"));
  printed = RunCommand({"infer", "--target=" + DeadTarget(), "--model=tiny", "--layer=1", "--input=" + file_ + ":x",
                        "--max_attempts=1"});
  EXPECT_EQ(printed.exit_code, 3);
  EXPECT_THAT(printed.err, HasSubstr("UNAVAILABLE"));
}

TEST_F(CliTest, ModelsAsTableAndJson) {
  const Printed text = RunCommand({"models", "--target=" + front_.target()});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out,
              AllOf(HasSubstr("MODEL  FAMILY"), HasSubstr("tiny   qwen3_moe  bf16    fp32"), HasSubstr("silu, gated")));
  const json models = RunCommand({"models", "--target=" + front_.target(), "--format=json"}).AsJson()["models"];
  ASSERT_EQ(models.size(), 1u);
  EXPECT_EQ(models[0]["layers"][1]["hidden_dim"], 6);
  EXPECT_EQ(RunCommand({"models", "--target=" + DeadTarget()}).exit_code, 3);
}

TEST_F(CliTest, LoadAndUnload) {
  const std::string target = "--target=" + front_.target();
  const Printed loaded = RunCommand({"load", "tiny", target});
  EXPECT_EQ(loaded.exit_code, 0) << loaded.err;
  EXPECT_EQ(loaded.out, "tiny: loaded\n");
  const Printed unloaded = RunCommand({"unload", "tiny.3", target, "--format=json"});
  EXPECT_EQ(unloaded.AsJson(), json::parse(R"({"model": "tiny.3", "state": "unloaded"})"));
  EXPECT_THAT(front_.changes(), ElementsAre("load tiny", "unload tiny.3"));
  const Printed unknown = RunCommand({"load", "absent", target});
  EXPECT_EQ(unknown.exit_code, 3);
  EXPECT_THAT(unknown.err, AllOf(HasSubstr("NOT_FOUND"), HasSubstr("no model 'absent'")));
  EXPECT_EQ(RunCommand({"load", target}).exit_code, 2) << "without a name";
  EXPECT_THAT(RunCommand({"unload", "--help"}).out, HasSubstr("UNAVAILABLE"));
}

TEST_F(CliTest, StatusAsTableAndJson) {
  const Printed text = RunCommand({"status", "--target=" + front_.target()});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("serving, version 0.1.0, epoch 7, 2 recoveries; queued 5 rows"),
                              HasSubstr("   0  serving    100%  left  4321  cpu     shared-memory        4  3.0 MiB"),
                              HasSubstr("tiny   3            4           80       2.00")));
  const json status = RunCommand({"status", "--target=" + front_.target(), "--format=json"}).AsJson();
  EXPECT_EQ(status["state"], "serving");
  EXPECT_EQ(status["ranks"][0]["pid"], 4321);
  EXPECT_DOUBLE_EQ(status["layers"][0]["imbalance"], 2);
}

TEST_F(CliTest, StatusWaitsUntilServing) {
  EXPECT_EQ(RunCommand({"status", "--target=" + front_.target(), "--wait_ready=10"}).exit_code, 0);
  v1::GetStatusResponse starting;
  starting.set_state("starting");
  front_.SetStatus(starting);
  Printed printed = RunCommand({"status", "--target=" + front_.target(), "--wait_ready=0.05"});
  EXPECT_EQ(printed.exit_code, 3);
  EXPECT_THAT(printed.err, HasSubstr("DEADLINE_EXCEEDED: not serving after 0.05 s: state 'starting'"));
  printed = RunCommand({"status", "--target=" + DeadTarget(), "--wait_ready=0.05"});
  EXPECT_EQ(printed.exit_code, 3);
  EXPECT_THAT(printed.err, HasSubstr("not reachable"));
}

TEST_F(CliTest, BenchClosedAndOpenLoop) {
  const std::vector<std::string> common = {"bench", "--target=" + front_.target(), "--warmup=0", "--duration=0.05"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), common.begin(), common.end());
    return RunCommand(more);
  };
  const Printed closed = with({"--rows=1,16", "--concurrency=4", "--channels=2", "--format=json"});
  EXPECT_EQ(closed.exit_code, 0) << closed.err;
  const json result = closed.AsJson();
  EXPECT_EQ(result["mode"], "closed");
  EXPECT_EQ(result["layers"], json::parse(R"(["1", "3"])"));
  ASSERT_EQ(result["results"].size(), 2u);
  for (const json& point : result["results"]) {
    EXPECT_GT(point["ok"], 0);
    EXPECT_EQ(point["failed"], 0);
    EXPECT_GT(point["latency_ms"]["p50"], 0);
    EXPECT_LE(point["latency_ms"]["p50"], point["latency_ms"]["max"]);
  }
  EXPECT_EQ(result["results"][1]["rows_per_request"], 16);

  const Printed streamed = with({"--rows=2", "--concurrency=4", "--channels=2", "--api=stream", "--format=json"});
  EXPECT_EQ(streamed.exit_code, 0) << streamed.err;
  EXPECT_EQ(streamed.AsJson()["api"], "stream");
  EXPECT_GT(streamed.AsJson()["results"][0]["ok"], 0);
  EXPECT_EQ(streamed.AsJson()["results"][0]["failed"], 0);

  const Printed open = with({"--layer=3", "--rate=200", "--arrivals=uniform", "--format=json"});
  EXPECT_EQ(open.exit_code, 0) << open.err;
  EXPECT_EQ(open.AsJson()["results"][0]["ok"], 9) << "at 5, 10, … 45 ms";

  const Printed text = with({"--model=tiny", "--layer=1"});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr("ROWS/REQ"), HasSubstr("P99 MS"), HasSubstr("none")));
}

TEST_F(CliTest, BenchFailures) {
  front_.SetHandler([](auto*, const auto&, auto*) {
    return grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the queue is full");
  });
  const Printed printed = RunCommand({"bench", "--target=" + front_.target(), "--warmup=0", "--duration=0.02"});
  EXPECT_EQ(printed.exit_code, 1);
  EXPECT_THAT(printed.out, HasSubstr("RESOURCE_EXHAUSTED × "));
  EXPECT_THAT(printed.err, HasSubstr("RESOURCE_EXHAUSTED: the queue is full"));

  EXPECT_EQ(RunCommand({"bench", "--target=" + DeadTarget()}).exit_code, 3);
  const Printed no_layer = RunCommand({"bench", "--target=" + front_.target(), "--layer=9"});
  EXPECT_EQ(no_layer.exit_code, 2);
  EXPECT_THAT(no_layer.err, HasSubstr("--layer: model 'tiny' has the layers 1, 3, found '9'"));
  const Printed no_model = RunCommand({"bench", "--target=" + front_.target(), "--model=huge"});
  EXPECT_EQ(no_model.exit_code, 2);
  EXPECT_THAT(no_model.err, HasSubstr("--model: expected one of tiny, found 'huge'"));
  EXPECT_EQ(RunCommand({"bench", "--rate=5", "--concurrency=2"}).exit_code, 2);
  EXPECT_EQ(RunCommand({"bench", "--rows=0"}).exit_code, 2);
}

TEST(Cli, HelpVersionAndUsage) {
  EXPECT_EQ(RunCommand({"--version"}).out, VersionLine("switchyard") + "\n");
  EXPECT_THAT(RunCommand({"--help"}).out, AllOf(HasSubstr("Exit codes:"), HasSubstr("bench")));
  for (const char* command : {"infer", "models", "status", "bench"}) {
    const Printed help = RunCommand({command, "--help"});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, AllOf(HasSubstr("Examples:"), HasSubstr("--target")));
  }
  EXPECT_EQ(RunCommand({}).exit_code, 2);
  EXPECT_EQ(RunCommand({"dance"}).exit_code, 2);
  const Printed bad_target = RunCommand({"status", "--target=nowhere"});
  EXPECT_EQ(bad_target.exit_code, 2);
  EXPECT_THAT(bad_target.err, HasSubstr("target=nowhere: expected HOST:PORT, [IPV6]:PORT or unix:PATH"));
}

// The binary itself: its streams and its exit code.
TEST(Cli, Binary) {
  FILE* pipe = popen("client/switchyard --version", "r");
  ASSERT_NE(pipe, nullptr);
  char line[128] = "";
  EXPECT_NE(fgets(line, sizeof(line), pipe), nullptr);
  EXPECT_EQ(line, VersionLine("switchyard") + "\n");
  EXPECT_EQ(WEXITSTATUS(pclose(pipe)), 0);
  EXPECT_EQ(WEXITSTATUS(std::system("client/switchyard frobnicate 2> /dev/null")), 2);
}

// 3 layers of 8 experts, 3 × 64 × 32 bf16 weights each.
constexpr char kSynthetic[] = "synthetic:dim=64,hidden=32,experts=8,topk=2,act=silu,glu=1,bias=0,dtype=bf16,layers=3";
constexpr int64_t kExpertBytes = 3 * 64 * 32 * 2;

TEST(Inspect, CountsEveryExpertOnceAndEveryRanksShare) {
  const json printed = RunCommand({"inspect", kSynthetic, "--ranks=3", "--json"}).AsJson();
  EXPECT_EQ(printed["weight_bytes"], 3 * 8 * kExpertBytes);
  ASSERT_EQ(printed["ranks"].size(), 3);
  int64_t num_experts = 0;
  for (const json& rank : printed["ranks"]) {
    EXPECT_EQ(rank["weight_bytes"], rank["num_experts"].get<int64_t>() * kExpertBytes);
    num_experts += rank["num_experts"].get<int64_t>();
  }
  EXPECT_EQ(num_experts, 24);
  EXPECT_EQ(printed["layers"][2]["gate"], "softmax, top 2 of 8, ÷ sum");
}

TEST(Inspect, SaysHowManyGpusAreNeeded) {
  const json first = RunCommand({"inspect", kSynthetic, "--json"}).AsJson();
  const int64_t working = first["working_bytes"];
  const auto fewest = [&](int64_t weight_bytes) {
    const std::string memory = std::to_string(working + weight_bytes);
    return RunCommand({"inspect", kSynthetic, "--gpu_memory", memory, "--json"}).AsJson()["fits"][0]["fewest_gpus"];
  };
  EXPECT_EQ(fewest(24 * kExpertBytes), 1);
  EXPECT_EQ(fewest(24 * kExpertBytes - 1), 2);
  EXPECT_EQ(fewest(3 * kExpertBytes), 8) << "one expert of each layer";
  EXPECT_EQ(fewest(3 * kExpertBytes - 1), 0) << "no number of GPUs is enough";
}

TEST(Inspect, LayersThatAreAlikeShareALine) {
  const Printed printed = RunCommand({"inspect", kSynthetic});
  EXPECT_EQ(printed.exit_code, 0);
  EXPECT_THAT(printed.out, AllOf(HasSubstr("0 to 2"), HasSubstr("silu, gated"), HasSubstr("on GPUs of  80 GB: 1")));
}

TEST(Inspect, SaysWhatIsWrongWithACheckpoint) {
  const Printed printed = RunCommand({"inspect", testing::TempDir() + "/nowhere"});
  EXPECT_EQ(printed.exit_code, 2);
  EXPECT_THAT(printed.err, HasSubstr("nowhere/config.json"));
}

}  // namespace
}  // namespace switchyard
