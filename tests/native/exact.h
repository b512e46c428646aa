// Memory of exactly the bytes that are needed, for tests: it ends at a page that nobody may touch, so that a read or write behind it
// ends the program in any build, under an emulator too. AddressSanitizer also sees what lies in front of it; other builds see
// writes there.
#pragma once

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// GCC defines a macro where AddressSanitizer is on, Clang has a feature.
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define ISOBIT_TEST_ASAN
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(ISOBIT_TEST_ASAN)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

namespace test {

[[noreturn]] inline void stop(const char *why) {
    std::printf("%s\n", why);
    std::exit(1);
}

// Bytes between all memory of a program and its pages: for QEMU, which reads 16 bytes where a scalar fused multiply-add of AVX2 has 4
// in memory (its table of instructions gives it a whole vector: seen in version 7.2).
inline size_t &slack() {
    static size_t bytes = 0;
    return bytes;
}

class Exact {
  public:
    // `shift`: bytes between the end and the page, so that addresses are odd.
    explicit Exact(size_t bytes, size_t shift = 0) : bytes_(bytes), shift_(shift + slack()) {
        const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        inner_ = (FRONT + bytes + shift_ + page - 1) / page * page, size_ = inner_ + page;
        void *memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) stop("no memory for a test");
        base_ = static_cast<uint8_t *>(memory), data_ = base_ + inner_ - shift_ - bytes;
        if (mprotect(base_ + inner_, page, PROT_NONE)) stop("a page cannot be protected");
        std::memset(data_ - FRONT, UNTOUCHED, FRONT);
        ASAN_POISON_MEMORY_REGION(base_, static_cast<size_t>(data_ - base_));
        ASAN_POISON_MEMORY_REGION(data_ + bytes, shift_);
    }
    Exact(const Exact &) = delete;
    Exact &operator=(const Exact &) = delete;
    ~Exact() {
        ASAN_UNPOISON_MEMORY_REGION(base_, inner_);
        for (size_t i = 1; i <= FRONT; ++i)
            if (data_[-static_cast<ptrdiff_t>(i)] != UNTOUCHED) stop("something was written in front of a buffer");
        munmap(base_, size_);
    }

    uint8_t *bytes() { return data_; }
    const uint8_t *bytes() const { return data_; }
    size_t byte_count() const { return bytes_; }

  private:
    static constexpr size_t FRONT = 64;
    static constexpr uint8_t UNTOUCHED = 0xa5;
    size_t bytes_, shift_, inner_, size_;
    uint8_t *base_, *data_;
};

// `count` values of T in such memory; with a shift they may be aligned to nothing.
template <class T>
class Values : public Exact {
  public:
    explicit Values(int64_t count, size_t shift = 0) : Exact(static_cast<size_t>(count) * sizeof(T), shift), count_(count) {}

    T *data() { return reinterpret_cast<T *>(bytes()); }
    const T *data() const { return reinterpret_cast<const T *>(bytes()); }
    int64_t size() const { return count_; }
    T operator[](int64_t at) const {
        T value;
        std::memcpy(&value, bytes() + static_cast<size_t>(at) * sizeof(T), sizeof(T));
        return value;
    }
    void put(int64_t at, T value) { std::memcpy(bytes() + static_cast<size_t>(at) * sizeof(T), &value, sizeof(T)); }
    bool same(const Values &other) const { return count_ == other.count_ && !std::memcmp(bytes(), other.bytes(), byte_count()); }

  private:
    int64_t count_;
};

// Whether the page behind such memory ends a program that reads it: an emulator, or a machine with other pages, may have none.
inline bool guarded() {
    Values<uint8_t> memory(100);
    const pid_t child = fork();
    if (child == 0) {
        std::signal(SIGSEGV, [](int) { _exit(42); });
        std::signal(SIGBUS, [](int) { _exit(42); });
        const volatile uint8_t *const behind = memory.data() + memory.size() + slack();
        _exit(*behind);
    }
    int status = 0;
    return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 42;
}

inline uint32_t &state() {
    static uint32_t value = 1;
    return value;
}
inline uint32_t next() { return state() = state() * 1664525u + 1013904223u; }
inline float uniform() { return static_cast<float>(static_cast<int32_t>(next())) / 2147483648.0f; }  // -1 to 1

inline void fill(Values<float> &values, float size = 1) {
    for (int64_t i = 0; i < values.size(); ++i) values.put(i, uniform() * size);
}
inline void fill_with(Values<float> &values, float value) {
    for (int64_t i = 0; i < values.size(); ++i) values.put(i, value);
}

}  // namespace test
