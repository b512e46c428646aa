// 64-bit Arm with byte dot products and float16 arithmetic (ARMv8.2): four floats.
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

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

ISOBIT_INLINE F as_f(float32x4_t value) { return reinterpret_cast<F>(value); }
ISOBIT_INLINE I as_i(int8x16_t value) { return reinterpret_cast<I>(value); }
ISOBIT_INLINE int8x16_t bytes_of(I value) { return reinterpret_cast<int8x16_t>(value); }
ISOBIT_INLINE int8x16_t signed_at(const void *p) { return vld1q_s8(static_cast<const int8_t *>(p)); }
ISOBIT_INLINE I dots(I acc, int8x16_t a, int8x16_t b) {
    return reinterpret_cast<I>(vdotq_s32(reinterpret_cast<int32x4_t>(acc), a, b));
}

constexpr bool FUSES = true;
ISOBIT_INLINE F fused(F a, F b, F acc) {
    return as_f(vfmaq_f32(reinterpret_cast<float32x4_t>(acc), reinterpret_cast<float32x4_t>(a), reinterpret_cast<float32x4_t>(b)));
}

// Eight halves to floats, exact: subnormal halves too, which no setting of the machine flushes in conversions.
ISOBIT_INLINE void halves(int16x8_t values, F out[2]) {
    const float16x8_t eight = vreinterpretq_f16_s16(values);
    out[0] = as_f(vcvt_f32_f16(vget_low_f16(eight)));
    out[1] = as_f(vcvt_high_f32_f16(eight));
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
        for (int v = 0; v < 8; v += 2) {
            const uint16x8_t eight = vreinterpretq_u16_u8(vld1q_u8(from + 8 * v));
            out[v] = reinterpret_cast<F>(vshll_n_u16(vget_low_u16(eight), 16));
            out[v + 1] = reinterpret_cast<F>(vshll_high_n_u16(eight, 16));
        }
    }
};
struct DecodeF16 : Plain {
    static constexpr int bits = 16;
    static constexpr bool scaled = false;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        for (int v = 0; v < 8; v += 2) halves(vreinterpretq_s16_s8(signed_at(from + 8 * v)), out + v);
    }
};
// Bytes to floats by way of float16, which holds them all.
template <class Widen>
ISOBIT_INLINE void through_halves(const uint8_t *from, F out[8], Widen widen) {
    for (int v = 0; v < 8; v += 4) {
        const int8x16_t codes = signed_at(from + 4 * v);
        halves(widen(vget_low_s8(codes)), out + v);
        halves(widen(vget_high_s8(codes)), out + v + 2);
    }
}
// Shifted left by seven with its sign, a code is a float16 2^8 too small, but for a copy of the sign in the highest bit of the
// exponent. NaN codes would come out as 480: such weights are not given to us.
struct DecodeE4m3 : Plain {
    static constexpr int bits = 8;
    static constexpr float factor = 0x1p8f;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        through_halves(from, out, [](int8x8_t codes) ISOBIT_LAMBDA {
            return vbicq_s16(vshll_n_s8(codes, 7), vdupq_n_s16(0x4000));
        });
    }
};
// The upper byte of a float16.
struct DecodeE5m2 : Plain {
    static constexpr int bits = 8;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        through_halves(from, out, [](int8x8_t codes) ISOBIT_LAMBDA { return vshll_n_s8(codes, 8); });
    }
};
struct DecodeInt8 : Plain {
    static constexpr int bits = 8;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        through_halves(from, out, [](int8x8_t codes) ISOBIT_LAMBDA {
            return vreinterpretq_s16_f16(vcvtq_f16_s16(vmovl_s8(codes)));
        });
    }
};
// Eight codes in each lane, converted where they stand: the conversion divides by their power of two.
template <int zero>
struct DecodeWideInt4 : Plain {
    static constexpr int bits = 4, offset = zero;
    static constexpr int source(int i) { return i % W * 8 + i / W; }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        const uint32x4_t eights = vreinterpretq_u32_u8(vld1q_u8(from)), mask = vdupq_n_u32(15);
        out[0] = as_f(vcvtq_f32_u32(vandq_u32(eights, mask)));
        out[1] = part<4>(eights), out[2] = part<8>(eights), out[3] = part<12>(eights);
        out[4] = part<16>(eights), out[5] = part<20>(eights), out[6] = part<24>(eights);
        out[7] = as_f(vcvtq_f32_u32(vshrq_n_u32(eights, 28)));
    }

  private:
    template <int bit>
    static ISOBIT_INLINE F part(uint32x4_t eights) {
        return as_f(vcvtq_n_f32_u32(vandq_u32(eights, vdupq_n_u32(15u << bit)), bit));
    }
};
// Looked up as bytes, twice the values; those are converted from the uppermost byte of a lane, divided by 2^25.
struct DecodeE2m1 : DecodeWideInt4<0> {
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        static const int8_t twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        const int8x16_t values = vld1q_s8(twice);
        const uint32x4_t eights = vreinterpretq_u32_u8(vld1q_u8(from)), mask = vdupq_n_u32(15);
        for (int v = 0; v < 8; ++v) {
            const uint32x4_t codes = vandq_u32(vshlq_u32(eights, vdupq_n_s32(-4 * v)), mask);
            const int32x4_t found = vreinterpretq_s32_s8(vqtbl1q_s8(values, vreinterpretq_u8_u32(codes)));
            const F values_of = as_f(vcvtq_n_f32_s32(vshlq_n_s32(found, 24), 25));
            out[v] = values_of;
        }
    }
};
// Eight codes at a time: groups of any multiple of eight are whole blocks.
template <int width, int zero>
struct DecodePacked : Plain {
    static constexpr int bits = width, codes = 8, offset = zero;
    static ISOBIT_INLINE void block(const uint8_t *from, F out[2]) {
        static const int32_t first[4] = {0, -width, -2 * width, -3 * width};
        static const int32_t second[4] = {-4 * width, -5 * width, -6 * width, -7 * width};
        const uint32x4_t eight = vdupq_n_u32(eight_codes<width>(from)), mask = vdupq_n_u32((1u << width) - 1);
        out[0] = as_f(vcvtq_f32_u32(vandq_u32(vshlq_u32(eight, vld1q_s32(first)), mask)));
        out[1] = as_f(vcvtq_f32_u32(vandq_u32(vshlq_u32(eight, vld1q_s32(second)), mask)));
    }
};

