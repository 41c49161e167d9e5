// From a finished step to its requests' answers: cuts the output rows up, lends or copies them, and calls the requests
// that are complete.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "base/work_pool.h"
#include "server/links/link.h"
#include "server/steps/output_pool.h"
#include "server/steps/step.h"

namespace switchyard {

struct StepAnswersOptions {
  // Output rows of a request that are at least so many bytes are answered from the links' memory, where they have the
  // right type and an output is to spare. Fewer bytes are copied, which is quicker than keeping track of them.
  size_t min_lent_bytes = 32 << 10;
  // A step with at least `min_shared_answers` answers has them sent by `num_threads` threads, because sending one takes
  // longer than computing a step of a few rows.
  int num_threads = 1;
  size_t min_shared_answers = 4;
};

// Thread-safe: several steps may be finished at once.
class StepAnswers {
 public:
  // `links[r]` are rank r's buffers, which outlive this; `outputs` says who uses their outputs.
  StepAnswers(const StepAnswersOptions& options, std::vector<LinkBuffers*> links, std::shared_ptr<OutputPool> outputs);

  // The output rows of each piece of the step's batch, in parts. Requests that want their routing get it. The step's
  // output is lent to the parts or returned to the pool.
  std::vector<std::vector<OutputPart>> CutOutput(const Step& step);

  // Calls complete(request) for each, with the request's output in the order of its rows.
  void Send(const std::vector<std::shared_ptr<Request>>& finished, const std::function<void(Request&)>& complete);

 private:
  // The rows of one piece, which begin at row `begin` of the step. `loan` is the step's, once there is one.
  std::vector<OutputPart> CutPiece(const Step& step, const Piece& piece, int64_t begin,
                                   std::shared_ptr<const void>* loan);
  OutputPart CopyPiece(const Step& step, const Piece& piece, int64_t begin) const;
  std::vector<OutputPart> LendPiece(const Step& step, const Piece& piece, int64_t begin,
                                    const std::shared_ptr<const void>& loan) const;

  const StepAnswersOptions options_;
  const std::vector<LinkBuffers*> links_;
  const std::shared_ptr<OutputPool> outputs_;
  WorkPool pool_;  // used by the thread that has set pool_is_taken_
  std::atomic<bool> pool_is_taken_{false};
};

}  // namespace switchyard
