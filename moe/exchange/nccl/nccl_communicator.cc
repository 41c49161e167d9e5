#include "moe/exchange/nccl/nccl_communicator.h"

#include <nccl.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "base/heartbeat.h"
#include "base/mutex.h"
#include "moe/exchange/host_blocks.h"
#include "moe/exchange/nccl/nccl_address.h"
#include "moe/exchange/nccl/nccl_status.h"
#include "moe/gpu/cuda_status.h"
#include "moe/gpu/stream.h"

namespace switchyard {
namespace {

using std::chrono::steady_clock;

static_assert(sizeof(ncclUniqueId) == kNcclUniqueIdBytes);

// Pauses between two polls. NCCL usually enqueues within tens of microseconds, which a sleep would double, so it yields
// at first; but NCCL may also wait long for a peer, so it sleeps later on.
class Backoff {
 public:
  void Pause() {
    if (steady_clock::now() - begin_ < kSpinning) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(kNap);
      Heartbeat::Beat();
    }
  }

 private:
  static constexpr std::chrono::microseconds kSpinning{1000};
  static constexpr std::chrono::microseconds kNap{100};
  const steady_clock::time_point begin_ = steady_clock::now();
};

// One rank's arguments of an exchange.
struct Blocks {
  const std::byte* send;
  std::span<const size_t> send_bytes;
  std::byte* recv;
  std::span<const size_t> recv_bytes;
};

// Where the block of `rank` begins.
size_t OffsetOf(std::span<const size_t> sizes, int rank) {
  return std::accumulate(sizes.begin(), sizes.begin() + rank, size_t{0});
}

class NcclCommunicator final : public Communicator {
 public:
  static absl::StatusOr<std::unique_ptr<Communicator>> Create(int rank, int size, const NcclOptions& options);
  // Aborts instead of calling ncclCommFinalize, which would wait for peers that may be dead.
  ~NcclCommunicator() override { Abort(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& address() const override { return address_; }
  absl::Status Connect(std::span<const std::string> addresses) override;
  absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                         std::span<const size_t> recv_bytes, DeviceStream stream) override;
  absl::Status HostAllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                             std::span<const size_t> recv_bytes) override;
  absl::Status Health() override;
  void Abort() override;

 private:
  NcclCommunicator(int rank, int size, const NcclOptions& options) : rank_(rank), size_(size), options_(options) {}

  absl::Status MakeAddress();
  absl::StatusOr<ncclUniqueId> MeetingPoint(std::span<const std::string> addresses) const;
  absl::Status Join(std::span<const std::string> addresses);
  absl::Status BeginJoining(ncclUniqueId id);

