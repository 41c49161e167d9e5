#include <algorithm>
#include <map>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cli/command.h"
#include "cli/load_generator.h"
#include "cli/payloads.h"
#include "cli/table.h"
#include "client/forward_stream.h"

namespace switchyard {
namespace {

constexpr char kBenchFooter[] = R"(
Without --rate the loop is closed: --concurrency requests are always in flight. With --rate it is open: requests start at
that rate whatever the front does, and latency counts from when a request should have started. The rows are random normal
values. Bytes count the rows sent and received by requests that succeeded; latencies are theirs too. Failed requests are
not sent again. The exit code is 1 when every request of some row failed.

Examples:
  switchyard bench --model=jargon-moe --layer=3 --rows=1,16,128 --concurrency=16
  switchyard bench --model=mixtral --layer=all --rows=512 --concurrency=32 --channels=4 --duration=30
  switchyard bench --layer=all --rows=32 --rate=2000 --format=json
  switchyard bench --layer=all --rows=1 --concurrency=16 --api=stream)";

struct BenchFlags {
  FrontFlags front;
  std::string api = "forward";
  std::string model;
  std::string layer = "all";
  std::string dtype = "bf16";
  std::vector<int64_t> rows = {16};
  int concurrency = 8;
  int channels = 1;
  double rate_per_s = 0;
  std::string arrivals = "poisson";
  int max_in_flight = 4096;
  double duration_s = 10;
  double warmup_s = 1;
  uint64_t seed = 1;
};

// The layers that requests go to, taking turns.
struct Workload {
  std::string model;
  std::vector<v1::Layer> layers;
  DType dtype = DType::kBF16;
};

// One line of the report: the load with requests of one size.
struct Point {
  int64_t rows_per_request = 0;
  LoadStats stats;

  double PerSecond(double amount) const { return amount / stats.elapsed_s; }
  double requests_per_s() const { return PerSecond(static_cast<double>(stats.num_ok)); }
  double rows_per_s() const { return requests_per_s() * static_cast<double>(rows_per_request); }
  double bytes_per_s() const { return PerSecond(static_cast<double>(stats.num_bytes)); }
};

// One connection, with a stream on it when streams are measured.
struct Connection {
  std::unique_ptr<Client> client;
  std::unique_ptr<ForwardStream> stream;

  void Forward(const ForwardArgs& args, Client::ForwardCallback done) const {
    if (stream != nullptr) {
      stream->Submit(args, std::move(done));
    } else {
      client->ForwardAsync(args, std::move(done));
    }
  }
};
using Connections = std::vector<Connection>;

double Millis(std::chrono::nanoseconds time) { return static_cast<double>(time.count()) / 1e6; }

std::chrono::nanoseconds Seconds(double seconds) {
  return std::chrono::nanoseconds(static_cast<int64_t>(seconds * 1e9));
}

absl::StatusOr<v1::Model> ChooseModel(const v1::ListModelsResponse& served, const std::string& name) {
  std::vector<std::string> names;
  for (const v1::Model& model : served.models()) {
    if (model.name() == name) return model;
    names.push_back(model.name());
  }
  if (name.empty() && names.size() == 1) return served.models(0);
  return absl::InvalidArgumentError(
      absl::StrCat("--model: expected one of ", absl::StrJoin(names, ", "), ", found '", name, "'"));
}

absl::StatusOr<std::vector<v1::Layer>> ChooseLayers(const v1::Model& model, const std::string& name) {
  std::vector<std::string> names;
  std::vector<v1::Layer> chosen;
  for (const v1::Layer& layer : model.layers()) {
    if (name == "all" || layer.name() == name) chosen.push_back(layer);
    names.push_back(layer.name());
  }
  if (!chosen.empty()) return chosen;
  return absl::InvalidArgumentError(absl::StrCat("--layer: model '", model.name(), "' has the layers ",
                                                 absl::StrJoin(names, ", "), ", found '", name, "'"));
}

absl::StatusOr<Workload> ChooseWorkload(const BenchFlags& flags, const v1::ListModelsResponse& served) {
  SY_ASSIGN_OR_RETURN(const v1::Model model, ChooseModel(served, flags.model));
  Workload workload = {.model = model.name()};
  SY_ASSIGN_OR_RETURN(workload.layers, ChooseLayers(model, flags.layer));
  SY_ASSIGN_OR_RETURN(workload.dtype, ParseDType(flags.dtype));
  return workload;
}

absl::StatusOr<Connections> ConnectAll(const BenchFlags& flags) {
  Connections connections;
  for (int i = 0; i < flags.channels; ++i) {
    Connection& connection = connections.emplace_back();
    SY_ASSIGN_OR_RETURN(connection.client, ConnectTo(flags.front, /*max_attempts=*/1));
    if (flags.api != "stream") continue;
    const int max_in_flight = flags.rate_per_s > 0 ? flags.max_in_flight : flags.concurrency;
    SY_ASSIGN_OR_RETURN(connection.stream, connection.client->OpenStream({.max_in_flight = max_in_flight}));
  }
  return connections;
}

// Sends the requests. They take the connections in turn, then the layers, then the blocks of rows. Thread-safe.
class Sender {
 public:
  Sender(const Workload& workload, const Connections& connections, int64_t num_rows, uint64_t seed)
      : workload_(workload), connections_(connections) {
    for (const v1::Layer& layer : workload.layers) {
      const int64_t num_cols = layer.hidden_dim();
      if (payloads_.contains(num_cols)) continue;
      payloads_.emplace(num_cols, Payloads::Make(workload.dtype, num_rows, num_cols, seed));
    }
  }

