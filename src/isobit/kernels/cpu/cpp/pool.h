// A pool of threads for short parallel loops. Workers spin for some microseconds after a loop, because the next linear of
// a decoder follows at once, and then sleep.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace isobit {

void set_threads(int threads);
int threads();

// Calls body(begin, end) on pieces of [0, count) of about `grain`, on all threads of the pool; returns when all are done.
// A loop inside a loop, and a loop of one piece, runs on the calling thread.
void parallel(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)> &body);

// Calls body(i) for each i below the last of `ends`, which say where shares end. A thread goes through a share from its beginning, and then takes
// from the ends of those that others are not done with: each reads memory in order, and none is waited for that something else holds up.
void parallel_shares(const std::vector<int64_t> &ends, const std::function<void(int64_t)> &body);

}  // namespace isobit