  absl::Status CheckCounts(const Blocks& blocks) const;
  bool InvolvesPeers(const Blocks& blocks) const;
  absl::Status Enqueue(const Blocks& blocks, cudaStream_t stream);
  absl::Status CopyOwnBlock(const Blocks& blocks, cudaStream_t stream) const;
  absl::Status EnqueueGroup(const Blocks& blocks, bool with_own, cudaStream_t stream)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status PostBlocks(const Blocks& blocks, bool with_own, cudaStream_t stream) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  absl::Status CheckUsable() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<bool> IsReady(absl::string_view call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status AwaitReady(absl::string_view call, std::chrono::milliseconds timeout);
  absl::Status Fail(const absl::Status& failure);
  absl::Status FailLocked(const absl::Status& failure) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void End() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // Constant after Create.
  const int rank_;
  const int size_;
  const NcclOptions options_;  // comm_ points to options_.name
  std::string address_;

  // Set before Abort() takes the mutex, so that a thread that polls for progress stops.
  std::atomic<bool> aborted_{false};

  Mutex mu_;
  ncclComm_t comm_ ABSL_GUARDED_BY(mu_) = nullptr;  // null before Connect, after the end, and in a group of one
  // Set when joining begins. NCCL's own thread stores the same value once more when joining is done.
  ncclComm_t joining_comm_ = nullptr;
  bool connected_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);  // the first failure, which has ended comm_
};

absl::StatusOr<std::unique_ptr<Communicator>> NcclCommunicator::Create(int rank, int size, const NcclOptions& options) {
  if (size < 1 || rank < 0 || rank >= size) {
    return absl::InvalidArgumentError(absl::StrCat("no rank ", rank, " in a group of ", size));
  }
  std::unique_ptr<NcclCommunicator> communicator(new NcclCommunicator(rank, size, options));
  SY_RETURN_IF_ERROR(communicator->MakeAddress());
  return communicator;
}

absl::Status NcclCommunicator::MakeAddress() {
  SY_CUDA(cudaSetDevice(options_.device_idx));
  cudaDeviceProp properties{};
  SY_CUDA(cudaGetDeviceProperties(&properties, options_.device_idx));
  int version = 0;
  SY_RETURN_IF_ERROR(NcclStatus(ncclGetVersion(&version), "ncclGetVersion", nullptr));
  NcclAddress address{.rank = rank_, .size = size_, .nccl_version = static_cast<uint32_t>(version)};
  static_assert(sizeof(properties.uuid.bytes) == sizeof(address.gpu));
  std::memcpy(address.gpu.data(), properties.uuid.bytes, address.gpu.size());
  if (NcclAddress::UniqueIdBytes(rank_, size_) > 0) {
    ncclUniqueId id{};
    SY_RETURN_IF_ERROR(NcclStatus(ncclGetUniqueId(&id), "ncclGetUniqueId", nullptr));
    address.unique_id.assign(id.internal, sizeof(id.internal));
  }
  address_ = EncodeNcclAddress(address);
  return absl::OkStatus();
}

absl::Status NcclCommunicator::Connect(std::span<const std::string> addresses) {
  {
    MutexLock lock(&mu_);
    SY_RETURN_IF_ERROR(CheckUsable());
    if (connected_) return absl::FailedPreconditionError("this communicator is connected already");
  }
  if (const absl::Status joined = Join(addresses); !joined.ok()) return Fail(Annotate(joined, "connecting"));
  MutexLock lock(&mu_);
  connected_ = true;
  return absl::OkStatus();
}

absl::Status NcclCommunicator::Join(std::span<const std::string> addresses) {
  SY_ASSIGN_OR_RETURN(const ncclUniqueId id, MeetingPoint(addresses));
  if (size_ == 1) return absl::OkStatus();
  SY_RETURN_IF_ERROR(BeginJoining(id));
  return AwaitReady("ncclCommInitRankConfig", options_.connect_timeout);
}

absl::StatusOr<ncclUniqueId> NcclCommunicator::MeetingPoint(std::span<const std::string> addresses) const {
  if (static_cast<int>(addresses.size()) != size_) {
    return absl::InvalidArgumentError(absl::StrCat("expected ", size_, " addresses, got ", addresses.size()));
  }
  if (addresses[rank_] != address_) {
    return absl::InvalidArgumentError(absl::StrCat("address ", rank_, " is not this rank's own"));
  }
  SY_ASSIGN_OR_RETURN(const std::vector<NcclAddress> group, ParseNcclGroup(addresses));
  ncclUniqueId id{};
  std::memcpy(id.internal, group[0].unique_id.data(), group[0].unique_id.size());
  return id;
}

absl::Status NcclCommunicator::BeginJoining(ncclUniqueId id) {
  ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
  config.blocking = 0;
  config.commName = options_.name.c_str();
  if (options_.max_ctas > 0) config.maxCTAs = options_.max_ctas;
  SY_CUDA(cudaSetDevice(options_.device_idx));
  MutexLock lock(&mu_);
  SY_RETURN_IF_ERROR(CheckUsable());
  const ncclResult_t begun = ncclCommInitRankConfig(&joining_comm_, size_, id, rank_, &config);
  comm_ = std::atomic_ref(joining_comm_).load();  // also after a failure, because comm_ must be ended
  return NcclStatus(begun, "ncclCommInitRankConfig", comm_);
}

absl::Status NcclCommunicator::AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                         std::span<const size_t> recv_bytes, DeviceStream stream) {
  {
    MutexLock lock(&mu_);
    SY_RETURN_IF_ERROR(CheckUsable());
    if (!connected_) return absl::FailedPreconditionError("the communicator is not connected");
  }
  const Blocks blocks{send, send_bytes, recv, recv_bytes};
  absl::Status enqueued = CheckCounts(blocks);
  if (enqueued.ok()) enqueued = Enqueue(blocks, ToCudaStream(stream));
  if (enqueued.ok()) return enqueued;
  return Fail(Annotate(enqueued, absl::StrCat("all-to-all on rank ", rank_)));
}

