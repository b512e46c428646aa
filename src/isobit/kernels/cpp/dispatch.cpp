// The C interface: checks, the choice of the instruction set, and the division of work among threads.
#include <atomic>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "isobit_cpu.h"
#include "kernels.h"
#include "pool.h"

namespace isobit {
namespace {

const Isa *const ISAS[] = {
#ifdef ISOBIT_AVX512
    &avx512_isa,
#endif
#ifdef ISOBIT_AVX2
    &avx2_isa,
#endif
#ifdef ISOBIT_NEON
    &neon_isa,
#endif
    &portable_isa,
};

const Isa *best() {
    for (const Isa *isa : ISAS)
        if (isa->available()) return isa;
    return &portable_isa;
}

std::atomic<const Isa *> &current() {
    static std::atomic<const Isa *> isa{best()};
    return isa;
}

thread_local std::string error;

int fail(const char *why) {
    error = why;
    return -1;
}

constexpr int64_t FEW_ROWS = 16;        // up to here codes are decoded for each few rows anew; beyond, once for all
constexpr int64_t PIECE = 1 << 16;      // bytes of codes a thread takes at a time
constexpr float SMALLEST_SCALE = 7.888609052210118e-31f;  // 2^-100, docs/numerics.md section 3

int bits_of(int32_t format) {
    switch (format) {
        case ISOBIT_F32: return 32;
        case ISOBIT_BF16:
        case ISOBIT_F16: return 16;
        case ISOBIT_E4M3FN:
        case ISOBIT_E5M2:
        case ISOBIT_INT8: return 8;
        case ISOBIT_INT4:
        case ISOBIT_UINT4: return 4;
        case ISOBIT_INT3: return 3;
        case ISOBIT_INT2: return 2;
    }
    return 0;
}

bool needs_sums(const isobit_linear &w) {
    return w.zeros || w.format == ISOBIT_INT4 || w.format == ISOBIT_INT3 || w.format == ISOBIT_INT2;
}

Layout layout_of(const isobit_linear &w) {
    Layout l;
    l.group = w.group ? w.group : w.k;
    l.groups = (w.k + l.group - 1) / l.group;
    l.padded_group = round_up(l.group, BLOCK);
    l.width = l.groups * l.padded_group;
    l.group_bytes = l.group * bits_of(w.format) / 8;
    return l;
}

const char *problem(const isobit_linear &w, const float *x, int64_t m, int64_t ldx, const float *y, int64_t ldy) {
    const int bits = bits_of(w.format);
    if (!bits) return "unknown format";
    if (w.n < 1 || w.k < 1 || m < 0) return "sizes must be positive";
    if (w.n > (int64_t{1} << 40) / w.k || m > (int64_t{1} << 40) / w.k || m > (int64_t{1} << 40) / w.n) return "sizes overflow";
    if (!w.codes || !x || !y) return "a null pointer";
    if (ldx < w.k || ldy < w.n) return "rows overlap: a stride is shorter than a row";
    if (w.row_bytes < (w.k * bits + 7) / 8) return "row_bytes is shorter than a row of codes";
    if (w.group < 0 || (w.group && w.group * bits % 8)) return "a group does not end at a byte";
    if (w.block_rows < 0) return "block_rows is negative";
    if (bits <= 8 && !w.scales) return "the scales are missing";
    if ((w.format == ISOBIT_UINT4) != (w.zeros != nullptr)) return "zero points belong to uint4, and to nothing else";
    if (w.activations < ISOBIT_ACT_NONE || w.activations > ISOBIT_ACT_INT8) return "unknown activation format";
    if (w.activations != ISOBIT_ACT_NONE && bits > 8) return "activations are rounded only together with weights";
    if (w.activation_group && w.activation_group != w.group) return "activation groups must be those of the weights";
    if (w.input_scale < 0 || (w.input_scale && w.activation_group)) return "a static scale is one positive number";
    return nullptr;
}

// Scale of n activations, and their rounded values; scale NaN and zeros if one of them is not finite.
float round_run(const Isa &isa, int32_t activations, float static_scale, const float *x, int64_t n, float *out) {
    const float qmax = activations == ISOBIT_ACT_E4M3FN ? 448.0f : activations == ISOBIT_ACT_E5M2 ? 57344.0f : 127.0f;
    const float amax = isa.absmax(x, n);
    float scale = static_scale;
    if (!static_scale) {
        scale = amax / qmax;
        scale = scale < SMALLEST_SCALE ? SMALLEST_SCALE : scale;
    }
    if (!std::isfinite(amax)) scale = NAN;
    isa.round(activations, x, n, scale, out);
    return scale;
}

struct Scratch {
    std::vector<float> rounded, arranged, sums, scales;
    std::vector<int8_t> codes;
};

template <class T>
T *room(std::vector<T> &buffer, int64_t count) {
    if (static_cast<int64_t>(buffer.size()) < count) buffer.resize(static_cast<size_t>(count));
    return buffer.data();
}

// Exact integer products need whole rows of int8 with one scale each.
bool is_int8(const isobit_linear &w) {
    return w.format == ISOBIT_INT8 && w.activations == ISOBIT_ACT_INT8 && !w.activation_group && !w.group;
}

int run_int8(const Isa &isa, const isobit_linear &w, const float *x, int64_t m, int64_t ldx, float *y, int64_t ldy,
             Scratch &s) {
    int8_t *codes = room(s.codes, m * w.k);
    float *scales = room(s.scales, m);
    parallel(m, 8, [&](int64_t begin, int64_t end) {
        std::vector<float> values(static_cast<size_t>(w.k));
        for (int64_t row = begin; row < end; ++row) {
            scales[row] = round_run(isa, w.activations, w.input_scale, x + row * ldx, w.k, values.data());
            for (int64_t k = 0; k < w.k; ++k) codes[row * w.k + k] = static_cast<int8_t>(values[k]);
        }
    });
    const int64_t grain = round_up(std::max<int64_t>(1, PIECE / w.row_bytes), 4);
    parallel(w.n, grain, [&](int64_t begin, int64_t end) { isa.int8(w, codes, scales, m, begin, end, y, ldy); });
    return 0;
}

int run_linear(const isobit_linear &w, const float *x, int64_t m, int64_t ldx, float *y, int64_t ldy) {
    static thread_local Scratch scratch;
    Scratch &s = scratch;
    const Isa &isa = *current().load();
    if (is_int8(w)) return run_int8(isa, w, x, m, ldx, y, ldy, s);
    const Layout l = layout_of(w);
    float *scales = nullptr, *rounded = nullptr;
    if (w.activations) {
        rounded = room(s.rounded, m * w.k);
        scales = w.activation_group ? nullptr : room(s.scales, m);
    }
    float *arranged = room(s.arranged, m * l.width);
    float *sums = m <= FEW_ROWS && needs_sums(w) ? room(s.sums, m * l.groups) : nullptr;
    parallel(m, 8, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const float *from = x + row * ldx;
            if (w.activations) {
                float *to = rounded + row * w.k;
                if (scales) {
                    scales[row] = round_run(isa, w.activations, w.input_scale, from, w.k, to);
                } else {
                    for (int64_t at = 0; at < w.k; at += w.activation_group) {
                        const int64_t count = std::min<int64_t>(w.activation_group, w.k - at);
                        const float scale = round_run(isa, w.activations, 0, from + at, count, to + at);
                        for (int64_t k = at; k < at + count; ++k) to[k] *= scale;
                    }
                }
                from = to;
            }
            float *laid = arranged + row * l.width;
            isa.arrange(w.format, l, from, 1, w.k, w.k, laid);
            if (sums)
                for (int64_t g = 0; g < l.groups; ++g) {
                    float total = 0;
                    for (int64_t i = 0; i < l.padded_group; ++i) total += laid[g * l.padded_group + i];
                    sums[row * l.groups + g] = total;
                }
        }
    });
    if (m <= FEW_ROWS) {
        parallel(w.n, std::max<int64_t>(1, PIECE / w.row_bytes), [&](int64_t begin, int64_t end) {
            isa.gemv(w, l, arranged, sums, scales, m, begin, end, y, ldy);
        });
    } else {
        parallel(w.n, isa.panel, [&](int64_t begin, int64_t end) {
            isa.gemm(w, l, arranged, scales, m, begin, end, y, ldy);
        });
    }
    return 0;
}

