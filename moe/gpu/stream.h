// Owners of CUDA streams and events. Move-only; they belong to the device that was current when they were made.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "base/status.h"
#include "moe/gpu/device_stream.h"

namespace switchyard {

// A CUDA stream as interfaces without CUDA pass it on, and back.
inline DeviceStream ToDeviceStream(cudaStream_t stream) { return DeviceStream(stream); }
inline cudaStream_t ToCudaStream(DeviceStream stream) { return static_cast<cudaStream_t>(stream.handle()); }

class CudaStream {
 public:
  CudaStream() = default;
  // Does not synchronise with the legacy default stream. `high_priority` work is scheduled before other work.
  static absl::StatusOr<CudaStream> Create(bool high_priority = false);
  CudaStream(CudaStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~CudaStream();

  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaEvent {
 public:
  CudaEvent() = default;
  // `timed` events can be given to cudaEventElapsedTime.
  static absl::StatusOr<CudaEvent> Create(bool timed = false);
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~CudaEvent();

  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace switchyard
