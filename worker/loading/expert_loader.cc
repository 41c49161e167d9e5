#include "worker/loading/expert_loader.h"

#include <algorithm>
#include <map>
#include <numeric>
#include <optional>
#include <thread>

#include "base/mutex.h"
#include "worker/loading/expert_digest.h"

namespace switchyard {
namespace {

std::vector<ExpertToLoad> InStorageOrder(const WeightSource& source, const std::vector<ExpertToLoad>& experts) {
  std::vector<std::optional<StoragePosition>> positions;  // all nullopt without files, so that the order stays
  for (const ExpertToLoad& expert : experts) {
    positions.push_back(source.PositionOf(expert.layer_idx, expert.expert_idx));
  }
  std::vector<size_t> order(experts.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return positions[a] < positions[b]; });
  std::vector<ExpertToLoad> sorted;
  for (const size_t i : order) sorted.push_back(experts[i]);
  return sorted;
}

class Loader {
 public:
  Loader(WeightSource& source, ExpertEngine& engine, const std::vector<ExpertToLoad>& experts,
         const ExpertLoadedFn& loaded)
      : source_(source),
        engine_(engine),
        experts_(InStorageOrder(source, experts)),
        loaded_(loaded),
        num_loaders_(std::clamp<size_t>(engine.load_threads(), 1, std::max<size_t>(experts.size(), 1))) {}

  absl::Status Run() {
    std::vector<std::thread> helpers;
    for (int i = 0; i < kNumReaders; ++i) helpers.emplace_back([this] { ReadAll(); });
    for (size_t i = 1; i < num_loaders_; ++i) helpers.emplace_back([this] { LoadAll(); });
    LoadAll();
    for (std::thread& helper : helpers) helper.join();
    MutexLock lock(&mu_);
    for (const auto& [index, read] : read_) {
      if (read.ok()) Release(experts_[index]);
    }
    return status_;
  }

 private:
  struct ReadWeights {
    ExpertWeights weights;
    uint64_t digest = 0;
  };

  absl::StatusOr<ReadWeights> Read(const ExpertToLoad& expert) {
    SY_ASSIGN_OR_RETURN(ExpertWeights weights, source_.ReadExpert(expert.layer_idx, expert.expert_idx));
    const uint64_t digest = DigestOf(weights);
    return ReadWeights{std::move(weights), digest};
  }

  void ReadAll() {
    for (size_t index; (index = NextToRead()) < experts_.size();) {
      const ExpertToLoad& expert = experts_[index];
      auto read = Read(expert);
      MutexLock lock(&mu_);
      read_.emplace(index, std::move(read));
      changed_.SignalAll();
    }
  }

  void LoadAll() {
    for (size_t index; (index = NextToLoad()) < experts_.size();) {
      const ExpertToLoad& expert = experts_[index];
      uint64_t digest = 0;
      absl::Status loaded = Load(index, &digest);
      MutexLock lock(&mu_);
      --num_held_;
      bytes_held_ -= BytesOf(expert);
      if (loaded.ok()) loaded = loaded_(expert, digest);
      // Other threads may report failures of earlier or later experts; the earliest counts.
      if (!loaded.ok() && index < failed_) {
        failed_ = index;
        status_ = Annotate(loaded, NameOf(expert));
      }
      changed_.SignalAll();
    }
  }

  // Waits for room and returns the index of the next expert to read, or experts_.size() if there is none.
  size_t NextToRead() {
    MutexLock lock(&mu_);
    while (status_.ok() && next_to_read_ < experts_.size() && !HasRoomFor(experts_[next_to_read_])) {
      changed_.Wait(&mu_);
    }
    if (!status_.ok() || next_to_read_ == experts_.size()) return experts_.size();
    ++num_held_;
    bytes_held_ += BytesOf(experts_[next_to_read_]);
    return next_to_read_++;
  }

  // Waits until the next expert has been read and returns its index, or experts_.size() if there is none.
  size_t NextToLoad() {
    MutexLock lock(&mu_);
    if (!status_.ok() || next_to_load_ == experts_.size()) return experts_.size();
    const size_t index = next_to_load_++;
    while (status_.ok() && !read_.contains(index)) changed_.Wait(&mu_);
    return status_.ok() ? index : experts_.size();
  }

  bool HasRoomFor(const ExpertToLoad& expert) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    return num_held_ < 2 * num_loaders_ || bytes_held_ + BytesOf(expert) <= kReadAheadBytes;
  }

  absl::Status Load(size_t index, uint64_t* digest) {
    SY_ASSIGN_OR_RETURN(const ReadWeights read, TakeRead(index));
    const ExpertToLoad& expert = experts_[index];
    *digest = read.digest;
    absl::Status loaded = engine_.LoadExpert(LayerId{expert.layer_idx}, expert.slot, read.weights);
    loaded.Update(source_.CheckIntact());
    Release(expert);
    return loaded;
  }

  absl::StatusOr<ReadWeights> TakeRead(size_t index) {
    MutexLock lock(&mu_);
    auto node = read_.extract(index);
    return std::move(node.mapped());
  }

  void Release(const ExpertToLoad& expert) { source_.ReleaseExpert(expert.layer_idx, expert.expert_idx); }

  int64_t BytesOf(const ExpertToLoad& expert) const {
    return ExpertBytes(source_.spec().layers[expert.layer_idx], source_.spec().dtype);
  }

  std::string NameOf(const ExpertToLoad& expert) const {
    return absl::StrCat("layer ", source_.spec().layers[expert.layer_idx].name, ", expert ", expert.expert_idx);
  }

  WeightSource& source_;
  ExpertEngine& engine_;
  const std::vector<ExpertToLoad> experts_;
  const ExpertLoadedFn& loaded_;
  const size_t num_loaders_;

  // Held for bookkeeping only, never while weights are read or loaded.
  Mutex mu_;
  CondVar changed_;
  size_t next_to_read_ ABSL_GUARDED_BY(mu_) = 0;
  size_t next_to_load_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<size_t, absl::StatusOr<ReadWeights>> read_ ABSL_GUARDED_BY(mu_);
  // Experts that are being read, read or being loaded, and their bytes.
  size_t num_held_ ABSL_GUARDED_BY(mu_) = 0;
  int64_t bytes_held_ ABSL_GUARDED_BY(mu_) = 0;
  size_t failed_ ABSL_GUARDED_BY(mu_) = SIZE_MAX;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

absl::Status LoadExperts(WeightSource& source, ExpertEngine& engine, const std::vector<ExpertToLoad>& experts,
                         const ExpertLoadedFn& loaded) {
  return Loader(source, engine, experts, loaded).Run();
}

}  // namespace switchyard
