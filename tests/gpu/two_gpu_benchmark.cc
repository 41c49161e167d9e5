// Measures what a second GPU brings: rows per second of a layer on one rank, and of the same layer with its experts on
// several ranks. Each of these is home to as many rows as the single rank. Ranks are processes with a GPU each. Steps
// run as in a worker, through StepRunner and an exchange, several at once, from page-locked host memory to page-locked
// host memory.
//
//   two_gpu_benchmark --shapes=mixtral,qwen3 --ranks=2 --rows_per_rank=8192 --exchange=nccl,direct --chunks=0
//                     --exchange_multiprocessors=0 --out=two_gpu.jsonl
//
// --chunks is the number of parts into which a step's exchange is cut to overlap with computing; 0 lets the program
// choose as the front would. --exchange_multiprocessors is how many multiprocessors the exchange may take, which
// computing then leaves free; 0 is no limit. A round is a number of steps between two barriers; its time is that of its
// slowest rank. Figures are the medians of rounds. The first rows of every rank's output are compared with the float64
// reference.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "moe/exchange/direct/direct_communicator.h"
#include "moe/exchange/nccl/nccl_communicator.h"
#include "moe/exchange/rank_process.h"
#include "moe/experts/cuda/bench_layer.h"
#include "moe/experts/cuda/cuda_engine.h"
#include "moe/gpu/memory.h"
#include "moe/plan/chunked_plan.h"
#include "moe/plan/step_plan.h"
#include "moe/weights/synthetic_values.h"
#include "worker/steps/step_runner.h"

namespace switchyard {
namespace {

using SteadyClock = std::chrono::steady_clock;

constexpr int kRounds = 7;
constexpr int kInputs = 2;  // steps take turns with them
constexpr int64_t kCheckedRows = 2;
constexpr auto kRankTimeout = std::chrono::minutes(5);

// The task that a rank is given.
struct RankTask {
  std::string shape, exchange = "nccl";
  int rank = 0, num_ranks = 1, chunks = 0, exchange_multiprocessors = 0;
  int64_t rows_per_rank = 0;
  double round_ms = 0;

  std::vector<std::string> Encode() const {
    return {shape,
            absl::StrCat(rank),
            absl::StrCat(num_ranks),
            absl::StrCat(chunks),
            absl::StrCat(exchange_multiprocessors),
            absl::StrCat(rows_per_rank),
            absl::StrCat(round_ms),
            exchange};
  }
  static absl::StatusOr<RankTask> Decode(const std::vector<std::string>& text) {
    RankTask task;
    if (text.size() == 8 && absl::SimpleAtoi(text[1], &task.rank) && absl::SimpleAtoi(text[2], &task.num_ranks) &&
        absl::SimpleAtoi(text[3], &task.chunks) && absl::SimpleAtoi(text[4], &task.exchange_multiprocessors) &&
        absl::SimpleAtoi(text[5], &task.rows_per_rank) && absl::SimpleAtod(text[6], &task.round_ms)) {
      task.shape = text[0];
      task.exchange = text[7];
      return task;
    }
    return absl::InvalidArgumentError("not a task of this program");
  }
};

absl::StatusOr<BenchShape> FindShape(const std::string& key) {
  for (const BenchShape& shape : BenchShapes()) {
    if (shape.key == key) return shape;
  }
  return absl::InvalidArgumentError(absl::StrCat("--shapes: there is no '", key, "'"));
}

// One rank: its engine, its rows and its exchange with the other ranks.
class Rank {
 public:
  static absl::StatusOr<std::unique_ptr<Rank>> Create(const RankTask& task, const LayerSpec& spec,
                                                      PacketChannel* channel) {
    auto rank = std::make_unique<Rank>(task, spec, channel);
    SY_RETURN_IF_ERROR(rank->OpenEngine());
    SY_RETURN_IF_ERROR(rank->Connect());
    SY_RETURN_IF_ERROR(rank->MakeSteps());
    return rank;
  }
  Rank(const RankTask& task, const LayerSpec& spec, PacketChannel* channel)
      : task_(task),
        spec_(spec),
        channel_(channel),
        placement_(Placement::Even(spec.num_experts, task.num_ranks)),
        weights_(spec) {}

  // Microseconds per step of the slowest rank, one value for every round.
  absl::StatusOr<std::vector<double>> Measure() {
    SY_RETURN_IF_ERROR(RunSteps(0, kInputs));
    SY_RETURN_IF_ERROR(CheckOutput());
    SY_ASSIGN_OR_RETURN(const double trial_us, Round(2 * num_lanes()));
    const int num_steps = std::clamp(static_cast<int>(1e3 * task_.round_ms / trial_us), 2 * num_lanes(), 2000);
    std::vector<double> rounds;
    for (int i = 0; i < kRounds; ++i) {
      SY_ASSIGN_OR_RETURN(rounds.emplace_back(), Round(num_steps));
    }
    return rounds;
  }

