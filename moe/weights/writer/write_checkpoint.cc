// Writes a synthetic checkpoint:
//
//   write_checkpoint FOLDER --family=deepseek_v3 --hidden_dim=7168 --expert_dim=2048 --experts=256 --top_k=8 --layers=2
//       --shared_dim=2048 --groups=8 --groups_kept=4 --dtype=fp8 --seed=1 --max_shard_bytes=5000000000
#include <sys/stat.h>

#include <cstdio>
#include <map>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "moe/weights/writer/checkpoint_writer.h"

namespace switchyard {
namespace {

template <typename Int>
absl::Status Assign(const std::string& flag, const std::string& value, Int* number) {
  if (absl::SimpleAtoi(value, number)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, ": found '", value, "', expected a whole number"));
}

absl::Status SetOption(const std::string& flag, const std::string& value, CheckpointOptions* options) {
  if (flag == "family") options->family = value;
  if (flag == "dtype") options->dtype = value;
  if (flag == "family" || flag == "dtype") return absl::OkStatus();
  const std::map<std::string, int*> ints = {{"experts", &options->num_experts},
                                            {"top_k", &options->top_k},
                                            {"layers", &options->num_layers},
                                            {"groups", &options->num_groups},
                                            {"groups_kept", &options->groups_kept}};
  const std::map<std::string, int64_t*> sizes = {{"hidden_dim", &options->hidden_dim},
                                                 {"expert_dim", &options->expert_dim},
                                                 {"shared_dim", &options->shared_dim},
                                                 {"max_shard_bytes", &options->max_shard_bytes}};
  if (flag == "seed") return Assign(flag, value, &options->seed);
  if (const auto found = ints.find(flag); found != ints.end()) return Assign(flag, value, found->second);
  if (const auto found = sizes.find(flag); found != sizes.end()) return Assign(flag, value, found->second);
  return absl::InvalidArgumentError(absl::StrCat("unknown flag --", flag));
}

absl::Status Run(int argc, char** argv) {
  CheckpointOptions options;
  std::string folder;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const size_t equals = argument.find('=');
    if (!argument.starts_with("--")) {
      folder = argument;
    } else if (equals == argument.npos) {
      return absl::InvalidArgumentError(absl::StrCat(argument, ": expected --flag=value"));
    } else {
      SY_RETURN_IF_ERROR(SetOption(argument.substr(2, equals - 2), argument.substr(equals + 1), &options));
    }
  }
  if (folder.empty()) return absl::InvalidArgumentError("expected a folder to write to");
  mkdir(folder.c_str(), 0755);  // an existing folder is used; if it cannot be made, writing says so
  return WriteCheckpoint(folder, options);
}

}  // namespace
}  // namespace switchyard

int main(int argc, char** argv) {
  const absl::Status status = switchyard::Run(argc, argv);
  if (status.ok()) return 0;
  std::fprintf(stderr, "write_checkpoint: %s\n", std::string(status.message()).c_str());
  return 1;
}
