// Compares the speed of the whole service with the bare connection under it. One client sends the same rows to a gRPC
// echo server with the same settings, and to a real front with one worker whose engine returns rows unchanged. It uses
// either API, with calls and with streams. Rows are 4 KiB (2048 bf16) and there is one expert, so that gate and plan
// are small; their times are shown separately.
//
// For every size and number in flight, the variants take turns for some rounds, on closed loops. Prints a whole
// document in Markdown. Starts echo_server and echo_worker, which lie beside this program, and switchyard_server from
// its place in the build or in the bundle. docs/benchmarks/run_wire.sh writes docs/benchmarks/wire.md.
#include <sys/utsname.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/process/deadlock_detection.h"
#include "base/tensor/buffer.h"
#include "base/tensor/float16.h"
#include "client/client.h"
#include "proto/inference.pb.h"
#include "proto/switchyard.pb.h"
#include "rpc/slice_stream.h"
#include "rpc/wire_options.h"
#include "tests/benchmarks/closed_loop.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

constexpr int64_t kWidth = 2048;
constexpr int64_t kRowBytes = kWidth * 2;
constexpr int kStageSamples = 300;
constexpr double kMiB = 1 << 20;
constexpr uint32_t kIdTag = v1::ForwardStreamResponse::kIdFieldNumber << 3;                  // a varint
constexpr uint32_t kResponseTag = v1::ForwardStreamResponse::kResponseFieldNumber << 3 | 2;  // a message

struct Settings {
  std::vector<int64_t> rows = {1, 16, 256, 4096};
  std::vector<int> in_flight = {1, 8, 64};
  int rounds = 3;
  double seconds = 0.4;  // of one turn
  int connections = 1;   // to each server
  std::string server;    // the front's program; found when empty
};

std::shared_ptr<const HostMatrix> NormalRows(int64_t num_rows) {
  auto rows = std::make_shared<HostMatrix>(HostMatrix::Allocate(DType::kBF16, num_rows, kWidth));
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  auto* values = reinterpret_cast<uint16_t*>(rows->buffer.data());
  for (int64_t i = 0; i < num_rows * kWidth; ++i) values[i] = F32ToBF16(normal(random));
  return rows;
}

// A message that consists of `head` and then the rows as its field `field_number`.
grpc::ByteBuffer WithRows(std::string head, int field_number, const HostMatrix& rows) {
  const size_t num_bytes = rows.view().size_bytes();
  const grpc::Slice slices[] = {HeadSlice(std::move(head), field_number, num_bytes),
                                grpc::Slice(rows.buffer.data(), num_bytes, grpc::Slice::STATIC_SLICE)};
  return grpc::ByteBuffer(slices, 2);
}

v1::ForwardRequest ForwardHead(const HostMatrix& rows) {
  v1::ForwardRequest head;
  head.set_model("bench");
  head.set_layer("0");
  head.set_dtype(v1::DATA_TYPE_BF16);
  head.set_num_rows(rows.num_rows);
  return head;
}

grpc::ByteBuffer ForwardMessage(const HostMatrix& rows) {
  return WithRows(ForwardHead(rows).SerializeAsString(), v1::ForwardRequest::kRowsFieldNumber, rows);
}

// The same request as a message of a stream; the id is the number of the place in the loop.
grpc::ByteBuffer StreamMessage(const HostMatrix& rows, size_t place) {
  const size_t num_row_bytes = rows.view().size_bytes();
  std::string forward_head = ForwardHead(rows).SerializeAsString();
  const grpc::Slice rows_head = HeadSlice(std::move(forward_head), v1::ForwardRequest::kRowsFieldNumber, num_row_bytes);
  v1::ForwardStreamRequest head;
  head.set_id(place + 1);
  const grpc::Slice slices[] = {HeadSlice(head.SerializeAsString(), v1::ForwardStreamRequest::kForwardFieldNumber,
                                          rows_head.size() + num_row_bytes),
                                rows_head, grpc::Slice(rows.buffer.data(), num_row_bytes, grpc::Slice::STATIC_SLICE)};
  return grpc::ByteBuffer(slices, 3);
}

