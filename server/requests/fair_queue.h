// The requests of one layer and one level of urgency, with a queue for each client. Clients take turns by rows (surplus
// round robin): in its turn a client may take a quantum, 1/32 of a step. If a row costs more than is left of the
// quantum, the excess is taken off the client's next turns. The queued requests of one client, however many or large,
// therefore delay another client's request by one quantum only, and 32 busy clients share every step.
//
// A client's own requests leave in the order in which they came. A request that is larger than a step goes behind the
// client's other requests after each step's worth of rows. No state is kept of a client without queued requests.
//
// Rows are counted by their cost (see Request::row_cost). Thread-compatible: the batcher's owner guards it.
#pragma once

#include <list>
#include <memory>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "server/requests/request.h"

namespace switchyard {

class FairQueue;
struct LayerQueue;

// A request that has queued rows. The batcher owns it. It stores its place in every list, so that it can be removed in
// constant time.
struct QueuedRequest {
  using List = std::list<QueuedRequest*>;

  struct ClientQueue {
    std::string client;
    List requests;       // oldest first
    int64_t credit = 0;  // cost of the rows that the client may still take in its turn; a debt when negative
    std::list<ClientQueue*>::iterator turn;
  };

  int64_t num_rows_left() const { return request->ask.num_rows - next_row; }

  std::shared_ptr<Request> request;
  int64_t next_row = 0;  // the rows before this one have left

  // The following belong to the FairQueue.
  FairQueue* level = nullptr;
  ClientQueue* client = nullptr;
  List::iterator in_client;
  int64_t visit_cost = 0;  // cost of its rows that left since it last joined its client's queue or went to its end

  // The following belong to the batcher.
  LayerQueue* layer = nullptr;
  List::iterator in_layer;                // by arrival
  List::iterator in_aging;                // by arrival, when may_age
  bool may_age = false;                   // it is of a lower level, and has not aged yet
  SteadyTime latest = SteadyTime::max();  // its last rows must leave before this
  SteadyTime expiry = SteadyTime::max();  // SteadyTime::max() if it cannot expire
  int64_t batch_number = 0;               // number of the last batch that took rows of it
  size_t piece_idx = 0;                   // index of its piece in that batch
};

class FairQueue {
 public:
  explicit FairQueue(int64_t max_batch_rows);

  bool empty() const { return turns_.empty(); }

  // Adds a request behind the client's other requests. A client that had none gets the last turn.
  void Add(QueuedRequest* queued);
  void Remove(QueuedRequest* queued);

  struct Turn {
    QueuedRequest* queued;
    int64_t credit;  // above 0; the last row that it pays for may cost more than is left of it
  };
  // The next request to serve. The queue must not be empty.
  Turn Next();
  // Records that rows of this cost left the request that Next() returned.
  void Charge(QueuedRequest* queued, int64_t cost);

 private:
  using ClientQueue = QueuedRequest::ClientQueue;

  void EndTurn(ClientQueue* client);

  const int64_t max_batch_rows_;
  const int64_t quantum_;
  absl::flat_hash_map<absl::string_view, std::unique_ptr<ClientQueue>> clients_;  // by ClientQueue::client
  std::list<ClientQueue*> turns_;                                                 // the first one is served next
};

}  // namespace switchyard
