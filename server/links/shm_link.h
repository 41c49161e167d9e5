// The shared-memory link to a local worker: steps are sent on its socket, and a thread reads the results.
#pragma once

#include <chrono>
#include <memory>
#include <thread>

#include "server/links/link.h"

namespace switchyard {

class ShmLink {
 public:
  // Sends the memory's descriptor and layout to the worker, and starts reading results. `on_result` is called from the
  // reading thread, which spins for up to `spin` for the next result before it sleeps (moe/link/spin_wait.h).
  static absl::StatusOr<std::unique_ptr<ShmLink>> Start(int rank, UniqueFd socket, const LinkBuffers& buffers,
                                                        std::chrono::microseconds spin, ResultFn on_result);
  // Closes the socket and joins the reader.
  ~ShmLink();

  // The connection may outlive the link; its Submit then fails.
  const std::shared_ptr<LinkConnection>& connection() const { return connection_; }

 private:
  ShmLink(int rank, std::shared_ptr<UniqueFd> socket, std::chrono::microseconds spin, ResultFn on_result);
  void ReadResults();

  const int rank_;
  const std::shared_ptr<UniqueFd> socket_;
  const std::chrono::microseconds spin_;
  const ResultFn on_result_;
  const std::shared_ptr<LinkConnection> connection_;
  std::thread reader_;
};

}  // namespace switchyard
