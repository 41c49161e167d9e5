// main() of every unit test.
#include <gtest/gtest.h>

#if defined(__SANITIZE_THREAD__)
// The system's libraries are built without ThreadSanitizer, which therefore does not see what orders their own
// accesses: the lock around abseil's graph of lock orders, oneDNN's cache of primitives, Gloo's atomics.
extern "C" const char* __tsan_default_suppressions() {
  return "race:libabsl_graphcycles_internal.so\n"
         "race:libdnnl.so\n"
         "race:libgloo.so\n";
}
#endif

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