// Reads no further than the id and the tag that follows it.
absl::StatusOr<size_t> PlaceOfAnswer(const grpc::ByteBuffer& answer) {
  SY_ASSIGN_OR_RETURN(const auto slices, SlicesOf(answer));
  SliceStream bytes(*slices);
  google::protobuf::io::CodedInputStream stream(&bytes);
  uint64_t id = 0;
  if (stream.ReadTag() != kIdTag || !stream.ReadVarint64(&id) || stream.ReadTag() != kResponseTag) {
    return absl::InternalError("an answer that is not a response");
  }
  return id - 1;
}

grpc::ByteBuffer InferMessage(const HostMatrix& rows) {
  inference::ModelInferRequest head;
  head.set_model_name("bench.0");
  auto& input = *head.add_inputs();
  input.set_name("hidden_states");
  input.set_datatype("BF16");
  input.add_shape(rows.num_rows);
  input.add_shape(kWidth);
  return WithRows(head.SerializeAsString(), inference::ModelInferRequest::kRawInputContentsFieldNumber, rows);
}

std::vector<grpc::GenericStub> Connect(const std::string& address, int num_connections) {
  grpc::ChannelArguments args;
  args.SetMaxSendMessageSize(-1);
  args.SetMaxReceiveMessageSize(-1);
  args.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  TuneChannel(&args);
  std::vector<grpc::GenericStub> stubs;
  for (int i = 0; i < num_connections; ++i) {
    stubs.emplace_back(grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), args));
  }
  return stubs;
}

std::filesystem::path OwnFolder() {
  std::error_code ignored;
  return std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
}

// In a build tree the server's folder is a neighbour of tests/, in the bundle it is bin/.
std::string FindServer() {
  std::error_code ignored;
  const auto in_bundle = OwnFolder().parent_path() / "bin" / "switchyard_server";
  if (std::filesystem::exists(in_bundle, ignored)) return in_bundle;
  return OwnFolder().parent_path().parent_path() / "server" / "switchyard_server";
}

// The echo server, the service, and connections to each.
class Servers {
 public:
  static absl::StatusOr<std::unique_ptr<Servers>> Start(const Settings& settings) {
    const std::string folder = OwnFolder();
    SY_ASSIGN_OR_RETURN(auto echo, ChildProcess::Start(folder + "/echo_server", {}));
    const std::string line = echo->ReadLine();
    const size_t equals = line.find('=');
    if (equals == std::string::npos) return absl::InternalError(absl::StrCat("the echo server: ", echo->Log()));
    const std::vector<std::string> flags = {
        absl::StrCat("--model=bench=synthetic:dim=", kWidth, ",hidden=16,experts=1,topk=1,dtype=bf16"),
        "--local_workers=1", absl::StrCat("--worker_binary=", folder, "/echo_worker"), "--max_queued_bytes=4294967296"};
    SY_ASSIGN_OR_RETURN(auto front,
                        ServerProcess::Start(flags, settings.server.empty() ? FindServer() : settings.server));
    return std::unique_ptr<Servers>(
        new Servers(std::move(echo), line.substr(equals + 1), std::move(front), settings.connections));
  }

  LoopTarget Echo(const HostMatrix& rows) {
    return {&echo_stubs_, "/switchyard.v1.Switchyard/Forward", ForwardMessage(rows), rows.view().size_bytes()};
  }
  LoopTarget Forward(const HostMatrix& rows) {
    return {&front_stubs_, "/switchyard.v1.Switchyard/Forward", ForwardMessage(rows), rows.view().size_bytes()};
  }
  StreamTarget Stream(const HostMatrix& rows, int in_flight) {
    StreamTarget target = {&front_stubs_, "/switchyard.v1.Switchyard/ForwardStream", {}, PlaceOfAnswer};
    for (int place = 0; place < in_flight; ++place) target.requests.push_back(StreamMessage(rows, place));
    return target;
  }
  LoopTarget Infer(const HostMatrix& rows) {
    return {&front_stubs_, "/inference.GRPCInferenceService/ModelInfer", InferMessage(rows), rows.view().size_bytes()};
  }
  ServerProcess& front() { return *front_; }

 private:
  Servers(std::unique_ptr<ChildProcess> echo, const std::string& echo_address, std::unique_ptr<ServerProcess> front,
          int num_connections)
      : echo_(std::move(echo)),
        front_(std::move(front)),
        echo_stubs_(Connect(echo_address, num_connections)),
        front_stubs_(Connect(front_->grpc_address(), num_connections)) {}

  const std::unique_ptr<ChildProcess> echo_;
  const std::unique_ptr<ServerProcess> front_;
  std::vector<grpc::GenericStub> echo_stubs_, front_stubs_;
};

