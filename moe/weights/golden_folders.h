// The tiny checkpoints of tests/testdata, one of every family that has a reference to be recorded from.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

namespace switchyard {

inline constexpr char kGoldenPrefix[] = "tests/testdata/golden_";

// The names of the checkpoints that a test's BUILD target provides, sorted; with tests/testdata:golden, all of them.
inline std::vector<std::string> GoldenNames() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator("tests/testdata")) {
    const std::string path = entry.path().string();
    if (path.starts_with(kGoldenPrefix)) names.push_back(path.substr(sizeof(kGoldenPrefix) - 1));
  }
  std::sort(names.begin(), names.end());
  return names;
}

inline std::string GoldenFolder(const std::string& name) { return kGoldenPrefix + name; }

}  // namespace switchyard
