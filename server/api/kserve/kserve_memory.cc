#include "server/api/kserve/kserve_memory.h"

#include <utility>

#include "base/logging/log_text.h"
#include "base/logging/logging.h"

namespace switchyard {
namespace {

constexpr char kRegion[] = "shared_memory_region";
constexpr char kByteSize[] = "shared_memory_byte_size";
constexpr char kOffset[] = "shared_memory_offset";

absl::Status CheckAllowed(const MemoryAccess& access, absl::string_view what) {
  if (access.memory != nullptr) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      what,
      ": not offered by this server, which takes and gives no tensors in shared memory without --allow_client_shm"));
}

absl::Status ReadSize(const InferParameters& parameters, const char* name, int64_t lowest, uint64_t* size) {
  int64_t value = 0;
  SY_RETURN_IF_ERROR(ReadInteger(parameters, name, &value));
  if (value < lowest) {
    return absl::InvalidArgumentError(
        absl::StrCat("parameters ", name, ": expected ", lowest, " or more, found ", value));
  }
  *size = static_cast<uint64_t>(value);
  return absl::OkStatus();
}

absl::Status LogRegistered(const MemoryAccess& access, const std::string& name, absl::Status status) {
  static LineBudget budget(1);
  if (status.ok()) {
    LogWithin(&budget, spdlog::level::info, "{} registered the shared memory region '{}'", NameForLog(access.owner),
              NameForLog(name));
  }
  return status;
}

}  // namespace

absl::StatusOr<std::optional<TensorPlace>> FindPlace(const InferParameters& parameters, const MemoryAccess& access) {
  if (!parameters.contains(kRegion)) return std::nullopt;
  SY_RETURN_IF_ERROR(CheckAllowed(access, absl::StrCat("parameters ", kRegion)));
  TensorPlace place;
  SY_RETURN_IF_ERROR(ReadString(parameters, kRegion, &place.region_name));
  SY_RETURN_IF_ERROR(ReadSize(parameters, kByteSize, 1, &place.byte_size));
  SY_RETURN_IF_ERROR(ReadSize(parameters, kOffset, 0, &place.offset));
  auto region = access.memory->registry().Find(access.owner, place.region_name);
  if (!region.ok()) return Annotate(region.status(), absl::StrCat("parameters ", kRegion));
  place.region = *std::move(region);
  SY_RETURN_IF_ERROR(place.region->CheckRange(place.offset, place.byte_size));
  return place;
}

void DescribePlace(const TensorPlace& place, uint64_t num_bytes, InferParameters* parameters) {
  (*parameters)[kRegion].set_string_param(place.region_name);
  (*parameters)[kByteSize].set_int64_param(static_cast<int64_t>(num_bytes));
  if (place.offset > 0) (*parameters)[kOffset].set_int64_param(static_cast<int64_t>(place.offset));
}

absl::Status ListMemory(const MemoryAccess& access, const inference::SystemSharedMemoryStatusRequest& request,
                        inference::SystemSharedMemoryStatusResponse* response) {
  SY_RETURN_IF_ERROR(CheckAllowed(access, "SystemSharedMemoryStatus"));
  SY_ASSIGN_OR_RETURN(const auto entries,
                      access.memory->registry().List(access.owner, MemoryKind::kSystem, request.name()));
  for (const auto& entry : entries) {
    const RegionInfo& info = entry.region->info();
    auto& region = (*response->mutable_regions())[entry.name];
    region.set_name(entry.name);
    region.set_key(info.key);
    region.set_offset(info.offset);
    region.set_byte_size(info.byte_size);
  }
  return absl::OkStatus();
}

absl::Status ListMemory(const MemoryAccess& access, const inference::CudaSharedMemoryStatusRequest& request,
                        inference::CudaSharedMemoryStatusResponse* response) {
  SY_RETURN_IF_ERROR(CheckAllowed(access, "CudaSharedMemoryStatus"));
  SY_ASSIGN_OR_RETURN(const auto entries,
                      access.memory->registry().List(access.owner, MemoryKind::kCuda, request.name()));
  for (const auto& entry : entries) {
    const RegionInfo& info = entry.region->info();
    auto& region = (*response->mutable_regions())[entry.name];
    region.set_name(entry.name);
    region.set_device_id(static_cast<uint64_t>(info.device_id));
    region.set_byte_size(info.byte_size);
  }
  return absl::OkStatus();
}

absl::Status RegisterMemory(const MemoryAccess& access, const inference::SystemSharedMemoryRegisterRequest& request) {
  SY_RETURN_IF_ERROR(CheckAllowed(access, "SystemSharedMemoryRegister"));
  return LogRegistered(access, request.name(),
                       access.memory->RegisterSystem(access.owner, request.name(), request.key(), request.offset(),
                                                     request.byte_size()));
}

absl::Status RegisterMemory(const MemoryAccess& access, const inference::CudaSharedMemoryRegisterRequest& request) {
  SY_RETURN_IF_ERROR(CheckAllowed(access, "CudaSharedMemoryRegister"));
  return LogRegistered(access, request.name(),
                       access.memory->RegisterCuda(access.owner, request.name(), request.raw_handle(),
                                                   request.device_id(), request.byte_size()));
}

absl::Status UnregisterMemory(const MemoryAccess& access,
                              const inference::SystemSharedMemoryUnregisterRequest& request) {
  SY_RETURN_IF_ERROR(CheckAllowed(access, "SystemSharedMemoryUnregister"));
  return access.memory->registry().Remove(access.owner, MemoryKind::kSystem, request.name());
}

absl::Status UnregisterMemory(const MemoryAccess& access, const inference::CudaSharedMemoryUnregisterRequest& request) {
  SY_RETURN_IF_ERROR(CheckAllowed(access, "CudaSharedMemoryUnregister"));
  return access.memory->registry().Remove(access.owner, MemoryKind::kCuda, request.name());
}

}  // namespace switchyard
