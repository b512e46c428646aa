// The thread pool alone: callers at the same time, changes of size, loops in loops, exceptions and forks; under ThreadSanitizer
// in `make sanitize`.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

#include "pool.h"

namespace {

// Every index once, from as many callers as there are.
bool counts(int64_t count, int64_t grain) {
    std::vector<int> seen(static_cast<size_t>(count), 0);
    isobit::parallel(count, grain, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) ++seen[static_cast<size_t>(at)];
    });
    for (int times : seen)
        if (times != 1) return false;
    return true;
}

// The same by shares, some of them empty, or long where others are short.
bool shares_count(const std::vector<int64_t> &ends) {
    std::vector<int> seen(static_cast<size_t>(ends.back()), 0);
    isobit::parallel_shares(ends, [&](int64_t at) { ++seen[static_cast<size_t>(at)]; });
    for (int times : seen)
        if (times != 1) return false;
    return true;
}

bool all_shares() {
    for (const std::vector<int64_t> &ends : {std::vector<int64_t>{0}, {1}, {0, 5}, {5, 5}, {1, 1000}, {999, 1000}, {3, 3, 4, 500, 500, 2000}})
        for (int round = 0; round < 20; ++round)
            if (!shares_count(ends)) return false;
    try {
        isobit::parallel_shares({500, 1000}, [](int64_t at) {
            if (at == 400) throw std::runtime_error("expected");
        });
    } catch (const std::runtime_error &caught) {
        return !std::strcmp(caught.what(), "expected");
    }
    return false;
}

bool throws(int threads) {
    isobit::set_threads(threads);
    try {
        isobit::parallel(1000, 1, [](int64_t begin, int64_t end) {
            if (begin <= 400 && 400 < end) throw std::runtime_error("expected");
        });
    } catch (const std::runtime_error &caught) {
        return !std::strcmp(caught.what(), "expected") && counts(1000, 3);
    }
    return false;
}

bool nested() {
    std::vector<int> seen(64 * 64, 0);
    isobit::parallel(64, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            isobit::parallel(64, 1, [&](int64_t b, int64_t e) {
                for (int64_t at = b; at < e; ++at) ++seen[static_cast<size_t>(row * 64 + at)];
            });
    });
    for (int times : seen)
        if (times != 1) return false;
    return true;
}

bool callers_at_once() {
    std::vector<std::thread> callers;
    std::vector<int> fine(6, 0);
    for (size_t i = 0; i < fine.size(); ++i)
        callers.emplace_back([&fine, i] {
            fine[i] = 1;
            for (int round = 0; round < 100; ++round) {
                if (round % 20 == 0) isobit::set_threads(1 + static_cast<int>(i) % 4);
                if (!counts(500 + round, 7) || !shares_count({100 + round, 150 + round, 400})) fine[i] = 0;
            }
        });
    for (auto &caller : callers) caller.join();
    for (int one : fine)
        if (!one) return false;
    return true;
}

bool forked() {
    isobit::set_threads(3);
    if (!counts(1000, 3)) return false;
    const pid_t child = fork();
    if (child == 0) {
        alarm(20);  // a child that hangs is ended, and seen to have been
        _exit(counts(1000, 3) ? 0 : 1);
    }
    int status = 1;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0 && counts(1000, 3);
}

}  // namespace

int main(int argc, char **) {
    const bool with_fork = argc < 2;  // ThreadSanitizer does not let a child of several threads start threads
    for (int threads : {1, 2, 4}) {
        isobit::set_threads(threads);
        for (int64_t count : {0, 1, 2, 5, 1000})
            for (int64_t grain : {0, 1, 3, 2000})
                if (!counts(count, grain)) return std::printf("%d threads, %d by %d\n", threads, int(count), int(grain)), 1;
        if (!all_shares()) return std::printf("shares on %d threads\n", threads), 1;
        if (!throws(threads)) return std::printf("an exception on %d threads is lost\n", threads), 1;
    }
    if (!nested()) return std::puts("loops in loops"), 1;
    if (!callers_at_once()) return std::puts("callers at once"), 1;
    if (with_fork && !forked()) return std::puts("a forked child"), 1;
    std::puts(with_fork ? "the pool: callers, sizes, loops, exceptions, forks" : "the pool: callers, sizes, loops, exceptions");
    return 0;
}
