// A checkpoint that changes on disk under a running service: no answer mixes the old and the new weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kGolden[] = "tests/testdata/golden_qwen3_moe";
constexpr char kPath[] = "model.layers.0.mlp";

// Writes the same names, shapes and types, with the sign of every weight inverted.
void WriteNegated(const fs::path& from, const fs::path& to) {
  std::ifstream in(from, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), sizeof(header_bytes));
  for (size_t i = sizeof(header_bytes) + header_bytes + 1; i < bytes.size(); i += 2) bytes[i] ^= '\x80';  // bf16
  std::ofstream(to, std::ios::binary) << bytes;
}

HostMatrix Golden(const std::string& what) {
  return LoadMatrix({absl::StrCat(kGolden, "/golden.safetensors"), absl::StrCat(kPath, ".", what)}).value();
}

class SwappedCheckpoint : public testing::Test {
 protected:
  SwappedCheckpoint() : folder_(fs::path(testing::TempDir()) / "checkpoint") {
    fs::remove_all(folder_);
    fs::create_directory(folder_);
    for (const char* name : {"config.json", "model.safetensors"})
      fs::copy_file(fs::path(kGolden) / name, folder_ / name);
    WriteNegated(folder_ / "model.safetensors", folder_ / "other");
  }

  absl::StatusOr<ForwardResult> Ask(absl::Duration timeout) {
    ForwardArgs args;
    args.model = "m";
    args.layer = "0";
    args.rows = input_.view();
    args.timeout = timeout;
    return client_->Forward(args);
  }

  void ExpectGolden(const absl::StatusOr<ForwardResult>& result) {
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_TRUE(Compare(result->rows.view(), expected_.view(), {1e-4, 1e-5}).within_tolerance());
  }

  const fs::path folder_;
  const HostMatrix input_ = Golden("input"), expected_ = Golden("output");
  std::unique_ptr<Client> client_;
};

TEST_F(SwappedCheckpoint, IsRefusedByAWorkerThatComesLater) {
  auto server = ServerProcess::Start({"--model=m=" + folder_.string(), "--local_workers=2", "--compute_dtype=fp32"});
  ASSERT_TRUE(server.ok()) << server.status();
  client_ = (*server)->Connect();
  ExpectGolden(Ask(absl::Seconds(30)));

  fs::rename(folder_ / "model.safetensors", folder_ / "kept");
  fs::rename(folder_ / "other", folder_ / "model.safetensors");
  ExpectGolden(Ask(absl::Seconds(30)));  // workers that have loaded the checkpoint go on
  kill((*client_->GetStatus()).ranks(1).pid(), SIGKILL);
  const auto meanwhile = Ask(absl::Seconds(3));
  EXPECT_FALSE(meanwhile.ok()) << "half of the experts would be of the other checkpoint";
  EXPECT_TRUE((*server)->process().HasLogged("was written to since the front opened it"));

  fs::rename(folder_ / "kept", folder_ / "model.safetensors");
  ExpectGolden(Ask(absl::Seconds(60)));
  EXPECT_EQ((*server)->Stop(), 0);
}

}  // namespace
}  // namespace switchyard
