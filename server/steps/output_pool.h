// Keeps track of the links' outputs (moe/link/link_layout.h): each belongs to a step, is lent, or is free.
//
// A step takes an output when it starts. When the step ends, its output may be lent: the rows stay in place until every
// view of them is gone, which may take long when a caller reads slowly. The number of lent outputs is limited to the
// number of spares, the outputs in addition to one for every step. So a step never waits for a reader; when no more may
// be lent, rows are copied out instead.
//
// Thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "base/mutex.h"

namespace switchyard {

class OutputPool : public std::enable_shared_from_this<OutputPool> {
 public:
  // `memory` contains the outputs; the pool and every loan keep it alive.
  OutputPool(int num_outputs, int max_steps, std::vector<std::shared_ptr<const void>> memory);

  // Takes an output for a step. At most `max_steps` steps may have one at a time.
  int Take();
  // Gives back the output of a step that has ended, when its rows are not needed any more.
  void Return(int output);
  // Lends the output of a step that has ended. The pool gets it back when the last owner of the returned loan is gone.
  // Null when no more outputs may be lent.
  std::shared_ptr<const void> Lend(int output);

 private:
  void EndLoan(int output);

  const int max_lent_;
  const std::vector<std::shared_ptr<const void>> memory_;
  Mutex mu_;
  std::vector<int> free_ ABSL_GUARDED_BY(mu_);  // the last one was used most recently, so caches still hold it
  int num_lent_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace switchyard
