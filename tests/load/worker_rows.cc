// Rows 12 and 13: workers that must not join, and strangers at the worker port; certificates that change under load.
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "proto/worker.grpc.pb.h"
#include "rpc/deadline.h"
#include "tests/e2e/checked_load.h"
#include "tests/load/row_parts.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kRefusedLimit[] = "refused, the reason named";
constexpr char kToken[] = "the-right-one-of-enough-length";
constexpr char kSmallModel[] =
    "--model=m=synthetic:dim=64,hidden=64,experts=4,topk=2,act=silu,glu=1,bias=0,dtype=fp32,layers=1";

// Removed with everything in it.
class TemporaryFolder {
 public:
  TemporaryFolder() : path_((fs::temp_directory_path() / "scorecard-XXXXXX").string()) {
    if (mkdtemp(path_.data()) == nullptr) Die(absl::InternalError("no temporary folder"));
  }
  ~TemporaryFolder() { fs::remove_all(path_); }
  fs::path operator/(const std::string& name) const { return fs::path(path_) / name; }

 private:
  std::string path_;
};

// A front that awaits workers, and these.
class AwaitingFront {
 public:
  AwaitingFront(const ScorecardSettings& settings, int num_workers, std::vector<std::string> flags) {
    flags.insert(flags.end(), {"--port=0", "--http_port=0", "--worker_port=0", "--compute_dtype=fp32",
                               absl::StrCat("--await_workers=", num_workers)});
    front_ = OrDie(ChildProcess::Start(settings.server, flags));
    worker_address_ = OrDie(WaitForWorkerPort(*front_));
    const std::string program = settings.server;
    worker_program_ = program.substr(0, program.rfind('/')) + "/switchyard_worker";
    if (settings.server == kServerProgram) worker_program_ = kWorkerProgram;
  }

  std::unique_ptr<ChildProcess> StartWorker(std::vector<std::string> flags = {}) const {
    flags.insert(flags.end(), {absl::StrCat("--front=", worker_address_), "--device=cpu", "--threads=1"});
    return OrDie(ChildProcess::Start(worker_program_, flags));
  }
  ServerProcess& WaitUntilReady() {
    server_ = OrDie(ServerProcess::WaitUntilReady(std::move(front_)));
    return *server_;
  }
  const std::string& worker_address() const { return worker_address_; }

 private:
  std::unique_ptr<ChildProcess> front_;
  std::unique_ptr<ServerProcess> server_;
  std::string worker_address_, worker_program_;
};

// ---- Row 12

// What the front says about itself on its page of metrics.
std::string OwnLabel(const ServerProcess& server, const std::string& label) {
  const std::string metrics = server.Get("/metrics");
  const size_t info = metrics.find("\nswitchyard_build_info{");
  const std::string before = label + "=\"";
  const size_t begin = metrics.find(before, info) + before.size();
  return metrics.substr(begin, metrics.find('"', begin) - begin);
}

struct JoinResult {
  bool is_accepted = false;
  grpc::Status status;
};

// Says Hello at a worker port, once.
JoinResult TryToJoin(worker::WorkerHub::Stub& hub, const worker::WorkerMessage& message, const std::string& token) {
  grpc::ClientContext context;
  context.set_deadline(DeadlineAfter(absl::Seconds(20)));
  if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
  const auto stream = hub.Join(&context);
  stream->Write(message);
  worker::FrontMessage welcome;
  JoinResult result{.is_accepted = stream->Read(&welcome), .status = {}};
  if (result.is_accepted) context.TryCancel();  // the call would not end by itself
  result.status = stream->Finish();
  return result;
}

struct Refusals {
  std::vector<std::string> reasons;
  std::vector<Demand> demands;

  void Add(const std::string& what, bool is_refused, const std::string& reason, const std::string& expected) {
    reasons.push_back(absl::StrCat(what, ": ", reason.substr(0, 160)));
    demands.emplace_back(is_refused && !reason.empty() && absl::StrContains(reason, expected), what);
  }
};

