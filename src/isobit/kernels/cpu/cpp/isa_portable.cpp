// Plain C++ over GCC vectors of four floats: runs everywhere, and says what the other files must compute.
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.h"
#include "layer.h"

namespace isobit {
namespace {

constexpr int W = 4;
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
constexpr bool FUSES = false;

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
ISOBIT_INLINE void fill(F *out, int count, Value value) {
    for (int i = 0; i < count; ++i) out[i / W][i % W] = value(i);
}

struct Plain {
    static constexpr int codes = 32, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = true;
    static constexpr float power = 1;
    static constexpr int source(int i) { return i; }
};

struct DecodeF32 : Plain {
    static constexpr int bits = 32;
    static constexpr bool scaled = false;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) { std::memcpy(out, from, 128); }
};
struct DecodeBf16 : Plain {
    static constexpr int bits = 16;
    static constexpr bool scaled = false;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        uint32_t values[codes];
        for (int i = 0; i < codes; ++i) {
            uint16_t half;
            std::memcpy(&half, from + 2 * i, 2);
            values[i] = static_cast<uint32_t>(half) << 16;
        }
        std::memcpy(out, values, sizeof values);
    }
};
struct DecodeF16 : Plain {
    static constexpr int bits = 16;
    static constexpr bool scaled = false;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        uint16_t halves[codes];
        std::memcpy(halves, from, sizeof halves);
        fill(out, codes, [&](int i) { return small_float(halves[i], 5, 10, 15, true); });
    }
};
struct DecodeE4m3 : Plain {
    static constexpr int bits = 8;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        const Table &values = table();
        fill(out, codes, [&](int i) { return values.e4m3[from[i]]; });
    }
};
struct DecodeE5m2 : Plain {
    static constexpr int bits = 8;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        const Table &values = table();
        fill(out, codes, [&](int i) { return values.e5m2[from[i]]; });
    }
};
struct DecodeInt8 : Plain {
    static constexpr int bits = 8;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        fill(out, codes, [&](int i) { return static_cast<float>(static_cast<int8_t>(from[i])); });
    }
};
template <int width, int zero>
struct DecodePacked : Plain {
    static constexpr int bits = width, offset = zero;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        fill(out, codes, [&](int i) {
            const int bit = i * width, both = from[bit / 8] | (bit % 8 + width > 8 ? from[bit / 8 + 1] << 8 : 0);
            return static_cast<float>(both >> bit % 8 & ((1 << width) - 1));
        });
    }
};
// Eight codes in each lane.
template <int zero>
struct DecodeWideInt4 : Plain {
    static constexpr int bits = 4, offset = zero;
    static constexpr int source(int i) { return i % W * 8 + i / W; }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        fill(out, codes, [&](int i) {
            const int code = source(i);
            return static_cast<float>(from[code / 2] >> (code % 2 * 4) & 15);
        });
    }
};

constexpr float E2M1_VALUES[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
struct DecodeE2m1 : DecodeWideInt4<0> {
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        fill(out, codes, [&](int i) {
            const int code = source(i);
            return E2M1_VALUES[from[code / 2] >> (code % 2 * 4) & 15];
        });
    }
};

// Each `lanes` lanes get the next value.
ISOBIT_INLINE F spread(const float *values, int lanes) {
    F out;
    for (int i = 0; i < W; ++i) out[i] = values[i / lanes];
    return out;
}

constexpr bool HAS_OF_EIGHT = false;
ISOBIT_INLINE F of_eight(F, I) { return F{}; }
ISOBIT_INLINE I bytes_at(const uint8_t *) { return I{}; }