// Each `lanes` lanes get the next value: one or two, a block has 32 codes and groups a multiple of eight.
ISOBIT_INLINE F spread(const float *values, int lanes) {
    const float32x4_t four = vld1q_f32(values);
    return as_f(lanes == 1 ? four : lanes == 2 ? vzip1q_f32(four, four) : vdupq_laneq_f32(four, 0));
}

constexpr bool HAS_OF_EIGHT = false;
ISOBIT_INLINE F of_eight(F, I) { return F{}; }
ISOBIT_INLINE I bytes_at(const uint8_t *) { return I{}; }

struct Int8 {
    typedef int8_t X;
    typedef int8_t Unit;
    struct V { int8x16_t part[4]; };
    static constexpr int codes = 64, bias = 0, unit_bias = 0;
    static ISOBIT_INLINE V weights(const int8_t *from) {
        return {{signed_at(from), signed_at(from + 16), signed_at(from + 32), signed_at(from + 48)}};
    }
    // Two chains, so that one does not wait for the other.
    static ISOBIT_INLINE I dot(I acc, V w, const X *x) {
        const I other = dots(dots(I{}, w.part[0], signed_at(x)), w.part[1], signed_at(x + 16));
        return dots(dots(acc, w.part[2], signed_at(x + 32)), w.part[3], signed_at(x + 48)) + other;
    }
    static ISOBIT_INLINE I unit_weights(const int8_t *from) { return as_i(signed_at(from)); }
    static ISOBIT_INLINE I unit_dot(I acc, I w, I x) { return dots(acc, bytes_of(w), bytes_of(x)); }
};

struct Int4 {
    typedef I Sum;
    static constexpr int VECTORS = 1, offset = 8;
    static constexpr float factor = 1;
    static ISOBIT_INLINE I packed_at(const uint8_t *from) { return as_i(vreinterpretq_s8_u8(vld1q_u8(from))); }
    static ISOBIT_INLINE void unpack(I packed, I out[2]) {
        const uint8x16_t pairs = vreinterpretq_u8_s8(bytes_of(packed));
        out[0] = as_i(vreinterpretq_s8_u8(vandq_u8(pairs, vdupq_n_u8(15)))), out[1] = as_i(vreinterpretq_s8_u8(vshrq_n_u8(pairs, 4)));
    }
    static ISOBIT_INLINE Sum begin(I acc) { return acc; }
    static ISOBIT_INLINE Sum add(Sum sum, I codes, I x) { return dots(sum, bytes_of(codes), bytes_of(x)); }
    static ISOBIT_INLINE I joined(const Sum (&sums)[3], I) {
        const int32x4_t high = vaddq_s32(vshlq_n_s32(of_lanes(sums[0]), 16), vshlq_n_s32(of_lanes(sums[1]), 8));
        return reinterpret_cast<I>(vaddq_s32(high, of_lanes(sums[2])));
    }
    static ISOBIT_INLINE int32x4_t of_lanes(I value) { return reinterpret_cast<int32x4_t>(value); }
    static ISOBIT_INLINE void unit_weights(const uint8_t *from, I out[2]) { unpack(packed_at(from), out); }
    static ISOBIT_INLINE I step(const uint8_t *from, const int8_t *x) {
        const auto at = [&](int byte) ISOBIT_LAMBDA { return as_i(signed_at(x + byte)); };
        I codes[2];
        unpack(packed_at(from), codes);
        return add(add(at(32), codes[0], at(0)), codes[1], at(16));
    }
};

