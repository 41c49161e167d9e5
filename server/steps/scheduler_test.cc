#include "server/steps/scheduler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <random>

#include "base/notification.h"
#include "base/tensor/convert.h"
#include "moe/plan/plan_codec.h"

namespace switchyard {
namespace {

using std::chrono::milliseconds;

constexpr int64_t kDim = 4;
constexpr int kExperts = 6;
constexpr int kTopK = 2;
constexpr int64_t kMaxBatchRows = 16;
constexpr int kSpares = 4;

// Expert e multiplies rows by e + 1. A row's first element determines its experts.
int FirstExpert(float value) { return static_cast<int>(value) % kExperts; }
int SecondExpert(float value) { return (FirstExpert(value) + 1 + static_cast<int>(value) % (kExperts - 1)) % kExperts; }
float Factor(float value) { return 0.75f * (FirstExpert(value) + 1) + 0.25f * (SecondExpert(value) + 1); }

// A row that keeps its gate busy until the gate is released.
constexpr float kHeldRow = 1000;
struct GateHold {
  Notification entered, release;
};

class ModuloGate final : public Gate {
 public:
  // Rows of kHeldRow wait for `hold`, rows of `second_value` for `second`.
  ModuloGate(GateHold* hold, const std::atomic<float>* second_value, GateHold* second)
      : hold_(hold), second_value_(second_value), second_(second) {}
  bool Accepts(DType dtype) const override { return dtype == DType::kF32; }
  absl::Status Route(ConstMatrixView rows, int64_t first_row, int top_k, Routing* routing, ScoreStats* stats) override {
    for (int64_t i = 0; i < rows.num_rows; ++i) {
      float value;
      std::memcpy(&value, rows.row(i), sizeof(value));
      if (value == kHeldRow) Hold(hold_);
      if (value == second_value_->load()) Hold(second_);
      if (value < 0) return absl::InternalError("a row the gate cannot take");
      for (int choice = 0; choice < routing->top_k; ++choice) {
        const int64_t at = (first_row + i) * routing->top_k + choice;
        routing->expert_idx[at] = choice >= top_k ? -1 : choice == 0 ? FirstExpert(value) : SecondExpert(value);
        routing->weight[at] = choice >= top_k ? 0.0f : choice == 0 ? 0.75f : 0.25f;
      }
      if (stats == nullptr) continue;
      stats->best_score[first_row + i] = 0.75f;
      stats->score_sum[FirstExpert(value)] += 0.75;
      stats->score_sum[SecondExpert(value)] += 0.25;
    }
    return absl::OkStatus();
  }

 private:
  static void Hold(GateHold* hold) {
    hold->entered.Notify();
    hold->release.WaitForNotification();
  }

  GateHold* const hold_;
  const std::atomic<float>* const second_value_;
  GateHold* const second_;
};

// A group without worker processes. Once every rank has its part of a step, the group's thread follows the plans to the
// letter, and answers for every rank.
class FakeGroup {
 public:
  enum class Mode { kServe, kSwallow, kFail };

  FakeGroup(Epoch epoch, Mode mode, std::vector<LinkBuffers*> links, const Placement* placement, Scheduler* scheduler)
      : epoch_(epoch), mode_(mode), links_(std::move(links)), placement_(placement), scheduler_(scheduler) {
    thread_ = std::thread([this] { Loop(); });
  }
  ~FakeGroup() { Retire(); }

  // Runs no further step. Real workers likewise have left an epoch before the next one forms, because they take part in
  // forming it.
  void Retire() {
    {
      MutexLock lock(&mu_);
      stop_ = true;
      changed_.SignalAll();
    }
    if (thread_.joinable()) thread_.join();
  }

  std::vector<std::shared_ptr<LinkConnection>> connections() {
    std::vector<std::shared_ptr<LinkConnection>> connections;
    for (size_t rank = 0; rank < links_.size(); ++rank) {
      connections.push_back(std::make_shared<Connection>(this, static_cast<int>(rank)));
    }
    return connections;
  }

  int num_submitted() {
    MutexLock lock(&mu_);
    return num_submitted_;
  }
  void WaitForSubmissions(int count) {
    MutexLock lock(&mu_);
    while (num_submitted_ < count) changed_.Wait(&mu_);
  }

 private:
  class Connection final : public LinkConnection {
   public:
    Connection(FakeGroup* group, int rank) : group_(group), rank_(rank) {}
    absl::Status Submit(const StepSubmission& step) override {
      group_->Take(rank_, step.message);
      return absl::OkStatus();
    }

   private:
    FakeGroup* const group_;
    const int rank_;
  };

  void Take(int rank, const StepMessage& message) {
    MutexLock lock(&mu_);
    EXPECT_EQ(message.epoch, epoch_);
    if (rank == 0) incoming_.clear();
    incoming_.push_back(message);
    if (rank < static_cast<int>(links_.size()) - 1) return;
    ++num_submitted_;
    if (mode_ != Mode::kSwallow) steps_.push_back(incoming_);
    changed_.SignalAll();
  }

  void Loop() {
    while (true) {
      std::vector<StepMessage> step;  // by rank
      {
        MutexLock lock(&mu_);
        while (steps_.empty() && !stop_) changed_.Wait(&mu_);
        if (stop_) return;
        step = steps_.front();
        steps_.pop_front();
      }
      absl::Status status = mode_ == Mode::kFail ? absl::UnavailableError("peer gone") : RunStep(step);
      for (size_t rank = 0; rank < links_.size(); ++rank) {
        scheduler_->OnResult(static_cast<int>(rank), {step[rank].epoch, step[rank].step_id, {}, status}, nullptr);
      }
    }
  }

