#include "moe/exchange/in_process.h"

#include <cstring>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "base/mutex.h"

namespace switchyard {
namespace {

// A rank's arguments of a call. The spans belong to the caller and are read only between the two barriers of the call.
struct Offer {
  const std::byte* send = nullptr;
  std::span<const size_t> send_bytes;
  std::span<const size_t> recv_bytes;
};

// The ranks that connect to the same addresses. Guarded by the hub's mutex, except that between barriers `offers` does
// not change and is read without it.
struct ConnectedRanks {
  explicit ConnectedRanks(int size) : offers(size) {}

  int num_joined = 0;
  std::vector<Offer> offers;
  int num_arrived = 0;      // at the current barrier
  int64_t barrier_idx = 0;  // grows by one when all ranks have arrived
  int num_copying = 0;      // ranks reading the others' send buffers
  absl::Status failure;     // the first failure, which ends every call
};

// The meeting place of the ranks of one factory. Thread-safe.
struct Hub {
  Mutex mu;
  CondVar changed;
  int64_t next_id ABSL_GUARDED_BY(mu) = 0;
  std::map<std::string, std::weak_ptr<ConnectedRanks>> by_addresses ABSL_GUARDED_BY(mu);
  std::set<std::string> alive ABSL_GUARDED_BY(mu);  // addresses neither aborted nor destroyed
};

absl::Status CheckSizes(std::span<const Offer> offers, int rank) {
  const size_t size = offers.size();
  if (offers[rank].send_bytes.size() == size && offers[rank].recv_bytes.size() == size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("rank ", rank, ": expected ", size, " counts, got ",
                                                 offers[rank].send_bytes.size(), " to send and ",
                                                 offers[rank].recv_bytes.size(), " to receive"));
}

absl::Status CheckCounts(std::span<const Offer> offers) {
  for (size_t rank = 0; rank < offers.size(); ++rank) SY_RETURN_IF_ERROR(CheckSizes(offers, rank));
  for (size_t source = 0; source < offers.size(); ++source) {
    for (size_t destination = 0; destination < offers.size(); ++destination) {
      const size_t sent = offers[source].send_bytes[destination];
      const size_t expected = offers[destination].recv_bytes[source];
      if (sent == expected) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("rank ", source, " sends rank ", destination, " ", sent, " bytes, which expects ", expected));
    }
  }
  return absl::OkStatus();
}

void CopyBlocks(std::span<const Offer> offers, int rank, std::byte* recv) {
  for (size_t source = 0; source < offers.size(); ++source) {
    const std::byte* block = offers[source].send;
    for (int before = 0; before < rank; ++before) block += offers[source].send_bytes[before];
    const size_t num_bytes = offers[rank].recv_bytes[source];
    if (num_bytes > 0) std::memcpy(recv, block, num_bytes);
    recv += num_bytes;
  }
}

class InProcessCommunicator final : public Communicator {
 public:
  InProcessCommunicator(std::shared_ptr<Hub> hub, int rank, int size, std::string address)
      : hub_(std::move(hub)), rank_(rank), size_(size), address_(std::move(address)) {}
  ~InProcessCommunicator() override { Abort(); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& address() const override { return address_; }
  absl::Status Connect(std::span<const std::string> addresses) override;
  absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                         std::span<const size_t> recv_bytes, DeviceStream stream) override;
  void Abort() override;

 private:
  absl::Status CheckUsable() ABSL_EXCLUSIVE_LOCKS_REQUIRED(hub_->mu);
  absl::Status WaitForJoin(std::span<const std::string> addresses) ABSL_EXCLUSIVE_LOCKS_REQUIRED(hub_->mu);
  absl::Status Exchange(std::byte* recv) ABSL_EXCLUSIVE_LOCKS_REQUIRED(hub_->mu);
  absl::Status Barrier() ABSL_EXCLUSIVE_LOCKS_REQUIRED(hub_->mu);
  void Fail(const absl::Status& failure) ABSL_EXCLUSIVE_LOCKS_REQUIRED(hub_->mu);

  // Constant after construction.
  const std::shared_ptr<Hub> hub_;
  const int rank_;
  const int size_;
  const std::string address_;