// Says Hello as workers that do not fit; no rank has to be free for that.
void TryFalseHellos(const AwaitingFront& front, const ServerProcess& server, Refusals* refusals) {
  const auto hub =
      worker::WorkerHub::NewStub(grpc::CreateChannel(front.worker_address(), grpc::InsecureChannelCredentials()));
  worker::WorkerMessage good;
  good.mutable_hello()->set_version(OwnLabel(server, "version"));
  good.mutable_hello()->set_build(OwnLabel(server, "build"));
  good.mutable_hello()->set_local_index(-1);
  good.mutable_hello()->add_compute_dtypes("fp32");
  good.mutable_hello()->add_exchanges("tcp");
  const auto attempt = [&](const std::string& what, const std::string& expected,
                           const std::function<void(worker::Hello*)>& change) {
    worker::WorkerMessage message = good;
    change(message.mutable_hello());
    const JoinResult result = TryToJoin(*hub, message, "");
    refusals->Add(what, !result.is_accepted, result.status.error_message(), expected);
  };
  attempt("another version", "its version is", [](worker::Hello* hello) { hello->set_version("0.0.1"); });
  attempt("another build", "its build is", [](worker::Hello* hello) { hello->set_build("0123456789abcdef"); });
  attempt("no common exchange", "exchange", [](worker::Hello* hello) { hello->set_exchanges(0, "pigeon"); });
  attempt("one too many", "are taken", [](worker::Hello*) {});
}

// The checkpoint at the same place is another one on this worker's host.
void TryOtherShape(const AwaitingFront& front, ServerProcess& server, const ScorecardSettings& settings,
                   const fs::path& checkpoint, std::unique_ptr<ChildProcess>* worker, Refusals* refusals) {
  const auto client = server.Connect();
  const auto before = OrDie(client->GetStatus());
  fs::rename(checkpoint, checkpoint.string() + ".kept");
  fs::copy(settings.testdata + "/golden_mixtral", checkpoint, fs::copy_options::recursive);
  (*worker)->Signal(SIGKILL);
  (*worker)->Wait();
  WaitForLoss(*client, before);
  *worker = front.StartWorker();
  const bool has_ended = (*worker)->WaitFor(std::chrono::seconds(20));
  const bool is_serving = OrDie(client->GetStatus()).state() == "serving";
  std::string log = (*worker)->Log();
  const size_t last = log.rfind("worker: ");
  refusals->Add("another shape", has_ended && !is_serving, last == std::string::npos ? log : log.substr(last),
                "is not what the front serves");
  fs::remove_all(checkpoint);
  fs::rename(checkpoint.string() + ".kept", checkpoint);
  *worker = front.StartWorker();
  WaitForNewGroup(*client, before);
}

// A worker is stopped under load until another has its rank, and goes on then, with a step of an epoch that is over.
void TryStaleWorker(const AwaitingFront& front, ServerProcess& server, const ScorecardSettings& settings,
                    std::unique_ptr<ChildProcess>* worker, Refusals* refusals) {
  const auto client = server.Connect(), caller = server.Connect(kOneAttempt);
  CheckedLoad load(caller.get(), settings.checkpoint(), 2);
  load.WaitForAnswers(20);
  const auto before = OrDie(client->GetStatus());
  (*worker)->Signal(SIGSTOP);
  WaitForLoss(*client, before);
  auto successor = front.StartWorker();
  WaitForNewGroup(*client, before);
  const auto formed = OrDie(client->GetStatus());
  (*worker)->Signal(SIGCONT);
  const SteadyTime begin = Clock::Real().Now();
  while (MicrosBetween(begin, Clock::Real().Now()) < 3'000'000) load.WaitForAnswers(1);
  load.Stop();
  const bool is_undisturbed = OrDie(client->GetStatus()).epoch() == formed.epoch();
  const bool is_right = load.failed() + load.wrong() == 0;
  const std::string log = (*worker)->Log();
  const size_t line = log.rfind("worker] ");
  refusals->Add(absl::StrCat("a stale worker that returns (", load.answered(), " answers, ", load.wrong(), " wrong, ",
                             load.failed(), " lost, epoch ", is_undisturbed ? "unchanged" : "CHANGED", ")"),
                is_undisturbed && is_right, line == std::string::npos ? log : log.substr(line + 8), "");
  *worker = std::move(successor);
}

// ---- Row 13