// The results for one size and number in flight.
struct Cell {
  LoopResult echo, forward, infer, stream;
};

absl::StatusOr<Cell> Measure(Servers& servers, const HostMatrix& rows, int in_flight, const Settings& settings) {
  Cell cell;
  const std::pair<LoopTarget, LoopResult*> turns[] = {
      {servers.Echo(rows), &cell.echo}, {servers.Forward(rows), &cell.forward}, {servers.Infer(rows), &cell.infer}};
  const auto duration = std::chrono::nanoseconds(static_cast<int64_t>(settings.seconds * 1e9));
  for (int round = 0; round < settings.rounds; ++round) {
    for (const auto& [target, result] : turns) {
      SY_ASSIGN_OR_RETURN(const LoopResult measured, RunClosedLoop(target, in_flight, duration));
      result->Add(measured);
    }
    SY_ASSIGN_OR_RETURN(const LoopResult measured, RunStreamLoop(servers.Stream(rows, in_flight), duration));
    cell.stream.Add(measured);
  }
  return cell;
}

void PrintSpeedRow(int64_t num_rows, int in_flight, const Cell& cell) {
  const auto speed = [&](const LoopResult& result) {
    return result.calls_per_second() * static_cast<double>(num_rows * kRowBytes) / kMiB;
  };
  const double echo = speed(cell.echo);
  absl::PrintF("| %d | %d | %.0f |", num_rows, in_flight, echo);
  for (const LoopResult* result : {&cell.forward, &cell.infer, &cell.stream}) {
    absl::PrintF(" %.0f | %.2f |", speed(*result), speed(*result) / echo);
  }
  absl::PrintF("\n");
  std::fflush(stdout);
}

double Micros(const LatencyHistogram& latency, double percent) {
  return static_cast<double>(latency.Percentile(percent).count()) * 1e-3;
}

// Medians of the stages of one request while no other runs.
struct Stages {
  double queue_us, upload_us, gate_us, plan_us, step_us;
};

absl::StatusOr<Stages> MeasureStages(Servers& servers, const std::shared_ptr<const HostMatrix>& rows) {
  const auto client = servers.front().Connect({.max_attempts = 1});
  std::vector<int64_t> queue, upload, gate, plan, step;
  const int samples = rows->num_rows > 256 ? kStageSamples / 10 : kStageSamples;
  for (int i = 0; i < samples; ++i) {
    SY_ASSIGN_OR_RETURN(const ForwardResult result,
                        client->Forward({.model = "bench", .layer = "0", .rows = rows->view(), .rows_owner = rows}));
    const ConstMatrixView sent = rows->view(), came = result.rows.view();
    if (std::memcmp(sent.data, came.data, sent.size_bytes()) != 0) return absl::DataLossError("other rows came back");
    queue.push_back(result.stats.queue_us());
    upload.push_back(result.stats.upload_us());
    gate.push_back(result.stats.gate_us() - result.stats.upload_us());
    plan.push_back(result.stats.plan_us());
    step.push_back(result.stats.step_us());
  }
  const auto median = [](std::vector<int64_t>& values) {
    std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
    return static_cast<double>(values[values.size() / 2]);
  };
  return Stages{median(queue), median(upload), median(gate), median(plan), median(step)};
}

void PrintLatency(const Cell& cell, const Stages& stages) {
  const double echo = Micros(cell.echo.latency, 50);
  const double bound = 1.4 * echo + stages.step_us;
  absl::PrintF("\n## One row, one in flight\n\n");
  absl::PrintF("| | p50 µs | p99 µs | p50 relative to the bound |\n|---|---:|---:|---:|\n");
  absl::PrintF("| echo | %.1f | %.1f | |\n", echo, Micros(cell.echo.latency, 99));
  absl::PrintF("| link alone, submission to result | %.1f | | |\n", stages.step_us);
  absl::PrintF("| bound, 1.4 × echo + link | %.1f | | |\n", bound);
  for (const auto& [name, result] : {std::pair{"`Forward`", &cell.forward}, std::pair{"`ModelInfer`", &cell.infer},
                                     std::pair{"`ForwardStream`", &cell.stream}}) {
    absl::PrintF("| %s | %.1f | %.1f | %.2f |\n", name, Micros(result->latency, 50), Micros(result->latency, 99),
                 Micros(result->latency, 50) / bound);
  }
}