  bool aborted_ ABSL_GUARDED_BY(hub_->mu) = false;
  bool joined_ ABSL_GUARDED_BY(hub_->mu) = false;
  std::shared_ptr<ConnectedRanks> ranks_ ABSL_GUARDED_BY(hub_->mu);
};

absl::Status InProcessCommunicator::Connect(std::span<const std::string> addresses) {
  MutexLock lock(&hub_->mu);
  if (aborted_) return absl::AbortedError("the communicator was aborted");
  if (ranks_ != nullptr) return absl::FailedPreconditionError("Connect was called already");
  if (static_cast<int>(addresses.size()) != size_) {
    return absl::InvalidArgumentError(absl::StrCat("expected ", size_, " addresses, got ", addresses.size()));
  }
  if (addresses[rank_] != address_) {
    return absl::InvalidArgumentError(absl::StrCat("address ", rank_, " is not this rank's own"));
  }
  std::weak_ptr<ConnectedRanks>& entry = hub_->by_addresses[absl::StrJoin(addresses, "\n")];
  ranks_ = entry.lock();
  if (ranks_ == nullptr) entry = ranks_ = std::make_shared<ConnectedRanks>(size_);
  ++ranks_->num_joined;
  hub_->changed.SignalAll();
  return WaitForJoin(addresses);
}

absl::Status InProcessCommunicator::WaitForJoin(std::span<const std::string> addresses) {
  while (ranks_->num_joined < size_ && ranks_->failure.ok()) {
    for (int peer = 0; peer < size_; ++peer) {
      if (!hub_->alive.contains(addresses[peer]) && peer != rank_) {
        Fail(absl::UnavailableError(absl::StrCat("there is no rank ", peer, " at '", addresses[peer], "'")));
      }
    }
    if (ranks_->failure.ok()) hub_->changed.Wait(&hub_->mu);
  }
  if (aborted_) return absl::AbortedError("connecting was aborted");
  SY_RETURN_IF_ERROR(ranks_->failure);
  joined_ = true;
  return absl::OkStatus();
}

absl::Status InProcessCommunicator::CheckUsable() {
  if (aborted_) return absl::AbortedError("the communicator was aborted");
  if (ranks_ != nullptr && !ranks_->failure.ok()) return ranks_->failure;
  if (!joined_) return absl::FailedPreconditionError("the communicator is not connected");
  return absl::OkStatus();
}

absl::Status InProcessCommunicator::AllToAllV(const std::byte* send, std::span<const size_t> send_bytes,
                                              std::byte* recv, std::span<const size_t> recv_bytes, DeviceStream) {
  MutexLock lock(&hub_->mu);
  SY_RETURN_IF_ERROR(CheckUsable());
  ranks_->offers[rank_] = {send, send_bytes, recv_bytes};
  const absl::Status done = Exchange(recv);
  // After a failure, a peer may still be reading this rank's send buffer.
  while (ranks_->num_copying > 0 && !done.ok()) hub_->changed.Wait(&hub_->mu);
  return aborted_ && !done.ok() ? absl::AbortedError("the all-to-all was aborted") : done;
}

absl::Status InProcessCommunicator::Exchange(std::byte* recv) {
  SY_RETURN_IF_ERROR(Barrier());  // all ranks have made their offers
  // If a rank has left since the barrier, its buffers may be gone.
  SY_RETURN_IF_ERROR(ranks_->failure);
  if (const absl::Status counts = CheckCounts(ranks_->offers); !counts.ok()) {
    Fail(counts);
    return ranks_->failure;
  }
  ++ranks_->num_copying;
  const std::vector<Offer>& offers = ranks_->offers;  // they stay as they are while a rank copies
  hub_->mu.Unlock();
  CopyBlocks(offers, rank_, recv);
  hub_->mu.Lock();
  if (--ranks_->num_copying == 0) hub_->changed.SignalAll();
  return Barrier();  // all copies are made
}

absl::Status InProcessCommunicator::Barrier() {
  const int64_t barrier_idx = ranks_->barrier_idx;
  if (!ranks_->failure.ok()) return ranks_->failure;
  if (++ranks_->num_arrived == size_) {
    ranks_->num_arrived = 0;
    ++ranks_->barrier_idx;
    hub_->changed.SignalAll();
  }
  // A barrier that was passed counts as passed even if a rank has left since.
  while (ranks_->barrier_idx == barrier_idx && ranks_->failure.ok()) hub_->changed.Wait(&hub_->mu);
  return ranks_->barrier_idx == barrier_idx ? ranks_->failure : absl::OkStatus();
}

void InProcessCommunicator::Fail(const absl::Status& failure) {
  if (ranks_->failure.ok()) ranks_->failure = failure;
  hub_->changed.SignalAll();
}

void InProcessCommunicator::Abort() {
  MutexLock lock(&hub_->mu);
  if (aborted_) return;
  aborted_ = true;
  hub_->alive.erase(address_);
  if (ranks_ != nullptr) Fail(absl::UnavailableError(absl::StrCat("rank ", rank_, " is gone")));
  hub_->changed.SignalAll();
}

class InProcessFactory final : public CommunicatorFactory {
 public:
  absl::StatusOr<std::unique_ptr<Communicator>> Prepare(int rank, int size) override {
    if (size < 1 || rank < 0 || rank >= size) {
      return absl::InvalidArgumentError(absl::StrCat("no rank ", rank, " in a group of ", size));
    }
    MutexLock lock(&hub_->mu);
    std::string address = absl::StrCat("thread ", hub_->next_id++);
    hub_->alive.insert(address);
    std::erase_if(hub_->by_addresses, [](const auto& entry) { return entry.second.expired(); });
    return std::make_unique<InProcessCommunicator>(hub_, rank, size, std::move(address));
  }

 private:
  const std::shared_ptr<Hub> hub_ = std::make_shared<Hub>();
};

}  // namespace

std::unique_ptr<CommunicatorFactory> CreateInProcessFactory() { return std::make_unique<InProcessFactory>(); }

}  // namespace switchyard
