// A 64-bit FNV-1a over stored bytes: tells whether two processes opened the same weights. It guards against mistakes (a
// worker started on another checkpoint), not against an adversary.
#pragma once

#include <cstdint>
#include <string_view>

namespace switchyard {

class Fingerprint {
 public:
  // Adds the length before the bytes, so that "ab","c" and "a","bc" differ.
  void Add(std::string_view bytes) {
    AddNumber(bytes.size());
    AddRaw(bytes);
  }
  void AddNumber(uint64_t number) {
    for (int shift = 0; shift < 64; shift += 8) AddByte(static_cast<uint8_t>(number >> shift));
  }
  // The bytes alone.
  void AddRaw(std::string_view bytes) {
    for (char byte : bytes) AddByte(static_cast<uint8_t>(byte));
  }
  uint64_t value() const { return value_; }

 private:
  void AddByte(uint8_t byte) { value_ = (value_ ^ byte) * 0x100000001b3u; }

  uint64_t value_ = 0xcbf29ce484222325u;
};

}  // namespace switchyard
