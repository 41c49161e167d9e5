// The standard grpc.health.v1 service, in gRPC's own implementation. For "", for every service and for every KServe
// model it tells whether a new request would be served. Models come and go: a model that was served before and is not
// served any more is NOT_SERVING; a model that was never served is unknown.
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

// Used by one thread at a time.
class HealthReporter {
 public:
  // Call it before the server is built, so that the server has the service.
  static void Enable() { grpc::EnableDefaultHealthCheckService(true); }

  // `server` must outlive this object; `services` are the names of its gRPC services. Nothing is served until Update
  // says so.
  HealthReporter(grpc::Server* server, std::vector<std::string> services)
      : service_(server->GetHealthCheckService()), services_(std::move(services)) {
    services_.emplace_back();  // the server as a whole
    Update(false, {});
  }

  // Says that `models` are served while `serving`. Callers that watch are told when this changes.
  void Update(bool serving, const std::vector<std::shared_ptr<const LayerEntry>>& models) {
    std::map<std::string, bool> now;
    for (const std::string& name : services_) now[name] = serving;
    for (const auto& model : models) now[model->name] = serving;
    for (const auto& [name, was] : told_) now.emplace(name, false);  // models that are gone
    for (const auto& [name, serves] : now) {
      const auto told = told_.find(name);
      if (told == told_.end() || told->second != serves) service_->SetServingStatus(name, serves);
    }
    told_ = std::move(now);
  }

 private:
  grpc::HealthCheckServiceInterface* const service_;
  std::vector<std::string> services_;
  std::map<std::string, bool> told_;  // every name that was ever told
};

}  // namespace switchyard
