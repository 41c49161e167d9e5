// The shared-memory link to a local worker: steps go out on its socket, a thread reads the results.
#pragma once

#include <chrono>
#include <memory>
#include <thread>

#include "server/links/link.h"

namespace switchyard {

class ShmLink {
 public:
  // Tells the worker where the memory is, and starts reading results. `on_result` is called from the reading thread,
  // which watches out for the next for `spin` before it sleeps (moe/link/spin_wait.h).
  static absl::StatusOr<std::unique_ptr<ShmLink>> Start(int rank, UniqueFd socket, const LinkBuffers& buffers,
                                                        std::chrono::microseconds spin, ResultFn on_result);
  // Closes the socket and joins the reader.
  ~ShmLink();

  // Usable beyond the link's end; it then only fails.
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
