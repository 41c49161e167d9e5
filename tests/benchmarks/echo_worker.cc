// A worker whose engine returns rows unchanged, so that a request costs only the way there and back. Use one such
// worker per group, because several would have to exchange rows.
#include <cstring>
#include <memory>

#include "moe/exchange/in_process.h"
#include "worker/program.h"

namespace switchyard {
namespace {

absl::Status OnlyAlone() { return absl::UnimplementedError("the echo engine exchanges no rows: use one worker"); }

class EchoEngine final : public ExpertEngine {
 public:
  explicit EchoEngine(DType compute_dtype) : compute_dtype_(compute_dtype) {}

  DType compute_dtype() const override { return compute_dtype_; }
  absl::Status AddLayer(const LayerSpec&, int) override { return absl::OkStatus(); }
  absl::Status LoadExpert(LayerId, int, const ExpertWeights&) override { return absl::OkStatus(); }
  int64_t weight_bytes() const override { return 0; }
  absl::StatusOr<std::byte*> ScratchBytes(Scratch, size_t) override { return OnlyAlone(); }
  DeviceStream stream() const override { return nullptr; }
  absl::Status GatherSendRows(const RankPlanView&, ConstMatrixView, MatrixView) override { return OnlyAlone(); }
  absl::Status RunExperts(LayerId, const RankPlanView&, ConstMatrixView received, MatrixView sums) override {
    std::memcpy(sums.data, received.data, received.size_bytes());
    return absl::OkStatus();
  }
  absl::Status Combine(const RankPlanView&, ConstMatrixView, MatrixView) override { return OnlyAlone(); }

 private:
  const DType compute_dtype_;
};

class EchoDevice final : public Device {
 public:
  std::string name() const override { return "echo"; }
  std::vector<std::string> compute_dtypes() const override { return {"fp64", "fp32", "bf16"}; }
  std::vector<std::string> exchange_names() const override { return {"none"}; }
  absl::StatusOr<std::unique_ptr<ExpertEngine>> MakeEngine(DType compute_dtype) override {
    return std::make_unique<EchoEngine>(compute_dtype);
  }
  absl::StatusOr<std::unique_ptr<CommunicatorFactory>> MakeExchange(const std::string&) override {
    return CreateInProcessFactory();
  }
};

absl::StatusOr<std::unique_ptr<Device>> OpenEcho(const WorkerOptions&) { return std::make_unique<EchoDevice>(); }

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) { return switchyard::RunWorkerProgram(argc, argv, switchyard::OpenEcho); }
