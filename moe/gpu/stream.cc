#include "moe/gpu/stream.h"

#include "moe/gpu/cuda_status.h"

namespace switchyard {

absl::StatusOr<CudaStream> CudaStream::Create(bool high_priority) {
  int lowest = 0;
  int highest = 0;
  SY_CUDA(cudaDeviceGetStreamPriorityRange(&lowest, &highest));
  CudaStream stream;
  SY_CUDA(cudaStreamCreateWithPriority(&stream.stream_, cudaStreamNonBlocking, high_priority ? highest : lowest));
  return stream;
}

CudaStream::~CudaStream() {
  if (stream_ != nullptr) (void)cudaStreamDestroy(stream_);
}

absl::StatusOr<CudaEvent> CudaEvent::Create(bool timed) {
  CudaEvent event;
  SY_CUDA(cudaEventCreateWithFlags(&event.event_, timed ? cudaEventDefault : cudaEventDisableTiming));
  return event;
}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) (void)cudaEventDestroy(event_);
}

}  // namespace switchyard
