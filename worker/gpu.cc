// CUDA's GPUs as the worker's devices. Only builds with CUDA contain this source.
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <netinet/in.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/logging/logging.h"
#include "base/unique_fd.h"
#include "moe/exchange/direct/direct_communicator.h"
#include "moe/exchange/mesh/mesh_address.h"
#include "moe/exchange/nccl/nccl_communicator.h"
#include "moe/experts/cuda/cuda_engine.h"
#include "moe/gpu/memory.h"
#include "moe/gpu/shared_memory.h"
#include "worker/accelerators.h"

namespace switchyard {
namespace {

// Whether `address` equals `host`, an IPv4 or IPv6 address as text.
bool IsAddress(const sockaddr* address, const std::string& host) {
  char text[INET6_ADDRSTRLEN] = {};
  const void* bytes = nullptr;
  if (address == nullptr) return false;
  if (address->sa_family == AF_INET) bytes = &reinterpret_cast<const sockaddr_in*>(address)->sin_addr;
  if (address->sa_family == AF_INET6) bytes = &reinterpret_cast<const sockaddr_in6*>(address)->sin6_addr;
  return bytes != nullptr && inet_ntop(address->sa_family, bytes, text, sizeof(text)) != nullptr && host == text;
}

// The value for NCCL_SOCKET_IFNAME that means the interface with this address.
absl::StatusOr<std::string> InterfaceOf(const std::string& address) {
  ifaddrs* all = nullptr;
  if (getifaddrs(&all) != 0) return ErrnoStatus(errno, "getifaddrs");
  std::string found;
  for (const ifaddrs* each = all; each != nullptr && found.empty(); each = each->ifa_next) {
    if (IsAddress(each->ifa_addr, address)) found = each->ifa_name;
  }
  freeifaddrs(all);
  if (!found.empty()) return "=" + found;
  return absl::InvalidArgumentError(absl::StrCat("this host has no interface with the address ", address));
}

class Gpu final : public Device {
 public:
  Gpu(const CudaDeviceOptions& device_options, const WorkerOptions& options, std::shared_ptr<CudaDevice> device)
      : device_options_(device_options), options_(options), device_(std::move(device)) {}

  std::string name() const override { return absl::StrCat("cuda:", device_options_.device_idx); }
  std::vector<std::string> compute_dtypes() const override { return {"fp64", "fp32", "fp16", "bf16"}; }
  std::vector<std::string> exchange_names() const override {
    if (CanReachAllDevices() && !HostIdentity().empty()) return {"direct", "nccl"};
    return {"nccl"};
  }

  absl::StatusOr<std::unique_ptr<ExpertEngine>> MakeEngine(DType compute_dtype) override {
    return CreateCudaEngine(device_, {.compute_dtype = compute_dtype, .allow_tf32 = options_.allow_tf32});
  }
  absl::StatusOr<std::unique_ptr<CommunicatorFactory>> MakeExchange(const std::string& name) override {
    if (name == "direct") return CreateDirectFactory({.device_idx = device_options_.device_idx});
    if (name != "nccl") return absl::InvalidArgumentError(absl::StrCat("this worker has no exchange '", name, "'"));
    NcclOptions nccl;
    nccl.device_idx = device_options_.device_idx;
    nccl.max_ctas = device_options_.exchange_multiprocessors;
    SY_ASSIGN_OR_RETURN(const std::string address, ExchangeAddress(options_));
    SY_ASSIGN_OR_RETURN(nccl.socket_interface, InterfaceOf(address));
    return CreateNcclFactory(std::move(nccl));
  }
  absl::Status LockMemory(std::byte* data, size_t num_bytes) override {
    SY_ASSIGN_OR_RETURN(PinnedRegion region, PinnedRegion::Lock(data, num_bytes));
    locked_.push_back(std::move(region));
    return absl::OkStatus();
  }

 private:
  const CudaDeviceOptions device_options_;
  const WorkerOptions options_;
  const std::shared_ptr<CudaDevice> device_;
  std::vector<PinnedRegion> locked_;
};

// Makes GPU `number` current for the calling thread.
absl::StatusOr<std::unique_ptr<Device>> OpenGpu(int number, const WorkerOptions& options) {
  const CudaDeviceOptions device_options{.device_idx = number, .memory_limit = options.gpu_memory_limit};
  SY_ASSIGN_OR_RETURN(auto device, OpenCudaDevice(device_options));
  spdlog::info("computing on GPU {}", number);
  return std::make_unique<Gpu>(device_options, options, std::move(device));
}

const AcceleratorRegistration kCuda({.name = "cuda", .count = &NumCudaDevices, .open = &OpenGpu});

}  // namespace
}  // namespace switchyard
