// Moves rows between the ranks of a group.
//
// Life of a communicator: a factory Prepare()s one for (rank, size) and gives an address blob; somebody carries every
// rank's blob to every rank; Connect() joins them; AllToAllV() runs any number of times, every rank calling it in the
// same order; Abort() or destruction ends it. After any error the communicator is dead: drop it and form another.
//
//   auto comm = *factory.Prepare(rank, size);
//   … gather comm->address() of all ranks …
//   SY_RETURN_IF_ERROR(comm->Connect(addresses));
//   SY_RETURN_IF_ERROR(comm->AllToAllV(send, send_bytes, recv, recv_bytes, stream));
//
// Thread-safety: one thread calls everything except Health() and Abort(), which any thread may call at any time.
// Abort() may come twice; it makes a blocked call return promptly with an error.
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

  // What the peers need to reach this rank. Opaque bytes, constant after Prepare.
  virtual const std::string& address() const = 0;

  // Joins the ranks; addresses[r] is rank r's address(). Returns once this rank is connected to every other.
  virtual absl::Status Connect(std::span<const std::string> addresses) = 0;

  // Sends send_bytes[r] bytes to every rank r and receives recv_bytes[r] from it. Blocks lie one after another, in rank
  // order, in `send` and `recv`. Counts may be zero and include this rank's own, which is copied. Both sides must agree
  // on every count. The buffers must not overlap. UNAVAILABLE names the peer where it is known; ABORTED after Abort().
  // Device communicators take device memory and only enqueue the exchange on `stream`. Host communicators take a null
  // stream and finish before they return.
  virtual absl::Status AllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                 std::span<const size_t> recv_bytes, DeviceStream stream) = 0;

  // The same of host memory on any communicator, finished on return: for checks, not for steps.
  virtual absl::Status HostAllToAllV(const std::byte* send, std::span<const size_t> send_bytes, std::byte* recv,
                                     std::span<const size_t> recv_bytes) {
    return AllToAllV(send, send_bytes, recv, recv_bytes, /*stream=*/nullptr);
  }

  // What ended a device communicator, if anything did. Its exchanges that were on their way then end too, as far as the
  // device can tell, without having moved their bytes. So whoever waited for work that was enqueued after an exchange
  // asks here before using the result: OK means that the bytes are there. From any thread.
  virtual absl::Status Health() { return absl::OkStatus(); }

  virtual void Abort() = 0;
};

// Thread-safe.
class CommunicatorFactory {
 public:
  virtual ~CommunicatorFactory() = default;
  virtual absl::StatusOr<std::unique_ptr<Communicator>> Prepare(int rank, int size) = 0;
};

// An exchange whose result is known: every rank sends every rank a pattern of a few sizes that depends on both, and
// checks what arrives. Run after Connect and before serving; DATA_LOSS names the first wrong byte.
absl::Status CheckExchange(Communicator& communicator);

}  // namespace switchyard
