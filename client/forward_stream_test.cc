#include "client/forward_stream.h"

#include <gmock/gmock.h>
#include <grpcpp/server_context.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <random>
#include <set>
#include <thread>
#include <vector>

#include "base/notification.h"
#include "client/fake_front.h"
#include "client/forward_codec.h"

namespace switchyard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// Rows [num_rows, 4] whose elements count up from `first`.
std::shared_ptr<const HostMatrix> RowsFrom(float first, int64_t num_rows = 1) {
  auto rows = std::make_shared<HostMatrix>(HostMatrix::Allocate(DType::kF32, num_rows, 4));
  for (int64_t i = 0; i < num_rows * 4; ++i) rows->view().as<float>()[i] = first + static_cast<float>(i);
  return rows;
}

ForwardArgs ArgsFor(const std::shared_ptr<const HostMatrix>& rows) {
  return {.model = "tiny", .layer = "1", .rows = rows->view(), .rows_owner = rows};
}

// One answer that a test waits for.
class Answer {
 public:
  ForwardStream::Callback Callback() {
    return [this](absl::StatusOr<ForwardResult> result) {
      result_ = std::move(result);
      arrived_.Notify();
    };
  }
  const absl::StatusOr<ForwardResult>& Wait() const {
    arrived_.WaitForNotification();
    return result_;
  }
  bool has_arrived() const { return arrived_.HasBeenNotified(); }

 private:
  absl::StatusOr<ForwardResult> result_ = absl::UnknownError("not yet");
  Notification arrived_;
};

float FirstElement(const absl::StatusOr<ForwardResult>& result) {
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? result->rows.view().as<float>()[0] : -1;
}

class ForwardStreamTest : public testing::Test {
 protected:
  ForwardStreamTest() : client_(*Client::Connect(front_.target(), {})) {}

  std::unique_ptr<ForwardStream> Open(const ForwardStreamOptions& options = {}) {
    return *client_->OpenStream(options);
  }

  FakeFront front_;
  std::unique_ptr<Client> client_;
};

TEST_F(ForwardStreamTest, AnswersWithRowsRoutingAndStats) {
  const auto stream = Open({.request_id = "job-17"});
  const auto rows = RowsFrom(1, 3);
  ForwardArgs args = ArgsFor(rows);
  args.return_routing = true;
  const absl::StatusOr<ForwardResult> result = stream->Forward(args);
  ASSERT_TRUE(result.ok()) << result.status();
  ASSERT_EQ(result->rows.num_rows, 3);
  for (int i = 0; i < 12; ++i) EXPECT_EQ(result->rows.view().as<float>()[i], 2.0f * (1 + i));
  EXPECT_THAT(result->routing.expert_idx, ElementsAre(0, 1, 1, 2, 2, 3));
  EXPECT_TRUE(stream->status().ok());
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_THAT(front_.request_ids(), ElementsAre("job-17"));
  EXPECT_TRUE(absl::IsFailedPrecondition(stream->Forward(args).status()));
  EXPECT_TRUE(stream->Close().ok()) << "may be called again";
}

TEST_F(ForwardStreamTest, OptionsThatCannotBeAreNamed) {
  EXPECT_THAT(client_->OpenStream({.timeout = -absl::Seconds(1)}).status().message(), HasSubstr("timeout"));
  EXPECT_THAT(client_->OpenStream({.max_in_flight = 0}).status().message(), HasSubstr("max_in_flight"));
  EXPECT_THAT(client_->OpenStream({.request_id = "line\nbreak"}).status().message(), HasSubstr("request_id"));
  const auto stream = Open();
  const auto rows = RowsFrom(1);
  ForwardArgs args = ArgsFor(rows);
  args.request_id = "mine";
  EXPECT_THAT(stream->Forward(args).status().message(), HasSubstr("request_id"));
}

// Reads `count` messages, and answers them in a random order.
FakeFront::StreamHandler AnswerInAnyOrder(int count) {
  return [count](auto*, FakeFront::Stream* stream) {
    std::vector<v1::ForwardStreamRequest> messages(count);
    for (auto& message : messages) stream->Read(&message);
    std::mt19937 random(1);
    std::shuffle(messages.begin(), messages.end(), random);
    for (const auto& message : messages) stream->Write(FakeFront::Answer(message));
    v1::ForwardStreamRequest end;
    EXPECT_FALSE(stream->Read(&end));
    return grpc::Status::OK;
  };
}

