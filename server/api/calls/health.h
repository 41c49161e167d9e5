// The standard grpc.health.v1 service, as gRPC brings it: tells for "", for every service and for every KServe model
// whether a new request would be served now. Models come and go; one that was there and is not served any more is
// NOT_SERVING, one that never was is not known.
#pragma once

#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "server/models/model_table.h"

namespace switchyard {

// One thread at a time.
class HealthReporter {
 public:
  // Call before the server is built: it will have the service.
  static void Enable() { grpc::EnableDefaultHealthCheckService(true); }

  // `server` outlives this; `services` are the names of its gRPC services. Nothing is served until Update says so.
  HealthReporter(grpc::Server* server, std::vector<std::string> services)
      : service_(server->GetHealthCheckService()), services_(std::move(services)) {
    services_.emplace_back();  // the server as a whole
    Update(false, {});
  }

  // `models` are served when the server is. Those who watch are told when it changes.
  void Update(bool serving, const std::vector<std::shared_ptr<const LayerEntry>>& models) {
    std::map<std::string, bool> now;
    for (const std::string& name : services_) now[name] = serving;
    for (const auto& model : models) now[model->name] = serving;
    for (const auto& [name, was] : told_) now.emplace(name, false);  // a model that is gone
    for (const auto& [name, serves] : now) {
      const auto told = told_.find(name);
      if (told == told_.end() || told->second != serves) service_->SetServingStatus(name, serves);
    }
    told_ = std::move(now);
  }

 private:
  grpc::HealthCheckServiceInterface* const service_;
  std::vector<std::string> services_;
  std::map<std::string, bool> told_;  // every name there ever was
};

}  // namespace switchyard
