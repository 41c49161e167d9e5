#include "moe/exchange/direct/direct_communicator.h"

#include <array>
#include <atomic>
#include <cstring>
#include <new>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "moe/exchange/direct/direct_kernel.h"
#include "moe/exchange/direct/direct_window.h"
#include "moe/exchange/direct/large_blocks.h"
#include "moe/exchange/host_blocks.h"
#include "moe/exchange/mesh/blocks.h"
#include "moe/exchange/mesh/peer_mesh.h"
#include "moe/gpu/cuda_status.h"
#include "moe/gpu/memory.h"
#include "moe/gpu/shared_memory.h"
#include "moe/gpu/stream.h"

namespace switchyard {
namespace {

class DirectCommunicator final : public Communicator {
 public:
  static absl::StatusOr<std::unique_ptr<Communicator>> Create(int rank, int size, const DirectOptions& options);
  // Waits until the kernels have quit.
  ~DirectCommunicator() override;

  int rank() const override { return mesh_->rank(); }
  int size() const override { return mesh_->size(); }
  const std::string& address() const override { return mesh_->address(); }
  absl::Status Connect(std::span<const std::string> addresses) override;
  absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                         std::span<const size_t> recv_bytes, DeviceStream stream) override;
  absl::Status HostAllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                             std::span<const size_t> recv_bytes) override;
  absl::Status Health() override;
  void Abort() override;

 private:
  DirectCommunicator(std::unique_ptr<PeerMesh> mesh, PinnedBuffer state, const DirectOptions& options)
      : options_(options), mesh_(std::move(mesh)), state_(std::move(state)) {
    new (state_.data()) DirectState;
  }

  absl::Status Allocate();
  absl::Status Join(std::span<const std::string> addresses);
  absl::Status Enqueue(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv, cudaStream_t stream);
  absl::Status EnqueueSmall(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv, cudaStream_t stream)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(enqueue_mu_);
  absl::Status Fail(const absl::Status& failure);
  DirectState& state() const { return *reinterpret_cast<DirectState*>(state_.data()); }

  const DirectOptions options_;
  const std::unique_ptr<PeerMesh> mesh_;
  const PinnedBuffer state_;   // a DirectState
  SharedDeviceMemory window_;  // this rank's

  // Held while an exchange is enqueued, so that Abort() knows of all its waits.
  Mutex enqueue_mu_;
  CudaEvent enqueued_;                // after the last exchange; constant after Create
  std::optional<LargeBlocks> large_;  // set by Connect, before anything is enqueued

  Mutex mu_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);  // of a call, which has ended the communicator

  // The calling thread's.
  bool is_connected_ = false;
  std::vector<SharedDeviceMemory> peers_;  // by rank; this rank's is empty
  DeviceBuffer windows_;                   // the addresses of all windows, by rank
  uint64_t exchange_ ABSL_GUARDED_BY(enqueue_mu_) = 0;
};

// ---- Life -----------------------------------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<Communicator>> DirectCommunicator::Create(int rank, int size,
                                                                         const DirectOptions& options) {
  if (size > kMaxDirectRanks) {
    return absl::FailedPreconditionError(
        absl::StrCat("a group of ", size, " ranks, the direct exchange has at most ", kMaxDirectRanks));
  }
  const MeshOptions mesh_options{.family = AF_UNIX, .num_gifts = 1, .connect_timeout = options.connect_timeout};
  SY_ASSIGN_OR_RETURN(auto mesh, PeerMesh::Listen(rank, size, mesh_options));
  SY_CUDA(cudaSetDevice(options.device_idx));
  SY_ASSIGN_OR_RETURN(PinnedBuffer state, PinnedBuffer::Allocate(sizeof(DirectState)));
  std::unique_ptr<DirectCommunicator> communicator(new DirectCommunicator(std::move(mesh), std::move(state), options));
  SY_RETURN_IF_ERROR(communicator->Allocate());
  return communicator;
}

absl::Status DirectCommunicator::Allocate() {
  SY_ASSIGN_OR_RETURN(enqueued_, CudaEvent::Create());
  const DirectWindow window = DirectWindow::Of(size());
  SY_ASSIGN_OR_RETURN(window_, SharedDeviceMemory::Create(window.total_bytes()));
  SY_CUDA(cudaMemset(window_.data(), 0, window.control_bytes()));
  SY_CUDA(cudaDeviceSynchronize());  // before a peer writes there
  return absl::OkStatus();
}

DirectCommunicator::~DirectCommunicator() { Abort(); }

absl::Status DirectCommunicator::Connect(std::span<const std::string> addresses) {
  SY_RETURN_IF_ERROR(Health());
  if (is_connected_) return absl::FailedPreconditionError("this communicator is connected already");
  const absl::Status joined = Join(addresses);
  if (!joined.ok()) return Fail(joined);
  is_connected_ = true;
  return absl::OkStatus();
}