TEST_F(ForwardStreamTest, AnswersFindTheirRequestsInAnyOrder) {
  constexpr int kCount = 1000;
  front_.SetStreamHandler(AnswerInAnyOrder(kCount));
  const auto stream = Open();
  std::vector<Answer> answers(kCount);
  for (int i = 0; i < kCount; ++i) stream->Submit(ArgsFor(RowsFrom(i, 1 + i % 3)), answers[i].Callback());
  for (int i = 0; i < kCount; ++i) {
    EXPECT_EQ(FirstElement(answers[i].Wait()), 2.0f * i);
    EXPECT_EQ(answers[i].Wait()->rows.num_rows, 1 + i % 3);
  }
  EXPECT_TRUE(stream->Close().ok());
}

TEST_F(ForwardStreamTest, ErrorsOfRequestsLeaveTheStreamOpen) {
  const auto stream = Open();
  const auto rows = RowsFrom(5);
  for (int code = 1; code <= 16; ++code) {
    front_.SetHandler([code](auto*, const auto&, auto*) {
      return grpc::Status(static_cast<grpc::StatusCode>(code), "why it failed");
    });
    const absl::Status status = stream->Forward(ArgsFor(rows)).status();
    EXPECT_EQ(static_cast<int>(status.code()), code);
    EXPECT_EQ(status.message(), "why it failed");
    front_.SetHandler(&FakeFront::Double);
    EXPECT_EQ(FirstElement(stream->Forward(ArgsFor(rows))), 10);
  }
  EXPECT_EQ(front_.num_forwards(), 32) << "nothing is sent again";
  EXPECT_TRUE(stream->Close().ok());
}

TEST_F(ForwardStreamTest, TellsWhenTheServerWantsToBeAskedAgain) {
  front_.SetStreamHandler([](auto*, FakeFront::Stream* stream) {
    v1::ForwardStreamRequest message;
    for (int i = 0; stream->Read(&message); ++i) {
      v1::ForwardStreamResponse answer;
      answer.set_id(message.id());
      answer.mutable_error()->set_code(grpc::StatusCode::RESOURCE_EXHAUSTED);
      if (i == 0) answer.mutable_error()->set_retry_after_ms(50);
      stream->Write(answer);
    }
    return grpc::Status::OK;
  });
  const auto stream = Open();
  EXPECT_EQ(RetryAfter(stream->Forward(ArgsFor(RowsFrom(1))).status()), absl::Milliseconds(50));
  EXPECT_EQ(RetryAfter(stream->Forward(ArgsFor(RowsFrom(1))).status()), absl::ZeroDuration());
  EXPECT_EQ(RetryAfter(absl::OkStatus()), absl::ZeroDuration());
}

TEST_F(ForwardStreamTest, ACallbackSubmitsTheNextLayer) {
  constexpr int kLayers = 500;
  const auto stream = Open();
  Answer last;
  std::function<void(int, float)> submit = [&](int layer, float first) {
    stream->Submit(ArgsFor(RowsFrom(first)), [&, layer](absl::StatusOr<ForwardResult> result) {
      const float next = FirstElement(result) / 2 + 1;
      if (layer + 1 < kLayers) return submit(layer + 1, next);
      last.Callback()(std::move(result));
    });
  };
  submit(0, 0);
  EXPECT_EQ(FirstElement(last.Wait()), 2.0f * (kLayers - 1));
}