  absl::Status RunStep(const std::vector<StepMessage>& messages) {
    const StepMessage& step = messages[0];
    const int num_ranks = static_cast<int>(links_.size());
    std::vector<RankPlanView> plans;
    for (int rank = 0; rank < num_ranks; ++rank) {
      const auto plan = DecodeRankPlan(
          {links_[rank]->plan(step.slot), static_cast<size_t>(messages[rank].plan_bytes)},
          {num_ranks, static_cast<int>(placement_->experts_of(rank).size()), kMaxBatchRows, kMaxBatchRows});
      EXPECT_TRUE(plan.ok()) << plan.status();
      plans.push_back(*plan);
      std::fill_n(Rows(links_[rank]->output(step.output)), plan->num_home_rows * kDim, 0.0f);
    }
    for (int destination = 0; destination < num_ranks; ++destination) {
      const RankPlanView& plan = plans[destination];
      for (int slot = 0; slot < plan.num_slots(); ++slot) {
        const int expert = placement_->experts_of(destination)[slot];
        for (int32_t pair = plan.expert_offsets[slot]; pair < plan.expert_offsets[slot + 1]; ++pair) {
          AddPair(step, plans, destination, plan.pair_rows[pair], plan.pair_weights[pair] * (expert + 1));
        }
      }
    }
    return absl::OkStatus();
  }

  // Follows one received row back to its home rank, and adds the expert's part of the output there.
  void AddPair(const StepMessage& step, const std::vector<RankPlanView>& plans, int destination, int32_t recv_row,
               float factor) {
    int source = 0;
    while (recv_row >= plans[destination].recv_offsets[source + 1]) ++source;
    const int32_t sent = recv_row - plans[destination].recv_offsets[source];
    const int32_t home = plans[source].send_rows[plans[source].send_offsets[destination] + sent];
    const float* in = Rows(links_[source]->input(step.slot)) + home * kDim;
    float* out = Rows(links_[source]->output(step.output)) + home * kDim;
    for (int64_t i = 0; i < kDim; ++i) out[i] += factor * in[i];
  }

  static float* Rows(std::byte* bytes) { return reinterpret_cast<float*>(bytes); }

