// Plain C++ over GCC vectors of four floats: runs everywhere, and says what the other files must compute.
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels.h"

namespace isobit {
namespace {

constexpr int W = 4;
typedef float F __attribute__((vector_size(16)));

float from_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Value of a sign-exponent-mantissa code; `top` is whether the top exponent means infinity and NaN.
float small_float(int code, int exponent_bits, int mantissa_bits, int bias, bool top) {
    const int exponent = code >> mantissa_bits & ((1 << exponent_bits) - 1), mantissa = code & ((1 << mantissa_bits) - 1);
    const float sign = code >> (exponent_bits + mantissa_bits) & 1 ? -1.0f : 1.0f;
    const int highest = (1 << exponent_bits) - 1;
    if (exponent == highest && top) return sign * (mantissa ? NAN : INFINITY);
    if (exponent == highest && !top && mantissa == (1 << mantissa_bits) - 1) return sign * NAN;
    if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), 1 - bias - mantissa_bits);
    return sign * std::ldexp(static_cast<float>(mantissa | 1 << mantissa_bits), exponent - bias - mantissa_bits);
}

struct Table {
    float e4m3[256], e5m2[256];
    Table() {
        for (int code = 0; code < 256; ++code) {
            e4m3[code] = small_float(code, 4, 3, 7, false);
            e5m2[code] = small_float(code, 5, 2, 15, true);
        }
    }
};

const Table &table() {
    static const Table values;
    return values;
}

template <class Value>
inline void fill(F out[BLOCK / W], Value value) {
    for (int i = 0; i < BLOCK; ++i) out[i / W][i % W] = value(i);
}

struct DecodeF32 {
    static constexpr int bits = 32, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) { std::memcpy(out, codes, BLOCK * 4); }
};
struct DecodeBf16 {
    static constexpr int bits = 16, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        uint16_t halves[BLOCK];
        std::memcpy(halves, codes, sizeof halves);
        fill(out, [&](int i) { return from_bits(static_cast<uint32_t>(halves[i]) << 16); });
    }
};
struct DecodeF16 {
    static constexpr int bits = 16, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        uint16_t halves[BLOCK];
        std::memcpy(halves, codes, sizeof halves);
        fill(out, [&](int i) { return small_float(halves[i], 5, 10, 15, true); });
    }
};
struct DecodeE4m3 {
    static constexpr int bits = 8, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        const Table &values = table();
        fill(out, [&](int i) { return values.e4m3[codes[i]]; });
    }
};
struct DecodeE5m2 {
    static constexpr int bits = 8, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        const Table &values = table();
        fill(out, [&](int i) { return values.e5m2[codes[i]]; });
    }
};
struct DecodeInt8 {
    static constexpr int bits = 8, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        fill(out, [&](int i) { return static_cast<float>(static_cast<int8_t>(codes[i])); });
    }
};
template <int zero>
struct DecodeInt4 {
    static constexpr int bits = 4, offset = zero;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = true;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        fill(out, [&](int i) { return static_cast<float>(i < 16 ? codes[i] & 15 : codes[i - 16] >> 4); });
    }
};
template <int width, int zero>
struct DecodePacked {
    static constexpr int bits = width, offset = zero;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        fill(out, [&](int i) {
            const int bit = i * width, both = codes[bit / 8] | (bit % 8 + width > 8 ? codes[bit / 8 + 1] << 8 : 0);
            return static_cast<float>(both >> bit % 8 & ((1 << width) - 1));
        });
    }
};
using DecodeInt3 = DecodePacked<3, 4>;
using DecodeInt2 = DecodePacked<2, 2>;

struct Int8Dot {
    static constexpr int64_t LONGEST = 1 << 16;
    template <int R, int M>
    static void tile(const int8_t *w, int64_t w_stride, const int8_t *x, int64_t x_stride, int64_t n,
                     int64_t totals[R][M]) {
        for (int r = 0; r < R; ++r)
            for (int m = 0; m < M; ++m) {
                int32_t total = 0;
                for (int64_t k = 0; k < n; ++k) total += w[r * w_stride + k] * x[m * x_stride + k];
                totals[r][m] += total;
            }
    }
};

#include "kernels.inc.h"

bool available() { return true; }

}  // namespace

const Isa portable_isa = {"portable", available, arrange, gemv, gemm, PANELS * NR, int8_linear, absmax, round_activations, read_all};

}  // namespace isobit
