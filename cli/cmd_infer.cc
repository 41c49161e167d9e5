#include <algorithm>
#include <chrono>
#include <optional>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/clock.h"
#include "cli/command.h"
#include "cli/compare.h"
#include "cli/tensor_io.h"

namespace switchyard {
namespace {

constexpr char kInferFooter[] = R"(
FILE:KEY names one tensor of a .safetensors file; it is split at the last colon. A tensor [..., D] is sent as rows of D.
With --expect the exit code is 1 when any element has |output - expected| > atol + rtol * |expected|; NaN agrees with
NaN only. The relative error shown leaves out elements whose expected value is 0.

Examples:
  switchyard infer --model=jargon-moe --layer=3 --input=golden.safetensors:model.layers.3.mlp.input \
      --expect=golden.safetensors:model.layers.3.mlp.output --rtol=2e-2 --atol=2e-2
  switchyard infer --model=mixtral --layer=0 --input=rows.safetensors:x --dtype=bf16 --output=out.safetensors:y
  switchyard infer --model=mixtral --layer=0 --input=rows.safetensors:x --routing --format=json
  switchyard infer --model=tutel --layer=0 --input=rows.safetensors:x --capacity_factor=1.25 --balance_loss)";

struct InferFlags {
  FrontFlags front;
  std::string model;
  std::string layer;
  std::string input;
  std::string expect;
  std::string output;
  std::string dtype;
  Tolerance tolerance;
  bool routing = false;
  int gate_index = 0;
  int top_k = 0;
  std::optional<double> capacity_factor;
  bool balance_loss = false;
  int repeat = 1;
  int max_attempts = 3;
  std::string request_id;
};

// The contents of the files that the flags name, read and checked.
struct InferInputs {
  HostMatrix rows;
  std::optional<HostMatrix> expected;
  std::optional<TensorRef> output;
};

struct InferOutcome {
  ForwardResult result;
  double latency_ms = 0;  // median over the repetitions
  std::optional<Comparison> comparison;