  int num_chunks() const { return plans_[0].ranks[task_.rank].num_chunks; }

 private:
  int num_lanes() const { return engine_->num_lanes(); }
  int64_t num_rows() const { return task_.rows_per_rank * task_.num_ranks; }

  absl::StatusOr<std::vector<std::string>> Gather(const std::string& packet) {
    SY_RETURN_IF_ERROR(channel_->Send(packet));
    return channel_->ReceiveAll(task_.num_ranks);
  }

  absl::Status OpenEngine() {
    SY_ASSIGN_OR_RETURN(auto device, OpenCudaDevice({.device_idx = task_.rank,
                                                     .exchange_multiprocessors = task_.exchange_multiprocessors}));
    SY_ASSIGN_OR_RETURN(engine_, CreateCudaEngine(std::move(device), {.compute_dtype = DType::kBF16}));
    const std::vector<int>& experts = placement_.experts_of(task_.rank);
    SY_RETURN_IF_ERROR(engine_->AddLayer(spec_, static_cast<int>(experts.size())));
    SY_RETURN_IF_ERROR(engine_->Reserve(num_rows()));
    weights_.LoadInto(engine_.get(), experts);
    return absl::OkStatus();
  }

  absl::Status Connect() {
    const auto factory =
        task_.exchange == "direct"
            ? CreateDirectFactory({.device_idx = task_.rank})
            : CreateNcclFactory({.device_idx = task_.rank, .max_ctas = task_.exchange_multiprocessors});
    SY_ASSIGN_OR_RETURN(communicator_, factory->Prepare(task_.rank, task_.num_ranks));
    SY_ASSIGN_OR_RETURN(const std::vector<std::string> addresses, Gather(communicator_->address()));
    SY_RETURN_IF_ERROR(communicator_->Connect(addresses));
    return CheckExchange(*communicator_);
  }

  // Every rank plans the same steps.
  absl::Status MakeSteps() {
    for (int i = 0; i < kInputs; ++i) {
      routings_.push_back(UniformRouting(num_rows(), spec_.gate.top_k, spec_.num_experts, i + 1));
      plans_.push_back(PlanStep(routings_[i], placement_, HomeOffsets(num_rows(), task_.num_ranks)));
      const int64_t bytes = plans_[i].num_crossing_rows * RowBytes() / task_.num_ranks;
      for (RankPlan& plan : plans_[i].ranks) {
        plan.num_chunks = task_.chunks > 0 ? task_.chunks : ChooseNumChunks(bytes);
      }
    }
    const int64_t num_bytes = task_.rows_per_rank * RowBytes();
    SY_ASSIGN_OR_RETURN(rows_, PinnedBuffer::Allocate(num_bytes));
    FillUniform(MixBits(7 + task_.rank), 1.7f, Rows(rows_));
    for (int lane = 0; lane < num_lanes(); ++lane) {
      SY_ASSIGN_OR_RETURN(outputs_.emplace_back(), PinnedBuffer::Allocate(num_bytes));
    }
    return absl::OkStatus();
  }

  int64_t RowBytes() const { return spec_.hidden_dim * static_cast<int64_t>(SizeOf(DType::kBF16)); }
  MatrixView Rows(const PinnedBuffer& buffer) const {
    return {buffer.data(), DType::kBF16, task_.rows_per_rank, spec_.hidden_dim};
  }

  absl::Status Begin(int input, int lane) {
    StepTimes times;
    return runner_.Begin({.engine = engine_.get(),
                          .communicator = communicator_.get(),
                          .layer = LayerId{0},
                          .hidden_dim = spec_.hidden_dim,
                          .plan = plans_[input].ranks[task_.rank].view(),
                          .home_rows = Rows(rows_),
                          .output = Rows(outputs_[lane])},
                         lane, &times);
  }

