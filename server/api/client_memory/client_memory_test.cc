#include "server/api/client_memory/client_memory.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <future>
#include <latch>
#include <limits>
#include <memory>
#include <random>

#include "base/unique_fd.h"
#include "server/api/client_memory/system_shared_memory.h"

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();

// A POSIX shared memory object of this test. Names are random, because tests that run at the same time may share
// process ids: sandboxes have their own ids, but one /dev/shm.
class ShmObject {
 public:
  explicit ShmObject(size_t num_bytes, const std::string& prefix = "switchyard_test_")
      : key_(absl::StrCat("/", prefix, std::random_device()(), "_", ++count_)),
        fd_(shm_open(key_.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600)) {
    EXPECT_TRUE(fd_.valid());
    Resize(num_bytes);
  }
  ~ShmObject() { shm_unlink(key_.c_str()); }

  const std::string& key() const { return key_; }
  void Resize(size_t num_bytes) { ASSERT_EQ(ftruncate(fd_.get(), static_cast<off_t>(num_bytes)), 0); }
  size_t Size() const {
    struct stat info = {};
    EXPECT_EQ(fstat(fd_.get(), &info), 0);
    return static_cast<size_t>(info.st_size);
  }
  void Put(const std::string& bytes, off_t offset) {
    ASSERT_EQ(pwrite(fd_.get(), bytes.data(), bytes.size(), offset), bytes.size());
  }
  std::string Get(size_t num_bytes, off_t offset) const {
    std::string bytes(num_bytes, '?');
    EXPECT_EQ(pread(fd_.get(), bytes.data(), num_bytes, offset), num_bytes);
    return bytes;
  }

 private:
  static int count_;
  const std::string key_;
  const UniqueFd fd_;
};

int ShmObject::count_ = 0;

