// The link to a worker on another host: steps and results travel on its gRPC stream, rows included.
#pragma once

#include <memory>

#include "server/links/link.h"
#include "server/links/worker_channel.h"

namespace switchyard {

// `buffers` outlive the connection: rows and plans are read from their slots when a step is submitted.
std::shared_ptr<LinkConnection> MakeStreamConnection(std::shared_ptr<WorkerChannel> channel, LinkBuffers* buffers);

// The result in a stream message; its rows stay in the message.
ResultMessage ParseStreamResult(const worker::StepResult& result);

}  // namespace switchyard