struct Int8 {
    typedef int16_t X;
    typedef int16_t Unit;
    typedef const int8_t *V;
    static constexpr int codes = 32, bias = 0, unit_bias = 0;
    static ISOBIT_INLINE V weights(const int8_t *from) { return from; }
    static ISOBIT_INLINE I dot(I acc, V w, const X *x) {
        for (int i = 0; i < codes; ++i) acc[i % W] += w[i] * x[i];
        return acc;
    }
    static ISOBIT_INLINE I unit_weights(const int8_t *from) { return pairs_of([&](int i) { return from[i]; }); }
    static ISOBIT_INLINE I unit_dot(I acc, I w, I x) {
        for (int i = 0; i < W; ++i)
            acc[i] += static_cast<int16_t>(w[i]) * static_cast<int16_t>(x[i]) + (w[i] >> 16) * (x[i] >> 16);
        return acc;
    }
    // Two codes in each lane, the first below.
    template <class Code>
    static I pairs_of(Code code) {
        int16_t codes[2 * W];
        for (int i = 0; i < 2 * W; ++i) codes[i] = static_cast<int16_t>(code(i));
        I out;
        std::memcpy(&out, codes, sizeof out);
        return out;
    }
};

struct Int4 {
    static constexpr int offset = 8;
    static ISOBIT_INLINE void unit_weights(const uint8_t *from, I out[4]) {
        for (int v = 0; v < 4; ++v)
            out[v] = Int8::pairs_of([&](int i) { return from[v % 2 * 2 * W + i] >> (v < 2 ? 0 : 4) & 15; });
    }
    static ISOBIT_INLINE I step(const uint8_t *from, const int8_t *x) {
        I acc;
        std::memcpy(&acc, x + 8 * W, sizeof acc);
        for (int i = 0; i < 4 * W; ++i) acc[i / 4] += (from[i] & 15) * x[i] + (from[i] >> 4) * x[4 * W + i];
        return acc;
    }
};

struct E2m1 : Int4 {};

// What a cache holds, four numbers at a time.
struct Stored {
    static ISOBIT_INLINE F int8(const uint8_t *p) {
        return each([&](int i) { return static_cast<float>(static_cast<int8_t>(p[i])); });
    }
    static ISOBIT_INLINE F e4m3(const uint8_t *p) {
        return each([&](int i) { return table().e4m3[p[i]]; });
    }
    static ISOBIT_INLINE F e5m2(const uint8_t *p) {
        return each([&](int i) { return table().e5m2[p[i]]; });
    }
    static ISOBIT_INLINE F bf16(const uint8_t *p) {
        uint32_t values[W];
        for (int i = 0; i < W; ++i) values[i] = static_cast<uint32_t>(half(p, i)) << 16;
        F out;
        std::memcpy(&out, values, sizeof out);
        return out;
    }
    static ISOBIT_INLINE F f16(const uint8_t *p) {
        return each([&](int i) { return small_float(half(p, i), 5, 10, 15, true); });
    }
    // The low halves of W bytes and the high ones.
    static ISOBIT_INLINE void e2m1(const uint8_t *p, F &low, F &high) {
        low = each([&](int i) { return E2M1_VALUES[p[i] & 15]; });
        high = each([&](int i) { return E2M1_VALUES[p[i] >> 4]; });
    }

  private:
    static ISOBIT_INLINE uint16_t half(const uint8_t *p, int i) {
        uint16_t value;
        std::memcpy(&value, p + 2 * i, 2);
        return value;
    }
    template <class Value>
    static ISOBIT_INLINE F each(Value value) {
        F out;
        for (int i = 0; i < W; ++i) out[i] = value(i);
        return out;
    }
};

#include "kernels.inc.h"
#include "layer.inc.h"
#include "attention.inc.h"
#include "latent.inc.h"

bool available() { return true; }

}  // namespace

const Isa portable_isa = {"portable", available, layout, arrange, few, many, PANELS * NR, absmax, round_activations, read_all, even, nullptr};
const LayerIsa portable_layer = {"portable", norm_row, gate_all, exp_all, rms_factor, prepare_head, padded_dim, put_cached, attend, attend_latents, merge};

}  // namespace isobit