std::span<const std::byte> BytesOf(const std::string& text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::string TextOf(std::span<const std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

void ExpectError(const absl::Status& status, absl::StatusCode code, const std::string& text) {
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr(text));
}

// ---- Regions of system memory

TEST(SystemSharedMemoryTest, CopiesOfARegionAreOfItsPartOfTheObject) {
  ShmObject object(100);
  object.Put("abcdefgh", 40);
  const auto region = OpenSystemMemory(object.key(), 40, 20);
  ASSERT_TRUE(region.ok()) << region.status();
  std::string read(4, ' ');
  ASSERT_TRUE((*region)->Read(2, {reinterpret_cast<std::byte*>(read.data()), 4}).ok());
  EXPECT_EQ(read, "cdef");
  ASSERT_TRUE((*region)->Write(15, BytesOf("12345")).ok());
  EXPECT_EQ(object.Get(5, 55), "12345");
  EXPECT_EQ(object.Get(1, 60), std::string(1, '\0'));
}

TEST(SystemSharedMemoryTest, RangesAreCheckedWithoutOverflow) {
  ShmObject object(100);
  const auto region = *OpenSystemMemory(object.key(), 0, 100);
  EXPECT_TRUE(region->CheckRange(0, 100).ok());
  EXPECT_TRUE(region->CheckRange(100, 0).ok());
  EXPECT_TRUE(region->CheckRange(99, 1).ok());
  for (const auto& [offset, num_bytes] : std::vector<std::pair<uint64_t, uint64_t>>{
           {1, 100}, {0, 101}, {101, 0}, {kHuge, 1}, {kHuge, 2}, {kHuge - 50, 100}, {1, kHuge}, {kHuge, kHuge}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(region->CheckRange(offset, num_bytes))) << offset << " " << num_bytes;
  }
}

TEST(SystemSharedMemoryTest, WhateverIsWrongWithAnObjectTheAnswerIsTheSame) {
  ShmObject object(4096);
  ShmObject forbidden(4096, "nccl-test-");
  const std::string fifo = absl::StrCat("/dev/shm/switchyard_fifo_", std::random_device()());
  ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
  const std::string answer(OpenSystemMemory("/switchyard_none", 0, 1000).status().message());
  EXPECT_THAT(answer, HasSubstr("key: expected a shared memory object"));
  EXPECT_THAT(answer, Not(HasSubstr("switchyard_none")));
  for (const std::string& key : {forbidden.key(), forbidden.key().substr(1), fifo.substr(8), std::string("/sem.x")}) {
    EXPECT_EQ(std::string(OpenSystemMemory(key, 0, 1000).status().message()), answer) << key;
  }
  object.Resize(999);
  EXPECT_EQ(std::string(OpenSystemMemory(object.key(), 0, 1000).status().message()), answer);
  unlink(fifo.c_str());
}

TEST(SystemSharedMemoryTest, TheObjectMustHoldTheRegionWithoutOverflow) {
  ShmObject object(100);
  for (const auto& [offset, byte_size] : std::vector<std::pair<uint64_t, uint64_t>>{
           {0, 101}, {1, 100}, {100, 1}, {kHuge, 1}, {kHuge, 100}, {kHuge - 99, 100}, {kHuge - 50, 151}, {0, kHuge}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(OpenSystemMemory(object.key(), offset, byte_size).status()))
        << offset << " " << byte_size;
  }
  ExpectError(OpenSystemMemory(object.key(), 0, 0).status(), absl::StatusCode::kInvalidArgument, "byte_size");
  EXPECT_TRUE(OpenSystemMemory(object.key(), 99, 1).ok());
}

TEST(SystemSharedMemoryTest, KeysAreNamesOfObjectsAndNoPaths) {
  ShmObject object(100);
  EXPECT_TRUE(OpenSystemMemory(object.key().substr(1), 0, 100).ok()) << "as Python's clients write it";
  for (const std::string& key :
       {std::string(), std::string("/"), std::string("."), std::string(".."), std::string("/.."),
        std::string("/../shm") + object.key(), "/" + object.key(), std::string("/a/b"), std::string("a/"),
        object.key() + std::string("\0x", 2), std::string(256, 'a')}) {
    ExpectError(OpenSystemMemory(key, 0, 100).status(), absl::StatusCode::kInvalidArgument,
                "key: expected the name of a POSIX shared memory object");
  }
}

TEST(SystemSharedMemoryTest, LinksAreNotFollowed) {
  ShmObject object(100);
  const std::string link = absl::StrCat("/dev/shm/switchyard_link_", std::random_device()());
  ASSERT_EQ(symlink("/etc/hostname", link.c_str()), 0);
  EXPECT_FALSE(OpenSystemMemory(link.substr(8), 0, 1).ok());
  unlink(link.c_str());
}

TEST(SystemSharedMemoryTest, AnObjectThatWasTruncatedIsAnErrorAndIsNotMadeLonger) {
  ShmObject object(8192);
  const auto region = *OpenSystemMemory(object.key(), 0, 8192);
  object.Resize(4096);
  std::vector<std::byte> bytes(8192);
  ExpectError(region->Read(0, bytes), absl::StatusCode::kFailedPrecondition, "shorter than when it was registered");
  ExpectError(region->Write(0, bytes), absl::StatusCode::kFailedPrecondition, "shorter than when it was registered");
  EXPECT_EQ(object.Size(), 4096);
  EXPECT_TRUE(region->Read(0, std::span(bytes).first(4096)).ok());
}

// ---- The registry

RegionPtr RegionOf(const ShmObject& object) { return *OpenSystemMemory(object.key(), 0, 10); }

std::vector<std::string> NamesOf(const SharedMemoryRegistry& registry, const std::string& caller) {
  std::vector<std::string> names;
  const auto entries = registry.List(caller, MemoryKind::kSystem, "");
  for (const auto& entry : *entries) names.push_back(entry.name);
  return names;
}

TEST(SharedMemoryRegistryTest, ANameIsTakenOnceUntilItIsRemoved) {
  ShmObject object(10);
  SharedMemoryRegistry registry;
  ASSERT_TRUE(registry.Add("me", "x", RegionOf(object)).ok());
  ExpectError(registry.Add("me", "x", RegionOf(object)), absl::StatusCode::kAlreadyExists,
              "shared memory region 'x' already in manager");
  ExpectError(registry.CheckNewName("me", "x"), absl::StatusCode::kAlreadyExists, "already in manager");
  EXPECT_TRUE(registry.Find("me", "x").ok());
  ExpectError(registry.Remove("me", MemoryKind::kCuda, "x"), absl::StatusCode::kInvalidArgument,
              "'x' is one of system memory");
  EXPECT_TRUE(registry.Remove("me", MemoryKind::kCuda, "").ok());
  EXPECT_THAT(NamesOf(registry, "me"), testing::ElementsAre("x"));
  EXPECT_TRUE(registry.Remove("me", MemoryKind::kSystem, "x").ok());
  EXPECT_TRUE(registry.Remove("me", MemoryKind::kSystem, "x").ok()) << "there is none";
  EXPECT_TRUE(absl::IsNotFound(registry.Find("me", "x").status()));
  EXPECT_TRUE(registry.Add("me", "x", RegionOf(object)).ok());
}

TEST(SharedMemoryRegistryTest, CallersKnowNothingOfEachOther) {
  ShmObject object(10);
  SharedMemoryRegistry registry;
  ASSERT_TRUE(registry.Add("me", "secret", RegionOf(object)).ok());
  EXPECT_THAT(NamesOf(registry, "you"), IsEmpty());
  const absl::Status unknown = registry.Find("you", "nothing").status();
  EXPECT_EQ(registry.Find("you", "secret").status(), unknown);
  EXPECT_EQ(registry.List("you", MemoryKind::kSystem, "secret").status(),
            registry.List("you", MemoryKind::kSystem, "nothing").status());
  EXPECT_TRUE(registry.Remove("you", MemoryKind::kSystem, "secret").ok());
  EXPECT_TRUE(registry.Remove("you", MemoryKind::kSystem, "").ok());
  EXPECT_TRUE(registry.Add("you", "secret", RegionOf(object)).ok());
  EXPECT_THAT(NamesOf(registry, "me"), testing::ElementsAre("secret"));
}

TEST(SharedMemoryRegistryTest, NamesAreBounded) {
  SharedMemoryRegistry registry;
  for (const std::string& name : {std::string(), std::string(256, 'x'), std::string("a\nb"), std::string("a\0b", 3)}) {
    ExpectError(registry.Add("me", name, nullptr), absl::StatusCode::kInvalidArgument, "name: expected 1 to 255 bytes");
  }
  EXPECT_TRUE(registry.CheckNewName("me", std::string(255, 'x')).ok());
}

TEST(SharedMemoryRegistryTest, RegionsAreBounded) {
  ShmObject object(10);
  SharedMemoryRegistry registry({.max_of_owner = 2, .max_of_all = 3});
  EXPECT_TRUE(registry.Add("me", "a", RegionOf(object)).ok());
  EXPECT_TRUE(registry.Add("me", "b", RegionOf(object)).ok());
  ExpectError(registry.Add("me", "c", RegionOf(object)), absl::StatusCode::kResourceExhausted, "this caller has 2");
  EXPECT_TRUE(registry.Add("you", "a", RegionOf(object)).ok());
  ExpectError(registry.Add("you", "b", RegionOf(object)), absl::StatusCode::kResourceExhausted, "3 shared memory");
  EXPECT_TRUE(registry.Remove("me", MemoryKind::kSystem, "").ok());
  EXPECT_TRUE(registry.Add("you", "b", RegionOf(object)).ok());
}

TEST(SharedMemoryRegistryTest, ARemovedRegionServesWhoHoldsIt) {
  ShmObject object(10);
  object.Put("0123456789", 0);
  SharedMemoryRegistry registry;
  ASSERT_TRUE(registry.Add("me", "x", RegionOf(object)).ok());
  const RegionPtr held = *registry.Find("me", "x");
  ASSERT_TRUE(registry.Remove("me", MemoryKind::kSystem, "").ok());
  std::string read(10, ' ');
  EXPECT_TRUE(held->Read(0, {reinterpret_cast<std::byte*>(read.data()), 10}).ok());
  EXPECT_EQ(read, "0123456789");
}

// ---- Copies

constexpr size_t kLongCopy = 8 << 20;

class ClientMemoryTest : public testing::Test {
 protected:
  TensorPlace PlaceOf(const ShmObject& object, uint64_t offset, uint64_t byte_size) {
    return {*OpenSystemMemory(object.key(), 0, object.Size()), "x", offset, byte_size};
  }
  absl::StatusOr<ClientMemory::HostBytes> Read(const TensorPlace& place) {
    std::promise<absl::StatusOr<ClientMemory::HostBytes>> result;
    memory_.Read(place, [&](absl::StatusOr<ClientMemory::HostBytes> bytes) { result.set_value(std::move(bytes)); });
    return result.get_future().get();
  }
  absl::Status Write(std::vector<PlacedOutput> outputs) {
    std::promise<absl::Status> result;
    memory_.Write(std::move(outputs), [&](const absl::Status& status) { result.set_value(status); });
    return result.get_future().get();
  }

  // Waits until both threads are past their earlier tasks. A thread lets go of a task a little after the task's result
  // is known.
  void FinishTasks() {
    const auto all_here = std::make_shared<std::latch>(3);  // shared: a waiting thread may leave later than this one
    for (int i = 0; i < 2; ++i) memory_.threads().Run([all_here] { all_here->arrive_and_wait(); });
    all_here->arrive_and_wait();
  }

  ClientMemory memory_{3 * kLongCopy, "/nowhere/libcuda.so"};
};

TEST_F(ClientMemoryTest, ShortAndLongCopiesAreTheSameBytes) {
  ShmObject object(2 * kLongCopy);
  for (const size_t num_bytes : {size_t{1}, size_t{1000}, kLongCopy}) {
    const std::string sent(num_bytes, static_cast<char>('a' + num_bytes % 26));
    const size_t half = num_bytes / 2;
    const std::vector<grpc::Slice> slices = {grpc::Slice(sent.substr(0, half)), grpc::Slice(sent.substr(half))};
    ASSERT_TRUE(Write({{PlaceOf(object, 77, num_bytes), slices}}).ok());
    const auto read = Read(PlaceOf(object, 77, num_bytes));
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(TextOf(read->bytes), sent);
  }
}

TEST_F(ClientMemoryTest, WhatWasReadIsNotWhatTheClientWritesLater) {
  ShmObject object(100);
  object.Put("before", 0);
  const auto read = Read(PlaceOf(object, 0, 6));
  object.Put("after!", 0);
  EXPECT_EQ(TextOf(read->bytes), "before");
}

TEST_F(ClientMemoryTest, WritesStopAtTheFirstThatFails) {
  ShmObject first(100), second(100), third(100);
  std::vector<PlacedOutput> outputs = {{PlaceOf(first, 0, 3), {grpc::Slice("one")}},
                                       {PlaceOf(second, 0, 3), {grpc::Slice("two")}},
                                       {PlaceOf(third, 0, 5), {grpc::Slice("three")}}};
  second.Resize(2);
  EXPECT_TRUE(absl::IsFailedPrecondition(Write(std::move(outputs))));
  EXPECT_EQ(first.Get(3, 0), "one");
  EXPECT_EQ(third.Get(5, 0), std::string(5, '\0'));
}

TEST_F(ClientMemoryTest, CopiesThatAreHeldAreBounded) {
  ShmObject object(kLongCopy);
  std::vector<ClientMemory::HostBytes> held;
  for (int i = 0; i < 3; ++i) held.push_back(*Read(PlaceOf(object, 0, kLongCopy)));
  ExpectError(Read(PlaceOf(object, 0, 1)).status(), absl::StatusCode::kResourceExhausted, "--max_queued_bytes");
  FinishTasks();
  held.pop_back();
  EXPECT_TRUE(Read(PlaceOf(object, 0, kLongCopy)).ok());
}

TEST_F(ClientMemoryTest, ManySmallCopiesCountAsWhatTheyTake) {
  ShmObject object(100);
  std::vector<ClientMemory::HostBytes> held;
  while (true) {
    auto bytes = Read(PlaceOf(object, 0, 1));
    if (!bytes.ok()) break;
    held.push_back(*std::move(bytes));
  }
  EXPECT_EQ(held.size(), 3 * kLongCopy / 4096);
}

TEST_F(ClientMemoryTest, AReadThatFailsHoldsNothing) {
  ShmObject object(kLongCopy);
  const TensorPlace place = PlaceOf(object, 0, kLongCopy);
  object.Resize(10);
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(absl::IsFailedPrecondition(Read(place).status()));
    FinishTasks();
  }
}

