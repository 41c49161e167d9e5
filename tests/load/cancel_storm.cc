#include "tests/load/cancel_storm.h"

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "cli/load_generator.h"
#include "proto/inference.pb.h"
#include "proto/switchyard.pb.h"

namespace switchyard {
namespace {

// The open calls, and counts of how calls have ended. Thread-safe.
class OpenCalls {
 public:
  void Add(int64_t number, std::shared_ptr<grpc::ClientContext> context) {
    MutexLock lock(&mu_);
    open_[number] = std::move(context);
  }

  void Ended(int64_t number, const grpc::Status& status) {
    MutexLock lock(&mu_);
    open_.erase(number);
    ++codes_[static_cast<absl::StatusCode>(status.error_code())];
    changed_.SignalAll();
  }

  // Cancels one open call: the next one from `number` on, or the first one when there is none after it.
  void CancelOne(int64_t number) {
    std::shared_ptr<grpc::ClientContext> context;
    {
      MutexLock lock(&mu_);
      if (open_.empty()) return;
      const auto it = open_.lower_bound(number);
      context = (it == open_.end() ? open_.begin() : it)->second;
    }
    context->TryCancel();
  }

  void CancelAll() {
    std::vector<std::shared_ptr<grpc::ClientContext>> contexts;
    {
      MutexLock lock(&mu_);
      for (const auto& [number, context] : open_) contexts.push_back(context);
    }
    for (const auto& context : contexts) context->TryCancel();
  }

  void WaitForAtMost(int count) {
    MutexLock lock(&mu_);
    while (static_cast<int>(open_.size()) > count) changed_.Wait(&mu_);
  }

  int size() const {
    MutexLock lock(&mu_);
    return static_cast<int>(open_.size());
  }

  std::map<absl::StatusCode, int64_t> codes() const {
    MutexLock lock(&mu_);
    return codes_;
  }

 private:
  mutable Mutex mu_;
  CondVar changed_;
  std::map<int64_t, std::shared_ptr<grpc::ClientContext>> open_ ABSL_GUARDED_BY(mu_);
  std::map<absl::StatusCode, int64_t> codes_ ABSL_GUARDED_BY(mu_);
};

void OpenUnary(grpc::GenericStub& stub, const CancelStorm& storm, int64_t number, OpenCalls* calls) {
  auto context = std::make_shared<grpc::ClientContext>();
  auto response = std::make_shared<grpc::ByteBuffer>();
  calls->Add(number, context);
  stub.UnaryCall(context.get(), storm.method, {}, &storm.message, response.get(),
                 [calls, number, context, response](const grpc::Status& status) { calls->Ended(number, status); });
}

// One stream: sends a number of requests, one after the other, then falls silent. Deletes itself.
class StreamCall final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  StreamCall(grpc::GenericStub& stub, const CancelStorm& storm, int64_t number, int num_messages, OpenCalls* calls)
      : message_(storm.message),
        number_(number),
        messages_left_(num_messages),
        calls_(calls),
        context_(std::make_shared<grpc::ClientContext>()) {
    calls->Add(number, context_);
    stub.PrepareBidiStreamingCall(context_.get(), storm.method, {}, this);
    StartRead(&answer_);
    StartWrite(&message_);
    StartCall();
  }

 private:
  void OnWriteDone(bool ok) override {
    if (ok && --messages_left_ > 0) StartWrite(&message_);
  }
  void OnReadDone(bool ok) override {
    if (ok) StartRead(&answer_);
  }
  void OnDone(const grpc::Status& status) override {
    calls_->Ended(number_, status);
    delete this;
  }

  const grpc::ByteBuffer message_;
  const int64_t number_;
  int messages_left_;
  OpenCalls* const calls_;
  const std::shared_ptr<grpc::ClientContext> context_;
  grpc::ByteBuffer answer_;
};

std::vector<std::unique_ptr<grpc::GenericStub>> Connect(const CancelStorm& storm) {
  std::vector<std::unique_ptr<grpc::GenericStub>> stubs;
  for (int i = 0; i < storm.num_channels; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt("test.channel", i);  // channels with equal arguments would share a connection
    stubs.push_back(std::make_unique<grpc::GenericStub>(
        grpc::CreateCustomChannel(storm.target, grpc::InsecureChannelCredentials(), arguments)));
  }
  return stubs;
}

v1::ForwardRequest ForwardOf(const std::string& model, const std::string& layer, int64_t num_rows, int64_t hidden_dim) {
  v1::ForwardRequest request;
  request.set_model(model);
  request.set_layer(layer);
  request.set_dtype(v1::DATA_TYPE_FP32);
  request.set_num_rows(num_rows);
  request.set_rows(std::string(num_rows * hidden_dim * sizeof(float), '\0'));
  return request;
}

inference::ModelInferRequest InferOf(const std::string& name, int64_t num_rows, int64_t hidden_dim) {
  inference::ModelInferRequest request;
  request.set_model_name(name);
  auto& input = *request.add_inputs();
  input.set_name("hidden_states");
  input.set_datatype("FP32");
  input.add_shape(num_rows);
  input.add_shape(hidden_dim);
  request.add_raw_input_contents(std::string(num_rows * hidden_dim * sizeof(float), '\0'));
  return request;
}

bool IsStream(const std::string& method) { return method == kForwardStreamMethod || method == kInferStreamMethod; }

}  // namespace

std::map<absl::StatusCode, int64_t> RunCancelStorm(const CancelStorm& storm) {
  const auto stubs = Connect(storm);
  OpenCalls calls;
  std::mt19937_64 random(storm.seed);
  const SteadyTime start = Clock::Real().Now();
  ArrivalSchedule schedule(Arrivals::kPoisson, storm.rate_per_s > 0 ? storm.rate_per_s : 1e9, storm.seed);
  for (int64_t number = 0; number < storm.num_calls; ++number) {
    if (storm.rate_per_s > 0) std::this_thread::sleep_until(start + schedule.Next());
    grpc::GenericStub& stub = *stubs[number % stubs.size()];
    if (IsStream(storm.method)) {
      new StreamCall(stub, storm, number, 1 + static_cast<int>(random() % 4), &calls);
    } else {
      OpenUnary(stub, storm, number, &calls);
    }
    // Cancels this call or any of the last ones, so that calls are cancelled early, late, and in between.
    const int64_t reach = static_cast<int64_t>(random() % (2 * storm.max_open));
    calls.CancelOne(std::max<int64_t>(0, number - reach));
    while (calls.size() >= storm.max_open) {
      calls.CancelOne(0);
      calls.WaitForAtMost(calls.size() >= storm.max_open ? storm.max_open - 1 : storm.max_open);
    }
  }
  calls.CancelAll();
  calls.WaitForAtMost(0);
  return calls.codes();
}

std::string RequestBytes(const std::string& method, const std::string& model, const std::string& layer,
                         int64_t num_rows, int64_t hidden_dim) {
  if (method == kForwardMethod) return ForwardOf(model, layer, num_rows, hidden_dim).SerializeAsString();
  if (method != kForwardStreamMethod) return InferOf(model + "." + layer, num_rows, hidden_dim).SerializeAsString();
  v1::ForwardStreamRequest message;
  message.set_id(1);
  *message.mutable_forward() = ForwardOf(model, layer, num_rows, hidden_dim);
  return message.SerializeAsString();
}

grpc::ByteBuffer ToByteBuffer(const std::string& bytes) {
  const grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace switchyard