  const Epoch epoch_;
  const Mode mode_;
  const std::vector<LinkBuffers*> links_;
  const Placement* const placement_;
  Scheduler* const scheduler_;
  Mutex mu_;
  CondVar changed_;
  std::vector<StepMessage> incoming_ ABSL_GUARDED_BY(mu_);  // the ranks' parts of the step being submitted
  std::deque<std::vector<StepMessage>> steps_ ABSL_GUARDED_BY(mu_);
  int num_submitted_ ABSL_GUARDED_BY(mu_) = 0;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// The output of an answered request, whose parts must follow one another without gaps.
std::vector<std::byte> BytesOf(const Request& request) {
  std::vector<std::byte> bytes;
  const size_t row_bytes = kDim * SizeOf(request.ask.dtype);
  for (const OutputPart& part : request.outcome.output) {
    EXPECT_EQ(part.begin_row * row_bytes, bytes.size());
    bytes.insert(bytes.end(), part.bytes.begin(), part.bytes.end());
  }
  EXPECT_EQ(bytes.size(), request.ask.num_rows * row_bytes);
  return bytes;
}

template <typename T>
std::vector<T> ValuesOf(const Request& request) {
  const std::vector<std::byte> bytes = BytesOf(request);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

// A request with its rows, its output, and a notification of its answer.
struct Call {
  std::shared_ptr<Request> request = std::make_shared<Request>();
  std::vector<float> values;
  Notification answered;
  absl::Status status;

  void ExpectRightAnswer() {
    answered.WaitForNotification();
    ASSERT_TRUE(status.ok()) << status;
    std::vector<float> output(values.size());
    const std::vector<std::byte> bytes = BytesOf(*request);
    ASSERT_EQ(bytes.size(), values.size() * SizeOf(request->ask.dtype));
    ConvertElements(request->ask.dtype, bytes.data(), DType::kF32, reinterpret_cast<std::byte*>(output.data()),
                    values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      const float first = values[i / kDim * kDim];
      ASSERT_NEAR(output[i], values[i] * Factor(first), 0.02f * std::abs(output[i])) << "element " << i;
    }
  }
};

class SchedulerTest : public testing::Test {
 protected:
  void Start(int num_ranks, int max_submissions = 8) {
    SchedulerOptions options;
    options.batcher.max_batch_rows = kMaxBatchRows;
    options.num_ranks = num_ranks;
    options.num_slots = 2;
    options.max_submissions = max_submissions;
    options.answers.min_lent_bytes = min_lent_bytes_;
    options.max_inline_rows = max_inline_rows_;
    options.max_lone_inline_rows = 4;
    options.answers.num_threads = 3;
    options.answers.min_shared_answers = 2;
    options.builder.num_threads = 2;
    options.builder.copy_task_bytes = 3 * kDim * sizeof(float);
    options.threads = threads_;
    options.batcher.max_queue_delay = max_queue_delay_;
    if (threads_ == Threads::kNone) options.builder.num_threads = options.answers.num_threads = 1;
    LayerSpec spec;
    spec.name = "0";
    spec.hidden_dim = kDim;
    spec.num_experts = kExperts;
    spec.gate.top_k = kTopK;
    std::vector<std::unique_ptr<Gate>> gates;
    gates.push_back(std::make_unique<ModuloGate>(&gate_hold_, &second_hold_value_, &second_hold_));
    const auto model = std::make_shared<ServedModel>();
    model->layers.push_back(std::unique_ptr<ServedLayer>(new ServedLayer{
        LayerId{0}, "m", spec, std::move(gates), {FirstPlacement(Placement::Even(kExperts, num_ranks))}}));
    layer_ = ShareLayer(model, 0);
    const size_t row_bytes = kMaxBatchRows * kDim * sizeof(float);
    const LinkLayout layout = LinkLayout::For(
        2, row_bytes, MaxEncodedSize(num_ranks, kExperts, kTopK, kMaxBatchRows, kMaxBatchRows), row_bytes, kSpares);
    for (int rank = 0; rank < num_ranks; ++rank) {
      owned_links_.push_back(*LinkBuffers::Create(layout));
      links_.push_back(owned_links_.back().get());
    }
    metrics_ = std::make_unique<Metrics>();
    metrics_->AddLayer(*layer_);
    scheduler_ = std::make_unique<Scheduler>(options, links_, metrics_.get(), *clock_,
                                             [this](Epoch epoch, int, const absl::Status&) {
                                               MutexLock lock(&mu_);
                                               broken_.push_back(epoch);
                                               broken_changed_.SignalAll();
                                             });
  }

  std::unique_ptr<FakeGroup> Form(int64_t epoch, FakeGroup::Mode mode) {
    auto group = std::make_unique<FakeGroup>(Epoch{epoch}, mode, links_, &layer_->on_group.current_placement(),
                                             scheduler_.get());
    scheduler_->GroupFormed(Epoch{epoch}, group->connections());
    return group;
  }

  void WaitUntilBroken(int64_t epoch) {
    MutexLock lock(&mu_);
    while (broken_.empty() || broken_.back() != Epoch{epoch}) broken_changed_.Wait(&mu_);
  }

  using Setup = std::function<void(Request&)>;
  std::unique_ptr<Call> Send(int64_t num_rows, DType dtype = DType::kF32, const Setup& setup = nullptr) {
    auto call = std::make_unique<Call>();
    call->request->ask.top_k = kTopK;
    if (setup != nullptr) setup(*call->request);
    for (int64_t i = 0; i < num_rows * kDim; ++i) call->values.push_back(static_cast<float>(random_() % 64));
    auto bytes = std::make_shared<std::vector<std::byte>>(num_rows * kDim * SizeOf(dtype));
    ConvertElements(DType::kF32, reinterpret_cast<const std::byte*>(call->values.data()), dtype, bytes->data(),
                    call->values.size());
    Enqueue(call.get(), bytes, num_rows, dtype);
    return call;
  }

  std::unique_ptr<Call> SendRow(float value) { return SendRows(value, 1); }

  // The first row consists of `value`s, the rows below it of ones.
  std::unique_ptr<Call> SendRows(float value, int64_t num_rows) {
    auto call = std::make_unique<Call>();
    call->request->ask.top_k = kTopK;
    call->values.assign(num_rows * kDim, 1);
    std::fill_n(call->values.begin(), kDim, value);
    auto bytes = std::make_shared<std::vector<std::byte>>(call->values.size() * sizeof(float));
    std::memcpy(bytes->data(), call->values.data(), bytes->size());
    Enqueue(call.get(), bytes, num_rows, DType::kF32);
    return call;
  }

  void Enqueue(Call* call, const std::shared_ptr<std::vector<std::byte>>& bytes, int64_t num_rows, DType dtype) {
    Request& request = *call->request;
    request.ask.layer = layer_;
    request.ask.dtype = dtype;
    request.ask.num_rows = num_rows;
    request.ask.arrival = clock_->Now();
    request.progress.rows = ChunkedRows({std::span<const std::byte>(*bytes)}, bytes);
    request.ask.done = [call](absl::Status status) {
      call->status = std::move(status);
      call->answered.Notify();
    };
    scheduler_->Enqueue(call->request);
  }

  // The number of the answer's parts that lie in the links' memory.
  int NumLent(const Call& call) const {
    int count = 0;
    for (const OutputPart& part : call.request->outcome.output) {
      for (LinkBuffers* link : links_) {
        const std::byte* const memory = link->input(0);
        count += part.bytes.data() >= memory && part.bytes.data() < memory + link->layout().total_bytes();
      }
    }
    return count;
  }

  std::mt19937 random_{3};
  size_t min_lent_bytes_ = 20 * kDim * sizeof(float);  // some answers are lent, some copied
  const Clock* clock_ = &Clock::Real();
  int64_t max_inline_rows_ = 3;
  Threads threads_ = Threads::kOwn;
  std::chrono::microseconds max_queue_delay_{0};
  GateHold gate_hold_, second_hold_;
  std::atomic<float> second_hold_value_{-1000};
  std::shared_ptr<ServedLayer> layer_;
  std::unique_ptr<Metrics> metrics_;
  std::vector<std::unique_ptr<LinkBuffers>> owned_links_;
  std::vector<LinkBuffers*> links_;
  std::unique_ptr<Scheduler> scheduler_;
  Mutex mu_;
  CondVar broken_changed_;
  std::vector<Epoch> broken_ ABSL_GUARDED_BY(mu_);
};

TEST_F(SchedulerTest, AnswersEveryRequestWhateverItIsBatchedWith) {
  for (int num_ranks : {1, 2, 3}) {
    Start(num_ranks);
    const auto group = Form(1, FakeGroup::Mode::kServe);
    std::vector<std::unique_ptr<Call>> calls;
    const DType dtypes[] = {DType::kF32, DType::kF64, DType::kF16, DType::kBF16};
    for (int i = 0; i < 60; ++i) calls.push_back(Send(1 + random_() % 50, dtypes[i % 4]));
    for (auto& call : calls) call->ExpectRightAnswer();
    EXPECT_EQ(scheduler_->load().queued_rows, 0);
    group->Retire();
    scheduler_.reset();
    links_.clear();
    owned_links_.clear();
  }
}

// The factor that is left for each row when each expert takes `capacity` rows: first choices in row order, then second
// choices.
std::vector<float> FactorsWithin(int capacity, const std::vector<float>& values) {
  std::vector<float> factors(values.size() / kDim, 0.0f);
  std::vector<int> taken(kExperts, 0);
  for (int choice = 0; choice < kTopK; ++choice) {
    for (size_t row = 0; row < factors.size(); ++row) {
      const float value = values[row * kDim];
      const int expert = choice == 0 ? FirstExpert(value) : SecondExpert(value);
      if (taken[expert]++ < capacity) factors[row] += (choice == 0 ? 0.75f : 0.25f) * static_cast<float>(expert + 1);
    }
  }
  return factors;
}

TEST_F(SchedulerTest, CapacityCountsTheRowsOfOneRequestHoweverItIsCut) {
  constexpr int kCapacity = 5;
  Start(2);
  const auto limit = [](Request& request) {
    request.ask.capacity = {.rule = CapacityRule::kFixed, .rows = kCapacity};
    request.ask.return_routing = true;
  };
  const auto before = Send(3), limited = Send(3 * kMaxBatchRows + 2, DType::kF64, limit), after = Send(4);
  const auto group = Form(1, FakeGroup::Mode::kServe);
  before->ExpectRightAnswer();
  after->ExpectRightAnswer();
  limited->answered.WaitForNotification();
  ASSERT_TRUE(limited->status.ok()) << limited->status;
  EXPECT_GE(limited->request->outcome.stats.num_steps, 4);
  const std::vector<float> factors = FactorsWithin(kCapacity, limited->values);
  const std::vector<double> output = ValuesOf<double>(*limited->request);
  std::vector<int> chosen(kExperts, 0);
  for (size_t i = 0; i < limited->values.size(); ++i) {
    ASSERT_NEAR(output[i], limited->values[i] * factors[i / kDim], 1e-4) << "element " << i;
  }
  for (const int32_t expert : limited->request->outcome.routing.expert_idx) {
    if (expert >= 0) ++chosen[expert];
  }
  for (const int rows : chosen) EXPECT_LE(rows, kCapacity);
}

TEST_F(SchedulerTest, RequestsChooseHowManyExpertsTheyWant) {
  Start(2);
  const auto both = Send(5);
  const auto one = Send(5, DType::kF32, [](Request& request) { request.ask.top_k = 1; });
  const auto group = Form(1, FakeGroup::Mode::kServe);
  both->ExpectRightAnswer();
  one->answered.WaitForNotification();
  ASSERT_TRUE(one->status.ok()) << one->status;
  const std::vector<float> output = ValuesOf<float>(*one->request);
  for (size_t i = 0; i < one->values.size(); ++i) {
    const int expert = FirstExpert(one->values[i / kDim * kDim]);
    EXPECT_FLOAT_EQ(output[i], 0.75f * static_cast<float>(expert + 1) * one->values[i]) << "element " << i;
  }
}

TEST_F(SchedulerTest, TheBalanceLossIsOfTheRequestsOwnRows) {
  Start(1);
  const auto stranger = Send(9);
  const auto asked =
      Send(2 * kMaxBatchRows, DType::kF32, [](Request& request) { request.ask.return_balance_loss = true; });
  const auto group = Form(1, FakeGroup::Mode::kServe);
  stranger->ExpectRightAnswer();
  asked->ExpectRightAnswer();
  std::vector<double> scores(kExperts, 0), first(kExperts, 0);
  for (size_t i = 0; i < asked->values.size(); i += kDim) {
    scores[FirstExpert(asked->values[i])] += 0.75;
    scores[SecondExpert(asked->values[i])] += 0.25;
    first[FirstExpert(asked->values[i])] += 1;
  }
  double expected = 0;
  for (int expert = 0; expert < kExperts; ++expert) expected += scores[expert] * first[expert];
  expected *= kExperts / std::pow(2.0 * kMaxBatchRows, 2);
  EXPECT_NEAR(asked->request->outcome.balance_loss, expected, 1e-9);
}

TEST_F(SchedulerTest, StepsLostWithAGroupAreReplayedOnTheNext) {
  Start(2);
  auto dying = Form(1, FakeGroup::Mode::kSwallow);
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 8; ++i) calls.push_back(Send(kMaxBatchRows));
  dying->WaitForSubmissions(2);  // both slots are full
  scheduler_->GroupLost(Epoch{1});
  const auto group = Form(2, FakeGroup::Mode::kServe);
  for (auto& call : calls) call->ExpectRightAnswer();
  EXPECT_EQ(dying->num_submitted(), 2);
  EXPECT_EQ(calls[0]->request->outcome.stats.replays, 1);
  EXPECT_EQ(calls[7]->request->outcome.stats.replays, 0);
}

TEST_F(SchedulerTest, TheOldestStepSaysWhoOwesItAndHowLongItMayTake) {
  FakeClock clock;
  clock_ = &clock;
  Start(2);
  EXPECT_FALSE(scheduler_->oldest_step().has_value());
  auto group = Form(1, FakeGroup::Mode::kSwallow);
  const auto call = Send(3);
  group->WaitForSubmissions(1);
  auto oldest = scheduler_->oldest_step();
  ASSERT_TRUE(oldest.has_value());
  EXPECT_EQ(oldest->owing, (std::vector<int>{0, 1}));
  EXPECT_EQ(oldest->epoch, Epoch{1});
  EXPECT_NE(oldest->what.find("with 3 rows"), std::string::npos) << oldest->what;
  EXPECT_EQ(oldest->limit, StepDurations::kUnknown);
  EXPECT_GT(oldest->limit_of_work, oldest->limit);
  clock.Advance(std::chrono::seconds(7));
  EXPECT_EQ(scheduler_->load().oldest_step, std::chrono::seconds(7));
  scheduler_->OnResult(1, {Epoch{1}, oldest->id, {}, absl::OkStatus()}, nullptr);
  EXPECT_EQ(scheduler_->oldest_step()->owing, std::vector<int>{0});
  scheduler_->GroupLost(Epoch{1});
  EXPECT_FALSE(scheduler_->oldest_step().has_value()) << "no rank owes anything while there is no group";
  EXPECT_EQ(scheduler_->load().oldest_step, std::chrono::seconds(7)) << "but the step is not over";
  group = Form(2, FakeGroup::Mode::kSwallow);
  group->WaitForSubmissions(1);
  EXPECT_EQ(scheduler_->oldest_step()->owing, (std::vector<int>{0, 1}));
  EXPECT_EQ(scheduler_->oldest_step()->limit, 2 * StepDurations::kUnknown) << "it may only be slow";
  scheduler_.reset();  // before its clock and the caller end
}

TEST_F(SchedulerTest, LimitsAreLearnedFromStepsThatEnd) {
  FakeClock clock;
  clock_ = &clock;
  Start(1);
  auto group = Form(1, FakeGroup::Mode::kSwallow);
  const auto slow = Send(3);
  group->WaitForSubmissions(1);
  clock.Advance(std::chrono::seconds(2));
  scheduler_->OnResult(0, {Epoch{1}, scheduler_->oldest_step()->id, {}, absl::OkStatus()}, nullptr);
  slow->answered.WaitForNotification();
  EXPECT_EQ(scheduler_->load().oldest_step.count(), 0);
  const auto next = Send(3);
  group->WaitForSubmissions(2);
  EXPECT_EQ(scheduler_->oldest_step()->limit, std::chrono::seconds(20));
  scheduler_.reset();  // before its clock and the caller end
}

TEST_F(SchedulerTest, AFailedStepBreaksTheGroupAndIsReplayed) {
  Start(2);
  const auto failing = Form(1, FakeGroup::Mode::kFail);
  const auto call = Send(5);
  WaitUntilBroken(1);
  EXPECT_FALSE(call->answered.HasBeenNotified());
  const auto group = Form(2, FakeGroup::Mode::kServe);
  call->ExpectRightAnswer();
}

TEST_F(SchedulerTest, RequestsOfALayerThatNoGroupComputesAnyMoreFail) {
  Start(2);
  auto group = Form(1, FakeGroup::Mode::kSwallow);
  const auto in_flight = Send(3);
  group->WaitForSubmissions(1);
  scheduler_->GroupLost(Epoch{1});
  const auto queued = Send(2);
  scheduler_->FailLayers({LayerId{0}, LayerId{9}}, absl::UnavailableError("lost"));
  auto next = Form(2, FakeGroup::Mode::kServe);
  for (const auto* call : {&in_flight, &queued}) {
    (*call)->answered.WaitForNotification();
    EXPECT_EQ((*call)->status, absl::UnavailableError("lost"));
  }
  scheduler_->DropLayers({LayerId{0}, LayerId{9}});
  const auto later = Send(2);  // only this test uses a LayerId again
  later->answered.WaitForNotification();
  EXPECT_TRUE(later->status.ok()) << later->status;
  EXPECT_EQ(next->num_submitted(), 1);
}

TEST_F(SchedulerTest, ResultsOfAnOlderEpochAreDropped) {
  Start(1);
  const auto swallowing = Form(1, FakeGroup::Mode::kSwallow);
  const auto call = Send(3);
  swallowing->WaitForSubmissions(1);
  scheduler_->GroupLost(Epoch{1});
  const auto second = Form(2, FakeGroup::Mode::kSwallow);
  second->WaitForSubmissions(1);
  scheduler_->OnResult(0, {Epoch{1}, StepId{1}, {}, absl::OkStatus()}, nullptr);
  EXPECT_FALSE(call->answered.HasBeenNotified());
  scheduler_->GroupLost(Epoch{2});
  const auto third = Form(3, FakeGroup::Mode::kServe);
  call->ExpectRightAnswer();
}

TEST_F(SchedulerTest, AStepThatBreaksEveryGroupFailsInTheEnd) {
  Start(1, /*max_submissions=*/3);
  const auto call = Send(2);
  std::vector<std::unique_ptr<FakeGroup>> groups;
  for (int64_t epoch = 1; epoch <= 3; ++epoch) {
    groups.push_back(Form(epoch, FakeGroup::Mode::kFail));
    WaitUntilBroken(epoch);
  }
  groups.push_back(Form(4, FakeGroup::Mode::kFail));
  call->answered.WaitForNotification();
  EXPECT_TRUE(absl::IsInternal(call->status)) << call->status;
  groups.push_back(Form(5, FakeGroup::Mode::kServe));
  Send(4)->ExpectRightAnswer();
}

TEST_F(SchedulerTest, ACancelledRequestLeavesTheQueueAtOnce) {
  Start(1);
  const auto call = Send(9);
  EXPECT_EQ(scheduler_->load().queued_rows, 9);
  scheduler_->Cancel(call->request, absl::CancelledError("gone"));
  EXPECT_TRUE(absl::IsCancelled(call->status));
  EXPECT_EQ(scheduler_->load().queued_rows, 0);
  const auto group = Form(1, FakeGroup::Mode::kServe);
  Send(2)->ExpectRightAnswer();
  EXPECT_EQ(group->num_submitted(), 1) << "the cancelled rows were never dispatched";
}

TEST_F(SchedulerTest, ARequestThatExpiresInTheQueueEndsAtOnceAndIsNeverDispatched) {
  Start(1);
  const auto stays = Send(3, DType::kF32, [](Request& request) { request.ask.priority = Priority::kHigh; });
  std::vector<std::unique_ptr<Call>> calls;
  for (int i = 0; i < 20; ++i) {
    calls.push_back(Send(9, DType::kF32, [&](Request& request) {
      const auto wait = milliseconds(1 + i);
      if (i % 2 == 0) {
        request.ask.deadline = clock_->Now() + wait;
      } else {
        request.ask.queue_timeout = wait;
      }
    }));
  }
  int num_prompt = 0;
  for (int i = 0; i < 20; ++i) {
    calls[i]->answered.WaitForNotification();
    const auto late = clock_->Now() - calls[i]->request->ask.arrival - milliseconds(1 + i);
    num_prompt += late < milliseconds(50);
    EXPECT_TRUE(absl::IsDeadlineExceeded(calls[i]->status)) << calls[i]->status;
  }
  EXPECT_GE(num_prompt, 10) << "of 20";  // this process may have to wait for a core
  EXPECT_EQ(scheduler_->load().queued_rows, 3);
  EXPECT_EQ(scheduler_->load().queued_rows_by_priority, (std::array<int64_t, 3>{3, 0, 0}));
  const auto group = Form(1, FakeGroup::Mode::kServe);
  stays->ExpectRightAnswer();
  EXPECT_EQ(group->num_submitted(), 1);
}

TEST_F(SchedulerTest, RequestsExpireWhileTheDispatcherIsBusy) {
  Start(1);
  const auto group = Form(1, FakeGroup::Mode::kServe);
  std::unique_ptr<Call> held;
  std::thread sender([&] { held = SendRow(kHeldRow); });  // its thread may have to dispatch the row
  gate_hold_.entered.WaitForNotification();
  const auto expires = Send(1, DType::kF32, [](Request& request) { request.ask.queue_timeout = milliseconds(5); });
  expires->answered.WaitForNotification();
  EXPECT_TRUE(absl::IsDeadlineExceeded(expires->status)) << expires->status;
  gate_hold_.release.Notify();
  sender.join();
  held->ExpectRightAnswer();
}

TEST_F(SchedulerTest, TheDispatcherTakesNothingExpiredHoweverLateTheTimerIs) {
  FakeClock clock;  // wakes no thread when it advances
  clock_ = &clock;
  Start(1);
  const auto expires =
      Send(5, DType::kF32, [](Request& request) { request.ask.queue_timeout = std::chrono::hours(1); });
  const auto stays = Send(2);
  clock.Advance(std::chrono::hours(1));
  const auto group = Form(1, FakeGroup::Mode::kServe);
  expires->answered.WaitForNotification();
  EXPECT_TRUE(absl::IsDeadlineExceeded(expires->status)) << expires->status;
  stays->ExpectRightAnswer();
  EXPECT_EQ(stays->request->outcome.stats.num_steps, 1);
  EXPECT_EQ(group->num_submitted(), 1);
  group->Retire();
  scheduler_.reset();  // before its clock ends
}

TEST_F(SchedulerTest, WhatCannotBeAnsweredInTimeIsNotComputed) {
  FakeClock clock;
  clock_ = &clock;
  Start(1);
  const auto first = Form(1, FakeGroup::Mode::kServe);
  std::unique_ptr<Call> held;
  std::thread sender([&] { held = SendRow(kHeldRow); });
  gate_hold_.entered.WaitForNotification();
  clock.Advance(milliseconds(100));  // the time that steps take
  gate_hold_.release.Notify();
  sender.join();
  held->ExpectRightAnswer();
  scheduler_->GroupLost(Epoch{1});
  const auto late =
      Send(5, DType::kF32, [&](Request& request) { request.ask.deadline = clock.Now() + milliseconds(150); });
  const auto stays =
      Send(2, DType::kF32, [&](Request& request) { request.ask.deadline = clock.Now() + milliseconds(300); });
  clock.Advance(milliseconds(80));
  const auto second = Form(2, FakeGroup::Mode::kServe);
  late->answered.WaitForNotification();
  EXPECT_TRUE(absl::IsDeadlineExceeded(late->status)) << late->status;
  stays->ExpectRightAnswer();
  EXPECT_EQ(second->num_submitted(), 1);
  first->Retire();
  second->Retire();
  scheduler_.reset();  // before its clock ends
}

TEST_F(SchedulerTest, WithoutThreadsItsOwnerDispatchesAndRunsTimers) {
  FakeClock clock;
  clock_ = &clock;
  threads_ = Threads::kNone;
  max_queue_delay_ = milliseconds(5);
  Start(1);
  const Scheduler::Load idle = scheduler_->load();
  const auto expires = Send(2, DType::kF32, [](Request& request) { request.ask.queue_timeout = milliseconds(20); });
  EXPECT_EQ(scheduler_->timer_due(), clock.Now() + milliseconds(20));
  clock.Advance(milliseconds(20));
  scheduler_->RunTimers();
  EXPECT_TRUE(absl::IsDeadlineExceeded(expires->status)) << expires->status;
  EXPECT_EQ(scheduler_->timer_due(), SteadyTime::max());

  auto group = Form(1, FakeGroup::Mode::kSwallow);
  const auto call = Send(2);
  EXPECT_LE(scheduler_->dispatch_due(), clock.Now()) << "it was woken";
  scheduler_->DispatchOnce();
  EXPECT_EQ(group->num_submitted(), 0) << "the rows wait for others to join them";
  EXPECT_EQ(scheduler_->dispatch_due(), clock.Now() + milliseconds(5));
  clock.Advance(milliseconds(5));
  scheduler_->DispatchOnce();
  EXPECT_EQ(group->num_submitted(), 1);
  EXPECT_EQ(scheduler_->load().free_slots, idle.free_slots - 1);
  EXPECT_EQ(scheduler_->load().free_outputs, idle.free_outputs - 1);
  scheduler_->OnResult(0, {Epoch{1}, scheduler_->oldest_step()->id, {}, absl::OkStatus()}, nullptr);
  EXPECT_TRUE(call->status.ok()) << call->status;
  EXPECT_EQ(scheduler_->load().free_slots, idle.free_slots);
  EXPECT_EQ(scheduler_->load().free_outputs, idle.free_outputs);
  const auto handed_over = Send(kMaxBatchRows);
  EXPECT_EQ(scheduler_->load().queued_rows, 0) << "the dispatcher has its step";
  scheduler_.reset();  // before its clock ends
  EXPECT_TRUE(absl::IsUnavailable(handed_over->status)) << handed_over->status;
}

TEST_F(SchedulerTest, ARequestCancelledInFlightHarmsNobody) {
  Start(2);
  auto swallowing = Form(1, FakeGroup::Mode::kSwallow);
  const auto gone = Send(kMaxBatchRows);
  swallowing->WaitForSubmissions(1);
  scheduler_->Cancel(gone->request, absl::CancelledError("gone"));
  EXPECT_TRUE(absl::IsCancelled(gone->status));
  scheduler_->GroupLost(Epoch{1});
  const auto group = Form(2, FakeGroup::Mode::kServe);
  Send(3)->ExpectRightAnswer();
}

TEST_F(SchedulerTest, AGateThatFailsFailsOnlyItsStep) {
  Start(1);
  const auto group = Form(1, FakeGroup::Mode::kServe);
  const auto poisoned = SendRow(-1);
  poisoned->answered.WaitForNotification();
  EXPECT_TRUE(absl::IsInternal(poisoned->status));
  Send(3)->ExpectRightAnswer();
}

TEST_F(SchedulerTest, ShutdownAnswersWhatIsLeft) {
  Start(1);
  auto swallowing = Form(1, FakeGroup::Mode::kSwallow);
  const auto in_flight = Send(kMaxBatchRows);
  swallowing->WaitForSubmissions(1);
  const auto queued = Send(1);
  scheduler_.reset();
  EXPECT_TRUE(absl::IsUnavailable(in_flight->status));
  EXPECT_TRUE(absl::IsUnavailable(queued->status));
}

TEST_F(SchedulerTest, ReadersThatKeepTheirAnswersHoldUpNobody) {
  min_lent_bytes_ = 0;
  Start(2);
  auto group = Form(1, FakeGroup::Mode::kServe);
  std::vector<std::unique_ptr<Call>> kept;
  int num_lent = 0;
  for (int i = 0; i < 10 * kSpares; ++i) {
    kept.push_back(Send(4 + i % 9));
    kept.back()->answered.WaitForNotification();
    num_lent += NumLent(*kept.back()) > 0;
    if (i == 2 * kSpares) {  // answers of an older epoch must not change either
      scheduler_->GroupLost(Epoch{1});
      group->Retire();
      group = Form(2, FakeGroup::Mode::kServe);
    }
  }
  EXPECT_EQ(num_lent, kSpares) << "the others are copies";
  for (auto& call : kept) call->ExpectRightAnswer();
  kept.clear();
  const auto next = Send(7);
  next->ExpectRightAnswer();
  EXPECT_GT(NumLent(*next), 0) << "an output that was given back is lent again";
}

TEST_F(SchedulerTest, OutputsOfCancelledRequestsComeBack) {
  min_lent_bytes_ = 0;
  Start(1);
  for (int64_t epoch = 1; epoch <= 3 * kSpares; ++epoch) {
    const auto swallowing = Form(2 * epoch, FakeGroup::Mode::kSwallow);
    const auto gone = Send(kMaxBatchRows), stays = Send(kMaxBatchRows);
    swallowing->WaitForSubmissions(1);
    scheduler_->Cancel(gone->request, absl::CancelledError("gone"));
    scheduler_->GroupLost(Epoch{2 * epoch});
    const auto group = Form(2 * epoch + 1, FakeGroup::Mode::kServe);
    stays->ExpectRightAnswer();
    EXPECT_EQ(NumLent(*stays), 1);
    scheduler_->GroupLost(Epoch{2 * epoch + 1});
    group->Retire();
  }
}

TEST_F(SchedulerTest, AnAnswerOutlivesWhatItCameFrom) {
  min_lent_bytes_ = 0;
  Start(3);
  auto group = Form(1, FakeGroup::Mode::kServe);
  const auto call = Send(15);
  call->answered.WaitForNotification();
  EXPECT_EQ(NumLent(*call), 3) << "one part from each rank";
  scheduler_->GroupLost(Epoch{1});
  group.reset();
  scheduler_.reset();
  links_.clear();
  owned_links_.clear();
  call->ExpectRightAnswer();
}

// Groups are lost at random moments under load. Every request must be answered correctly.
TEST_F(SchedulerTest, SurvivesLossesUnderLoad) {
  Start(3);
  std::vector<std::unique_ptr<Call>> calls;
  std::vector<std::unique_ptr<FakeGroup>> groups;
  for (int64_t epoch = 1; epoch <= 30; ++epoch) {
    const auto mode = epoch % 3 == 0   ? FakeGroup::Mode::kFail
                      : epoch % 3 == 1 ? FakeGroup::Mode::kServe
                                       : FakeGroup::Mode::kSwallow;
    groups.push_back(Form(epoch, mode));
    for (int i = 0; i < 10; ++i) calls.push_back(Send(1 + random_() % 40));
    scheduler_->GroupLost(Epoch{epoch});
    groups.back()->Retire();
  }
  groups.push_back(Form(31, FakeGroup::Mode::kServe));
  for (auto& call : calls) {
    call->answered.WaitForNotification();
    if (absl::IsInternal(call->status)) continue;  // replayed too often, which can happen with this many losses
    call->ExpectRightAnswer();
  }
  groups.clear();
}

// A caller's thread may dispatch the step that its own request completes, but must not go on with steps of other
// callers.
TEST_F(SchedulerTest, AThreadDispatchesOneStepAndLeavesTheNextToTheDispatcher) {
  max_inline_rows_ = kMaxBatchRows;
  Start(1);
  const auto swallowing = Form(1, FakeGroup::Mode::kSwallow);  // so that no result makes another thread dispatch
  std::unique_ptr<Call> held;
  Notification returned;
  std::thread sender([&] {
    held = SendRow(kHeldRow);
    returned.Notify();
  });
  gate_hold_.entered.WaitForNotification();
  // While the sender's step is gated, another caller fills a step, which can leave once the sender's is submitted.
  second_hold_value_ = 7;
  const auto stranger = SendRows(7, kMaxBatchRows);
  gate_hold_.release.Notify();
  second_hold_.entered.WaitForNotification();  // the other caller's step is being gated
  returned.WaitForNotification();              // not by the sender's thread, because that one has returned
  second_hold_.release.Notify();
  sender.join();
  swallowing->WaitForSubmissions(2);
  scheduler_->GroupLost(Epoch{1});
  const auto group = Form(2, FakeGroup::Mode::kServe);
  held->ExpectRightAnswer();
  stranger->ExpectRightAnswer();
}

TEST_F(SchedulerTest, RowsOfAnotherSizeThanThePlanSaysBreakTheGroup) {
  Start(1);
  const auto swallowing = Form(1, FakeGroup::Mode::kSwallow);
  const auto call = Send(3);
  swallowing->WaitForSubmissions(1);
  const std::vector<std::byte> row(kDim * sizeof(float));
  const RowChunks short_rows = {row};
  scheduler_->OnResult(0, {Epoch{1}, StepId{1}, {}, absl::OkStatus()}, &short_rows);
  WaitUntilBroken(1);
  // A successful result without any rows, over a link that carries rows with its results, is no answer either.
  const auto again = Form(2, FakeGroup::Mode::kSwallow);
  again->WaitForSubmissions(1);
  const RowChunks no_rows;
  scheduler_->OnResult(0, {Epoch{2}, StepId{1}, {}, absl::OkStatus()}, &no_rows);
  WaitUntilBroken(2);
  EXPECT_FALSE(call->answered.HasBeenNotified());
  const auto group = Form(3, FakeGroup::Mode::kServe);
  call->ExpectRightAnswer();
}

}  // namespace
}  // namespace switchyard
