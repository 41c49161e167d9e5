// Who uses the links' outputs (moe/link/link_layout.h): each is with a step, lent, or free.
//
// A step takes one when it starts. At its end its rows may be lent: they stay where they are until every view of them
// is gone, which may take long when a caller reads slowly. Only spares are lent, as many as there are outputs beyond
// one for every step, so that a step never waits for a reader; when all are lent, rows are copied out instead.
//
// Thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "base/mutex.h"

namespace switchyard {

class OutputPool : public std::enable_shared_from_this<OutputPool> {
 public:
  // `memory` is what the outputs lie in; it lives as long as a loan does.
  OutputPool(int num_outputs, int max_steps, std::vector<std::shared_ptr<const void>> memory);

  // For a step, of which there are at most `max_steps`.
  int Take();
  // The step has ended, and its rows are not needed any more.
  void Return(int output);
  // The step has ended: its output comes back when the last owner of the loan goes. Null when it cannot be lent.
  std::shared_ptr<const void> Lend(int output);

 private:
  void EndLoan(int output);

  const int max_lent_;
  const std::vector<std::shared_ptr<const void>> memory_;
  Mutex mu_;
  std::vector<int> free_ ABSL_GUARDED_BY(mu_);  // the last one was used last, and is in a cache
  int num_lent_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace switchyard