TEST_F(ForwardStreamTest, ManyThreadsEachGetTheirOwn) {
  const auto stream = Open();
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&stream, t] {
      for (int i = 0; i < 50; ++i) {
        EXPECT_EQ(FirstElement(stream->Forward(ArgsFor(RowsFrom(t * 100 + i)))), 2.0f * (t * 100 + i));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(stream->Close().ok());
}

// Notes the timeouts of the requests it reads. Answers cancel messages with CANCELLED, and nothing else.
class SilentFront {
 public:
  FakeFront::StreamHandler Handler() {
    return [this](grpc::ServerContext*, FakeFront::Stream* stream) {
      v1::ForwardStreamRequest message;
      while (stream->Read(&message)) {
        if (message.has_forward()) timeouts_us.push_back(message.forward().timeout_us());
        if (message.cancel()) {
          v1::ForwardStreamResponse answer;
          answer.set_id(message.id());
          answer.mutable_error()->set_code(grpc::StatusCode::CANCELLED);
          answer.mutable_error()->set_message("as you wish");
          stream->Write(answer);
        }
      }
      return grpc::Status::OK;
    };
  }

  std::vector<int64_t> timeouts_us;  // read it after the stream has ended
};

TEST_F(ForwardStreamTest, ARequestEndsAtItsTimeoutAndTheStreamGoesOn) {
  SilentFront silent;
  front_.SetStreamHandler(silent.Handler());
  const auto stream = Open({.timeout = absl::Seconds(60)});
  Answer patient;
  const uint64_t id = stream->Submit(ArgsFor(RowsFrom(1)), patient.Callback());
  const auto rows = RowsFrom(2);
  ForwardArgs args = ArgsFor(rows);
  args.timeout = absl::Milliseconds(20);
  EXPECT_TRUE(absl::IsDeadlineExceeded(stream->Forward(args).status()));
  EXPECT_FALSE(patient.has_arrived());
  EXPECT_TRUE(stream->status().ok());
  stream->Cancel(id);
  EXPECT_EQ(patient.Wait().status(), absl::CancelledError("as you wish"));
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_THAT(silent.timeouts_us, ElementsAre(60'000'000, 20'000)) << "the server knows them too";
}

TEST_F(ForwardStreamTest, CancelOfWhatHasEndedOrNeverWasDoesNothing) {
  const auto stream = Open();
  Answer answer;
  const uint64_t id = stream->Submit(ArgsFor(RowsFrom(1)), answer.Callback());
  EXPECT_EQ(FirstElement(answer.Wait()), 2);
  stream->Cancel(id);
  stream->Cancel(id + 1000);
  EXPECT_EQ(FirstElement(stream->Forward(ArgsFor(RowsFrom(3)))), 6);
  EXPECT_TRUE(stream->Close().ok());
}

// A server that does not read holds the sender back. Requests that wait can be cancelled, and the stream takes no more
// than max_in_flight requests.
TEST_F(ForwardStreamTest, WhatTheServerDoesNotReadWaitsHere) {
  constexpr int kCount = 64;
  Notification released;
  front_.SetStreamHandler([&](auto*, FakeFront::Stream* stream) {
    released.WaitForNotification();
    v1::ForwardStreamRequest message;
    while (stream->Read(&message)) {
      if (message.has_forward()) stream->Write(FakeFront::Answer(message));
    }
    return grpc::Status::OK;
  });
  const auto stream = Open({.max_in_flight = kCount});
  std::vector<Answer> answers(kCount);
  std::vector<uint64_t> ids(kCount);
  // 16 MiB in all, which is more than a connection's windows hold.
  for (int i = 0; i < kCount; ++i) ids[i] = stream->Submit(ArgsFor(RowsFrom(i, 16384)), answers[i].Callback());
  const absl::Status refused = stream->Forward(ArgsFor(RowsFrom(0))).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(refused.message(), HasSubstr("max_in_flight: 64"));
  stream->Cancel(ids[kCount - 1]);
  EXPECT_EQ(answers[kCount - 1].Wait().status(), absl::CancelledError("cancelled before it was sent"));
  released.Notify();
  for (int i = 0; i < kCount - 1; ++i) EXPECT_EQ(FirstElement(answers[i].Wait()), 2.0f * i);
  EXPECT_TRUE(stream->Close().ok());
}

TEST_F(ForwardStreamTest, CloseWaitsForWhatIsInFlight) {
  Notification released;
  front_.SetHandler([&](auto* context, const auto& request, auto* response) {
    released.WaitForNotification();
    return FakeFront::Double(context, request, response);
  });
  std::vector<Answer> answers(10);
  const auto stream = Open();
  for (Answer& answer : answers) stream->Submit(ArgsFor(RowsFrom(1)), answer.Callback());
  std::thread releaser([&] { released.Notify(); });
  EXPECT_TRUE(stream->Close().ok());
  for (Answer& answer : answers) EXPECT_TRUE(answer.has_arrived() && answer.Wait().ok());
  releaser.join();
}

TEST_F(ForwardStreamTest, DestructionCancelsWhatIsInFlight) {
  SilentFront silent;
  front_.SetStreamHandler(silent.Handler());
  std::vector<Answer> answers(10);
  std::weak_ptr<const HostMatrix> watch;
  {
    const auto stream = Open();
    const auto rows = RowsFrom(1);
    watch = rows;
    for (Answer& answer : answers) stream->Submit(ArgsFor(rows), answer.Callback());
  }
  for (Answer& answer : answers) {
    ASSERT_TRUE(answer.has_arrived());
    EXPECT_TRUE(absl::IsCancelled(answer.Wait().status()));
  }
}

TEST_F(ForwardStreamTest, AnEndedStreamEndsItsRequestsAndAnotherOneWorks) {
  const auto ends = {grpc::Status::OK, grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining"),
                     grpc::Status(grpc::StatusCode::CANCELLED, "stopped"),
                     grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "too large")};
  for (const grpc::Status& end : ends) {
    front_.SetStreamHandler([&](auto*, FakeFront::Stream* stream) {
      v1::ForwardStreamRequest message;
      for (int i = 0; i < 3; ++i) stream->Read(&message);
      stream->Write(FakeFront::Answer(message));
      return end;
    });
    const auto stream = Open();
    std::vector<Answer> answers(3);
    for (Answer& answer : answers) stream->Submit(ArgsFor(RowsFrom(4)), answer.Callback());
    const auto expected = end.error_code() == grpc::StatusCode::RESOURCE_EXHAUSTED
                              ? absl::StatusCode::kResourceExhausted
                              : absl::StatusCode::kUnavailable;
    EXPECT_EQ(FirstElement(answers[2].Wait()), 8);
    for (int i = 0; i < 2; ++i) EXPECT_EQ(answers[i].Wait().status().code(), expected) << answers[i].Wait().status();
    EXPECT_EQ(stream->Forward(ArgsFor(RowsFrom(1))).status().code(), expected);
    EXPECT_EQ(stream->Close().code(), expected);
    front_.SetStreamHandler(nullptr);
    EXPECT_EQ(FirstElement(Open()->Forward(ArgsFor(RowsFrom(1)))), 2);
  }
}

TEST(ForwardStream, NobodyListeningIsUnavailable) {
  std::string target;
  {
    FakeFront front;
    target = front.target();
  }
  const auto client = *Client::Connect(target, {});
  const auto stream = *client->OpenStream({});
  EXPECT_TRUE(absl::IsUnavailable(stream->Forward(ArgsFor(RowsFrom(1))).status()));
  EXPECT_TRUE(absl::IsUnavailable(stream->Close()));
}

TEST(ForwardStream, OutlivesItsClient) {
  FakeFront front;
  auto client = *Client::Connect(front.target(), {});
  const auto stream = *client->OpenStream({});
  client.reset();
  EXPECT_EQ(FirstElement(stream->Forward(ArgsFor(RowsFrom(1)))), 2);
}

TEST_F(ForwardStreamTest, AnswersThatDoNotFitEndTheirRequestsAlone) {
  const auto stream = Open();
  const auto rows = RowsFrom(1, 2);
  front_.SetHandler([](auto* context, const auto& request, auto* response) {
    const grpc::Status status = FakeFront::Double(context, request, response);
    response->mutable_rows()->pop_back();
    return status;
  });
  EXPECT_EQ(stream->Forward(ArgsFor(rows)).status(),
            absl::InternalError("response rows: expected 32 bytes, as many as were sent, found 31"));
  front_.SetHandler(&FakeFront::Double);
  EXPECT_EQ(FirstElement(stream->Forward(ArgsFor(rows))), 2);
}

TEST_F(ForwardStreamTest, AnAnswerWithoutAResultEndsTheStream) {
  front_.SetStreamHandler([](auto*, FakeFront::Stream* stream) {
    v1::ForwardStreamRequest message;
    stream->Read(&message);
    stream->Write(v1::ForwardStreamResponse());
    while (stream->Read(&message)) {
    }
    return grpc::Status::OK;
  });
  const auto stream = Open();
  EXPECT_TRUE(absl::IsInternal(stream->Forward(ArgsFor(RowsFrom(1))).status()));
  EXPECT_TRUE(absl::IsInternal(stream->Close()));
}

TEST_F(ForwardStreamTest, CancelsAndTimeoutsRaceWithAnswers) {
  const auto stream = Open();
  std::atomic<int> ended{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 500; ++i) {
        const auto rows = RowsFrom(i);
        ForwardArgs args = ArgsFor(rows);
        if (i % 3 == 0) args.timeout = absl::Microseconds(10 * t + i);
        const uint64_t id = stream->Submit(args, [&, i](const absl::StatusOr<ForwardResult>& result) {
          if (result.ok()) {
            EXPECT_EQ(FirstElement(result), 2.0f * i);
          }
          ++ended;
        });
        if (i % 2 == 0) stream->Cancel(id);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(ended, 2000);
}

// ---- Codec

std::string Joined(const grpc::ByteBuffer& message) {
  grpc::Slice slice;
  EXPECT_TRUE(message.DumpToSingleSlice(&slice).ok());
  return std::string(reinterpret_cast<const char*>(slice.begin()), slice.size());
}

TEST(StreamCodec, WritesWhatGeneratedCodeReads) {
  const auto rows = RowsFrom(1, 3);
  ForwardArgs args = ArgsFor(rows);
  args.return_stats = false;
  v1::ForwardStreamRequest message;
  ASSERT_TRUE(message.ParseFromString(Joined(*EncodeStreamRequest(77, args, 5000))));
  EXPECT_EQ(message.id(), 77);
  EXPECT_EQ(message.forward().layer(), "1");
  EXPECT_EQ(message.forward().timeout_us(), 5000);
  EXPECT_TRUE(message.forward().has_return_stats());
  EXPECT_EQ(message.forward().rows().size(), 48u);
  ASSERT_TRUE(message.ParseFromString(Joined(EncodeStreamCancel(78))));
  EXPECT_EQ(message.id(), 78);
  EXPECT_TRUE(message.cancel());
}

// Answers cut into pieces and changed anywhere are refused or decode to the right shape.
TEST(StreamCodec, SurvivesDamagedAnswers) {
  const auto rows = RowsFrom(1, 2);
  v1::ForwardStreamRequest request;
  ASSERT_TRUE(request.ParseFromString(Joined(*EncodeStreamRequest(9, ArgsFor(rows), 1))));
  request.mutable_forward()->set_return_routing(true);
  v1::ForwardStreamResponse failed;
  failed.set_id(9);
  failed.mutable_error()->set_code(3);
  failed.mutable_error()->set_message("rows: expected others");
  const std::string goods[] = {FakeFront::Answer(request).SerializeAsString(), failed.SerializeAsString()};
  const char* wanted = getenv("SWITCHYARD_FUZZ_ITERATIONS");
  const int iterations = wanted == nullptr ? 100'000 : std::atoi(wanted);
  std::mt19937 random(3);
  int accepted = 0;
  for (int i = 0; i < iterations; ++i) {
    std::string bytes = goods[i % 2];
    for (int change = random() % 4; change > 0; --change) bytes[random() % bytes.size()] = static_cast<char>(random());
    if (random() % 4 == 0) bytes.resize(random() % bytes.size());
    const size_t cut = bytes.empty() ? 0 : random() % bytes.size();
    const grpc::Slice slices[] = {grpc::Slice(bytes.data(), cut), grpc::Slice(bytes.data() + cut, bytes.size() - cut)};
    grpc::ByteBuffer buffer(slices, 2);
    const auto answer = ReadStreamAnswer(&buffer);
    if (!answer.ok() || !answer->error.ok()) continue;
    const auto result = DecodeStreamResponse(&buffer, *answer, rows->view());
    if (!result.ok()) continue;
    ++accepted;
    EXPECT_EQ(result->rows.num_rows, 2);
    EXPECT_EQ(result->routing.expert_idx.size(), result->routing.num_rows * result->routing.top_k);
  }
  EXPECT_GT(accepted, iterations / 20);
}

}  // namespace
}  // namespace switchyard
