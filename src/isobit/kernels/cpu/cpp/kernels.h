// What one instruction set offers: a table of functions, made by kernels.inc.h for each of the isa_*.cpp files.
#pragma once

#include "isobit_cpu.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

// Kernels are written in small functions and must become one.
#define ISOBIT_INLINE inline __attribute__((always_inline))
#define ISOBIT_LAMBDA __attribute__((always_inline))

namespace isobit {

// The most values of an argument, and the farthest its rows may lie apart: products with the size of a value do not overflow.
constexpr int64_t LARGEST = int64_t{1} << 40, FARTHEST = int64_t{1} << 56;

// Floats of the caller, which need not lie at multiples of four bytes.
typedef float Loose __attribute__((aligned(1)));

// Of a code; 0 for what is no format.
inline int bits_of(int32_t format) {
    switch (format) {
        case ISOBIT_F32: return 32;
        case ISOBIT_BF16:
        case ISOBIT_F16: return 16;
        case ISOBIT_E4M3FN:
        case ISOBIT_E5M2:
        case ISOBIT_INT8: return 8;
        case ISOBIT_INT4:
        case ISOBIT_UINT4:
        case ISOBIT_E2M1: return 4;
        case ISOBIT_INT3: return 3;
        case ISOBIT_INT2: return 2;
    }
    return 0;
}

// Bytes of a scale; 0 for what is no format of scales.
inline int64_t scale_bytes(int32_t format) {
    switch (format) {
        case ISOBIT_F32: return 4;
        case ISOBIT_BF16:
        case ISOBIT_F16: return 2;
        case ISOBIT_E4M3FN:
        case ISOBIT_E8M0: return 1;
    }
    return 0;
}

constexpr float SMALLEST_SCALE = 7.888609052210118e-31f;  // 2^-100, docs/numerics.md section 3

inline float largest_of(int32_t activations) {
    switch (activations) {
        case ISOBIT_ACT_E4M3FN: return 448.0f;
        case ISOBIT_ACT_E5M2: return 57344.0f;
        case ISOBIT_ACT_E2M1: return 6.0f;
    }
    return 127.0f;
}

// Of activations of which the largest magnitude is `amax`: NaN where that is no number.
inline float scale_to(float largest, float amax) {
    const float scale = amax / largest;
    if (!(amax <= 3.4028234663852886e38f)) return __builtin_nanf("");
    return scale < SMALLEST_SCALE ? SMALLEST_SCALE : scale;
}
inline float activation_scale(int32_t activations, float amax) { return scale_to(largest_of(activations), amax); }

// The same as a power of two, of a finite magnitude: its exponent, one more from 1.75 times a power of two on, less that of the
// format's largest value.
inline float power_scale(int32_t activations, float amax) {
    const float largest = largest_of(activations);
    uint32_t bits, of_largest;
    __builtin_memcpy(&bits, &amax, 4);
    __builtin_memcpy(&of_largest, &largest, 4);
    const int32_t exponent = static_cast<int32_t>((bits + (1u << 21)) >> 23) - static_cast<int32_t>(of_largest >> 23);
    const uint32_t found = static_cast<uint32_t>((exponent < -100 ? -100 : exponent) + 127) << 23;
    float scale;
    __builtin_memcpy(&scale, &found, 4);
    return scale;
}

// A scale from 0 on as e4m3fn has it: 2^-3 where that would be zero.
inline float few_bits(float code) {
    code = code < 448.0f ? code : 448.0f;
    if (code < 0.015625f) {  // 2^-6, below which codes are multiples of 2^-9
        code = (code + 16384.0f) - 16384.0f;
    } else {
        uint32_t bits;
        __builtin_memcpy(&bits, &code, 4);
        bits = (bits + 0x7ffffu + (bits >> 20 & 1u)) & ~0xfffffu;
        __builtin_memcpy(&code, &bits, 4);
    }
    return code == 0 ? 0.125f : code;
}

// The same as e4m3fn under a number above it.
inline float scale_under(int32_t activations, float amax, float over) { return few_bits(over * (amax / largest_of(activations))) / over; }

inline int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

#if defined(__x86_64__) || defined(__i386__)
// What __builtin_cpu_supports("f16c") says where compilers know it; Clang before 16 does not.
inline bool has_f16c() {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

// Eight codes of `width` bits. Byte by byte where there is no load of that size: a copy to memory and back would stall.
template <int width>
ISOBIT_INLINE uint32_t eight_codes(const uint8_t *from) {
    if constexpr (width == 3) return from[0] | from[1] << 8 | from[2] << 16;
    if constexpr (width == 2) return from[0] | from[1] << 8;
    return from[0] | from[1] << 8 | from[2] << 16 | static_cast<uint32_t>(from[3]) << 24;
}

// What the products are made of.
enum class Kind {
    FLOATS,     // weights decoded to float32
    INT8,       // int8 codes by int8 codes, exact in int32
    INT4_INT8,  // int4 codes by int8 codes, exact in int32 within what shares a scale
    PAIRS,      // 8-bit floats by rounded float activations, both as bfloat16 (pairs.inc.h)
    DIGITS,     // int4 codes by three digits of float activations, exact in int32 within a block (digits.inc.h)
};

// How a linear is computed by an instruction set, and how rows of activations are laid out for it.
//
// A row of weights is a sequence of spans, each of whole groups and (but for the last) of whole blocks. A block is what
// is decoded at a time; a span has one scale, or, if its groups are shorter than a block, one for some lanes each.
struct Layout {
    Kind kind;
    bool many;            // for the product with many rows, else for few
    bool wide;            // int4 decoded in blocks of 8 codes for every lane
    bool one_scale;       // a row has one scale, applied to its sum
    bool shifted;         // decoded codes are above their values, by a constant or by zero points
    int64_t group;        // weights that share a scale along k
    int64_t groups;       // how many there are in a row
    int64_t block;        // codes of a block
    int64_t span;         // codes of a span
    int64_t spans;        // how many there are in a row
    int64_t per_span;     // groups of a span
    int lanes;            // that share a scale, if a span has several groups
    int paired;           // lanes that two vectors of a block exchange, so that a lane of both belongs to one group (digits.inc.h); 0: none
    int64_t padded_span;  // span in whole blocks
    int64_t span_bytes;   // bytes of a span's codes
    int64_t width;        // spans * padded_span: values of a row of activations
    int64_t row_size;     // bytes of a row of activations as laid out, a multiple of 64
    int64_t rows;         // of weights that few rows of activations take at a time, at most
};

struct Isa {
    const char *name;
    bool (*available)();
    // `digits`: whether the rows may be written in digits, which `even` tells.
    Layout (*layout)(const isobit_linear &, int64_t m, bool digits);
    // Lays out one row of activations (rounded values if they are rounded). group_scales: those that are not in the values
    // yet, for Kind::PAIRS, or NULL.
    void (*arrange)(const isobit_linear &, const Layout &, const float *values, const float *group_scales, void *out);
    // y[0..m, begin..end) for few rows of activations: codes are decoded once for up to four rows.
    void (*few)(const isobit_linear &, const Layout &, const void *rows, const float *act_scales, int64_t m,
                int64_t begin, int64_t end, float *y, int64_t ldy);
    // The same for many rows: panels of outputs are decoded once for all of them. begin is a multiple of `panel`.
    void (*many)(const isobit_linear &, const Layout &, const void *rows, const float *act_scales, int64_t m,
                 int64_t begin, int64_t end, float *y, int64_t ldy);
    int64_t panel;
    // Largest magnitude of n values; NaN if one is NaN.
    float (*absmax)(const float *x, int64_t n);
    // The law of activations for values that share a scale: code values as floats (int8 too).
    void (*round)(int32_t activations, const float *x, int64_t n, float scale, float *out);
    uint64_t (*read)(const void *data, int64_t bytes);
    bool (*even)(const Layout &, const float *values, int64_t k);
    // Uses no more of what CPUs may have beside the instruction set than those do that stop at part so many; NULL: no parts.
    void (*use_parts)(int parts);
};

extern const Isa portable_isa;
#ifdef ISOBIT_AVX2
extern const Isa avx2_isa;
#endif
#ifdef ISOBIT_AVX512
extern const Isa avx512_isa;
#endif
#ifdef ISOBIT_NEON
extern const Isa neon_isa;
#endif

// 64-byte aligned memory that grows and is kept: vectors that cross cache lines cost twice.
class Buffer {
  public:
    Buffer() = default;
    Buffer(const Buffer &) = delete;
    Buffer &operator=(const Buffer &) = delete;
    ~Buffer();
    // At least `bytes` of memory, contents unspecified. Throws std::bad_alloc.
    void *room(int64_t bytes);
    float *floats(int64_t count) { return static_cast<float *>(room(count * 4)); }

  private:
    void *data_ = nullptr;
    int64_t size_ = 0;
};

}  // namespace isobit
