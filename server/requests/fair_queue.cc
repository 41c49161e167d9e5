#include "server/requests/fair_queue.h"

#include <algorithm>
#include <iterator>

namespace switchyard {
namespace {

// The number of turns in a full step. More turns are fairer, but cut requests more often.
constexpr int64_t kTurnsPerStep = 32;

}  // namespace

FairQueue::FairQueue(int64_t max_batch_rows)
    : max_batch_rows_(max_batch_rows), quantum_(std::max<int64_t>(max_batch_rows / kTurnsPerStep, 1)) {}

void FairQueue::Add(QueuedRequest* queued) {
  auto it = clients_.find(absl::string_view(queued->request->ask.client));
  if (it == clients_.end()) {
    auto client = std::make_unique<ClientQueue>();
    client->client = queued->request->ask.client;
    client->credit = quantum_;
    client->turn = turns_.insert(turns_.end(), client.get());
    const absl::string_view key = client->client;
    it = clients_.emplace(key, std::move(client)).first;
  }
  ClientQueue* client = it->second.get();
  queued->level = this;
  queued->client = client;
  queued->visit_cost = 0;
  queued->in_client = client->requests.insert(client->requests.end(), queued);
}

void FairQueue::Remove(QueuedRequest* queued) {
  ClientQueue* client = queued->client;
  client->requests.erase(queued->in_client);
  queued->level = nullptr;
  queued->client = nullptr;
  if (!client->requests.empty()) return;
  turns_.erase(client->turn);
  clients_.erase(clients_.find(absl::string_view(client->client)));
}

FairQueue::Turn FairQueue::Next() {
  // A client in debt passes its turn. Each pass pays off a quantum of rows that the client has taken in advance, so in
  // the long run there are few passes.
  while (turns_.front()->credit <= 0) EndTurn(turns_.front());
  ClientQueue* client = turns_.front();
  return {client->requests.front(), client->credit};
}

void FairQueue::Charge(QueuedRequest* queued, int64_t cost) {
  ClientQueue* client = queued->client;
  queued->visit_cost += cost;
  if (queued->visit_cost >= max_batch_rows_) {
    queued->visit_cost = 0;
    client->requests.splice(client->requests.end(), client->requests, queued->in_client);
  }
  client->credit -= cost;
  if (client->credit <= 0) EndTurn(client);
}

void FairQueue::EndTurn(ClientQueue* client) {
  client->credit += quantum_;
  turns_.splice(turns_.end(), turns_, client->turn);
}

}  // namespace switchyard