absl::Status DirectCommunicator::Join(std::span<const std::string> addresses) {
  SY_CUDA(cudaSetDevice(options_.device_idx));
  SY_ASSIGN_OR_RETURN(const UniqueFd own, window_.Export());
  SY_RETURN_IF_ERROR(mesh_->Join(addresses, std::array{own.get()}));
  peers_.resize(size());
  std::vector<std::byte*> windows(size(), window_.data());
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank()) continue;
    const std::vector<UniqueFd> gifts = mesh_->TakeGifts(peer);
    auto mapped = SharedDeviceMemory::Map(gifts[0].get(), DirectWindow::Of(size()).total_bytes());
    if (!mapped.ok()) return Annotate(mapped.status(), absl::StrCat("rank ", peer));
    peers_[peer] = *std::move(mapped);
    windows[peer] = peers_[peer].data();
  }
  SY_ASSIGN_OR_RETURN(windows_, DeviceBuffer::Allocate(size() * sizeof(std::byte*)));
  SY_CUDA(cudaMemcpy(windows_.data(), windows.data(), windows_.size(), cudaMemcpyHostToDevice));
  SY_CUDA(cudaDeviceSynchronize());  // because other streams read the table
  SY_ASSIGN_OR_RETURN(LargeBlocks large, LargeBlocks::Create(DirectWindow::Of(size()), rank(), std::move(windows)));
  MutexLock lock(&enqueue_mu_);
  large_.emplace(std::move(large));
  return absl::OkStatus();
}

void DirectCommunicator::Abort() {
  std::atomic_ref(state().is_aborted).store(1);
  mesh_->ShutDown();
  MutexLock lock(&enqueue_mu_);  // nothing is enqueued after this
  (void)cudaSetDevice(options_.device_idx);
  while (cudaEventQuery(enqueued_.get()) == cudaErrorNotReady) {
    if (large_.has_value()) large_->Release().IgnoreError();
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  (void)cudaGetLastError();
}

absl::Status DirectCommunicator::Health() {
  if (mesh_->is_shut_down()) {
    MutexLock lock(&mu_);
    return failure_.ok() ? absl::AbortedError("the communicator was aborted") : failure_;
  }
  const uint32_t failure = std::atomic_ref(state().failure).load(std::memory_order_acquire);
  const int peer = state().peer;
  switch (failure) {
    case DirectState::kNone:
      return absl::OkStatus();
    case DirectState::kWrongBlock:
      return WrongBlock(peer, rank(), {state().found.exchange, state().found.block_bytes},
                        {state().expected.exchange, state().expected.block_bytes});
    default:
      return absl::UnavailableError(
          absl::StrCat("rank ", peer, " is silent after ", options_.exchange_timeout.count(), " ms"));
  }
}

// ---- Exchanging -----------------------------------------------------------------------------------------------------

absl::Status DirectCommunicator::AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                           std::span<const size_t> recv_bytes, DeviceStream stream) {
  SY_RETURN_IF_ERROR(Health());
  if (!is_connected_) return absl::FailedPreconditionError("the communicator is not connected");
  absl::Status enqueued = CheckBlockSizes(rank(), size(), send_bytes, recv_bytes);
  if (enqueued.ok()) enqueued = Enqueue({send, send_bytes}, {recv, recv_bytes}, ToCudaStream(stream));
  return enqueued.ok() ? enqueued : Fail(Annotate(enqueued, absl::StrCat("all-to-all on rank ", rank())));
}

absl::Status DirectCommunicator::Enqueue(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv,
                                         cudaStream_t stream) {
  SY_CUDA(cudaSetDevice(options_.device_idx));
  MutexLock lock(&enqueue_mu_);
  if (mesh_->is_shut_down()) return absl::AbortedError("the communicator was aborted");
  // Two exchanges use the same slots, so they are in order even if they are enqueued on different streams.
  SY_CUDA(cudaStreamWaitEvent(stream, enqueued_.get()));
  absl::Status enqueued = EnqueueSmall(send, recv, stream);
  if (enqueued.ok()) enqueued = large_->Enqueue(send, recv, stream);
  SY_CUDA(cudaEventRecord(enqueued_.get(), stream));
  return enqueued;
}

absl::Status DirectCommunicator::EnqueueSmall(const Blocks<const std::byte>& send, const Blocks<std::byte>& recv,
                                              cudaStream_t stream) {
  DirectExchange exchange{.window = DirectWindow::Of(size()),
                          .rank = rank(),
                          .number = ++exchange_,
                          .windows = reinterpret_cast<std::byte**>(windows_.data()),
                          .state = &state(),
                          .timeout_ns = static_cast<uint64_t>(options_.exchange_timeout.count()) * 1'000'000};
  for (int peer = 0; peer < size(); ++peer) {
    DirectBlock& block = exchange.blocks[peer];
    if (!IsLarge(send[peer].size())) block.send = send[peer].data(), block.send_bytes = send[peer].size();
    if (!IsLarge(recv[peer].size())) block.recv = recv[peer].data(), block.recv_bytes = recv[peer].size();
  }
  return EnqueueDirectExchange(exchange, stream);
}

absl::Status DirectCommunicator::HostAllToAllV(const std::byte* send, std::span<const size_t> send_bytes,
                                               std::byte* recv, std::span<const size_t> recv_bytes) {
  SY_CUDA(cudaSetDevice(options_.device_idx));
  return HostAllToAllVThroughDevice(*this, send, send_bytes, recv, recv_bytes, options_.exchange_timeout);
}

// Ends the communicator. Later calls report the first failure.
absl::Status DirectCommunicator::Fail(const absl::Status& failure) {
  if (mesh_->is_shut_down()) return Health();
  {
    MutexLock lock(&mu_);
    failure_ = failure;
  }
  Abort();
  return failure;
}

class DirectFactory final : public CommunicatorFactory {
 public:
  explicit DirectFactory(const DirectOptions& options) : options_(options) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Prepare(int rank, int size) override {
    return DirectCommunicator::Create(rank, size, options_);
  }

 private:
  const DirectOptions options_;
};

}  // namespace

std::unique_ptr<CommunicatorFactory> CreateDirectFactory(DirectOptions options) {
  return std::make_unique<DirectFactory>(options);
}

}  // namespace switchyard
