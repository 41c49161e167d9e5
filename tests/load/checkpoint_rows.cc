// Row 11: a checkpoint with one bit of its header flipped, for every byte, loaded into a running server.
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>

#include "absl/strings/match.h"
#include "cli/compare.h"
#include "tests/load/row_parts.h"

namespace switchyard {
namespace {

namespace fs = std::filesystem;

constexpr char kGolden[] = "golden_qwen3_moe";

std::string ReadFile(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

// A folder that a server loads models from, with one checkpoint whose weights are written anew.
class Repository {
 public:
  explicit Repository(const fs::path& golden) : root_(MakeRoot()), weights_(ReadFile(golden / "model.safetensors")) {
    fs::create_directory(root_ / "x");
    fs::copy_file(golden / "config.json", root_ / "x" / "config.json");
  }
  ~Repository() { fs::remove_all(root_); }

  const fs::path& root() const { return root_; }
  // Bytes of the length and of the header behind it.
  size_t num_header_bytes() const {
    uint64_t length = 0;
    std::memcpy(&length, weights_.data(), sizeof(length));
    return sizeof(length) + length;
  }
  // Processes that read the old file keep reading the old file.
  void Write(size_t byte, int bit) {
    std::string bytes = weights_;
    bytes[byte] = static_cast<char>(bytes[byte] ^ (1 << bit));
    std::ofstream(root_ / "new", std::ios::binary) << bytes;
    fs::rename(root_ / "new", root_ / "x" / "model.safetensors");
  }

 private:
  static fs::path MakeRoot() {
    std::string name = (fs::temp_directory_path() / "checkpoint-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) Die(absl::InternalError("no temporary folder"));
    return name;
  }

  const fs::path root_;
  const std::string weights_;
};

// An error names a tensor of the file, a layer that lacks one, or what is wrong with the header.
bool NamesTheFault(const absl::Status& status) {
  for (const char* word : {"tensor", "header", "model.layers"}) {
    if (absl::StrContains(status.message(), word)) return true;
  }
  return false;
}

struct Flips {
  int64_t refused = 0;
  int64_t harmless = 0;  // accepted, and the answers are right
  int64_t wrong = 0;
  int64_t unnamed = 0;
  int64_t left_behind = 0;
  std::string first_unnamed;
};

class FlippedBytes {
 public:
  FlippedBytes(const ServerProcess& server, Repository& repository, const HonestWork& work)
      : client_(server.Connect({.timeout = absl::Seconds(60), .max_attempts = 1})),
        repository_(repository),
        work_(work),
        weights_before_(WeightBytes()) {}

  void Try(size_t byte, int bit) {
    repository_.Write(byte, bit);
    const absl::Status loaded = client_->LoadModel("x");
    if (!loaded.ok()) {
      ++flips_.refused;
      if (!NamesTheFault(loaded) && flips_.unnamed++ == 0) flips_.first_unnamed = loaded.ToString();
    } else {
      const auto answer = client_->Forward({.model = "x", .layer = "0", .rows = work_.rows.view()});
      const bool is_right =
          answer.ok() && Compare(answer->rows.view(), work_.expected.view(), {1e-4, 1e-5}).within_tolerance();
      ++(is_right ? flips_.harmless : flips_.wrong);
      if (const auto unloaded = client_->UnloadModel("x"); !unloaded.ok()) Die(unloaded);
    }
    flips_.left_behind += OrDie(client_->ListModels()).models_size() != 1 || !ReturnsToWeightsBefore();
  }
  const Flips& flips() const { return flips_; }

 private:
  // Workers free a model a moment after it is unloaded.
  bool ReturnsToWeightsBefore() {
    const SteadyTime begin = Clock::Real().Now();
    while (WeightBytes() != weights_before_) {
      if (MicrosBetween(begin, Clock::Real().Now()) > 5'000'000) return false;
      usleep(1000);
    }
    return true;
  }
  // Of all ranks.
  int64_t WeightBytes() {
    int64_t sum = 0;
    const v1::GetStatusResponse status = OrDie(client_->GetStatus());
    for (const v1::Rank& rank : status.ranks()) sum += rank.weight_bytes();
    return sum;
  }

  const std::unique_ptr<Client> client_;
  Repository& repository_;
  const HonestWork& work_;
  const int64_t weights_before_;
  Flips flips_;
};

}  // namespace

void MeasureFlippedBytes(const ScorecardSettings& settings, Scorecard& card) {
  const fs::path golden = fs::path(settings.testdata) / kGolden;
  Repository repository(golden);
  const auto server = StartServer(settings, {"--model_repository=" + repository.root().string(), "--warmup=off"});
  const HonestWork jargon = GoldenWork("m", settings.checkpoint(), 1, 8);
  HonestCaller honest(*server, jargon, kHonestPeriod);
  const HonestWork work = GoldenWork("x", golden.string(), 0, 4);
  FlippedBytes flipped(*server, repository, work);
  const auto step = static_cast<size_t>(settings.Size(1, 50));
  int64_t tried = 0;
  for (size_t byte = 0; byte < repository.num_header_bytes(); byte += step, tried += 2) {
    flipped.Try(byte, 0);
    flipped.Try(byte, static_cast<int>(1 + byte % 7));
  }
  const HonestReport during = honest.Take();
  const Flips& flips = flipped.flips();
  card.Print(11, {.tried = absl::StrCat(tried, " flipped bits: ", "two of every ", settings.is_quick ? "50th " : "",
                                        "byte of the header of a checkpoint (", repository.num_header_bytes(),
                                        " bytes), loaded into a running server"),
                  .limit = "refused, the tensor or rule named; nothing half-loaded",
                  .measured = absl::StrCat(
                      flips.refused, " refused, ", flips.unnamed, " of them without a name; ", flips.harmless,
                      " changed nothing that is read, and the answers were right; ", flips.wrong, " answered wrongly; ",
                      flips.left_behind, " left something loaded; honest p50, p99: ", Show(during)),
                  .demands = {{flips.wrong == 0, "refused"},
                              {flips.unnamed == 0, absl::StrCat("named: ", flips.first_unnamed)},
                              {flips.left_behind == 0, "nothing half-loaded"},
                              Unharmed(during)},
                  .not_run = ""});
}

}  // namespace switchyard