std::string ReadAll(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// Makes NAME.pem, a self-signed certificate for 127.0.0.1, and NAME.key.
void MakeCertificate(const TemporaryFolder& folder, const std::string& name) {
  const std::string path = (folder / name).string();
  const std::string command =
      absl::StrCat("openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=", name,
                   " -addext subjectAltName=IP:127.0.0.1 -keyout ", path, ".key -out ", path, ".pem 2>/dev/null");
  if (std::system(command.c_str()) != 0) Die(absl::FailedPreconditionError("openssl req failed"));
}

struct Strangers {
  int64_t count = 0;
  int64_t accepted = 0;
  int64_t other_codes = 0;  // refused with neither UNAUTHENTICATED nor, at a handshake, UNAVAILABLE
};

// `num_calls` strangers, ten on each connection.
Strangers TryStrangers(const std::string& address, int64_t num_calls,
                       const std::shared_ptr<grpc::ChannelCredentials>& credentials, grpc::StatusCode expected) {
  Strangers strangers;
  worker::WorkerMessage message;
  message.mutable_hello()->set_local_index(-1);
  std::unique_ptr<worker::WorkerHub::Stub> hub;
  for (; strangers.count < num_calls; ++strangers.count) {
    if (strangers.count % 10 == 0) {
      grpc::ChannelArguments own;
      own.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
      hub = worker::WorkerHub::NewStub(grpc::CreateCustomChannel(address, credentials, own));
    }
    const bool brings_token = strangers.count % 2 == 0;
    const JoinResult result =
        TryToJoin(*hub, message, brings_token ? absl::StrCat("the-wrong-one-number-", strangers.count) : "");
    strangers.accepted += result.is_accepted;
    strangers.other_codes += result.status.error_code() != expected;
  }
  return strangers;
}

void PrintStrangers(const std::string& tried, const Strangers& strangers, const HonestReport& before,
                    const HonestReport& during, Scorecard& card) {
  card.Print(
      13, {.tried = tried,
           .limit = "none accepted",
           .measured = absl::StrCat(strangers.accepted, " of ", strangers.count, " accepted, ", strangers.other_codes,
                                    " refused with another code; ", ShowBoth(before, during)),
           .demands = {{strangers.accepted == 0, "none accepted"},
                       {strangers.other_codes == 0, "the right code"},
                       Unharmed(during)},
           .not_run = ""});
}

void MeasureTokens(const ScorecardSettings& settings, int64_t num_calls, Scorecard& card) {
  const TemporaryFolder folder;
  std::ofstream(folder / "token") << kToken << "\n";
  const std::string flag = absl::StrCat("--worker_token_file=", (folder / "token").string());
  AwaitingFront front(settings, 1, {"--model=m=" + settings.checkpoint(), flag});
  const auto worker = front.StartWorker({flag});
  const ServerProcess& server = front.WaitUntilReady();
  const HonestWork work = GoldenWork("m", settings.checkpoint(), 1, 8);
  HonestCaller honest(server, work, kHonestPeriod);
  const HonestReport before = MeasureCalm(settings, honest);
  const Strangers strangers = TryStrangers(front.worker_address(), num_calls, grpc::InsecureChannelCredentials(),
                                           grpc::StatusCode::UNAUTHENTICATED);
  PrintStrangers(absl::StrCat(num_calls, " strangers at the worker port without the token or with a wrong one"),
                 strangers, before, honest.Take(), card);
}

void MeasureForeignCertificates(const ScorecardSettings& settings, int64_t num_calls, Scorecard& card) {
  const TemporaryFolder folder;
  for (const char* name : {"front", "worker", "stranger"}) MakeCertificate(folder, name);
  const auto flags = [&](const std::string& own, const std::string& peer) -> std::vector<std::string> {
    return {absl::StrCat("--worker_tls_cert=", (folder / (own + ".pem")).string()),
            absl::StrCat("--worker_tls_key=", (folder / (own + ".key")).string()),
            absl::StrCat("--worker_tls_ca=", (folder / (peer + ".pem")).string())};
  };
  std::vector<std::string> front_flags = flags("front", "worker");
  front_flags.push_back("--model=m=" + settings.checkpoint());
  AwaitingFront front(settings, 1, front_flags);
  const auto worker = front.StartWorker(flags("worker", "front"));
  const ServerProcess& server = front.WaitUntilReady();
  const HonestWork work = GoldenWork("m", settings.checkpoint(), 1, 8);
  HonestCaller honest(server, work, kHonestPeriod);
  const HonestReport before = MeasureCalm(settings, honest);
  const Strangers strangers = TryStrangers(front.worker_address(), num_calls,
                                           grpc::SslCredentials({.pem_root_certs = ReadAll(folder / "front.pem"),
                                                                 .pem_private_key = ReadAll(folder / "stranger.key"),
                                                                 .pem_cert_chain = ReadAll(folder / "stranger.pem")}),
                                           grpc::StatusCode::UNAVAILABLE);
  PrintStrangers(absl::StrCat(num_calls,
                              " strangers at the worker port under mutual TLS, with a certificate that it "
                              "does not trust"),
                 strangers, before, honest.Take(), card);
}

// Gives the server the certificate `name`, as an operator does: by renaming other files over those in use.
void Rotate(const TemporaryFolder& folder, const std::string& name) {
  for (const std::string end : {".pem", ".key"}) {
    fs::copy_file(folder / (name + end), folder / ("new" + end), fs::copy_options::overwrite_existing);
    fs::rename(folder / ("new" + end), folder / ("live" + end));
  }
}

void MeasureRotation(const ScorecardSettings& settings, Scorecard& card) {
  const int64_t num_rotations = settings.Size(100, 5);
  const TemporaryFolder folder;
  for (const char* name : {"one", "two"}) MakeCertificate(folder, name);
  std::ofstream(folder / "roots.pem") << ReadAll(folder / "one.pem") << ReadAll(folder / "two.pem");
  Rotate(folder, "one");
  const auto server = StartServer(settings, {absl::StrCat("--tls_cert=", (folder / "live.pem").string()),
                                             absl::StrCat("--tls_key=", (folder / "live.key").string())});
  ClientOptions options = kOneAttempt;
  options.tls_ca = (folder / "roots.pem").string();
  const auto connect = [&](const std::string& roots) {
    options.tls_ca = (folder / (roots + ".pem")).string();
    return OrDie(Client::Connect(server->grpc_address(), options));
  };
  const auto caller = connect("roots");
  CheckedLoad load(caller.get(), settings.checkpoint(), 4);
  int64_t old_certificates = 0;
  for (int64_t i = 0; i < num_rotations; ++i) {
    load.WaitForAnswers(50);
    const std::string name = i % 2 == 0 ? "two" : "one";
    Rotate(folder, name);
    // A caller that trusts the new certificate alone.
    old_certificates += !connect(name)->GetStatus().ok();
  }
  load.Stop();
  card.Print(
      13, {.tried = absl::StrCat("the certificate of the gRPC port replaced ", num_rotations,
                                 " times under the load of four callers"),
           .limit = "rotation drops no call",
           .measured = absl::StrCat(load.answered(), " answers, ", load.wrong(), " wrong, ", load.failed(), " lost; ",
                                    old_certificates,
                                    " new connections that did not get the new "
                                    "certificate"),
           .demands = {{load.failed() + load.wrong() == 0, absl::StrCat("no call dropped: ", load.first_failure())},
                       {old_certificates == 0, "the new certificate at once"}},
           .not_run = ""});
}

}  // namespace

