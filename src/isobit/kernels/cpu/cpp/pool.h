// A pool of threads for short parallel loops. Workers spin for some microseconds after a loop, because the next linear of
// a decoder follows at once, and then sleep.
#pragma once

#include <cstdint>
#include <functional>

namespace isobit {

void set_threads(int threads);
int threads();

// Calls body(begin, end) on pieces of [0, count) of about `grain`, on all threads of the pool; returns when all are done.
// A loop inside a loop, and a loop of one piece, runs on the calling thread.
void parallel(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)> &body);

}  // namespace isobit
