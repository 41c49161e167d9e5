// Typed, range-checked access to a checkpoint's config.json. Every error names the file, the key, what was found and
// what was expected. A key that is null counts as absent, as transformers writes it. Objects inside are readers of
// their own, whose errors give the whole path: "ffn_config.moe_top_k".
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace switchyard {

// Immutable; thread-safe.
class ConfigReader {
 public:
  // `file` names the origin in errors. InvalidArgument unless `text` is one JSON object.
  static absl::StatusOr<ConfigReader> Parse(std::string file, std::string_view text);

  bool Has(std::string_view key) const { return Find(key) != nullptr; }
  // Whether the key is written as null, for keys where null means something else than absence.
  bool IsNull(std::string_view key) const;

  // A whole number in [min, max]; `fallback` when the key is absent, an error when there is no fallback.
  absl::StatusOr<int64_t> Int(std::string_view key, int64_t min, int64_t max,
                              std::optional<int64_t> fallback = std::nullopt) const;
  // A finite number in [min, max].
  absl::StatusOr<double> Double(std::string_view key, double min, double max,
                                std::optional<double> fallback = std::nullopt) const;
  absl::StatusOr<bool> Bool(std::string_view key, std::optional<bool> fallback = std::nullopt) const;
  absl::StatusOr<std::string> Text(std::string_view key, std::optional<std::string> fallback = std::nullopt) const;
  // Whole numbers in [min, max]; empty when the key is absent.
  absl::StatusOr<std::vector<int64_t>> IntList(std::string_view key, int64_t min, int64_t max) const;

  // The object under `key`.
  absl::StatusOr<ConfigReader> Object(std::string_view key) const;
  // The objects in the list under `key`; a single object is a list of one.
  absl::StatusOr<std::vector<ConfigReader>> Objects(std::string_view key) const;

  // An error about `key`, with the file and key before `message`.
  absl::Status Error(std::string_view key, std::string_view message) const;

 private:
  ConfigReader(std::string file, std::string path, nlohmann::json root)
      : file_(std::move(file)), path_(std::move(path)), root_(std::move(root)) {}
  // nullptr when absent or null.
  const nlohmann::json* Find(std::string_view key) const;
  absl::Status Mismatch(std::string_view key, const nlohmann::json* found, std::string_view expected) const;

  std::string file_;
  std::string path_;  // before a key in errors: "", or "ffn_config."
  nlohmann::json root_;
};

}  // namespace switchyard
