// Gigabytes of addresses that cost megabytes of memory, for tests of 64-bit sizes.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>

#include "exact.h"

namespace test {

class Mapping {
  public:
    Mapping(const Mapping &) = delete;
    Mapping &operator=(const Mapping &) = delete;
    ~Mapping() { munmap(base_, static_cast<size_t>(bytes_)); }
    uint8_t *bytes() const { return base_; }
    float *floats() const { return reinterpret_cast<float *>(base_); }
    int64_t size() const { return bytes_; }

  protected:
    explicit Mapping(int64_t bytes) : bytes_(bytes) {
        const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
        void *memory = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, flags, -1, 0);
        if (memory == MAP_FAILED) stop("so many addresses cannot be had: are they limited (ulimit -v), or is memory never overcommitted?");
        base_ = static_cast<uint8_t *>(memory);
    }

  private:
    uint8_t *base_;
    int64_t bytes_;
};

// Zeros, of which only the pages that are written cost memory.
class Sparse : public Mapping {
  public:
    explicit Sparse(int64_t bytes) : Mapping(bytes) {}
};

// The same bytes again and again; a page that is written becomes one of its own.
class Repeated : public Mapping {
  public:
    // `period`: a multiple of the size of a page. Where it does not divide 2^32, an address that lost its upper bits meets other bytes.
    Repeated(const Values<uint8_t> &period, int64_t bytes) : Mapping(bytes) {
        const int file = memfd_create("period", 0);
        if (file < 0) stop("there is no file in memory");
        for (int64_t at = 0; at < period.size();) {
            const ssize_t written = write(file, period.data() + at, static_cast<size_t>(period.size() - at));
            if (written <= 0) stop("a file in memory cannot be written");
            at += written;
        }
        for (int64_t at = 0; at < bytes; at += period.size()) {
            const size_t count = static_cast<size_t>(std::min(period.size(), bytes - at));
            if (mmap(this->bytes() + at, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE, file, 0) == MAP_FAILED)
                stop("a file cannot be mapped this often");
        }
        close(file);
    }
};

}  // namespace test
