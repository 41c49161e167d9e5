// Seeded damage to texts, for tests of their readers, and a file in memory to give them to readers of files.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/unique_fd.h"

namespace switchyard {

// How many inputs a test tries: `usual`, unless SWITCHYARD_FUZZ_ITERATIONS sets another number.
inline int64_t FuzzIterations(int64_t usual) {
  const char* wanted = std::getenv("SWITCHYARD_FUZZ_ITERATIONS");
  return wanted == nullptr ? usual : std::atoll(wanted);
}

// The same seed gives the same texts, in the same order, on every machine. Not thread-safe.
class TextMutator {
 public:
  // `own_tokens`, those of a format, are put into texts, beside tokens that have broken parsers before.
  TextMutator(uint64_t seed, const std::vector<std::string>& own_tokens) : random_(seed) {
    tokens_.insert(tokens_.end(), own_tokens.begin(), own_tokens.end());
  }

  // The text with one to four changes.
  std::string Damaged(std::string text) {
    for (size_t count = Below(4) + 1; count > 0; --count) DamageOnce(&text);
    return text;
  }
  size_t Below(size_t bound) { return random_() % bound; }
  uint64_t Any() { return random_(); }

 private:
  static constexpr size_t kNumNumbers = 6;  // the first tokens, which also replace numbers

  const std::string& AnyToken() { return tokens_[Below(tokens_.size())]; }

  void DamageOnce(std::string* text) {
    if (text->empty()) return;
    const size_t pos = Below(text->size());
    const size_t span = Below(24) + 1;
    switch (Below(7)) {
      case 0:
        (*text)[pos] ^= static_cast<char>(1 << Below(8));
        return;
      case 1:
        (*text)[pos] = static_cast<char>(Below(256));
        return;
      case 2:
        text->erase(pos, span);
        return;
      case 3:
        text->insert(Below(text->size()), text->substr(pos, span * 4));
        return;
      case 4:
        text->insert(pos, AnyToken());
        return;
      case 5:
        ReplaceNumber(text, pos);
        return;
      default:
        text->replace(pos, std::min(span, text->size() - pos), AnyToken());
    }
  }

  // Replaces the first number at or after `pos` by a small or an extreme one, which keeps JSON valid.
  void ReplaceNumber(std::string* text, size_t pos) {
    constexpr char kDigits[] = "0123456789";
    const size_t begin = text->find_first_of(kDigits, pos);
    if (begin == std::string::npos) return;
    const size_t end = std::min(text->find_first_not_of(kDigits, begin), text->size());
    text->replace(begin, end - begin, Below(2) == 0 ? absl::StrCat(Below(64)) : tokens_[Below(kNumNumbers)]);
  }

  std::mt19937_64 random_;
  std::vector<std::string> tokens_ = {"-1",
                                      "18446744073709551615",
                                      "18446744073709551616",
                                      "9223372036854775807",
                                      "1e5",
                                      "0.0",
                                      "null",
                                      "[",
                                      "]",
                                      "{",
                                      "}",
                                      ",",
                                      "\"",
                                      "\\u0000",
                                      "true"};
};

// A file in memory with a path, rewritten for every iteration: a hundred times faster than one on disk.
class MemoryFile {
 public:
  MemoryFile() : fd_(memfd_create("fuzz", MFD_CLOEXEC)), path_(absl::StrCat("/proc/self/fd/", fd_.get())) {}

  const std::string& path() const { return path_; }

  void Write(const std::string& bytes) {
    ASSERT_EQ(ftruncate(fd_.get(), static_cast<off_t>(bytes.size())), 0);
    ASSERT_EQ(pwrite(fd_.get(), bytes.data(), bytes.size(), 0), static_cast<ssize_t>(bytes.size()));
  }

 private:
  const UniqueFd fd_;
  const std::string path_;
};

}  // namespace switchyard
