#include "worker/loading/kept_parts.h"

#include <gtest/gtest.h>

#include <functional>

#include "moe/experts/cpu/cpu_engine.h"

namespace switchyard {
namespace {

constexpr uint64_t kFiles = 77;

worker::ModelShare Share() {
  worker::ModelShare share;
  share.set_name("m");
  share.set_location("/models/m");
  share.set_fingerprint(5);
  share.set_compute_dtype("fp32");
  share.set_model_id(1);
  share.set_first_layer_id(0);
  share.set_max_batch_rows(16);
  for (const int first : {0, 4}) {
    worker::LayerShare& layer = *share.add_layers();
    for (const int expert : {first, first + 1}) layer.add_expert_idx(expert);
  }
  return share;
}

std::unique_ptr<ModelPart> Part(const worker::ModelShare& share) {
  auto part = std::make_unique<ModelPart>();
  part->share = share;
  part->file_identity = kFiles;
  part->engine = CreateCpuEngine({.num_threads = 1}).value();
  return part;
}

bool Fits(const worker::ModelShare& share, uint64_t file_identity = kFiles) {
  KeptParts kept;
  kept.Keep(Part(Share()));
  return kept.Take(share, file_identity) != nullptr;
}

TEST(KeptParts, ASharesNumbersAndNameMayBeOthers) {
  KeptParts kept;
  kept.Keep(Part(Share()));
  worker::ModelShare share = Share();
  share.set_name("n");
  share.set_model_id(9);
  share.set_first_layer_id(30);
  share.set_file_identity(kFiles);
  const auto part = kept.Take(share, kFiles);
  ASSERT_NE(part, nullptr);
  EXPECT_EQ(part->id(), ModelId{9});
  EXPECT_EQ(part->first_layer(), LayerId{30});
  EXPECT_EQ(kept.Take(share, kFiles), nullptr) << "it is taken";
}

TEST(KeptParts, APartFitsOnlyWhatItWasMadeOf) {
  EXPECT_TRUE(Fits(Share()));
  EXPECT_FALSE(Fits(Share(), kFiles + 1)) << "the files were written to";
  const std::function<void(worker::ModelShare&)> changes[] = {
      [](auto& share) { share.set_location("/models/n"); },
      [](auto& share) { share.set_fingerprint(6); },
      [](auto& share) { share.set_compute_dtype("bf16"); },
      [](auto& share) { share.set_max_batch_rows(17); },
      [](auto& share) { share.mutable_layers(1)->set_expert_idx(0, 6); },
      [](auto& share) { share.mutable_layers(1)->mutable_expert_idx()->SwapElements(0, 1); },
      [](auto& share) { share.mutable_layers(1)->add_expert_idx(6); },
      [](auto& share) { share.mutable_layers(1)->mutable_expert_idx()->RemoveLast(); },
      [](auto& share) { share.mutable_layers()->SwapElements(0, 1); },
      [](auto& share) { share.mutable_layers()->RemoveLast(); },
      [](auto& share) { share.add_layers(); },
  };
  for (size_t i = 0; i < std::size(changes); ++i) {
    worker::ModelShare share = Share();
    changes[i](share);
    EXPECT_FALSE(Fits(share)) << "change " << i;
  }
}

TEST(KeptParts, EachOfTwoEqualPartsIsTakenOnce) {
  KeptParts kept;
  for (int i = 0; i < 2; ++i) kept.Keep(Part(Share()));
  EXPECT_NE(kept.Take(Share(), kFiles), nullptr);
  EXPECT_NE(kept.Take(Share(), kFiles), nullptr);
  EXPECT_EQ(kept.Take(Share(), kFiles), nullptr);
  kept.Keep(Part(Share()));
  EXPECT_EQ(kept.TakeAll().size(), 1u);
  EXPECT_TRUE(kept.TakeAll().empty());
}

}  // namespace
}  // namespace switchyard
