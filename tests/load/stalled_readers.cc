#include "tests/load/stalled_readers.h"

#include <sys/socket.h>

#include <cerrno>

#include "tests/load/tcp.h"

namespace switchyard {
namespace {

enum FrameType : char { kData = 0, kHeaders = 1, kSettings = 4 };
constexpr char kEndStream = 1, kEndHeaders = 4;
constexpr size_t kMaxFrameBytes = 16 << 10;

// `value` as `size` big-endian bytes.
std::string Number(uint64_t value, int size) {
  std::string bytes;
  for (int i = size - 1; i >= 0; --i) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

std::string Frame(FrameType type, char flags, uint32_t stream_id, const std::string& payload) {
  return Number(payload.size(), 3) + static_cast<char>(type) + flags + Number(stream_id, 4) + payload;
}

// A header without index or compression; name and value have at most 126 bytes.
std::string Header(const std::string& name, const std::string& value) {
  return std::string(1, '\0') + Number(name.size(), 1) + name + Number(value.size(), 1) + value;
}

std::string RequestHeaders(const std::string& method) {
  return Header(":method", "POST") + Header(":scheme", "http") + Header(":path", method) +
         Header(":authority", "test") + Header("content-type", "application/grpc") + Header("te", "trailers");
}

// Everything that one call sends.
std::string Conversation(const std::string& method, const std::string& message) {
  constexpr uint16_t kInitialWindowSize = 4;
  std::string bytes = std::string(kHttp2Preface) +
                      Frame(kSettings, 0, 0, Number(kInitialWindowSize, 2) + Number(0, 4)) +
                      Frame(kHeaders, kEndHeaders, 1, RequestHeaders(method));
  const std::string data = std::string(1, '\0') + Number(message.size(), 4) + message;
  for (size_t begin = 0; begin < data.size(); begin += kMaxFrameBytes) {
    const bool is_last = begin + kMaxFrameBytes >= data.size();
    bytes += Frame(kData, is_last ? kEndStream : 0, 1, data.substr(begin, kMaxFrameBytes));
  }
  return bytes;
}

}  // namespace

absl::StatusOr<StalledReaders> StalledReaders::Start(const std::string& address, const std::string& method,
                                                     const std::string& message, int count) {
  const std::string words = Conversation(method, message);
  StalledReaders readers;
  for (int i = 0; i < count; ++i) {
    SY_ASSIGN_OR_RETURN(UniqueFd fd, ConnectTcp(address));
    SY_RETURN_IF_ERROR(SendAll(fd.get(), words));
    readers.sockets_.push_back(std::move(fd));
  }
  return readers;
}

}  // namespace switchyard
