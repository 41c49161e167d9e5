// The standard grpc.health.v1 service, as gRPC brings it: tells for "", for every service and for every KServe model
// whether a new request would be served now. All have one answer, for all are served by one group of workers.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <optional>
#include <string>
#include <vector>

namespace switchyard {

// One thread at a time.
class HealthReporter {
 public:
  // Call before the server is built: it will have the service.
  static void Enable() { grpc::EnableDefaultHealthCheckService(true); }

  // `server` outlives this. Nothing is served until Update says so.
  HealthReporter(grpc::Server* server, std::vector<std::string> names)
      : service_(server->GetHealthCheckService()), names_(std::move(names)) {
    Update(false);
  }

  // Those who watch are told when it changes.
  void Update(bool serving) {
    if (serving_ == serving) return;
    serving_ = serving;
    service_->SetServingStatus(serving);
    for (const std::string& name : names_) service_->SetServingStatus(name, serving);
  }

 private:
  grpc::HealthCheckServiceInterface* const service_;
  const std::vector<std::string> names_;
  std::optional<bool> serving_;
};

}  // namespace switchyard
