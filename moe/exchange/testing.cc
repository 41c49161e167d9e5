#include "moe/exchange/testing.h"

#include <gtest/gtest.h>

#include <thread>
#include <utility>

namespace switchyard {

void OnEveryRank(int size, const std::function<void(int rank)>& body) {
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) threads.emplace_back(body, rank);
  for (std::thread& thread : threads) thread.join();
}

std::vector<std::unique_ptr<Communicator>> PrepareGroup(CommunicatorFactory& factory, int size) {
  std::vector<std::unique_ptr<Communicator>> group;
  for (int rank = 0; rank < size; ++rank) {
    absl::StatusOr<std::unique_ptr<Communicator>> communicator = factory.Prepare(rank, size);
    EXPECT_TRUE(communicator.ok()) << communicator.status();
    group.push_back(std::move(*communicator));
  }
  return group;
}

std::vector<std::string> AddressesOf(const std::vector<std::unique_ptr<Communicator>>& group) {
  std::vector<std::string> addresses;
  for (const auto& communicator : group) addresses.push_back(communicator->address());
  return addresses;
}

std::vector<std::unique_ptr<Communicator>> FormGroup(CommunicatorFactory& factory, int size) {
  std::vector<std::unique_ptr<Communicator>> group = PrepareGroup(factory, size);
  const std::vector<std::string> addresses = AddressesOf(group);
  OnEveryRank(size, [&](int rank) {
    const absl::Status connected = group[rank]->Connect(addresses);
    EXPECT_TRUE(connected.ok()) << "rank " << rank << ": " << connected;
  });
  return group;
}

}  // namespace switchyard
