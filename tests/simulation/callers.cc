#include "tests/simulation/callers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/tensor/convert.h"

namespace switchyard::simulation {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// A timer may fire so much late, and what it does may take so long.
constexpr Nanos kPromptness = milliseconds(5);

std::vector<float> RowsOf(int64_t request, int64_t num_elements) {
  std::vector<float> values(num_elements);
  for (int64_t i = 0; i < num_elements; ++i) {
    values[i] = static_cast<float>(Mix(static_cast<uint64_t>(request * 100'003 + i)) % 64) / 8 - 4;
  }
  return values;
}

// The rows as they came over the wire, in one or two chunks.
ChunkedRows ToChunks(const std::vector<float>& values, DType dtype, Random& random) {
  auto bytes = std::make_shared<std::vector<std::byte>>(values.size() * SizeOf(dtype));
  ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(values.data()), dtype, bytes->data(), values.size());
  const std::span<const std::byte> all(*bytes);
  const auto cut = static_cast<size_t>(random.Below(static_cast<int64_t>(all.size())));
  if (cut == 0) return ChunkedRows({all}, bytes);
  return ChunkedRows({all.first(cut), all.subspan(cut)}, bytes);
}

std::vector<float> ValuesOf(const Request& request) {
  std::vector<std::byte> bytes;
  for (const OutputPart& part : request.outcome.output) bytes.insert(bytes.end(), part.bytes.begin(), part.bytes.end());
  std::vector<float> values(bytes.size() / SizeOf(request.ask.dtype));
  ConvertElements(request.ask.dtype, bytes.data(), DType::kF32, reinterpret_cast<std::byte*>(values.data()),
                  values.size());
  return values;
}

}  // namespace

Callers::~Callers() {
  for (const auto& call : calls_) call->request = nullptr;
}

std::shared_ptr<Callers::Call> Callers::Make(const std::shared_ptr<ServedModel>& model, int64_t num_rows) {
  Random& random = loop_->random();
  auto call = std::make_shared<Call>();
  call->id = static_cast<int64_t>(calls_.size());
  call->model = model->id;
  call->version = front_->version_of(*model);
  call->layer_idx = static_cast<int>(random.Below(static_cast<int64_t>(model->layers.size())));
  call->spec = model->layers[call->layer_idx]->spec;
  call->values = RowsOf(call->id, num_rows * call->spec.hidden_dim);
  call->request = std::make_shared<Request>();
  call->weak = call->request;
  RequestAsk& ask = call->request->ask;
  ask.layer = ShareLayer(model, call->layer_idx);
  ask.num_rows = num_rows;
  ask.top_k = call->spec.gate.top_k;
  ask.holder = std::make_shared<const Holder>(Holder{"sender", ""});
  calls_.push_back(call);
  return call;
}

// What a caller may ask for besides.
void Callers::Adorn(Call& call) {
  Random& random = loop_->random();
  RequestAsk& ask = call.request->ask;
  const std::string client = absl::StrCat(random.Below(3));
  ask.client = client;
  ask.holder = std::make_shared<const Holder>(Holder{absl::StrCat("sender ", client), client});
  ask.priority = static_cast<Priority>(random.In(1, kNumPriorities));
  if (random.Chance(20)) ask.dtype = DType::kF64;
  if (random.Chance(10)) ask.top_k = 1;
  if (random.Chance(20)) ask.return_routing = true;
  if (random.Chance(15)) ask.timeout_us = random.In(1'000, 3'000'000);
  if (random.Chance(15)) ask.queue_timeout = microseconds(random.In(1'000, 2'000'000));
  if (!random.Chance(options_.percent_poisoned)) return;
  const float poison = random.Chance(34) ? kGatePoison : random.Chance(50) ? kStepPoison : kDeadlyPoison;
  call.values[random.Below(ask.num_rows) * call.spec.hidden_dim] = poison;
  if (poison == kGatePoison) ++num_gate_poisons_;
}

void Callers::SendWithin(int count, Nanos span) {
  num_to_send_ += count;
  for (int i = 0; i < count; ++i) {
    loop_->After(Nanos(loop_->random().Below(span.count())), [this] { front_->Run([this] { SendRandom(); }); });
  }
}

void Callers::SendRandom() {
  --num_to_send_;
  Random& random = loop_->random();
  const std::shared_ptr<ServedModel> model = random.Of(front_->checkpoints()).loaded;
  if (model == nullptr) return;  // the caller is told so at once
  const auto call = Make(model, random.Chance(60) ? random.In(1, 3) : random.In(1, options_.max_rows));
  Adorn(*call);
  Submit(call);
  if (!random.Chance(15) || call->num_ends > 0) return;
  loop_->After(random.Delay(milliseconds(20)), [this, call] {
    front_->Run([this, call] {
      if (call->num_ends > 0) return;
      call->was_cancelled = true;
      front_->Cancel(call->request);
      if (call->num_ends == 0) fail_(absl::StrCat("request ", call->id, " was cancelled and has not ended"));
    });
  });
}

void Callers::SendPlain(Checkpoint& checkpoint, int64_t num_rows) {
  const auto call = Make(checkpoint.loaded, num_rows);
  call->is_kept = true;
  Submit(call);
}

void Callers::Submit(const std::shared_ptr<Call>& call) {
  call->formations_before = front_->num_formations();
  RequestAsk& ask = call->request->ask;
  call->request->progress.rows = ToChunks(call->values, ask.dtype, loop_->random());
  ask.done = [this, call](const absl::Status& status) { End(call, status); };
  ++num_open_;
  loop_->Note("request", call->id, ask.num_rows);
  const absl::Status submitted =
      front_->Submit(call->request, static_cast<int64_t>(call->values.size() * SizeOf(ask.dtype)));
  if (submitted.ok()) return;
  --num_open_;
  ++call->num_ends;
  call->request = nullptr;
  ++counts_[static_cast<size_t>(submitted.code())];
  const bool may_be = absl::IsResourceExhausted(submitted) || (absl::IsUnavailable(submitted) && front_->is_draining());
  if (!may_be) fail_(absl::StrCat("request ", call->id, " was refused: ", submitted.ToString()));
}

void Callers::End(const std::shared_ptr<Call>& call, const absl::Status& status) {
  if (++call->num_ends > 1) return fail_(absl::StrCat("request ", call->id, " ended twice"));
  loop_->Note("answer", call->id, static_cast<int64_t>(status.code()));
  ++counts_[static_cast<size_t>(status.code())];
  call->status = status;
  --num_open_;
  ++num_unread_;
  CheckStatus(*call);
  if (status.ok()) CheckRows(*call, "when it came");
  if (call->is_kept) return;
  loop_->After(loop_->random().Delay(options_.slowest_reader), [this, call] { Read(call); });
}

void Callers::LetGo() {
  for (const auto& call : calls_) {
    if (call->is_kept && call->num_ends > 0) Read(call);
  }
}

// The caller has read its answer, which must still be what it was.
void Callers::Read(const std::shared_ptr<Call>& call) {
  if (call->request == nullptr) return;
  if (call->status.ok()) CheckRows(*call, "when it was read");
  --num_unread_;
  call->request->ask.done = nullptr;  // holds the call
  call->request = nullptr;
}

void Callers::CheckStatus(const Call& call) {
  const absl::Status& status = call.status;
  const RequestAsk& ask = call.request->ask;
  const SteadyTime now = loop_->now();
  const SteadyTime latest = std::max(ask.answer_by, front_->last_continued());
  if (ask.answer_by != SteadyTime::max() && now > latest + kPromptness) {
    fail_(absl::StrCat("request ", call.id, " ended ", MicrosBetween(ask.answer_by, now), " us after its time limit"));
  }
  const SteadyTime leaves_by = std::max(ask.arrival + ask.queue_timeout, front_->last_continued());
  if (absl::StrContains(status.message(), "queue timeout") && now > leaves_by + kPromptness) {
    fail_(absl::StrCat("request ", call.id, " left the queue ", MicrosBetween(leaves_by, now), " us too late"));
  }
  bool may_be = false;
  switch (status.code()) {
    case absl::StatusCode::kOk:
      may_be = true;
      break;
    case absl::StatusCode::kDeadlineExceeded: {
      const int64_t waited = MicrosBetween(ask.arrival, now);
      may_be = (ask.queue_timeout.count() > 0 && waited >= ask.queue_timeout.count()) ||
               (ask.timeout_us > 0 && waited >= ask.timeout_us / 2);
      break;
    }
    case absl::StatusCode::kCancelled:
      may_be = call.was_cancelled;
      break;
    case absl::StatusCode::kUnavailable:
      may_be =
          absl::StrContains(status.message(), "was lost") ? front_->was_abandoned(call.model) : front_->is_draining();
      break;
    case absl::StatusCode::kInternal:
      may_be = absl::StrContains(status.message(), "the gate cannot take")
                   ? num_gate_poisons_ > 0
                   : front_->num_formations() - call.formations_before >= options_.max_submissions;
      break;
    default:
      break;
  }
  if (!may_be) fail_(absl::StrCat("request ", call.id, " ended with ", status.ToString()));
}

void Callers::CheckRows(const Call& call, const char* when) {
  const RequestAsk& ask = call.request->ask;
  const int64_t width = call.spec.hidden_dim;
  const std::vector<float> values = ValuesOf(*call.request);
  if (values.size() != call.values.size()) {
    return fail_(absl::StrCat("the answer of request ", call.id, " has ", values.size(), " elements ", when,
                              ", expected ", call.values.size()));
  }
  for (int64_t row = 0; row < ask.num_rows; ++row) {
    const std::span<const float> in(call.values.data() + row * width, width);
    if (in[0] >= kGatePoison) fail_(absl::StrCat("poison was answered by request ", call.id));
    const std::vector<double> right = RightAnswer(call.version, call.layer_idx, call.spec, ask.top_k, in);
    for (int64_t d = 0; d < width; ++d) {
      const float found = values[row * width + d];
      if (std::abs(found - right[d]) <= 1e-4) continue;
      return fail_(absl::StrCat("row ", row, " of request ", call.id, " is wrong ", when, ": element ", d, " is ",
                                found, ", expected ", right[d]));
    }
  }
}

int Callers::NumLeaked() const {
  return static_cast<int>(std::count_if(calls_.begin(), calls_.end(), [](const auto& call) {
    return call->request == nullptr && !call->weak.expired();
  }));
}

std::string Callers::Describe() const {
  std::string text = absl::StrCat(num_open_, " requests are open, ", num_unread_, " answers are unread:");
  for (const auto& call : calls_) {
    if (call->num_ends == 0) absl::StrAppend(&text, " ", call->id, " of model ", call->model.value);
  }
  return text;
}

}  // namespace switchyard::simulation
