#include "server/api/client_memory/cuda_shared_memory.h"

#include <cstring>
#include <utility>

#include "base/logging/logging.h"

namespace switchyard {
namespace {

// The only flag of cuIpcOpenMemHandle, which the call requires. With it, other GPUs can also reach the memory if they
// are able to.
constexpr unsigned kLazyPeerAccess = 1;

absl::StatusOr<CudaIpcHandle> ParseHandle(const std::string& raw_handle) {
  CudaIpcHandle handle;
  if (raw_handle.size() != sizeof(handle.bytes)) {
    return absl::InvalidArgumentError(absl::StrCat("raw_handle: expected the ", sizeof(handle.bytes),
                                                   " bytes of a cudaIpcMemHandle_t, found ", raw_handle.size()));
  }
  std::memcpy(handle.bytes, raw_handle.data(), sizeof(handle.bytes));
  return handle;
}

}  // namespace

class CudaRegion final : public SharedMemoryRegion {
 public:
  CudaRegion(RegionInfo info, std::shared_ptr<const CudaDevices> devices, CudaContext context, CudaPointer pointer)
      : SharedMemoryRegion(std::move(info)), devices_(std::move(devices)), context_(context), pointer_(pointer) {}

  ~CudaRegion() override {
    const absl::Status closed = devices_->In(context_, "closing cuda shared memory",
                                             [this] { return devices_->driver_.close_ipc_handle(pointer_); });
    if (!closed.ok()) spdlog::warn("{}", closed.message());
  }

  // Checks that the whole region lies in its allocation.
  absl::Status CheckAllocation() const {
    CudaPointer base = 0;
    size_t size = 0;
    SY_RETURN_IF_ERROR(devices_->In(context_, "finding the size of cuda shared memory",
                                    [&] { return devices_->driver_.get_address_range(&base, &size, pointer_); }));
    const size_t before = pointer_ - base;
    if (before <= size && info().byte_size <= size - before) return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("byte_size: expected ", size - before,
                                                   " or less, the size of the allocation, found ", info().byte_size));
  }

  absl::Status Read(uint64_t offset, std::span<std::byte> to) const override {
    return devices_->In(context_, "reading cuda shared memory",
                        [&] { return devices_->driver_.copy_to_host(to.data(), pointer_ + offset, to.size()); });
  }

  absl::Status Write(uint64_t offset, std::span<const std::byte> from) const override {
    return devices_->In(context_, "writing cuda shared memory",
                        [&] { return devices_->driver_.copy_to_device(pointer_ + offset, from.data(), from.size()); });
  }

 private:
  const std::shared_ptr<const CudaDevices> devices_;
  CudaContext const context_;
  const CudaPointer pointer_;
};

absl::StatusOr<std::shared_ptr<CudaDevices>> CudaDevices::Create(const CudaDriver& driver) {
  int num_devices = 0;
  absl::Status status = CudaStatus(driver, driver.init(0), "CUDA does not start");
  if (status.ok()) status = CudaStatus(driver, driver.get_device_count(&num_devices), "counting GPUs");
  if (!status.ok()) return absl::FailedPreconditionError(status.message());
  if (num_devices == 0) return absl::FailedPreconditionError("CUDA has no GPU here");
  return std::shared_ptr<CudaDevices>(new CudaDevices(driver, num_devices));
}

CudaDevices::~CudaDevices() {
  for (const auto& [id, made] : retained_) driver_.release_primary_context(made.device);
}

absl::StatusOr<RegionPtr> CudaDevices::Open(const std::string& raw_handle, int64_t device_id, uint64_t byte_size) {
  SY_ASSIGN_OR_RETURN(const CudaIpcHandle handle, ParseHandle(raw_handle));
  if (device_id < 0 || device_id >= num_devices_) {
    return absl::InvalidArgumentError(
        absl::StrCat("device_id: expected 0 to ", num_devices_ - 1, ", found ", device_id));
  }
  if (byte_size == 0) return absl::InvalidArgumentError("byte_size: expected 1 or more, found 0");
  SY_ASSIGN_OR_RETURN(CudaContext const context, ContextOf(device_id));
  CudaPointer pointer = 0;
  const absl::Status opened = In(context, absl::StrCat("raw_handle: cannot be opened on GPU ", device_id),
                                 [&] { return driver_.open_ipc_handle(&pointer, handle, kLazyPeerAccess); });
  if (!opened.ok()) return absl::InvalidArgumentError(opened.message());
  RegionInfo info{.kind = MemoryKind::kCuda, .byte_size = byte_size, .device_id = device_id};
  const auto region = std::make_shared<CudaRegion>(std::move(info), shared_from_this(), context, pointer);
  SY_RETURN_IF_ERROR(region->CheckAllocation());
  return region;
}

absl::StatusOr<CudaContext> CudaDevices::ContextOf(int64_t device_id) {
  MutexLock lock(&mu_);
  const auto it = retained_.find(device_id);
  if (it != retained_.end()) return it->second.context;
  Retained made;
  CudaResult result = driver_.get_device(&made.device, static_cast<int>(device_id));
  if (result == 0) result = driver_.retain_primary_context(&made.context, made.device);
  SY_RETURN_IF_ERROR(CudaStatus(driver_, result, absl::StrCat("a CUDA context on GPU ", device_id)));
  retained_[device_id] = made;
  return made.context;
}

absl::Status CudaDevices::In(CudaContext context, absl::string_view what,
                             const std::function<CudaResult()>& call) const {
  SY_RETURN_IF_ERROR(CudaStatus(driver_, driver_.push_context(context), what));
  const CudaResult result = call();
  CudaContext popped = nullptr;
  driver_.pop_context(&popped);
  return CudaStatus(driver_, result, what);
}

}  // namespace switchyard
