#include "moe/link/step_socket.h"

#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace switchyard {
namespace {

constexpr size_t kMaxTextBytes = 512;

// Wire formats: plain integers in host byte order, because both ends are on one host. Each struct is one message.
struct WireStep {
  int64_t epoch;
  int64_t step_id;
  int64_t num_home_rows;
  int64_t plan_bytes;
  int32_t layer;
  int32_t slot;
  int32_t output;
  int32_t reserved;
};

struct WireResult {
  int64_t epoch;
  int64_t step_id;
  StepTimes times;
  int32_t code;
  uint32_t text_bytes;
  char text[kMaxTextBytes];
};
constexpr size_t kResultHeaderBytes = offsetof(WireResult, text);

absl::Status SendMessage(int socket, msghdr& message) {
  ssize_t sent;
  do {
    sent = sendmsg(socket, &message, MSG_NOSIGNAL);
  } while (sent < 0 && errno == EINTR);
  if (sent >= 0) return absl::OkStatus();
  return absl::UnavailableError(ErrnoStatus(errno, "sending on a worker's link").message());
}

absl::Status SendBytes(int socket, const void* bytes, size_t num_bytes) {
  iovec part{const_cast<void*>(bytes), num_bytes};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  return SendMessage(socket, message);
}

// Receives one message of at least `min_bytes` that fits the buffers of `message`, and returns its size.
absl::StatusOr<size_t> ReceiveMessage(int socket, msghdr& message, size_t min_bytes) {
  ssize_t received;
  do {
    received = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
  } while (received < 0 && errno == EINTR);
  if (received < 0) return absl::UnavailableError(ErrnoStatus(errno, "receiving on a worker's link").message());
  if (received == 0) return absl::UnavailableError("the other end of the link is closed");
  if (static_cast<size_t>(received) < min_bytes || (message.msg_flags & MSG_TRUNC) != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("link message of ", received, " bytes, expected at least ", min_bytes));
  }
  return static_cast<size_t>(received);
}

absl::StatusOr<size_t> ReceiveBytes(int socket, void* bytes, size_t min_bytes, size_t max_bytes) {
  iovec part{bytes, max_bytes};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  return ReceiveMessage(socket, message, min_bytes);
}

// The descriptor that came with a message; invalid if none came.
UniqueFd TakeDescriptor(msghdr& message) {
  UniqueFd fd;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    int value;
    std::memcpy(&value, CMSG_DATA(header), sizeof(value));
    fd.reset(value);
  }
  return fd;
}

}  // namespace

absl::StatusOr<SocketPair> MakeSocketPair() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) return ErrnoStatus(errno, "socketpair");
  return SocketPair{UniqueFd(ends[0]), UniqueFd(ends[1])};
}

absl::Status SendSetup(int socket, const LinkLayout& layout, int memory_fd) {
  LinkLayout wire = layout;
  iovec part{&wire, sizeof(wire)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &memory_fd, sizeof(int));
  return SendMessage(socket, message);
}

absl::StatusOr<Setup> ReceiveSetup(int socket) {
  Setup setup;
  iovec part{&setup.layout, sizeof(setup.layout)};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  SY_RETURN_IF_ERROR(ReceiveMessage(socket, message, sizeof(LinkLayout)).status());
  setup.memory_fd = TakeDescriptor(message);
  if (!setup.memory_fd.valid()) return absl::InvalidArgumentError("link setup came without its memory");
  SY_RETURN_IF_ERROR(setup.layout.Validate());
  return setup;
}

absl::Status SendStep(int socket, const StepMessage& step) {
  const WireStep wire{step.epoch.value, step.step_id.value, step.num_home_rows, step.plan_bytes,
                      step.layer.value, step.slot,          step.output,
                      /*reserved=*/0};
  return SendBytes(socket, &wire, sizeof(wire));
}

absl::StatusOr<StepMessage> ReceiveStep(int socket) {
  WireStep wire;
  SY_RETURN_IF_ERROR(ReceiveBytes(socket, &wire, sizeof(wire), sizeof(wire)).status());
  StepMessage step;
  step.epoch = {wire.epoch};
  step.step_id = {wire.step_id};
  step.layer = {wire.layer};
  step.slot = wire.slot;
  step.output = wire.output;
  step.num_home_rows = wire.num_home_rows;
  step.plan_bytes = wire.plan_bytes;
  return step;
}

absl::Status SendResult(int socket, const ResultMessage& result) {
  WireResult wire;
  wire.epoch = result.epoch.value;
  wire.step_id = result.step_id.value;
  wire.times = result.times;
  wire.code = static_cast<int32_t>(result.status.code());
  wire.text_bytes = static_cast<uint32_t>(std::min(result.status.message().size(), kMaxTextBytes));
  if (wire.text_bytes > 0) std::memcpy(wire.text, result.status.message().data(), wire.text_bytes);
  return SendBytes(socket, &wire, kResultHeaderBytes + wire.text_bytes);
}

absl::StatusOr<ResultMessage> ReceiveResult(int socket) {
  WireResult wire;
  SY_ASSIGN_OR_RETURN(const size_t received, ReceiveBytes(socket, &wire, kResultHeaderBytes, sizeof(wire)));
  if (wire.text_bytes != received - kResultHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("link result announces ", wire.text_bytes, " bytes of text, has ", received - kResultHeaderBytes));
  }
  ResultMessage result;
  result.epoch = {wire.epoch};
  result.step_id = {wire.step_id};
  result.times = wire.times;
  result.status = absl::Status(static_cast<absl::StatusCode>(wire.code), absl::string_view(wire.text, wire.text_bytes));
  return result;
}

}  // namespace switchyard
