// A misbehaving client as a process of its own, to be run beside a server under test at the lowest priority, as if it
// were on another machine:
//   attack cancel  --target=… --method=… --model=… --rows=… --dim=… --calls=… --rate=…
//   attack load    --target=… --model=… --rows=… --dim=… --rate=…|--concurrency=… --seconds=… --deadline_ms=…
//   attack garbage --target=… --calls=… --rate=…
//   attack huge    --target=… --what=plain|gzip|fields --bytes=…
// Prints KEY=VALUE, one a line.
#include <CLI/CLI.hpp>
#include <cstdio>

#include "tests/fuzz/messages.h"
#include "tests/fuzz/mutator.h"
#include "tests/load/cancel_storm.h"
#include "tests/load/huge_message.h"
#include "tests/load/overload.h"

namespace switchyard {
namespace {

struct Flags {
  std::string target, method = kForwardMethod, model = "m", layer = "0", what = "plain";
  int64_t rows = 64, dim = 128, calls = 1000, bytes = 1 << 30, seed = 1;
  double rate = 0, seconds = 10;
  int concurrency = 32, deadline_ms = 1000;
};

double Ms(std::chrono::nanoseconds time) { return std::chrono::duration<double, std::milli>(time).count(); }

void Cancel(const Flags& flags) {
  const CancelStorm storm{
      .target = flags.target,
      .method = flags.method,
      .message = ToByteBuffer(RequestBytes(flags.method, flags.model, flags.layer, flags.rows, flags.dim)),
      .num_calls = flags.calls,
      .rate_per_s = flags.rate,
      .seed = static_cast<uint64_t>(flags.seed)};
  for (const auto& [code, count] : RunCancelStorm(storm)) {
    std::printf("%s=%ld\n", absl::StatusCodeToString(code).c_str(), count);
  }
}

void Load(const Flags& flags) {
  const Overload overload{.target = flags.target,
                          .model = flags.model,
                          .layer = flags.layer,
                          .num_rows = flags.rows,
                          .hidden_dim = flags.dim,
                          .deadline = std::chrono::milliseconds(flags.deadline_ms)};
  LoadOptions options;
  options.warmup = std::chrono::seconds(2);
  options.duration = std::chrono::nanoseconds(static_cast<int64_t>(flags.seconds * 1e9));
  options.concurrency = flags.concurrency;
  options.rate_per_s = flags.rate;
  options.max_in_flight = 100'000;
  const OverloadResult result = RunLoad(overload, options);
  std::printf("goodput_per_s=%.1f\noffered_per_s=%.1f\nok_p50_ms=%.2f\nok_p99_ms=%.2f\n", result.goodput_per_s(),
              result.offered_per_s(), Ms(result.stats.latency.Percentile(50)), Ms(result.stats.latency.Percentile(99)));
  std::printf("refused=%ld\nrefused_without_pushback=%ld\nrefusal_p50_ms=%.2f\nrefusal_p99_ms=%.2f\n", result.refused,
              result.refused_without_pushback, Ms(result.refusal_latency.Percentile(50)),
              Ms(result.refusal_latency.Percentile(99)));
  for (const auto& [code, error] : result.stats.errors) {
    std::printf("%s=%ld\n", absl::StatusCodeToString(code).c_str(), error.count);
  }
}

void Garbage(const Flags& flags) {
  Mutator mutator(static_cast<uint64_t>(flags.seed), InferCorpus());
  std::map<absl::StatusCode, int64_t> codes;
  constexpr int kCallsPerMessage = 20;
  for (int64_t i = 0; i < flags.calls; i += kCallsPerMessage) {
    const CancelStorm storm{.target = flags.target,
                            .method = i / kCallsPerMessage % 2 == 0 ? kInferStreamMethod : kInferMethod,
                            .message = mutator.Cut(mutator.Next()),
                            .num_calls = kCallsPerMessage,
                            .rate_per_s = flags.rate,
                            .num_channels = 1};
    for (const auto& [code, count] : RunCancelStorm(storm)) codes[code] += count;
  }
  for (const auto& [code, count] : codes) std::printf("%s=%ld\n", absl::StatusCodeToString(code).c_str(), count);
}

void Huge(const Flags& flags) {
  const auto send = flags.what == "gzip"     ? SendCompressedZeros(flags.target, flags.method, flags.bytes)
                    : flags.what == "fields" ? SendManyFields(flags.target, flags.method, flags.bytes / 2)
                                             : SendHugeMessage(flags.target, flags.method, flags.bytes);
  std::printf("%s=1\nmessage=%s\n", absl::StatusCodeToString(static_cast<absl::StatusCode>(send.error_code())).c_str(),
              send.error_message().substr(0, 200).c_str());
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app{"A misbehaving client."};
  app.require_subcommand(1);
  app.fallthrough();
  app.add_option("--target", flags.target, "HOST:PORT of the server")->required();
  app.add_option("--method", flags.method, "full name of the method to call");
  app.add_option("--model", flags.model, "model");
  app.add_option("--layer", flags.layer, "layer");
  app.add_option("--rows", flags.rows, "rows of a request");
  app.add_option("--dim", flags.dim, "the layer's width");
  app.add_option("--calls", flags.calls, "number of calls");
  app.add_option("--rate", flags.rate, "calls per second; 0 for as fast as it goes");
  app.add_option("--concurrency", flags.concurrency, "calls in flight, when there is no rate");
  app.add_option("--seconds", flags.seconds, "duration of the load");
  app.add_option("--deadline_ms", flags.deadline_ms, "deadline of each request");
  app.add_option("--bytes", flags.bytes, "size of the huge message");
  app.add_option("--what", flags.what, "plain, gzip or fields");
  app.add_option("--seed", flags.seed, "seed of the random choices");
  app.add_subcommand("cancel", "calls that are opened and cancelled")->callback([&] { Cancel(flags); });
  app.add_subcommand("load", "requests at a rate, or in a closed loop")->callback([&] { Load(flags); });
  app.add_subcommand("garbage", "mutated messages")->callback([&] { Garbage(flags); });
  app.add_subcommand("huge", "one message that is too large")->callback([&] { Huge(flags); });
  CLI11_PARSE(app, argc, argv);
  return 0;
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::Main(argc, argv); }