absl::Status NcclCommunicator::CheckCounts(const Blocks& blocks) const {
  if (static_cast<int>(blocks.send_bytes.size()) != size_ || static_cast<int>(blocks.recv_bytes.size()) != size_) {
    return absl::InvalidArgumentError(absl::StrCat("expected ", size_, " counts, got ", blocks.send_bytes.size(),
                                                   " to send and ", blocks.recv_bytes.size(), " to receive"));
  }
  if (blocks.send_bytes[rank_] != blocks.recv_bytes[rank_]) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", rank_, " sends itself ", blocks.send_bytes[rank_],
                                                   " bytes but expects ", blocks.recv_bytes[rank_]));
  }
  return absl::OkStatus();
}

bool NcclCommunicator::InvolvesPeers(const Blocks& blocks) const {
  for (int peer = 0; peer < size_; ++peer) {
    if (peer != rank_ && (blocks.send_bytes[peer] > 0 || blocks.recv_bytes[peer] > 0)) return true;
  }
  return false;
}

absl::Status NcclCommunicator::Enqueue(const Blocks& blocks, cudaStream_t stream) {
  SY_CUDA(cudaSetDevice(options_.device_idx));
  const bool with_peers = InvolvesPeers(blocks);
  const bool with_own = with_peers && blocks.send_bytes[rank_] <= options_.max_self_send_bytes;
  if (!with_own) SY_RETURN_IF_ERROR(CopyOwnBlock(blocks, stream));
  if (!with_peers) return absl::OkStatus();
  {
    MutexLock lock(&mu_);
    SY_RETURN_IF_ERROR(CheckUsable());
    SY_RETURN_IF_ERROR(EnqueueGroup(blocks, with_own, stream));
  }
  return AwaitReady("ncclGroupEnd", options_.exchange_timeout);
}

absl::Status NcclCommunicator::CopyOwnBlock(const Blocks& blocks, cudaStream_t stream) const {
  const size_t num_bytes = blocks.send_bytes[rank_];
  if (num_bytes == 0) return absl::OkStatus();
  SY_CUDA(cudaMemcpyAsync(blocks.recv + OffsetOf(blocks.recv_bytes, rank_),
                          blocks.send + OffsetOf(blocks.send_bytes, rank_), num_bytes, cudaMemcpyDeviceToDevice,
                          stream));
  return absl::OkStatus();
}

// Ends the NCCL group even when a post within it failed, because the thread would stay in the group otherwise.
absl::Status NcclCommunicator::EnqueueGroup(const Blocks& blocks, bool with_own, cudaStream_t stream) {
  SY_RETURN_IF_ERROR(NcclStatus(ncclGroupStart(), "ncclGroupStart", comm_));
  const absl::Status posted = PostBlocks(blocks, with_own, stream);
  const ncclResult_t ended = ncclGroupEnd();
  SY_RETURN_IF_ERROR(posted);
  return NcclStatus(ended, "ncclGroupEnd", comm_);
}

absl::Status NcclCommunicator::PostBlocks(const Blocks& blocks, bool with_own, cudaStream_t stream) {
  const std::byte* send = blocks.send;
  std::byte* recv = blocks.recv;
  for (int peer = 0; peer < size_; ++peer) {
    const size_t send_bytes = blocks.send_bytes[peer];
    const size_t recv_bytes = blocks.recv_bytes[peer];
    const bool goes = peer != rank_ || with_own;
    if (goes && send_bytes > 0) {
      SY_RETURN_IF_ERROR(NcclStatus(ncclSend(send, send_bytes, ncclUint8, peer, comm_, stream),
                                    absl::StrCat("ncclSend to rank ", peer), comm_));
    }
    if (goes && recv_bytes > 0) {
      SY_RETURN_IF_ERROR(NcclStatus(ncclRecv(recv, recv_bytes, ncclUint8, peer, comm_, stream),
                                    absl::StrCat("ncclRecv from rank ", peer), comm_));
    }
    send += send_bytes;
    recv += recv_bytes;
  }
  return absl::OkStatus();
}

