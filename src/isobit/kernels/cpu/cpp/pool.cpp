#include "pool.h"

#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <pthread.h>
#include <thread>
#include <vector>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define ISOBIT_PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define ISOBIT_PAUSE() asm volatile("yield")
#else
#define ISOBIT_PAUSE() ((void)0)
#endif

namespace isobit {
namespace {

constexpr int SPINS = 4000;  // about 50 us: longer than the gap between two layers, shorter than a time slice

// One loop. Lives on the caller's stack: the caller leaves only when every worker that took it has let go of it.
struct Loop {
    const std::function<void(int64_t, int64_t)> &body;
    int64_t count, grain;
    std::atomic<int64_t> next{0};

    std::mutex guard{};
    std::exception_ptr thrown{};

    // What a worker throws, such as a lack of memory, is the caller's to throw: on the worker it would end the process.
    void work() {
        try {
            for (int64_t begin; (begin = next.fetch_add(grain, std::memory_order_relaxed)) < count;)
                body(begin, begin + grain < count ? begin + grain : count);
        } catch (...) {
            std::lock_guard<std::mutex> one(guard);
            if (!thrown) thrown = std::current_exception();
            next.store(count, std::memory_order_relaxed);
        }
    }
};

class Pool {
    // The state: a number for each loop, whether workers may still enter it, and how many are in it.
    static constexpr uint64_t WORKERS = 0xffff, OPEN = 0x10000, NEXT = 0x20000, EPOCH = ~(NEXT - 1);

  public:
    ~Pool() { stop(); }

    // False when another thread's loop has the pool: the caller then works alone, and does not wait for it.
    bool run(Loop &loop, int threads) {
        std::unique_lock<std::mutex> one(caller_, std::try_to_lock);
        if (!one.owns_lock()) return false;
        resize(threads);
        {
            std::lock_guard<std::mutex> guard(mutex_);  // of a worker that is about to sleep
            loop_ = &loop;
            state_.store((state_.load() & EPOCH) + NEXT + OPEN, std::memory_order_release);
        }
        wake_.notify_all();
        loop.work();
        // Nothing is left. A worker that has not come yet, because something else has its core, is not waited for.
        state_.fetch_and(~OPEN, std::memory_order_relaxed);
        for (int spins = 0; state_.load(std::memory_order_acquire) & WORKERS; ++spins)
            if (spins < SPINS) ISOBIT_PAUSE();
            else std::this_thread::yield();
        return true;
    }

  private:
    void resize(int threads) {
        if (threads - 1 == static_cast<int>(workers_.size())) return;
        stop();
        stopping_ = false;
        const uint64_t epoch = state_.load() & EPOCH;
        for (int i = 1; i < threads; ++i) workers_.emplace_back([this, epoch] { serve(epoch); });
    }

    void serve(uint64_t seen) {
        for (;;) {
            for (int spins = 0; spins < SPINS && (state_.load(std::memory_order_relaxed) & EPOCH) == seen; ++spins) ISOBIT_PAUSE();
            if ((state_.load() & EPOCH) == seen) {
                std::unique_lock<std::mutex> guard(mutex_);
                wake_.wait(guard, [&] { return stopping_ || (state_.load() & EPOCH) != seen; });
                if (stopping_) return;
            }
            if (enter(seen)) {
                loop_->work();
                state_.fetch_sub(1, std::memory_order_release);
            }
        }
    }

    // Whether the loop of the latest epoch is still open; then this worker is one of it.
    bool enter(uint64_t &seen) {
        uint64_t state = state_.load();
        do seen = state & EPOCH;
        while ((state & OPEN) && !state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire));
        return state & OPEN;
    }

    void stop() {
        {
            std::lock_guard<std::mutex> guard(mutex_);
            stopping_ = true;
        }
        wake_.notify_all();
        for (auto &worker : workers_) worker.join();
        workers_.clear();
    }

    std::vector<std::thread> workers_;
    std::mutex caller_, mutex_;
    std::condition_variable wake_;
    std::atomic<uint64_t> state_{0};
    Loop *loop_ = nullptr;  // of those who entered
    bool stopping_ = false;
};

// Never destroyed: at the end of the process its threads are gone already, and joining them would wait for ever. A forked
// child has no threads but its own, so it starts with a new pool.
std::atomic<Pool *> instance{nullptr};

Pool &pool() {
    static const bool once = [] {
        instance = new Pool;
        pthread_atfork(nullptr, nullptr, [] { instance = new Pool; });
        return true;
    }();
    (void)once;
    return *instance.load();
}

std::atomic<int> wanted{1};
thread_local bool inside = false;

struct Inside {
    Inside() { inside = true; }
    ~Inside() { inside = false; }
};

}  // namespace

void set_threads(int threads) {
    wanted.store(threads);
}

int threads() {
    return wanted.load();
}

void parallel(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)> &body) {
    if (count <= 0) return;
    if (grain < 1) grain = 1;
    if (!inside && threads() > 1 && count > grain) {
        const std::function<void(int64_t, int64_t)> marked = [&](int64_t begin, int64_t end) {
            const Inside here;
            body(begin, end);
        };
        Loop loop{marked, count, grain};
        if (pool().run(loop, threads())) {
            if (loop.thrown) std::rethrow_exception(loop.thrown);
            return;
        }
    }
    body(0, count);
}

namespace {

// What of a share nobody has taken: its first index above, its end below. A line of its own.
struct Share {
    std::atomic<uint64_t> left{0};
    char apart[56];

    static uint64_t of(int64_t first, int64_t end) { return static_cast<uint64_t>(first) << 32 | static_cast<uint64_t>(end); }

    // The next one, or the last; -1 if there is none.
    int64_t take(bool last) {
        uint64_t now = left.load(std::memory_order_relaxed);
        for (;;) {
            const int64_t first = static_cast<int64_t>(now >> 32), end = static_cast<int64_t>(now & 0xffffffffu);
            if (first >= end) return -1;
            if (left.compare_exchange_weak(now, last ? of(first, end - 1) : of(first + 1, end), std::memory_order_relaxed)) return last ? end - 1 : first;
        }
    }
};

}  // namespace

void parallel_shares(const std::vector<int64_t> &ends, const std::function<void(int64_t)> &body) {
    std::vector<Share> shares(ends.size());
    for (size_t i = 0; i < ends.size(); ++i) shares[i].left.store(Share::of(i ? ends[i - 1] : 0, ends[i]), std::memory_order_relaxed);
    const int64_t count = static_cast<int64_t>(ends.size());
    parallel(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t own = begin; own < end; ++own)
            for (int64_t other = 0; other < count; ++other)
                for (int64_t at; (at = shares[static_cast<size_t>((own + other) % count)].take(other > 0)) >= 0;) body(at);
    });
}

}  // namespace isobit
