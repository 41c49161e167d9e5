#include "server/links/shm_link.h"

#include <poll.h>
#include <sys/socket.h>

#include "base/logging/logging.h"
#include "moe/link/spin_wait.h"

namespace switchyard {
namespace {

class ShmConnection final : public LinkConnection {
 public:
  explicit ShmConnection(std::shared_ptr<UniqueFd> socket) : socket_(std::move(socket)) {}
  absl::Status Submit(const StepSubmission& step) override { return SendStep(socket_->get(), step.message); }

 private:
  const std::shared_ptr<UniqueFd> socket_;
};

}  // namespace

ShmLink::ShmLink(int rank, std::shared_ptr<UniqueFd> socket, std::chrono::microseconds spin, ResultFn on_result)
    : rank_(rank),
      socket_(std::move(socket)),
      spin_(spin),
      on_result_(std::move(on_result)),
      connection_(std::make_shared<ShmConnection>(socket_)),
      reader_([this] { ReadResults(); }) {}

absl::StatusOr<std::unique_ptr<ShmLink>> ShmLink::Start(int rank, UniqueFd socket, const LinkBuffers& buffers,
                                                        std::chrono::microseconds spin, ResultFn on_result) {
  SY_RETURN_IF_ERROR(SendSetup(socket.get(), buffers.layout(), buffers.memory_fd()));
  return std::unique_ptr<ShmLink>(
      new ShmLink(rank, std::make_shared<UniqueFd>(std::move(socket)), spin, std::move(on_result)));
}

ShmLink::~ShmLink() {
  shutdown(socket_->get(), SHUT_RDWR);
  reader_.join();
}

void ShmLink::ReadResults() {
  SpinWait spin(spin_);
  pollfd polled = {socket_->get(), POLLIN, 0};
  while (true) {
    spin.Until([&] { return poll(&polled, 1, 0) > 0; });
    const auto result = ReceiveResult(socket_->get());
    if (absl::IsUnavailable(result.status())) return;  // the worker is gone; the supervisor says so
    if (!result.ok()) {
      spdlog::error("rank {}: {}", rank_, result.status().message());
      continue;
    }
    on_result_(rank_, *result, nullptr);
  }
}

}  // namespace switchyard