absl::Status NcclCommunicator::HostAllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                             std::span<const size_t> recv_bytes) {
  SY_CUDA(cudaSetDevice(options_.device_idx));
  return HostAllToAllVThroughDevice(*this, send, send_bytes, recv, recv_bytes, options_.exchange_timeout);
}

absl::Status NcclCommunicator::Health() {
  MutexLock lock(&mu_);
  SY_RETURN_IF_ERROR(CheckUsable());
  return comm_ == nullptr ? absl::OkStatus() : IsReady("exchange").status();
}

absl::Status NcclCommunicator::CheckUsable() {
  if (!aborted_) return failure_;
  // Abort() may still be waiting for the mutex.
  End();
  return absl::AbortedError("the communicator was aborted");
}

// Whether NCCL has finished the last nonblocking call.
absl::StatusOr<bool> NcclCommunicator::IsReady(absl::string_view call) {
  ncclResult_t state = ncclSuccess;
  const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
  if (asked != ncclSuccess) state = asked;
  if (const absl::Status status = NcclStatus(state, call, comm_); !status.ok()) return FailLocked(status);
  return state == ncclSuccess;
}

absl::Status NcclCommunicator::AwaitReady(absl::string_view call, std::chrono::milliseconds timeout) {
  const Heartbeat::Doing waiting(Heartbeat::Activity::kWaiting);
  const auto deadline = steady_clock::now() + timeout;
  Backoff backoff;
  while (true) {
    {
      MutexLock lock(&mu_);
      SY_RETURN_IF_ERROR(CheckUsable());
      SY_ASSIGN_OR_RETURN(const bool is_ready, IsReady(call));
      if (is_ready) return absl::OkStatus();
    }
    if (steady_clock::now() >= deadline) {
      return absl::UnavailableError(absl::StrCat(call, ": not all peers came within ", timeout.count(), " ms"));
    }
    backoff.Pause();
  }
}

absl::Status NcclCommunicator::Fail(const absl::Status& failure) {
  MutexLock lock(&mu_);
  return FailLocked(failure);
}

// Ends the communicator. Later calls report the first failure. After Abort(), every failure is reported as ABORTED.
absl::Status NcclCommunicator::FailLocked(const absl::Status& failure) {
  SY_RETURN_IF_ERROR(CheckUsable());
  failure_ = failure;
  End();
  return failure_;
}

void NcclCommunicator::Abort() {
  aborted_ = true;
  MutexLock lock(&mu_);
  End();
}

void NcclCommunicator::End() {
  if (comm_ == nullptr) return;
  // Otherwise a thread that never chose a GPU would get a context on the first GPU.
  (void)cudaSetDevice(options_.device_idx);
  (void)ncclCommAbort(std::exchange(comm_, nullptr));
  (void)cudaGetLastError();
}

class NcclFactory final : public CommunicatorFactory {
 public:
  explicit NcclFactory(NcclOptions options) : options_(std::move(options)) {}

  absl::StatusOr<std::unique_ptr<Communicator>> Prepare(int rank, int size) override {
    return NcclCommunicator::Create(rank, size, options_);
  }

 private:
  const NcclOptions options_;
};

}  // namespace

std::unique_ptr<CommunicatorFactory> CreateNcclFactory(NcclOptions options) {
  setenv("NCCL_NVLS_ENABLE", "0", /*overwrite=*/0);
  if (!options.socket_interface.empty()) {
    setenv("NCCL_SOCKET_IFNAME", options.socket_interface.c_str(), /*overwrite=*/0);
  }
  return std::make_unique<NcclFactory>(std::move(options));
}

}  // namespace switchyard