  bool failed() const { return comparison.has_value() && !comparison->within_tolerance(); }
};

absl::StatusOr<HostMatrix> LoadFlag(const std::string& flag, const std::string& value) {
  const absl::StatusOr<TensorRef> ref = ParseTensorRef(value);
  if (!ref.ok()) return Annotate(ref.status(), flag);
  absl::StatusOr<HostMatrix> matrix = LoadMatrix(*ref);
  if (!matrix.ok()) return Annotate(matrix.status(), flag);
  return matrix;
}

absl::StatusOr<HostMatrix> LoadRows(const InferFlags& flags) {
  SY_ASSIGN_OR_RETURN(HostMatrix rows, LoadFlag("--input", flags.input));
  if (flags.dtype.empty()) return rows;
  SY_ASSIGN_OR_RETURN(const DType dtype, ParseDType(flags.dtype));
  return ConvertTo(dtype, rows.view());
}

absl::StatusOr<HostMatrix> LoadExpected(const InferFlags& flags, const HostMatrix& rows) {
  SY_ASSIGN_OR_RETURN(HostMatrix expected, LoadFlag("--expect", flags.expect));
  if (expected.num_rows == rows.num_rows && expected.num_cols == rows.num_cols) return expected;
  return absl::InvalidArgumentError(absl::StrFormat("--expect: expected the shape of --input, [%d, %d], found [%d, %d]",
                                                    rows.num_rows, rows.num_cols, expected.num_rows,
                                                    expected.num_cols));
}

absl::StatusOr<InferInputs> LoadInputs(const InferFlags& flags) {
  InferInputs inputs;
  SY_ASSIGN_OR_RETURN(inputs.rows, LoadRows(flags));
  if (!flags.expect.empty()) {
    SY_ASSIGN_OR_RETURN(inputs.expected, LoadExpected(flags, inputs.rows));
  }
  if (!flags.output.empty()) {
    const bool has_key = flags.output.find(':') != std::string::npos;
    SY_ASSIGN_OR_RETURN(inputs.output, ParseTensorRef(has_key ? flags.output : flags.output + ":output"));
  }
  return inputs;
}

absl::StatusOr<InferOutcome> CallForward(const InferFlags& flags, const InferInputs& inputs, Client* client) {
  const ForwardArgs args = {.model = flags.model,
                            .layer = flags.layer,
                            .rows = inputs.rows.view(),
                            .return_routing = flags.routing,
                            .gate_index = flags.gate_index,
                            .top_k = flags.top_k,
                            .capacity_factor = flags.capacity_factor,
                            .return_balance_loss = flags.balance_loss,
                            .request_id = flags.request_id};
  InferOutcome outcome;
  std::vector<double> latencies_ms;
  for (int i = 0; i < flags.repeat; ++i) {
    const SteadyTime start = Clock::Real().Now();
    SY_ASSIGN_OR_RETURN(outcome.result, client->Forward(args));
    latencies_ms.push_back(static_cast<double>(MicrosBetween(start, Clock::Real().Now())) / 1000);
  }
  std::nth_element(latencies_ms.begin(), latencies_ms.begin() + latencies_ms.size() / 2, latencies_ms.end());
  outcome.latency_ms = latencies_ms[latencies_ms.size() / 2];
  return outcome;
}

nlohmann::ordered_json RoutingJson(const Routing& routing) {
  nlohmann::ordered_json ids = nlohmann::ordered_json::array(), weights = ids;
  for (int64_t row = 0; row < routing.num_rows; ++row) {
    const auto begin = row * routing.top_k, end = begin + routing.top_k;
    ids.push_back(std::vector<int32_t>(routing.expert_idx.begin() + begin, routing.expert_idx.begin() + end));
    weights.push_back(std::vector<float>(routing.weight.begin() + begin, routing.weight.begin() + end));
  }
  return {{"top_k", routing.top_k}, {"expert_ids", std::move(ids)}, {"expert_weights", std::move(weights)}};
}

void AddComparisonJson(const InferFlags& flags, const Comparison& comparison, nlohmann::ordered_json* json) {
  // JSON has no infinity: an infinite error is null.
  (*json)["max_abs_error"] = comparison.max_abs_error;
  (*json)["max_rel_error"] = comparison.max_rel_error;
  (*json)["rtol"] = flags.tolerance.relative;
  (*json)["atol"] = flags.tolerance.absolute;
  (*json)["elements"] = comparison.num_elements;
  (*json)["elements_beyond_tolerance"] = comparison.num_beyond;
  (*json)["within_tolerance"] = comparison.within_tolerance();
}

void PrintInferJson(const InferFlags& flags, const InferOutcome& outcome, const Console& console) {
  const HostMatrix& rows = outcome.result.rows;
  const v1::ForwardStats& stats = outcome.result.stats;
  nlohmann::ordered_json json = {{"model", flags.model},
                                 {"layer", flags.layer},
                                 {"rows", rows.num_rows},
                                 {"columns", rows.num_cols},
                                 {"dtype", std::string(DTypeName(rows.dtype))},
                                 {"latency_ms", outcome.latency_ms},
                                 {"repeat", flags.repeat},
                                 {"rows_crossed", stats.rows_crossed()},
                                 {"num_steps", stats.num_steps()},
                                 {"replays", stats.replays()},
                                 {"queue_us", stats.queue_us()},
                                 {"gate_us", stats.gate_us()},
                                 {"plan_us", stats.plan_us()},
                                 {"step_us", stats.step_us()}};
  if (outcome.comparison.has_value()) AddComparisonJson(flags, *outcome.comparison, &json);
  if (outcome.result.balance_loss.has_value()) json["balance_loss"] = *outcome.result.balance_loss;
  if (flags.routing) json["routing"] = RoutingJson(outcome.result.routing);
  PrintJson(console, json);
}

void PrintRouting(const Routing& routing, const Console& console) {
  for (int64_t row = 0; row < routing.num_rows; ++row) {
    *console.out << "row " << row << ":";
    for (int64_t i = row * routing.top_k; i < (row + 1) * routing.top_k; ++i) {
      *console.out << absl::StreamFormat("  %d × %.6f", routing.expert_idx[i], routing.weight[i]);
    }
    *console.out << "\n";
  }
}

void PrintComparison(const InferFlags& flags, const Comparison& comparison, const Console& console) {
  *console.out << absl::StreamFormat("largest error: absolute %.3e (row %d, column %d), relative %.3e\n",
                                     comparison.max_abs_error, comparison.worst_row, comparison.worst_col,
                                     comparison.max_rel_error);
  *console.out << absl::StreamFormat("%s: %d of %d elements beyond rtol %g, atol %g\n",
                                     comparison.within_tolerance() ? "PASS" : "FAIL", comparison.num_beyond,
                                     comparison.num_elements, flags.tolerance.relative, flags.tolerance.absolute);
}

void PrintInferText(const InferFlags& flags, const InferOutcome& outcome, const Console& console) {
  const HostMatrix& rows = outcome.result.rows;
  const v1::ForwardStats& stats = outcome.result.stats;
  *console.out << absl::StreamFormat(
      "%s layer %s: %d rows × %d, %s, in %.3f ms (queue %d µs, gate %d µs, plan %d µs, step %d µs); %d rows crossed "
      "ranks\n",
      flags.model, flags.layer, rows.num_rows, rows.num_cols, std::string(DTypeName(rows.dtype)), outcome.latency_ms,
      stats.queue_us(), stats.gate_us(), stats.plan_us(), stats.step_us(), stats.rows_crossed());
  if (outcome.result.balance_loss.has_value()) {
    *console.out << absl::StreamFormat("balance loss: %.6f\n", *outcome.result.balance_loss);
  }
  if (flags.routing) PrintRouting(outcome.result.routing, console);
  if (outcome.comparison.has_value()) PrintComparison(flags, *outcome.comparison, console);
}

int RunInfer(const InferFlags& flags, const Console& console) {
  const absl::StatusOr<InferInputs> inputs = LoadInputs(flags);
  if (!inputs.ok()) return ReportUsageError(console, inputs.status());
  const absl::StatusOr<std::unique_ptr<Client>> client = ConnectTo(flags.front, flags.max_attempts);
  if (!client.ok()) return ReportUsageError(console, client.status());
  absl::StatusOr<InferOutcome> outcome = CallForward(flags, *inputs, client->get());
  if (!outcome.ok()) return ReportRpcError(console, flags.front.target, outcome.status());
  if (inputs->expected.has_value()) {
    outcome->comparison = Compare(outcome->result.rows.view(), inputs->expected->view(), flags.tolerance);
  }
  if (inputs->output.has_value()) {
    const absl::Status saved = SaveResult(*inputs->output, outcome->result);
    if (!saved.ok()) return ReportUsageError(console, Annotate(saved, "--output"));
  }
  flags.front.json() ? PrintInferJson(flags, *outcome, console) : PrintInferText(flags, *outcome, console);
  return outcome->failed() ? kExitFailed : kExitOk;
}

void AddInferFlags(CLI::App* command, InferFlags* flags) {
  AddFrontFlags(command, &flags->front);
  command->add_option("--model", flags->model, "Name of a served model")->required();
  command->add_option("--layer", flags->layer, "The transformer's own layer index, as `switchyard models` lists")
      ->required();
  command->add_option("--input", flags->input, "FILE.safetensors:KEY of the rows to send")->required();
  command->add_option("--expect", flags->expect, "FILE.safetensors:KEY of the output to compare with");
  command->add_option("--output", flags->output, "FILE[:KEY] to write the output to; the key is `output` by default");
  command->add_option("--rtol", flags->tolerance.relative, "Relative tolerance of --expect")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--atol", flags->tolerance.absolute, "Absolute tolerance of --expect")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--dtype", flags->dtype, "Send the rows as this type; by default the tensor's own")
      ->check(CLI::IsMember({"fp64", "fp32", "fp16", "bf16"}));
  command->add_flag("--routing", flags->routing, "Also show (and write) which experts computed each row");
  command->add_option("--gate_index", flags->gate_index, "Which of the layer's gates routes the rows")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--top_k", flags->top_k, "Experts per row; 0 leaves the gate's own number")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--capacity_factor", flags->capacity_factor,
                      "Tutel's: f > 0 lets an expert take k * int(f * ceil(rows / experts)) rows, 0 all of them, f < 0 "
                      "what it needs but at most as with -f; by default the gate's own rule");
  command->add_flag("--balance_loss", flags->balance_loss, "Also show the auxiliary balance loss of the rows");
  command->add_option("--repeat", flags->repeat, "Send this often, one after the other; the latency is the median")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  command->add_option("--max_attempts", flags->max_attempts, "How often a call is sent while the front is UNAVAILABLE")
      ->check(CLI::Range(1, 5))
      ->capture_default_str();
  command->add_option("--request_id", flags->request_id, "Shown in the front's log; by default a random one");
}

}  // namespace

void AddInferCommand(CLI::App* app, Console console, int* exit_code) {
  CLI::App* command = app->add_subcommand("infer", "Runs one MoE layer on rows from a file, and compares the output.");
  auto flags = std::make_shared<InferFlags>();
  AddInferFlags(command, flags.get());
  command->footer(kInferFooter);
  command->callback([flags, console, exit_code] { *exit_code = RunInfer(*flags, console); });
}

}  // namespace switchyard
