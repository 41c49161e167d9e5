// Loops split over the threads that oneDNN uses too (OpenMP), so that the process has one pool. Files that include this
// header are compiled with -fopenmp.
#pragma once

#include <omp.h>

#include <cstdint>

namespace switchyard {

// ThreadSanitizer cannot see the barriers inside libgomp and would report every parallel loop, so our loops run on the
// calling thread under it.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kLoopsAreParallel = false;
#else
inline constexpr bool kLoopsAreParallel = true;
#endif

// Calls body(i) for every i in [0, count), in equal consecutive parts on `num_threads` threads; returns when all are
// done. `body` does not throw, and different i write different memory.
template <typename Body>
void ParallelFor(int num_threads, int64_t count, const Body& body) {
#pragma omp parallel for schedule(static) \
    num_threads(num_threads) if (kLoopsAreParallel && num_threads > 1 && count > 1)
  for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace switchyard
