// State that all PackedLinears of one engine or gate share: the libraries' handles, compiled primitives, and working
// memory.
//
// Primitives are compiled once per (shape, epilogue, number of rows) however many layers and experts have that shape,
// so that compiled code stays a few tens of MiB for a whole model.
//
// Thread-safety: one thread at a time uses a context or any linear made with it.
#pragma once

#include <memory>

#include "base/status.h"
#include "base/work_pool.h"

namespace switchyard {

class LinearContext {
 public:
  // `num_threads` compute threads for every call; 0 = all cores this process may run on.
  static absl::StatusOr<std::unique_ptr<LinearContext>> Create(int num_threads);
  ~LinearContext();

  int num_threads() const { return num_threads_; }

  // Runs loops over single-threaded primitives. Its threads start with the first loop.
  WorkPool& pool() { return pool_; }

  // Library state, for the implementations in this folder.
  struct Impl;
  Impl& impl() { return *impl_; }

 private:
  LinearContext(int num_threads, std::unique_ptr<Impl> impl);

  const int num_threads_;
  WorkPool pool_;
  const std::unique_ptr<Impl> impl_;
};

}  // namespace switchyard
