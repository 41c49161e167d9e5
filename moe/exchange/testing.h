// Helpers for tests of groups whose ranks are threads.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "moe/exchange/communicator.h"

namespace switchyard {

// Runs `body` once per rank, each on its own thread, and waits for all.
void OnEveryRank(int size, const std::function<void(int rank)>& body);

// One communicator per rank, prepared but not connected.
std::vector<std::unique_ptr<Communicator>> PrepareGroup(CommunicatorFactory& factory, int size);

// The communicators' addresses, in rank order.
std::vector<std::string> AddressesOf(const std::vector<std::unique_ptr<Communicator>>& group);

// One connected communicator per rank. Fails the test if they cannot connect.
std::vector<std::unique_ptr<Communicator>> FormGroup(CommunicatorFactory& factory, int size);

}  // namespace switchyard
