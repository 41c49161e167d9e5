#include "server/api/client_memory/client_memory.h"

#include <algorithm>
#include <utility>

#include "server/api/client_memory/system_shared_memory.h"
#include "server/requests/pushback.h"

namespace switchyard {
namespace {

constexpr int kNumThreads = 2;
// System memory up to this size is copied in tens of microseconds, which is less than another thread takes to begin.
constexpr uint64_t kShortCopyBytes = 256 << 10;
// The least that a copy counts, because a request of few bytes holds more than those.
constexpr int64_t kMinHeldBytes = 4096;

// Copies of GPU memory are never short, because they wait until the GPU has time.
bool IsShort(const SharedMemoryRegion& region, uint64_t num_bytes) {
  return region.info().kind == MemoryKind::kSystem && num_bytes <= kShortCopyBytes;
}

bool IsShort(const std::vector<PlacedOutput>& outputs) {
  return std::all_of(outputs.begin(), outputs.end(),
                     [](const PlacedOutput& output) { return IsShort(*output.place.region, output.place.byte_size); });
}

absl::Status WriteAll(const std::vector<PlacedOutput>& outputs) {
  for (const auto& [place, slices] : outputs) {
    uint64_t offset = place.offset;
    for (const grpc::Slice& slice : slices) {
      const std::span bytes(reinterpret_cast<const std::byte*>(slice.begin()), slice.size());
      SY_RETURN_IF_ERROR(place.region->Write(offset, bytes));
      offset += slice.size();
    }
  }
  return absl::OkStatus();
}

}  // namespace

class ClientMemory::Budget {
 public:
  explicit Budget(int64_t max_bytes) : max_bytes_(max_bytes) {}

  absl::Status Take(int64_t num_bytes) {
    MutexLock lock(&mu_);
    if (num_bytes <= max_bytes_ - held_bytes_) {
      held_bytes_ += num_bytes;
      return absl::OkStatus();
    }
    return WithPushback(
        absl::ResourceExhaustedError(absl::StrCat("shared memory: ", num_bytes, " bytes of inputs beside the ",
                                                  held_bytes_, " held, the limit --max_queued_bytes is ", max_bytes_)));
  }
  void Release(int64_t num_bytes) {
    MutexLock lock(&mu_);
    held_bytes_ -= num_bytes;
  }

 private:
  const int64_t max_bytes_;
  Mutex mu_;
  int64_t held_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

// The copy of an input. It counts in the budget as long as it exists.
class ClientMemory::Copy : public std::enable_shared_from_this<Copy> {
 public:
  static absl::StatusOr<std::shared_ptr<Copy>> Reserve(std::shared_ptr<Budget> budget, uint64_t num_bytes) {
    const int64_t held_bytes = std::max(kMinHeldBytes, static_cast<int64_t>(num_bytes));
    SY_RETURN_IF_ERROR(budget->Take(held_bytes));
    return std::make_shared<Copy>(std::move(budget), held_bytes);
  }

  Copy(std::shared_ptr<Budget> budget, int64_t held_bytes) : budget_(std::move(budget)), held_bytes_(held_bytes) {}
  ~Copy() { budget_->Release(held_bytes_); }

  absl::StatusOr<HostBytes> Fill(const TensorPlace& place) {
    bytes_ = std::make_unique_for_overwrite<std::byte[]>(place.byte_size);
    const std::span<std::byte> bytes(bytes_.get(), place.byte_size);
    SY_RETURN_IF_ERROR(place.region->Read(place.offset, bytes));
    return HostBytes{bytes, shared_from_this()};
  }

 private:
  const std::shared_ptr<Budget> budget_;
  const int64_t held_bytes_;
  std::unique_ptr<std::byte[]> bytes_;
};

ClientMemory::ClientMemory(int64_t max_held_bytes, std::string cuda_library)
    : cuda_library_(std::move(cuda_library)),
      budget_(std::make_shared<Budget>(max_held_bytes)),
      threads_(kNumThreads) {}

absl::Status ClientMemory::RegisterSystem(const std::string& owner, const std::string& name, const std::string& key,
                                          uint64_t offset, uint64_t byte_size) {
  SY_RETURN_IF_ERROR(registry_.CheckNewName(owner, name));
  SY_ASSIGN_OR_RETURN(RegionPtr region, OpenSystemMemory(key, offset, byte_size));
  return registry_.Add(owner, name, std::move(region));
}

absl::Status ClientMemory::RegisterCuda(const std::string& owner, const std::string& name,
                                        const std::string& raw_handle, int64_t device_id, uint64_t byte_size) {
  SY_RETURN_IF_ERROR(registry_.CheckNewName(owner, name));
  SY_ASSIGN_OR_RETURN(const std::shared_ptr<CudaDevices> cuda, Cuda());
  SY_ASSIGN_OR_RETURN(RegionPtr region, cuda->Open(raw_handle, device_id, byte_size));
  return registry_.Add(owner, name, std::move(region));
}

absl::StatusOr<std::shared_ptr<CudaDevices>> ClientMemory::Cuda() {
  MutexLock lock(&mu_);
  if (cuda_ == nullptr) {
    SY_ASSIGN_OR_RETURN(const CudaDriver driver, LoadCudaDriver(cuda_library_.c_str()));
    SY_ASSIGN_OR_RETURN(cuda_, CudaDevices::Create(driver));
  }
  return cuda_;
}

void ClientMemory::Read(const TensorPlace& place, ReadDone done) {
  auto copy = Copy::Reserve(budget_, place.byte_size);
  if (!copy.ok()) return done(copy.status());
  if (IsShort(*place.region, place.byte_size)) return done((*copy)->Fill(place));
  threads_.Run([place, copy = *std::move(copy), done = std::move(done)] { done(copy->Fill(place)); });
}

void ClientMemory::Write(std::vector<PlacedOutput> outputs, std::function<void(const absl::Status&)> done) {
  if (IsShort(outputs)) return done(WriteAll(outputs));
  threads_.Run([outputs = std::move(outputs), done = std::move(done)] { done(WriteAll(outputs)); });
}

}  // namespace switchyard