// Twice the values: dot products here take signed bytes.
struct E2m1 : Int4 {
    static constexpr int offset = 0;
    static constexpr float factor = 0.5f;
    static ISOBIT_INLINE void unpack(I packed, I out[2]) {
        static const int8_t twice[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        const int8x16_t values = vld1q_s8(twice);
        Int4::unpack(packed, out);
        for (int i = 0; i < 2; ++i) out[i] = as_i(vqtbl1q_s8(values, vreinterpretq_u8_s8(bytes_of(out[i]))));
    }
};

// What a cache holds, four numbers at a time. A float8 code, shifted, is a half: e4m3 2^8 too small.
struct Stored {
    static ISOBIT_INLINE F int8(const uint8_t *p) {
        return as_f(vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(four(p))))));
    }
    static ISOBIT_INLINE F e4m3(const uint8_t *p) {
        return half(vget_low_s16(vbicq_s16(vshll_n_s8(four(p), 7), vdupq_n_s16(0x4000)))) * splat(256.0f);
    }
    static ISOBIT_INLINE F e5m2(const uint8_t *p) { return half(vget_low_s16(vshll_n_s8(four(p), 8))); }
    static ISOBIT_INLINE F bf16(const uint8_t *p) { return reinterpret_cast<F>(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16)); }
    static ISOBIT_INLINE F f16(const uint8_t *p) { return half(vreinterpret_s16_u8(vld1_u8(p))); }
    // The low halves of W bytes and the high ones: looked up as the upper bytes of float16, whose lower ones are zero.
    static ISOBIT_INLINE void e2m1(const uint8_t *p, F &low, F &high) {
        const uint8x8_t bytes = vreinterpret_u8_s8(four(p));
        low = upper(vand_u8(bytes, vdup_n_u8(15))), high = upper(vshr_n_u8(bytes, 4));
    }

  private:
    static ISOBIT_INLINE F upper(uint8x8_t codes) {
        static const uint8_t values[16] = {0, 0x38, 0x3c, 0x3e, 0x40, 0x42, 0x44, 0x46, 0x80, 0xb8, 0xbc, 0xbe, 0xc0, 0xc2, 0xc4, 0xc6};
        return half(vget_low_s16(vshll_n_s8(vreinterpret_s8_u8(vqtbl1_u8(vld1q_u8(values), codes)), 8)));
    }
    static ISOBIT_INLINE int8x8_t four(const uint8_t *p) {
        uint32_t bytes;
        std::memcpy(&bytes, p, 4);
        return vreinterpret_s8_u32(vdup_n_u32(bytes));
    }
    static ISOBIT_INLINE F half(int16x4_t value) { return as_f(vcvt_f32_f16(vreinterpret_f16_s16(value))); }
    static ISOBIT_INLINE F splat(float value) { return value - F{}; }
};

#include "kernels.inc.h"
#include "layer.inc.h"
#include "attention.inc.h"
#include "latent.inc.h"

bool available() {
#if defined(__linux__)
    // Bits of AT_HWCAP as the kernel numbers them: FPHP, ASIMDHP, ASIMDDP.
    constexpr unsigned long needed = 1ul << 9 | 1ul << 10 | 1ul << 20;
    return (getauxval(AT_HWCAP) & needed) == needed;
#elif defined(__APPLE__)
    return true;
#else
    return false;
#endif
}

}  // namespace

const Isa neon_isa = {"neon", available, layout, arrange, few, many, PANELS * NR, absmax, round_activations, read_all, even, nullptr};
const LayerIsa neon_layer = {"neon", norm_row, gate_all, exp_all, rms_factor, prepare_head, padded_dim, put_cached, attend, attend_latents, merge};

}  // namespace isobit