TEST_F(ClientMemoryTest, CopiesThatAreHeldMayOutliveIt) {
  ShmObject object(100);
  object.Put("held", 0);
  ClientMemory::HostBytes held;
  {
    ClientMemory memory(1 << 20);
    memory.Read(PlaceOf(object, 0, 4),
                [&](absl::StatusOr<ClientMemory::HostBytes> bytes) { held = *std::move(bytes); });
  }
  EXPECT_EQ(TextOf(held.bytes), "held");
}

TEST_F(ClientMemoryTest, CudaWithoutADriverSaysSo) {
  const absl::Status status = memory_.RegisterCuda("me", "x", std::string(64, 'h'), 0, 100);
  ExpectError(status, absl::StatusCode::kFailedPrecondition, "no CUDA driver: /nowhere/libcuda.so");
}

// Reads and writes a region while it is registered and removed over and over; every copy of a region that was found
// succeeds.
TEST_F(ClientMemoryTest, RegionsComeAndGoWhileTheyAreUsed) {
  ShmObject object(1 << 20);
  std::atomic<bool> stop{false};
  std::atomic<int> found{0};
  std::vector<std::thread> users;
  for (int i = 0; i < 3; ++i) {
    users.emplace_back([&] {
      while (!stop.load()) {
        const auto region = memory_.registry().Find("me", "x");
        if (!region.ok()) continue;
        EXPECT_TRUE(Read({*region, "x", 0, 1 << 20}).ok());
        EXPECT_TRUE(Write({{{*region, "x", 0, 5}, {grpc::Slice("hello")}}}).ok());
        ++found;
      }
    });
  }
  for (int i = 0; i < 200 || found.load() < 20; ++i) {
    EXPECT_TRUE(memory_.RegisterSystem("me", "x", object.key(), 0, 1 << 20).ok());
    EXPECT_TRUE(memory_.registry().Remove("me", MemoryKind::kSystem, "").ok());
  }
  stop.store(true);
  for (std::thread& user : users) user.join();
}

}  // namespace
}  // namespace switchyard
