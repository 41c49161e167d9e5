// Moves rows between the ranks of a group.
//
// Life of a communicator: a factory Prepare()s one for (rank, size), and it has an address blob; the caller carries
// every rank's blob to every rank; Connect() joins the ranks; every rank calls AllToAllV() any number of times, in the
// same order; Abort() or destruction ends the communicator. After any error it is dead: drop it and form another.
//
//   auto comm = *factory.Prepare(rank, size);
//   … gather comm->address() of all ranks …
//   SY_RETURN_IF_ERROR(comm->Connect(addresses));
//   SY_RETURN_IF_ERROR(comm->AllToAllV(send, send_bytes, recv, recv_bytes, stream));
//
// A call that waits for a peer says so with base/heartbeat.h, and beats meanwhile: by itself, or each time Nudge() is
// called. Only in Connect() may it stand still.
//
// Thread-safety: one thread calls everything except Health(), Nudge() and Abort(), which any thread may call at any
// time. Abort() may be called twice; it makes a blocked call return promptly with an error.
#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "base/status.h"
#include "moe/gpu/device_stream.h"

namespace switchyard {

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // The bytes that peers need to reach this rank. Opaque, and constant after Prepare.
  virtual const std::string& address() const = 0;

  // Joins the ranks; addresses[r] is rank r's address(). Returns once this rank is connected to every other.
  virtual absl::Status Connect(std::span<const std::string> addresses) = 0;

  // Sends send_bytes[r] bytes to every rank r and receives recv_bytes[r] bytes from it. `send` and `recv` hold the
  // blocks one after another, in rank order. Counts may be zero; they include this rank's block for itself, which is
  // copied. Both sides must agree on every count. The buffers must not overlap. UNAVAILABLE names the peer where it is
  // known; ABORTED after Abort(). Device communicators take device memory and only enqueue the exchange on
  // `stream`. Host communicators take a null stream and finish before they return.
  virtual absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                 std::span<const size_t> recv_bytes, DeviceStream stream) = 0;

  // Like AllToAllV, but with host memory on any communicator, and finished on return. For checks, not for steps.
  virtual absl::Status HostAllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                     std::span<const size_t> recv_bytes) {
    return AllToAllV(send, send_bytes, recv, recv_bytes, /*stream=*/nullptr);
  }

  // The error that ended a device communicator, or OK. When a communicator ends, its exchanges in flight end too: to
  // the device they look finished, but their bytes have not moved. Therefore, after waiting for work that was enqueued
  // after an exchange, call this before using the result: OK means that the bytes have arrived. Any thread may call it.
  virtual absl::Status Health() { return absl::OkStatus(); }

  // Lets a call that waits for a peer beat once. Called a few times a second.
  virtual void Nudge() {}

  virtual void Abort() = 0;
};

// Thread-safe.
class CommunicatorFactory {
 public:
  virtual ~CommunicatorFactory() = default;
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Prepare(int rank, int size) = 0;
};

// Checks a communicator with exchanges of known results: in several sizes, every rank sends every rank a pattern that
// depends on both, and checks the received bytes. Every rank calls it after Connect and before serving. DATA_LOSS names
// the first wrong byte.
absl::Status CheckExchange(Communicator& communicator);

}  // namespace switchyard
