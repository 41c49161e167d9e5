// A queue of a device's work, as the interfaces of engines and exchanges pass it on. It needs no header of any device:
// each device's own code turns it into what its libraries take (moe/gpu/stream.h for CUDA).
#pragma once

#include <cstddef>

namespace switchyard {

// Does not own the queue. Null where work is finished before a call returns, as on the CPU.
class DeviceStream {
 public:
  constexpr DeviceStream() = default;
  constexpr DeviceStream(std::nullptr_t) {}
  constexpr explicit DeviceStream(void* handle) : handle_(handle) {}

  // The device's own handle.
  constexpr void* handle() const { return handle_; }

  friend constexpr bool operator==(DeviceStream one, DeviceStream other) = default;

 private:
  void* handle_ = nullptr;
};

}  // namespace switchyard
