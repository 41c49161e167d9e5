// Seeded damage to serialized protobuf messages, for tests of code that reads untrusted bytes.
//
// Random bytes hardly get past the first field of a parser. So most mutations take a message apart into its fields, at
// any depth, change one thing and put it together again. Fields are lost, repeated, moved, or exchanged with fields of
// another message; numbers become extreme; lengths lie; varints are written longer than needed; wire types change. The
// other mutations damage bytes without regard to structure: flipped bits, cuts, junk.
//
// The same seed gives the same inputs, in the same order, on every machine. Not thread-safe.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

namespace switchyard {

// One field, as it is encoded in a message.
struct WireField {
  uint32_t number = 0;
  int wire_type = 0;
  std::string payload;  // the bytes after the tag, or after the length in a length-delimited field
};

// The fields of a message; empty when `bytes` are not a sequence of whole fields. Groups are not taken apart.
std::vector<WireField> SplitFields(std::string_view bytes);
void AppendField(const WireField& field, std::string* to);
void AppendVarint(uint64_t value, std::string* to);

class Mutator {
 public:
  // Splices take their parts from `corpus`, which holds serialized messages of one type.
  Mutator(uint64_t seed, std::vector<std::string> corpus) : random_(seed), corpus_(std::move(corpus)) {}

  // A member of the corpus with one to four mutations; one time in 64 without any.
  std::string Next();

  // The bytes in slices of random sizes, as gRPC may deliver them: from one slice to many, some of them empty.
  grpc::ByteBuffer Cut(std::string_view bytes);

  // A random number of at least 0 and below `bound`, which is at least 1.
  size_t Below(size_t bound) { return random_() % bound; }

 private:
  const std::string& AnyOfCorpus() { return corpus_[Below(corpus_.size())]; }
  bool OneIn(size_t times) { return Below(times) == 0; }

  void MutateMessage(int depth, std::string* message);
  void MutateFields(int depth, std::vector<WireField>* fields);
  void MutateField(int depth, WireField* field);
  // Encodes the fields. One of them may get a length or tag that is false or longer than needed.
  std::string Join(const std::vector<WireField>& fields);
  void AppendOddField(const WireField& field, std::string* to);
  void DamageBytes(std::string* bytes);
  uint64_t ExtremeNumber();
  std::string Junk(size_t num_bytes);

  std::mt19937_64 random_;
  const std::vector<std::string> corpus_;
};

// How many inputs a test tries: `usual`, unless SWITCHYARD_FUZZ_ITERATIONS sets another number.
int64_t FuzzIterations(int64_t usual);

}  // namespace switchyard
