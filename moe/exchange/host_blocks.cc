#include "moe/exchange/host_blocks.h"

#include <cuda_runtime.h>

#include <numeric>
#include <thread>

#include "base/clock.h"
#include "base/heartbeat.h"
#include "moe/gpu/cuda_status.h"
#include "moe/gpu/memory.h"
#include "moe/gpu/stream.h"

namespace switchyard {
namespace {

size_t TotalOf(std::span<const size_t> sizes) { return std::accumulate(sizes.begin(), sizes.end(), size_t{0}); }

absl::Status AwaitStream(Communicator& communicator, cudaStream_t stream, std::chrono::milliseconds timeout) {
  const Heartbeat::Doing waiting(Heartbeat::Activity::kWaiting);
  const SteadyTime deadline = Clock::Real().Now() + timeout;
  while (true) {
    const cudaError_t state = cudaStreamQuery(stream);
    if (state == cudaSuccess) return communicator.Health();
    if (state != cudaErrorNotReady) return CudaStatus(state, "cudaStreamQuery");
    (void)cudaGetLastError();  // because "not ready" is kept as the last error
    SY_RETURN_IF_ERROR(communicator.Health());
    if (Clock::Real().Now() >= deadline) {
      return absl::UnavailableError(absl::StrCat("all-to-all on rank ", communicator.rank(),
                                                 ": the peers are silent after ", timeout.count(), " ms"));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    Heartbeat::Beat();
  }
}

}  // namespace

absl::Status HostAllToAllVThroughDevice(Communicator& communicator, const std::byte* send,
                                        std::span<const size_t> send_bytes, std::byte* recv,
                                        std::span<const size_t> recv_bytes, std::chrono::milliseconds timeout) {
  SY_ASSIGN_OR_RETURN(const CudaStream stream, CudaStream::Create());
  SY_ASSIGN_OR_RETURN(const DeviceBuffer device_send, DeviceBuffer::Allocate(TotalOf(send_bytes)));
  SY_ASSIGN_OR_RETURN(const DeviceBuffer device_recv, DeviceBuffer::Allocate(TotalOf(recv_bytes)));
  if (device_send.size() > 0) {
    SY_CUDA(cudaMemcpyAsync(device_send.data(), send, device_send.size(), cudaMemcpyHostToDevice, stream.get()));
  }
  SY_RETURN_IF_ERROR(communicator.AllToAllV(device_send.data(), send_bytes, device_recv.data(), recv_bytes,
                                            ToDeviceStream(stream.get())));
  // A copy to pageable memory would wait for the peers without a time limit. So would freeing the buffers, unless the
  // exchange is over or the communicator has ended.
  if (absl::Status moved = AwaitStream(communicator, stream.get(), timeout); !moved.ok()) {
    communicator.Abort();
    return moved;
  }
  if (device_recv.size() > 0) {
    SY_CUDA(cudaMemcpy(recv, device_recv.data(), device_recv.size(), cudaMemcpyDeviceToHost));
  }
  return absl::OkStatus();
}

}  // namespace switchyard