  // Runs steps [first, first + count), as many at once as there are lanes. Returns when the last is done.
  absl::Status RunSteps(int first, int count) {
    for (int i = 0; i < count + num_lanes(); ++i) {
      const int lane = i % num_lanes();
      if (i >= num_lanes() && i - num_lanes() < count) {
        SY_RETURN_IF_ERROR(StepRunner::Finish(*engine_, *communicator_, lane));
      }
      if (i < count) SY_RETURN_IF_ERROR(Begin((first + i) % kInputs, lane));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<double> Round(int num_steps) {
    SY_RETURN_IF_ERROR(Gather("ready").status());
    const auto begin = SteadyClock::now();
    SY_RETURN_IF_ERROR(RunSteps(0, num_steps));
    const double us = std::chrono::duration<double, std::micro>(SteadyClock::now() - begin).count() / num_steps;
    SY_ASSIGN_OR_RETURN(const std::vector<std::string> packets, Gather(absl::StrFormat("%.3f", us)));
    double slowest = 0;
    for (const std::string& packet : packets) {
      double one = 0;
      if (!absl::SimpleAtod(packet, &one)) return absl::InternalError(absl::StrCat("not a time: ", packet));
      slowest = std::max(slowest, one);
    }
    return slowest;
  }

  // Checks the output of the first input, whose step was the first in lane 0.
  absl::Status CheckOutput() {
    SY_RETURN_IF_ERROR(RunSteps(0, 1));
    const int64_t first = plans_[0].home_offsets[task_.rank] * spec_.gate.top_k;
    Routing routing;
    routing.Resize(std::min(kCheckedRows, task_.rows_per_rank), spec_.gate.top_k);
    std::copy_n(&routings_[0].expert_idx[first], routing.expert_idx.size(), routing.expert_idx.begin());
    std::copy_n(&routings_[0].weight[first], routing.weight.size(), routing.weight.begin());
    const std::vector<double> expected = weights_.Reference(Rows(rows_).Rows(0, routing.num_rows), routing);
    CheckedError(Rows(outputs_[0]), expected, absl::StrCat("rank ", task_.rank, " of ", task_.num_ranks));
    return absl::OkStatus();
  }

  const RankTask task_;
  const LayerSpec spec_;
  PacketChannel* const channel_;
  const Placement placement_;
  const BenchWeights weights_;
  std::unique_ptr<ExpertEngine> engine_;
  std::unique_ptr<Communicator> communicator_;
  StepRunner runner_;
  std::vector<Routing> routings_;
  std::vector<StepPlan> plans_;
  PinnedBuffer rows_;
  std::vector<PinnedBuffer> outputs_;  // by lane
};

double Median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

// The parent collects the ranks' packets. A packet that begins with this word is a rank's result.
constexpr absl::string_view kResult = "result ";

absl::Status RunRank(RankChild& child) {
  SY_ASSIGN_OR_RETURN(const RankTask task, RankTask::Decode(child.arguments));
  SY_ASSIGN_OR_RETURN(const BenchShape shape, FindShape(task.shape));
  SY_ASSIGN_OR_RETURN(const std::unique_ptr<Rank> rank, Rank::Create(task, shape.spec, &child.channel));
  SY_ASSIGN_OR_RETURN(const std::vector<double> rounds, rank->Measure());
  const std::string result = absl::StrFormat("%s%.3f %d", kResult, Median(rounds), rank->num_chunks());
  SY_RETURN_IF_ERROR(child.channel.Send(result));
  // No rank leaves before all are through.
  return child.channel.ReceiveAll(task.num_ranks).status();
}

struct Result {
  double step_us = 0;
  int num_chunks = 1;
};

absl::StatusOr<Result> ParseResult(absl::string_view packet) {
  Result result;
  const absl::string_view numbers = packet.substr(kResult.size());
  const size_t space = numbers.find(' ');
  if (absl::SimpleAtod(numbers.substr(0, space), &result.step_us) &&
      absl::SimpleAtoi(numbers.substr(space + 1), &result.num_chunks)) {
    return result;
  }
  return absl::InternalError(absl::StrCat("not a result: ", packet));
}

// Runs the ranks of one task. Hands every rank the packets that all have sent, until they send their results.
absl::StatusOr<Result> RunGroup(RankTask task) {
  std::vector<RankProcess> ranks;
  for (task.rank = 0; task.rank < task.num_ranks; ++task.rank) {
    SY_ASSIGN_OR_RETURN(RankProcess process, RankProcess::Start(task.Encode()));
    ranks.push_back(std::move(process));
  }
  while (true) {
    std::vector<std::string> packets;
    for (RankProcess& rank : ranks) {
      SY_ASSIGN_OR_RETURN(packets.emplace_back(), rank.channel().Receive(kRankTimeout));
    }
    for (RankProcess& rank : ranks) SY_RETURN_IF_ERROR(rank.channel().SendAll(packets));
    if (packets[0].compare(0, kResult.size(), kResult.data(), kResult.size()) == 0) {
      for (RankProcess& rank : ranks) (void)rank.channel().Receive(kRankTimeout);  // until it has ended
      return ParseResult(packets[0]);
    }
  }
}

struct Settings {
  std::vector<std::string> shapes = {"mixtral", "qwen3"};
  int num_ranks = 2;
  int64_t rows_per_rank = 8192;
  std::vector<std::string> exchanges = {"nccl", "direct"};
  std::vector<int> chunks = {0};
  std::vector<int> exchange_multiprocessors = {CudaDeviceOptions{}.exchange_multiprocessors};
  double round_ms = 300;
  std::string out;
};

// Runs one task on several ranks and reports it beside the result of one rank.
absl::Status MeasureTask(const RankTask& task, const Result& one, std::ostream& out) {
  SY_ASSIGN_OR_RETURN(const Result several, RunGroup(task));
  const double rows = static_cast<double>(task.rows_per_rank);
  const double one_rate = 1e6 * rows / one.step_us, rate = 1e6 * rows * task.num_ranks / several.step_us;
  std::printf(
      "%-10s %d rows per rank: 1 rank %.0f us, %.3g rows/s; %d ranks, %s, %d chunks, exchange on %d "
      "multiprocessors %.0f us, %.3g rows/s; %.2f x\n",
      task.shape.c_str(), static_cast<int>(rows), one.step_us, one_rate, task.num_ranks, task.exchange.c_str(),
      several.num_chunks, task.exchange_multiprocessors, several.step_us, rate, rate / one_rate);
  std::fflush(stdout);
  out << absl::StrFormat(R"({"source":"ranks","layer":"%s","exchange":"%s","ranks":%d,"rows_per_rank":%d,"chunks":%d,)"
                         R"("exchange_multiprocessors":%d,"one_us":%.2f,"step_us":%.2f,"one_rows_per_s":%.6g,)"
                         R"("rows_per_s":%.6g,"speedup":%.4f})",
                         task.shape, task.exchange, task.num_ranks, task.rows_per_rank, several.num_chunks,
                         task.exchange_multiprocessors, one.step_us, several.step_us, one_rate, rate, rate / one_rate)
      << std::endl;
  return absl::OkStatus();
}

absl::Status MeasureShape(const std::string& shape, const Settings& settings, std::ostream& out) {
  RankTask task{.shape = shape, .rows_per_rank = settings.rows_per_rank, .round_ms = settings.round_ms};
  SY_ASSIGN_OR_RETURN(const Result one, RunGroup(task));
  task.num_ranks = settings.num_ranks;
  for (const std::string& exchange : settings.exchanges) {
    for (const int exchange_multiprocessors : settings.exchange_multiprocessors) {
      for (const int chunks : settings.chunks) {
        task.exchange = exchange;
        task.exchange_multiprocessors = exchange_multiprocessors;
        task.chunks = chunks;
        SY_RETURN_IF_ERROR(MeasureTask(task, one, out));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status RunParent(const Settings& settings) {
  if (NumCudaDevices() < settings.num_ranks) {
    return absl::FailedPreconditionError(
        absl::StrCat("--ranks=", settings.num_ranks, " needs as many GPUs; there are ", NumCudaDevices()));
  }
  std::ofstream out;
  if (!settings.out.empty()) {
    out.open(settings.out, std::ios::trunc);
    if (!out.good()) return absl::InvalidArgumentError(absl::StrCat("--out: cannot write '", settings.out, "'"));
  }
  for (const std::string& shape : settings.shapes) SY_RETURN_IF_ERROR(MeasureShape(shape, settings, out));
  return absl::OkStatus();
}

int ExitCode(const absl::Status& status, const std::string& who) {
  if (!status.ok()) std::fprintf(stderr, "%s: %s\n", who.c_str(), status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

int Main(int argc, char** argv) {
  if (std::optional<RankChild> child = RankChild::FromArguments(argc, argv)) return ExitCode(RunRank(*child), "rank");
  Settings settings;
  CLI::App app("Rows per second of a layer on several GPUs, beside one.");
  app.add_option("--shapes", settings.shapes, "mixtral, qwen3, deepseek, tutel")->delimiter(',')->capture_default_str();
  app.add_option("--ranks", settings.num_ranks, "Processes, one per GPU")->check(CLI::Range(2, 64));
  app.add_option("--rows_per_rank", settings.rows_per_rank, "Rows a rank is home to")->capture_default_str();
  app.add_option("--exchange", settings.exchanges, "nccl or direct, several are measured in turn")
      ->delimiter(',')
      ->check(CLI::IsMember({"nccl", "direct"}));
  app.add_option("--chunks", settings.chunks, "Parts of a step's exchange, several are measured in turn; 0: chosen")
      ->delimiter(',')
      ->check(CLI::Range(0, kMaxChunks));
  app.add_option("--exchange_multiprocessors", settings.exchange_multiprocessors,
                 "Multiprocessors left to the exchange, several are measured in turn; 0: as NCCL likes, and none left")
      ->delimiter(',')
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  app.add_option("--round_ms", settings.round_ms, "Time of one round")->capture_default_str();
  app.add_option("--out", settings.out, "File for one JSON object a line");
  CLI11_PARSE(app, argc, argv);
  return ExitCode(RunParent(settings), "two_gpu_benchmark");
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::Main(argc, argv); }