  void Send(int64_t idx, DoneFn done) const {
    const int64_t round = idx / static_cast<int64_t>(connections_.size());
    const v1::Layer& layer = workload_.layers[round % workload_.layers.size()];
    const std::shared_ptr<const HostMatrix>& rows = payloads_.at(layer.hidden_dim()).Get(round);
    const auto num_bytes = static_cast<int64_t>(2 * rows->view().size_bytes());
    connections_[idx % connections_.size()].Forward(
        {.model = workload_.model, .layer = layer.name(), .rows = rows->view(), .rows_owner = rows},
        [done = std::move(done), num_bytes](const absl::StatusOr<ForwardResult>& result) {
          done({.status = result.status(), .num_bytes = num_bytes});
        });
  }

 private:
  const Workload& workload_;
  const Connections& connections_;
  std::map<int64_t, Payloads> payloads_;  // by number of columns
};

LoadOptions LoadOf(const BenchFlags& flags) {
  return {.warmup = Seconds(flags.warmup_s),
          .duration = Seconds(flags.duration_s),
          .concurrency = flags.concurrency,
          .rate_per_s = flags.rate_per_s,
          .arrivals = flags.arrivals == "uniform" ? Arrivals::kUniform : Arrivals::kPoisson,
          .seed = flags.seed,
          .max_in_flight = flags.max_in_flight};
}

Point Measure(const BenchFlags& flags, const Workload& workload, const Connections& connections, int64_t num_rows) {
  const Sender sender(workload, connections, num_rows, flags.seed);
  const auto send = [&sender](int64_t idx, DoneFn done) { sender.Send(idx, std::move(done)); };
  return {.rows_per_request = num_rows, .stats = GenerateLoad(LoadOf(flags), send)};
}

nlohmann::ordered_json ErrorsJson(const LoadStats& stats) {
  nlohmann::ordered_json errors = nlohmann::ordered_json::object();
  for (const auto& [code, error] : stats.errors) {
    errors[absl::StatusCodeToString(code)] = {{"count", error.count}, {"first_message", error.first_message}};
  }
  return errors;
}

nlohmann::ordered_json PointJson(const Point& point) {
  const LatencyHistogram& latency = point.stats.latency;
  return {{"rows_per_request", point.rows_per_request},
          {"ok", point.stats.num_ok},
          {"failed", point.stats.num_failed()},
          {"unsent", point.stats.num_unsent},
          {"elapsed_s", point.stats.elapsed_s},
          {"requests_per_s", point.requests_per_s()},
          {"rows_per_s", point.rows_per_s()},
          {"bytes_per_s", point.bytes_per_s()},
          {"latency_ms",
           {{"mean", Millis(latency.mean())},
            {"p50", Millis(latency.Percentile(50))},
            {"p95", Millis(latency.Percentile(95))},
            {"p99", Millis(latency.Percentile(99))},
            {"max", Millis(latency.max())}}},
          {"errors", ErrorsJson(point.stats)}};
}

void PrintBenchJson(const BenchFlags& flags, const Workload& workload, const std::vector<Point>& points,
                    const Console& console) {
  nlohmann::ordered_json layers = nlohmann::ordered_json::array(), results = layers;
  for (const v1::Layer& layer : workload.layers) layers.push_back(layer.name());
  for (const Point& point : points) results.push_back(PointJson(point));
  nlohmann::ordered_json json = {{"target", flags.front.target},   {"api", flags.api},     {"model", workload.model},
                                 {"layers", std::move(layers)},    {"dtype", flags.dtype}, {"channels", flags.channels},
                                 {"duration_s", flags.duration_s}, {"seed", flags.seed}};
  if (flags.rate_per_s > 0) {
    json["mode"] = "open";
    json["rate_per_s"] = flags.rate_per_s;
    json["arrivals"] = flags.arrivals;
  } else {
    json["mode"] = "closed";
    json["concurrency"] = flags.concurrency;
  }
  json["results"] = std::move(results);
  PrintJson(console, json);
}

std::string ErrorsText(const LoadStats& stats) {
  std::vector<std::string> parts;
  for (const auto& [code, error] : stats.errors) {
    parts.push_back(absl::StrCat(absl::StatusCodeToString(code), " × ", error.count));
  }
  if (stats.num_unsent > 0) parts.push_back(absl::StrCat("unsent × ", stats.num_unsent));
  return parts.empty() ? "none" : absl::StrJoin(parts, ", ");
}

std::vector<std::string> Cells(const Point& point) {
  const LatencyHistogram& latency = point.stats.latency;
  std::vector<std::string> cells = {
      absl::StrCat(point.rows_per_request), absl::StrFormat("%.1f", point.requests_per_s()),
      absl::StrFormat("%.0f", point.rows_per_s()), absl::StrFormat("%.2f", point.bytes_per_s() / 1e6)};
  for (const std::chrono::nanoseconds value :
       {latency.Percentile(50), latency.Percentile(95), latency.Percentile(99), latency.max()}) {
    cells.push_back(absl::StrFormat("%.3f", Millis(value)));
  }
  cells.push_back(ErrorsText(point.stats));
  return cells;
}

void PrintBenchText(const std::vector<Point>& points, const Console& console) {
  constexpr Table::Align kRight = Table::Align::kRight;
  Table table({{"ROWS/REQ", kRight},
               {"REQ/S", kRight},
               {"ROWS/S", kRight},
               {"MB/S", kRight},
               {"P50 MS", kRight},
               {"P95 MS", kRight},
               {"P99 MS", kRight},
               {"MAX MS", kRight},
               {"ERRORS"}});
  for (const Point& point : points) table.AddRow(Cells(point));
  table.Print(*console.out);
}

// Prints one message per status code, so that a failing load explains itself.
void PrintErrorMessages(const std::vector<Point>& points, const Console& console) {
  std::map<absl::StatusCode, std::string> messages;
  for (const Point& point : points) {
    for (const auto& [code, error] : point.stats.errors) messages.emplace(code, error.first_message);
  }
  for (const auto& [code, message] : messages) {
    *console.err << "switchyard: " << absl::StatusCodeToString(code) << ": " << message << "\n";
  }
}

int RunBench(const BenchFlags& flags, const Console& console) {
  const absl::StatusOr<Connections> connections = ConnectAll(flags);
  if (!connections.ok()) return ReportUsageError(console, connections.status());
  const absl::StatusOr<v1::ListModelsResponse> served = connections->front().client->ListModels();
  if (!served.ok()) return ReportRpcError(console, flags.front.target, served.status());
  const absl::StatusOr<Workload> workload = ChooseWorkload(flags, *served);
  if (!workload.ok()) return ReportUsageError(console, workload.status());
  std::vector<Point> points;
  for (const int64_t num_rows : flags.rows) points.push_back(Measure(flags, *workload, *connections, num_rows));
  flags.front.json() ? PrintBenchJson(flags, *workload, points, console) : PrintBenchText(points, console);
  PrintErrorMessages(points, console);
  const bool failed =
      std::any_of(points.begin(), points.end(), [](const Point& point) { return point.stats.num_ok == 0; });
  return failed ? kExitFailed : kExitOk;
}

void AddWorkloadFlags(CLI::App* command, BenchFlags* flags) {
  command->add_option("--api", flags->api, "A call for each request (forward), or one stream on each channel (stream)")
      ->check(CLI::IsMember({"forward", "stream"}))
      ->capture_default_str();
  command->add_option("--model", flags->model, "Name of a served model; may be left out when there is only one");
  command->add_option("--layer", flags->layer, "A layer's name, or all of them in turn")->capture_default_str();
  command->add_option("--dtype", flags->dtype, "Type of the rows")
      ->check(CLI::IsMember({"fp64", "fp32", "fp16", "bf16"}))
      ->capture_default_str();
  command->add_option("--rows", flags->rows, "Rows per request; several, with commas, are measured one after the other")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Seed of the random rows and arrivals")->capture_default_str();
}

void AddLoadFlags(CLI::App* command, BenchFlags* flags) {
  CLI::Option* concurrency = command->add_option("--concurrency", flags->concurrency, "Requests always in flight");
  concurrency->check(CLI::Range(1, 65536))->capture_default_str();
  CLI::Option* rate = command->add_option("--rate", flags->rate_per_s, "Open loop: requests per second");
  rate->check(CLI::Range(0.001, 1e7))->excludes(concurrency);
  command->add_option("--arrivals", flags->arrivals, "Open loop: random or even distances between requests")
      ->check(CLI::IsMember({"poisson", "uniform"}))
      ->needs(rate)
      ->capture_default_str();
  command->add_option("--max_in_flight", flags->max_in_flight, "Open loop: beyond it, requests wait here (and age)")
      ->check(CLI::Range(1, 1'000'000))
      ->needs(rate)
      ->capture_default_str();
  command->add_option("--channels", flags->channels, "Connections, used in turn")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--duration", flags->duration_s, "Seconds measured for each of --rows")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  command->add_option("--warmup", flags->warmup_s, "Seconds of load before that")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
}

}  // namespace

void AddBenchCommand(CLI::App* app, Console console, int* exit_code) {
  CLI::App* command = app->add_subcommand("bench", "Loads the front with requests; shows throughput, latency, errors.");
  auto flags = std::make_shared<BenchFlags>();
  AddFrontFlags(command, &flags->front);
  AddWorkloadFlags(command, flags.get());
  AddLoadFlags(command, flags.get());
  command->footer(kBenchFooter);
  command->callback([flags, console, exit_code] { *exit_code = RunBench(*flags, console); });
}

}  // namespace switchyard