void MeasureRefusedWorkers(const ScorecardSettings& settings, Scorecard& card) {
  const TemporaryFolder folder;
  const fs::path checkpoint = folder / "checkpoint";
  fs::copy(settings.checkpoint(), checkpoint, fs::copy_options::recursive);
  AwaitingFront front(settings, 2, {"--model=m=" + checkpoint.string()});
  const auto first = front.StartWorker();
  auto second = front.StartWorker();
  ServerProcess& server = front.WaitUntilReady();
  Refusals refusals;
  TryFalseHellos(front, server, &refusals);
  TryOtherShape(front, server, settings, checkpoint, &second, &refusals);
  TryStaleWorker(front, server, settings, &second, &refusals);
  card.Print(12, {.tried = "workers of another version, build, exchange and shape; one too many; a stale worker that "
                           "returns under load, with a step of an epoch that is over",
                  .limit = kRefusedLimit,
                  .measured = absl::StrJoin(refusals.reasons, "; "),
                  .demands = refusals.demands,
                  .not_run = ""});
}

void MeasureStrangers(const ScorecardSettings& settings, Scorecard& card) {
  MeasureTokens(settings, settings.Size(8000, 300), card);
  MeasureForeignCertificates(settings, settings.Size(2000, 100), card);
  MeasureRotation(settings, card);
}

}  // namespace switchyard
