// poll(2) for a thread that waits for a peer and shows that it does (base/heartbeat.h).
#pragma once

#include <poll.h>

#include <chrono>
#include <span>

namespace switchyard {

// Returns as poll(2) does: how many of `polled` are ready, 0 after `timeout`, or -1 with errno. Meanwhile the calling
// thread is seen to wait for `peer`, and beats.
int PollBeating(std::span<pollfd> polled, std::chrono::milliseconds timeout, int peer);

}  // namespace switchyard
