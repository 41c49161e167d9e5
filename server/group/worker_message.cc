#include "server/group/worker_message.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/wire_format_lite.h>

#include <limits>
#include <optional>
#include <string>

#include "rpc/slice_stream.h"

namespace switchyard {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedInputStream;
using google::protobuf::io::CodedOutputStream;
using google::protobuf::io::StringOutputStream;

constexpr uint32_t kMaxResultBytes = std::numeric_limits<int>::max();

bool IsBytes(uint32_t tag) { return WireFormatLite::GetTagWireType(tag) == WireFormatLite::WIRETYPE_LENGTH_DELIMITED; }

// Appends the field that begins with `tag` to `fields`, as it is.
bool CopyField(CodedInputStream& input, uint32_t tag, std::string* fields) {
  {
    StringOutputStream stream(fields);
    CodedOutputStream output(&stream);
    if (!WireFormatLite::SkipField(&input, tag, &output)) return false;
  }
  return fields->size() <= kMaxFieldBytes;  // parsed, they take many times that
}

// Reads a StepResult up to the input's limit: `rows` get its rows, `fields` everything else.
bool ReadStepResult(CodedInputStream& input, RowChunks* rows, std::string* fields) {
  while (const uint32_t tag = input.ReadTag()) {
    const int field = WireFormatLite::GetTagFieldNumber(tag);
    if (field == worker::StepResult::kRowsFieldNumber && IsBytes(tag)) {
      uint32_t num_bytes = 0;
      if (!input.ReadVarint32(&num_bytes) || !ReadChunks(input, num_bytes, rows)) return false;
    } else if (!CopyField(input, tag, fields)) {
      return false;
    }
  }
  return input.ConsumedEntireMessage();
}

// Reads a WorkerMessage: `rows` get the rows of a step's result, `result` the result's other fields, `fields`
// everything else.
bool ReadMessage(CodedInputStream& input, RowChunks* rows, std::optional<std::string>* result, std::string* fields) {
  while (const uint32_t tag = input.ReadTag()) {
    if (WireFormatLite::GetTagFieldNumber(tag) != worker::WorkerMessage::kStepResultFieldNumber || !IsBytes(tag)) {
      if (!CopyField(input, tag, fields)) return false;
      continue;
    }
    uint32_t num_bytes = 0;
    if (!input.ReadVarint32(&num_bytes) || num_bytes > kMaxResultBytes) return false;
    const CodedInputStream::Limit limit = input.PushLimit(static_cast<int>(num_bytes));
    if (!result->has_value()) result->emplace();
    if (!ReadStepResult(input, rows, &**result) || input.BytesUntilLimit() > 0) return false;
    input.PopLimit(limit);
  }
  return input.ConsumedEntireMessage();
}

}  // namespace

absl::StatusOr<ReceivedWorkerMessage> DecodeWorkerMessage(const grpc::ByteBuffer& buffer) {
  const auto malformed = [] {
    return absl::InvalidArgumentError(absl::StrCat("a worker's message is not a WorkerMessage of at most ",
                                                   kMaxFieldBytes, " bytes beside the rows of a step"));
  };
  ReceivedWorkerMessage received;
  SY_ASSIGN_OR_RETURN(received.slices, SlicesOf(buffer));
  SliceStream stream(*received.slices);
  CodedInputStream input(&stream);
  std::optional<std::string> result;
  std::string fields;
  if (!ReadMessage(input, &received.rows, &result, &fields)) return malformed();
  if (!received.message.ParseFromString(fields)) return malformed();
  if (result.has_value() && !received.message.mutable_step_result()->ParseFromString(*result)) return malformed();
  return received;
}

}  // namespace switchyard
