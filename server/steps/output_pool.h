// Keeps track of the links' outputs (moe/link/link_layout.h): each belongs to a step, is lent, or is free.
//
// A step takes an output when it starts. When the step ends, its output may be lent: the rows stay in place until every
// view of them is gone, which may take long when a caller reads slowly. The number of lent outputs is limited to the
// number of spares, the outputs in addition to one for every step. So a step never waits for a reader; when no more may
// be lent, rows are copied out instead.
//
// Every output carries the id of its step until it is free again, so that nobody writes to, lends or gives back the
// output of another step: what a caller reads there is its own answer.
//
// Thread-safe.
#pragma once

#include <memory>
#include <vector>

#include "base/ids.h"
#include "base/mutex.h"

namespace switchyard {

class OutputPool : public std::enable_shared_from_this<OutputPool> {
 public:
  // `memory` contains the outputs; the pool and every loan keep it alive.
  OutputPool(int num_outputs, int max_steps, std::vector<std::shared_ptr<const void>> memory);

  // Takes an output for a step. At most `max_steps` steps may have one at a time.
  int Take(StepId step);
  // Whether the output is the step's and is not lent: only then may rows of the step be written there or read.
  bool BelongsTo(int output, StepId step) const;
  // Gives back the output of a step that has ended, when its rows are not needed any more. Does nothing when the output
  // is not this step's.
  void Return(int output, StepId step);
  // Outputs that neither belong to a step nor are lent.
  int num_free() const;
  // Lends the output of a step that has ended. The pool gets it back when the last owner of the returned loan is gone.
  // Null when no more outputs may be lent, or when the output is not this step's.
  std::shared_ptr<const void> Lend(int output, StepId step);

 private:
  static constexpr StepId kNoStep{-1};

  void EndLoan(int output);

  const int max_lent_;
  const std::vector<std::shared_ptr<const void>> memory_;
  mutable Mutex mu_;
  std::vector<int> free_ ABSL_GUARDED_BY(mu_);      // the last one was used most recently, so caches still hold it
  std::vector<StepId> steps_ ABSL_GUARDED_BY(mu_);  // by output; kNoStep while it is free or lent
  int num_lent_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace switchyard
