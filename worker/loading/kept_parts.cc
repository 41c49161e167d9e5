#include "worker/loading/kept_parts.h"

#include <algorithm>
#include <utility>

namespace switchyard {
namespace {

bool HaveSameExperts(const worker::ModelShare& a, const worker::ModelShare& b) {
  const auto same = [](const worker::LayerShare& one, const worker::LayerShare& other) {
    return std::equal(one.expert_idx().begin(), one.expert_idx().end(), other.expert_idx().begin(),
                      other.expert_idx().end());
  };
  return std::equal(a.layers().begin(), a.layers().end(), b.layers().begin(), b.layers().end(), same);
}

bool Fits(const ModelPart& part, const worker::ModelShare& share, uint64_t file_identity) {
  const worker::ModelShare& own = part.share;
  return own.location() == share.location() && own.fingerprint() == share.fingerprint() &&
         part.file_identity == file_identity && own.compute_dtype() == share.compute_dtype() &&
         own.max_batch_rows() == share.max_batch_rows() && HaveSameExperts(own, share);
}

}  // namespace

void KeptParts::Keep(std::unique_ptr<ModelPart> part) {
  MutexLock lock(&mu_);
  parts_.push_back(std::move(part));
}

std::unique_ptr<ModelPart> KeptParts::Take(const worker::ModelShare& share, uint64_t file_identity) {
  MutexLock lock(&mu_);
  const auto found =
      std::find_if(parts_.begin(), parts_.end(), [&](const auto& part) { return Fits(*part, share, file_identity); });
  if (found == parts_.end()) return nullptr;
  std::unique_ptr<ModelPart> part = std::move(*found);
  parts_.erase(found);
  part->share = share;
  return part;
}

std::vector<std::unique_ptr<ModelPart>> KeptParts::TakeAll() {
  MutexLock lock(&mu_);
  return std::exchange(parts_, {});
}

int64_t KeptParts::weight_bytes() const {
  MutexLock lock(&mu_);
  int64_t total = 0;
  for (const auto& part : parts_) total += part->engine->weight_bytes();
  return total;
}

}  // namespace switchyard
