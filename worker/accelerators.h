// The kinds of accelerators that this build has. A kind registers itself from its own source, which only builds with
// its libraries contain, so nothing else has to know which kinds there may be.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/status.h"
#include "worker/device.h"

namespace switchyard {

struct AcceleratorKind {
  // As in --device=NAME and --device=NAME:0.
  std::string_view name;
  // How many this host has; 0 without a driver for them.
  int (*count)() = nullptr;
  // Opens number `number` of them for the calling thread, on which all of the Device's calls come.
  absl::StatusOr<std::unique_ptr<Device>> (*open)(int number, const WorkerOptions& options) = nullptr;
};

// Makes a kind known. For constants of the source that brings the kind; its library is linked with alwayslink.
class AcceleratorRegistration {
 public:
  explicit AcceleratorRegistration(const AcceleratorKind& kind);
};

// Null for a kind that this build lacks. Thread-safe once main has begun.
const AcceleratorKind* FindAccelerator(std::string_view name);

}  // namespace switchyard