// Codes of rounded values: the inverse of decoding, for tests and for kernels that keep codes.
uint8_t code_of(int32_t activations, float value) {
    if (activations == ISOBIT_ACT_INT8) return static_cast<uint8_t>(static_cast<int8_t>(value));
    const int mantissa = activations == ISOBIT_ACT_E4M3FN ? 3 : 2, bias = activations == ISOBIT_ACT_E4M3FN ? 7 : 15;
    const uint8_t sign = std::signbit(value) ? 0x80 : 0;
    const float size = std::fabs(value);
    if (size == 0) return sign;
    int exponent;
    const float fraction = std::frexp(size, &exponent);  // size = fraction * 2^exponent, fraction in [0.5, 1)
    const int field = exponent - 1 + bias;
    if (field < 1) return sign | static_cast<uint8_t>(std::ldexp(size, bias - 1 + mantissa));
    return sign | static_cast<uint8_t>(field << mantissa) |
           static_cast<uint8_t>(std::ldexp(2 * fraction - 1, mantissa));
}

}  // namespace
}  // namespace isobit

using namespace isobit;

extern "C" {

#define ISOBIT_EXPORT __attribute__((visibility("default")))

ISOBIT_EXPORT const char *isobit_cpu_isas(void) {
    static const std::string names = [] {
        std::string all;
        for (const Isa *isa : ISAS)
            if (isa->available()) all += (all.empty() ? "" : ",") + std::string(isa->name);
        return all;
    }();
    return names.c_str();
}

ISOBIT_EXPORT int isobit_cpu_use_isa(const char *name) {
    for (const Isa *isa : ISAS)
        if (name && !std::strcmp(isa->name, name) && isa->available()) {
            current() = isa;
            return 0;
        }
    return fail("this machine or this build has no such instruction set");
}

ISOBIT_EXPORT const char *isobit_cpu_isa(void) { return current().load()->name; }

ISOBIT_EXPORT int isobit_cpu_set_threads(int count) {
    if (count < 1 || count > 4096) return fail("the number of threads must be from 1 to 4096");
    set_threads(count);
    return 0;
}

ISOBIT_EXPORT int isobit_cpu_threads(void) { return threads(); }

ISOBIT_EXPORT const char *isobit_cpu_error(void) { return error.c_str(); }

ISOBIT_EXPORT int isobit_cpu_linear(const isobit_linear *w, const float *x, int64_t m, int64_t ldx, float *y,
                                    int64_t ldy) {
    if (!w) return fail("a null pointer");
    if (const char *why = problem(*w, x, m, ldx, y, ldy)) return fail(why);
    try {
        return m == 0 ? 0 : run_linear(*w, x, m, ldx, y, ldy);
    } catch (const std::exception &caught) {
        return fail(caught.what());
    }
}

ISOBIT_EXPORT int isobit_cpu_quantize(int32_t activations, int64_t group, float input_scale, const float *x, int64_t m,
                                      int64_t k, uint8_t *codes, float *scales) {
    if (activations < ISOBIT_ACT_E4M3FN || activations > ISOBIT_ACT_INT8) return fail("unknown activation format");
    if (!x || !codes || !scales || m < 0 || k < 1 || group < 0 || input_scale < 0) return fail("an argument is out of range");
    const int64_t run = group ? group : k, runs = (k + run - 1) / run;
    try {
        std::vector<float> values(static_cast<size_t>(run));
        for (int64_t row = 0; row < m; ++row)
            for (int64_t g = 0; g < runs; ++g) {
                const int64_t at = row * k + g * run, count = std::min<int64_t>(run, k - g * run);
                scales[row * runs + g] = round_run(*current().load(), activations, input_scale, x + at, count, values.data());
                for (int64_t i = 0; i < count; ++i) codes[at + i] = code_of(activations, values[i]);
            }
        return 0;
    } catch (const std::exception &caught) {
        return fail(caught.what());
    }
}

ISOBIT_EXPORT uint64_t isobit_cpu_read(const void *data, int64_t bytes) {
    std::atomic<uint64_t> total{0};
    const char *p = static_cast<const char *>(data);
    parallel(bytes, 1 << 20, [&](int64_t begin, int64_t end) { total += current().load()->read(p + begin, end - begin); });
    return total;
}

}  // extern "C"
