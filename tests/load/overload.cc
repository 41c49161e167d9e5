#include "tests/load/overload.h"

#include <grpcpp/grpcpp.h>

#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/mutex.h"
#include "proto/switchyard.grpc.pb.h"

namespace switchyard {
namespace {

// Statistics of refusals, which the load generator does not keep. Thread-safe.
class Refusals {
 public:
  void Record(std::chrono::nanoseconds latency, bool has_pushback) {
    MutexLock lock(&mu_);
    ++count_;
    without_pushback_ += !has_pushback;
    latency_.Record(latency);
  }
  void MoveTo(OverloadResult* result) {
    MutexLock lock(&mu_);
    result->refusal_latency = latency_;
    result->refused = count_;
    result->refused_without_pushback = without_pushback_;
  }

 private:
  Mutex mu_;
  LatencyHistogram latency_ ABSL_GUARDED_BY(mu_);
  int64_t count_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t without_pushback_ ABSL_GUARDED_BY(mu_) = 0;
};

struct Call {
  grpc::ClientContext context;
  v1::ForwardResponse response;
  SteadyTime start;
};

v1::ForwardRequest MakeRequest(const Overload& overload) {
  v1::ForwardRequest request;
  request.set_model(overload.model);
  request.set_layer(overload.layer);
  request.set_dtype(v1::DATA_TYPE_FP32);
  request.set_num_rows(overload.num_rows);
  std::string* rows = request.mutable_rows();
  for (int64_t i = 0; i < overload.num_rows * overload.hidden_dim; ++i) {
    const float value = static_cast<float>((i * 7919) % 1000) / 500 - 1;  // makes rows go to different experts
    rows->append(reinterpret_cast<const char*>(&value), sizeof(value));
  }
  return request;
}

std::vector<std::unique_ptr<v1::Switchyard::Stub>> Connect(const Overload& overload) {
  std::vector<std::unique_ptr<v1::Switchyard::Stub>> stubs;
  for (int i = 0; i < overload.num_channels; ++i) {
    grpc::ChannelArguments arguments;
    arguments.SetInt("test.channel", i);  // channels with equal arguments would share a connection
    stubs.push_back(v1::Switchyard::NewStub(
        grpc::CreateCustomChannel(overload.target, grpc::InsecureChannelCredentials(), arguments)));
  }
  return stubs;
}

}  // namespace

OverloadResult RunLoad(const Overload& overload, const LoadOptions& options) {
  const v1::ForwardRequest request = MakeRequest(overload);
  const auto stubs = Connect(overload);
  Refusals refusals;
  const auto send = [&](int64_t idx, const DoneFn& done) {
    auto call = std::make_shared<Call>();
    call->start = Clock::Real().Now();
    call->context.AddMetadata("x-client-id", kOverloadClient);
    call->context.set_deadline(std::chrono::system_clock::now() + overload.deadline);
    stubs[idx % stubs.size()]->async()->Forward(
        &call->context, &request, &call->response, [&refusals, call, done](const grpc::Status& status) {
          if (status.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED) {
            const bool has_pushback = call->context.GetServerTrailingMetadata().count("grpc-retry-pushback-ms") > 0;
            refusals.Record(Clock::Real().Now() - call->start, has_pushback);
          }
          done({absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message()),
                static_cast<int64_t>(2 * call->response.rows().size())});
        });
  };
  OverloadResult result;
  result.stats = GenerateLoad(options, send);
  refusals.MoveTo(&result);
  return result;
}

}  // namespace switchyard
