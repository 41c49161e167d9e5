// Who does the work of an object that falls due later: a thread of the object, or its owner.
#pragma once

#include <cstdint>

namespace switchyard {

enum class Threads : uint8_t {
  kOwn = 0,
  // The object starts no thread. Its owner asks when something is due, and calls the object then. A simulation thus
  // runs many objects on one thread and one fake clock, in an order that it knows.
  kNone = 1,
};

}  // namespace switchyard