std::string CpuName() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (absl::StartsWith(line, "model name")) return line.substr(line.find(':') + 2);
  }
  return "unknown processor";
}

double LoadAverage() {
  std::ifstream file("/proc/loadavg");
  double load = 0;
  file >> load;
  return load;
}

void PrintHead(const Settings& settings) {
  utsname system{};
  uname(&system);
  absl::PrintF("# Wire\n\n%s, %s, %d cores, load average %.1f before. gRPC %s, g++ %s, Linux %s.\n",
               absl::FormatTime("%Y-%m-%d", absl::Now(), absl::UTCTimeZone()), CpuName(),
               std::thread::hardware_concurrency(), LoadAverage(), grpc::Version(), __VERSION__, system.release);
  absl::PrintF(
      "Written by [run_wire.sh](run_wire.sh), which repeats it; [wire.md](../wire.md) says what a request costs and "
      "why.\n\n"
      "The benchmark compares the service with a bare gRPC echo. One client with the callback API has %d connection(s) "
      "to each\n"
      "server. The echo is a gRPC server with the front's settings, in a process of its own, whose `Forward` returns "
      "the\n"
      "`ByteBuffer` that it gets. The service is `switchyard_server` with one local worker, whose engine returns rows "
      "as they\n"
      "are, and a gate for one expert. A row has 4 KiB (2048 bf16), and only the bytes of rows count, in one "
      "direction. The\n"
      "echo, `Forward`, `ModelInfer` and `ForwardStream` take turns, %d times, on closed loops. `ForwardStream` has "
      "one stream\n"
      "for each connection, and is compared with the same echo of unary calls.\n\n",
      settings.connections, settings.rounds);
}

absl::Status Run(const Settings& settings) {
  PrintHead(settings);
  SY_ASSIGN_OR_RETURN(const auto servers, Servers::Start(settings));
  std::optional<Cell> smallest;
  absl::PrintF("## Bytes per second\n\n");
  absl::PrintF(
      "| rows | in flight | echo MiB/s | `Forward` MiB/s | ratio | `ModelInfer` MiB/s | ratio | "
      "`ForwardStream` MiB/s | ratio |\n");
  absl::PrintF("|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n");
  for (const int64_t num_rows : settings.rows) {
    const auto rows = NormalRows(num_rows);
    for (const int in_flight : settings.in_flight) {
      SY_ASSIGN_OR_RETURN(const Cell cell, Measure(*servers, *rows, in_flight, settings));
      PrintSpeedRow(num_rows, in_flight, cell);
      if (num_rows == 1 && in_flight == 1) smallest = cell;
    }
  }
  std::vector<Stages> stages;
  for (const int64_t num_rows : settings.rows) {
    SY_ASSIGN_OR_RETURN(stages.emplace_back(), MeasureStages(*servers, NormalRows(num_rows)));
  }
  if (smallest.has_value() && settings.rows[0] == 1) PrintLatency(*smallest, stages[0]);
  absl::PrintF("\n## Stages of one request alone\n\nMedians.\n\n");
  absl::PrintF(
      "| rows | queue µs | rows to the link µs | gate µs | plan µs | step µs |\n|---:|---:|---:|---:|---:|---:|\n");
  for (size_t i = 0; i < stages.size(); ++i) {
    const Stages& stage = stages[i];
    absl::PrintF("| %d | %.0f | %.0f | %.0f | %.0f | %.0f |\n", settings.rows[i], stage.queue_us, stage.upload_us,
                 stage.gate_us, stage.plan_us, stage.step_us);
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  switchyard::StopLookingForDeadlocks();
  switchyard::Settings settings;
  CLI::App app{"wire_benchmark: the service against a bare gRPC echo."};
  app.add_option("--rows", settings.rows, "rows per request")->delimiter(',');
  app.add_option("--in_flight", settings.in_flight, "requests in flight")->delimiter(',');
  app.add_option("--rounds", settings.rounds, "turns of each")->capture_default_str();
  app.add_option("--seconds", settings.seconds, "of a turn, at least")->capture_default_str();
  app.add_option("--connections", settings.connections, "connections to each server")->check(CLI::PositiveNumber);
  app.add_option("--server", settings.server, "the front's program; found when not given");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = switchyard::Run(settings);
  if (status.ok()) return 0;
  std::fprintf(stderr, "wire_benchmark: %s\n", std::string(status.message()).c_str());
  return 1;
}
