// Requests of one layer and one level of urgency, a queue for each client. Clients take turns by rows (surplus round
// robin): in its turn a client may take a quantum, 1/32 of a step; what a row costs beyond that comes off its next
// turns. So what one client has queued, many requests or huge ones, holds another one's request back by a quantum, and
// 32 busy clients share every step.
//
// A client's own requests leave in the order in which they came; one that is larger than a step goes behind the
// client's others after each step's worth. There is nothing left of a client without queued requests.
//
// Rows are counted by what they cost (see Request::row_cost). Thread-compatible: the batcher's owner guards it.
#pragma once

#include <list>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "server/requests/request.h"

namespace switchyard {

class FairQueue;
struct LayerQueue;

// A request of which rows are queued. The batcher owns it; it knows its place everywhere, so that it can leave at once.
struct QueuedRequest {
  using List = std::list<QueuedRequest*>;

  struct ClientQueue {
    std::string client;
    List requests;       // oldest first
    int64_t credit = 0;  // what the client may still take in its turn; a debt when negative
    std::list<ClientQueue*>::iterator turn;
  };

  int64_t num_rows_left() const { return request->ask.num_rows - next_row; }

  std::shared_ptr<Request> request;
  int64_t next_row = 0;  // those before have left

  // FairQueue's.
  FairQueue* level = nullptr;
  ClientQueue* client = nullptr;
  List::iterator in_client;
  int64_t visit_cost = 0;  // what it took since it last came to the front of its client's queue

  // The batcher's.
  LayerQueue* layer = nullptr;
  List::iterator in_layer;                // by arrival
  List::iterator in_aging;                // by arrival, when may_age
  bool may_age = false;                   // it is not of the highest level
  SteadyTime latest = SteadyTime::max();  // when the last of it may leave
  SteadyTime expiry = SteadyTime::max();  // that, for never
  int64_t batch_number = 0;               // of the last batch that took rows of it
  size_t piece_idx = 0;                   // its piece there
};

class FairQueue {
 public:
  explicit FairQueue(int64_t max_batch_rows);

  bool empty() const { return turns_.empty(); }

  // Behind the client's others; a client that had none comes last in turn.
  void Add(QueuedRequest* queued);
  void Remove(QueuedRequest* queued);

  struct Turn {
    QueuedRequest* queued;
    int64_t credit;  // above 0; its last row may cost more
  };
  // Who is next. Not when empty.
  Turn Next();
  // Rows of this cost left the request that Next() gave.
  void Charge(QueuedRequest* queued, int64_t cost);

 private:
  using ClientQueue = QueuedRequest::ClientQueue;

  void EndTurn(ClientQueue* client);

  const int64_t max_batch_rows_;
  const int64_t quantum_;
  absl::flat_hash_map<absl::string_view, std::unique_ptr<ClientQueue>> clients_;  // by ClientQueue::client
  std::list<ClientQueue*> turns_;                                                 // the first is served
};

}  // namespace switchyard
