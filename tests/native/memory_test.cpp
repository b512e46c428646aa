// Runs every format on every instruction set over odd sizes, with buffers of exactly the bytes that are needed, so that
// AddressSanitizer and UndefinedBehaviorSanitizer see every read and write that does not belong: `make sanitize`. What comes out is
// looked at by linear_test.cpp and layer_test.cpp; here it must be finite, in its place, and the same wherever it lies in memory.
#include <cmath>
#include <cstdio>
#include <string>

#include "isas.h"
#include "linears.h"

using namespace test;

namespace {

int runs = 0;

// y of one linear: rows apart by more than they are long, and addresses `shift` bytes off.
bool run(const Linear &l, const Values<float> &x, int64_t m, int64_t ldx, int64_t gap, size_t shift, Values<float> &y) {
    const int64_t n = l.w.n, ldy = n + gap;
    Values<float> shifted(x.size(), shift), out(m ? (m - 1) * ldy + n : 0, shift ? shift + 1 : 0);
    std::memcpy(shifted.bytes(), x.bytes(), x.byte_count());
    fill_with(out, -0.0f);
    if (isobit_cpu_linear(&l.w, shifted.data(), m, ldx, out.data(), ldy)) return std::printf("refused: %s\n", isobit_cpu_error()), false;
    for (int64_t i = 0; i < out.size(); ++i) {
        if (i % ldy >= n && (out[i] != 0 || !std::signbit(out[i]))) return std::puts("written between rows"), false;
        if (i % ldy < n) y.put(i / ldy * n + i % ldy, out[i]);
    }
    ++runs;
    return true;
}

bool places(const Case &c, int64_t n, int64_t k, int64_t m) {
    constexpr int64_t gap = 3;
    const uint32_t seed = state();
    const Linear exact(c, n, k);
    Values<float> x(m ? (m - 1) * (k + gap) + k : 0), y(m * n), again(m * n);
    for (int64_t i = 0; i < x.size(); ++i) x.put(i, i % (k + gap) < k ? uniform() : NAN);
    isobit_cpu_set_threads(static_cast<int>(1 + (n + k + m) % 5));
    if (!run(exact, x, m, k + gap, 0, 0, y)) return false;
    for (int64_t i = 0; i < y.size(); ++i)
        if (!std::isfinite(y[i])) return std::puts("not finite"), false;
    state() = seed;
    const Linear shifted(c, n, k, 0, static_cast<size_t>(1 + (n + k + m) % 3));
    if (!run(shifted, x, m, k + gap, gap, static_cast<size_t>(1 + m % 3), again)) return false;
    return y.same(again) || (std::puts("another result at another place"), false);
}

bool sweep(const std::string &isa) {
    for (const Case &c : CASES)
        for (const int64_t n : {1, 3, 37, 150})
            for (const int64_t k : {1, 7, 31, 33, 130, 360, 768})
                for (const int64_t m : {0, 1, 2, 3, 16, 17, 33, 65}) {
                    if (!fits(c, k) || (n * k * m > 1 << 20 && m != 17 && m != 65)) continue;
                    if (places(c, n, k, m)) continue;
                    std::printf("%s: %s: %d x %d, %d rows\n", isa.c_str(), c.name, int(n), int(k), int(m));
                    return false;
                }
    return true;
}

}  // namespace

int main(int count, char **arguments) {
    const int status = on_every_isa(count, arguments, sweep);
    if (!status) std::printf("%d linears: no read or write that does not belong\n", runs);
    return status;
}
