// A checkpoint that changes on disk under a running service: no answer mixes the old and the new weights.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "absl/strings/match.h"
#include "cli/compare.h"
#include "cli/tensor_io.h"
#include "moe/weights/checkpoint/safetensors.h"
#include "tests/e2e/negated_checkpoint.h"
#include "tests/e2e/server_process.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kGolden[] = "tests/testdata/golden_qwen3_moe";
constexpr char kPath[] = "model.layers.0.mlp";

// Writes the same with other expert weights alone, and these not in the middle of a tensor, where the fingerprint takes
// its samples.
void WriteOtherExperts(const fs::path& from, const fs::path& to) {
  const auto file = SafetensorsFile::Open(from);
  ASSERT_TRUE(file.ok()) << file.status();
  std::ifstream in(from, std::ios::binary);
  std::string bytes{std::istreambuf_iterator<char>(in), {}};
  for (const std::string_view name : (*file)->names()) {
    if (!absl::StrContains(absl::string_view(name.data(), name.size()), ".experts.")) continue;
    const std::span<const std::byte> tensor = (*file)->Find(name)->bytes;
    const auto begin = tensor.data() - reinterpret_cast<const std::byte*>((*file)->header_bytes().data());
    for (size_t i = 1; i < tensor.size() / 4; i += 2) bytes[begin + i] ^= '\x80';
  }
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
    for (const char* name : {"config.json", "model.safetensors"}) {
      fs::copy_file(fs::path(kGolden) / name, folder_ / name);
    }
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

// A host whose copy of the checkpoint has the same header and other weights.
TEST_F(SwappedCheckpoint, OtherExpertsAreNotServedByAnAwaitedWorker) {
  WriteOtherExperts(folder_ / "model.safetensors", folder_ / "other_experts");
  auto front = ChildProcess::Start(kServerProgram, {"--model=m=" + folder_.string(), "--await_workers=2", "--port=0",
                                                    "--http_port=0", "--worker_port=0", "--compute_dtype=fp32"});
  ASSERT_TRUE(front.ok()) << front.status();
  const auto port = WaitForWorkerPort(**front);
  ASSERT_TRUE(port.ok()) << port.status();
  const auto start_worker = [&] {
    return *ChildProcess::Start(kWorkerProgram, {absl::StrCat("--front=", *port), "--device=cpu", "--threads=1"});
  };
  const auto first = start_worker();
  auto second = start_worker();
  auto server = ServerProcess::WaitUntilReady(*std::move(front));
  ASSERT_TRUE(server.ok()) << server.status();
  client_ = (*server)->Connect();
  ExpectGolden(Ask(absl::Seconds(30)));

  fs::rename(folder_ / "model.safetensors", folder_ / "kept");
  fs::rename(folder_ / "other_experts", folder_ / "model.safetensors");
  second->Signal(SIGKILL);
  while (client_->GetStatus()->state() == "serving") usleep(1000);  // an earlier worker would find the place taken
  second = start_worker();
  while (!absl::StrContains((*server)->process().Log(), "its weights are not those that rank")) usleep(1000);
  EXPECT_THAT((*server)->process().Log(),
              testing::ContainsRegex("model m, layer 0, expert [0-9]+: its weights are not"));
  EXPECT_FALSE(Ask(absl::Seconds(1)).ok()) << "half of the experts would be of the other checkpoint";
  second = nullptr;

  fs::rename(folder_ / "kept", folder_ / "model.safetensors");
  second = start_worker();
  ExpectGolden(Ask(absl::Seconds(60)));
  EXPECT_EQ((*server)->Stop(), 0);
}

}  // namespace
}  // namespace switchyard
