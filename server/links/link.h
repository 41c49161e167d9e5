// The front's end of the link to one rank.
//
// The memory of a rank's link belongs to the front and outlives the worker: when a worker dies, the rows of the steps
// in flight are still here and are replayed to its replacement. Only the connection comes and goes with a worker.
#pragma once

#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "base/ids.h"
#include "moe/link/link_layout.h"
#include "moe/link/shared_memory.h"
#include "moe/link/step_socket.h"
#include "moe/plan/step_plan.h"

namespace switchyard {

// One rank's memory: slots with input rows and encoded plans, and outputs. Each slot and each output is used by one
// step at a time, so they need no lock: access to them passes from thread to thread together with the step.
class LinkBuffers {
 public:
  static absl::StatusOr<std::unique_ptr<LinkBuffers>> Create(const LinkLayout& layout) {
    SY_ASSIGN_OR_RETURN(SharedMemory memory, SharedMemory::Create(layout.total_bytes()));
    return std::unique_ptr<LinkBuffers>(new LinkBuffers(layout, std::move(memory)));
  }

  std::byte* input(int slot) { return memory_->data() + layout_.input_offset(slot); }
  std::byte* plan(int slot) { return memory_->data() + layout_.plan_offset(slot); }
  std::byte* output(int output) { return memory_->data() + layout_.output_offset(output); }

  const LinkLayout& layout() const { return layout_; }
  int memory_fd() const { return memory_->fd(); }
  // Shared, because answers that are being sent may need the memory longer than this object lives.
  std::shared_ptr<const void> memory() const { return memory_; }

 private:
  LinkBuffers(const LinkLayout& layout, SharedMemory memory)
      : layout_(layout), memory_(std::make_shared<const SharedMemory>(std::move(memory))) {}

  const LinkLayout layout_;
  const std::shared_ptr<const SharedMemory> memory_;
};

// A step as it is sent to one rank; its rows and its encoded plan are in the slot.
struct StepSubmission {
  StepMessage message;
  size_t row_bytes = 0;  // size of a row of the layer in its compute type
};

// Only one thread submits at a time.
class LinkConnection {
 public:
  virtual ~LinkConnection() = default;
  // Sends the step. An error means that the worker is gone; the group learns of that by itself.
  virtual absl::Status Submit(const StepSubmission& step) = 0;
};

// Output rows that came with a result, in order. They are views of memory that stays valid during the call.
using RowChunks = std::vector<std::span<const std::byte>>;

// Called for every result that arrives, on the connection's own thread. `rows` is null when the rank has written its
// output rows to the link's memory.
using ResultFn = std::function<void(int rank, const ResultMessage& result, const RowChunks* rows)>;

}  // namespace switchyard
