// A stream for tests that send messages of any bytes, which no client library would send. One operation at a time.
#pragma once

#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <memory>
#include <random>
#include <string>

namespace switchyard {

// Used by one thread at a time.
class RawStream {
 public:
  // `method` is /PACKAGE.SERVICE/METHOD.
  RawStream(const std::shared_ptr<grpc::Channel>& channel, const std::string& method) : stub_(channel) {
    call_ = stub_.PrepareCall(&context_, method, &queue_);
    call_->StartCall(nullptr);
    Wait();
  }
  ~RawStream() {
    queue_.Shutdown();
    void* tag;
    bool ok;
    while (queue_.Next(&tag, &ok)) {
    }
  }

  bool Write(const std::string& bytes) {
    const grpc::Slice slice(bytes);
    call_->Write(grpc::ByteBuffer(&slice, 1), nullptr);
    return Wait();
  }
  // False at the end of the stream, and for bytes that are no such message.
  template <typename Message>
  bool Read(Message* message) {
    grpc::ByteBuffer bytes;
    grpc::Slice slice;
    call_->Read(&bytes, nullptr);
    return Wait() && bytes.DumpToSingleSlice(&slice).ok() &&
           message->ParseFromArray(slice.begin(), static_cast<int>(slice.size()));
  }
  // Closes this side and discards the remaining messages.
  grpc::Status Finish() {
    call_->WritesDone(nullptr);
    Wait();
    grpc::ByteBuffer ignored;
    do {
      call_->Read(&ignored, nullptr);
    } while (Wait());
    grpc::Status status;
    call_->Finish(&status, nullptr);
    Wait();
    return status;
  }

 private:
  bool Wait() {
    void* tag;
    bool ok = false;
    return queue_.Next(&tag, &ok) && ok;
  }

  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
};

// Message number `i` of a series: some bytes changed, and every fifth cut short.
inline std::string Mutate(std::string bytes, int i, std::mt19937& random) {
  for (int change = random() % 4; change >= 0; --change) {
    // Changes mostly the small fields, where it matters.
    bytes[random() % (i % 3 != 0 ? 60 : bytes.size())] = static_cast<char>(random());
  }
  if (i % 5 == 0) bytes.resize(random() % bytes.size());
  return bytes;
}

}  // namespace switchyard
