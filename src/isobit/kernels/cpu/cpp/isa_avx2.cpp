// AVX2 with FMA, F16C and BMI2: eight floats.
#include <immintrin.h>

#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.h"
#include "layer.h"

namespace isobit {
namespace {

constexpr int W = 8;
typedef float F __attribute__((vector_size(32)));
typedef int32_t I __attribute__((vector_size(32)));


ISOBIT_INLINE F as_f(__m256 value) { return reinterpret_cast<F>(value); }
ISOBIT_INLINE I as_i(__m256i value) { return reinterpret_cast<I>(value); }
ISOBIT_INLINE __m256i load32(const void *p) { return _mm256_loadu_si256(static_cast<const __m256i *>(p)); }
ISOBIT_INLINE __m128i load16(const uint8_t *p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
ISOBIT_INLINE F from_bytes(__m128i bytes) { return as_f(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))); }

ISOBIT_INLINE __m128i low(__m256i value) { return _mm256_castsi256_si128(value); }
ISOBIT_INLINE __m128i high(__m256i value) { return _mm256_extracti128_si256(value, 1); }
ISOBIT_INLINE F halves(__m128i values) { return as_f(_mm256_cvtph_ps(values)); }

constexpr bool FUSES = true;
ISOBIT_INLINE F fused(F a, F b, F acc) {
    return as_f(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(acc)));
}

constexpr int plain(int i) { return i; }

struct DecodeF32 {
    static constexpr int bits = 32, codes = 32, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false;
    static constexpr float power = 1;
    static constexpr int source(int i) { return plain(i); }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[4]) { std::memcpy(out, from, 128); }
};
struct DecodeBf16 {
    static constexpr int bits = 16, codes = 32, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false;
    static constexpr float power = 1;
    static constexpr int source(int i) { return i / 16 * 16 + (i % 16 < 8 ? 2 * (i % 8) : 2 * (i % 8) + 1); }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[4]) {
        for (int v = 0; v < 4; v += 2) {
            const __m256i pairs = load32(from + 16 * v);
            out[v] = as_f(_mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)));
            out[v + 1] = as_f(_mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000)))));
        }
    }
};
struct DecodeF16 {
    static constexpr int bits = 16, codes = 32, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false;
    static constexpr float power = 1;
    static constexpr int source(int i) { return plain(i); }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[4]) {
        for (int v = 0; v < 4; ++v) out[v] = halves(load16(from + 16 * v));
    }
};
// The bits of a code stand at the exponent and mantissa of a float32, which is 2^120 (e5m2: 2^112) too small, subnormals
// included. Activations are 2^48 too large, so that neither they nor the sums leave the range of float32; the rest is in
// the factor. NaN codes of e4m3 would come out as 480: such weights are not given to us.
template <int exponent_bits>
struct DecodeFloat8 {
    static constexpr int bits = 8, codes = 32, offset = 0;
    static constexpr float factor = exponent_bits == 4 ? 0x1p72f : 0x1p64f;
    static constexpr bool scaled = true;
    static constexpr float power = 0x1p48f;
    static constexpr int source(int i) { return i % W * 4 + i / W; }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[4]) {
        constexpr int down = 8 - exponent_bits;
        const __m256i fours = load32(from);
        const auto part = [](__m256i codes) ISOBIT_LAMBDA {
            return as_f(_mm256_castsi256_ps(_mm256_and_si256(_mm256_srai_epi32(codes, down), _mm256_set1_epi32(static_cast<int>(0x80000000u | 0x7f000000u >> down)))));
        };
        out[0] = part(_mm256_slli_epi32(fours, 24)), out[1] = part(_mm256_slli_epi32(fours, 16));
        out[2] = part(_mm256_slli_epi32(fours, 8)), out[3] = part(fours);
    }
};
using DecodeE4m3 = DecodeFloat8<4>;
using DecodeE5m2 = DecodeFloat8<5>;
struct DecodeInt8 {
    static constexpr int bits = 8, codes = 32, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = true;
    static constexpr float power = 1;
    static constexpr int source(int i) { return plain(i); }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[4]) {
        for (int v = 0; v < 4; ++v) {
            const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(from + 8 * v));
            out[v] = as_f(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)));
        }
    }
};
// Eight codes in each lane.
template <int zero>
struct DecodeWideInt4 {
    static constexpr int bits = 4, codes = 64, offset = zero;
    static constexpr float factor = 1;
    static constexpr bool scaled = true;
    static constexpr float power = 1;
    static constexpr int source(int i) { return i % W * 8 + i / W; }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        const __m256i eights = load32(from), mask = _mm256_set1_epi32(15);
        for (int v = 0; v < 8; ++v) {
            const __m256i shifted = _mm256_srli_epi32(eights, 4 * v);
            out[v] = as_f(_mm256_cvtepi32_ps(v == 7 ? shifted : _mm256_and_si256(shifted, mask)));
        }
    }
};
// A permutation of a table of eight floats looks at the lowest three bits only; the fourth is the sign.
struct DecodeE2m1 : DecodeWideInt4<0> {
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        const __m256 sizes = _mm256_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6);
        const __m256i eights = load32(from), sign = _mm256_set1_epi32(INT32_MIN);
        for (int v = 0; v < 8; ++v) {
            const __m256i signs = _mm256_and_si256(_mm256_slli_epi32(eights, 28 - 4 * v), sign);
            const __m256 size = _mm256_permutevar8x32_ps(sizes, _mm256_srli_epi32(eights, 4 * v));
            out[v] = as_f(_mm256_or_ps(size, _mm256_castsi256_ps(signs)));
        }
    }
};
// Eight codes at a time: groups of any multiple of eight are whole blocks. Shifted by its place, the word of eight codes has a
// code in the lowest bits of every lane, which are all that a permutation of a table of eight floats looks at.
template <int width, int zero>
struct DecodePacked {
    static constexpr bool by_table = width <= 3;
    static constexpr int bits = width, codes = 8, offset = by_table ? 0 : zero;
    static constexpr float factor = 1;
    static constexpr bool scaled = true;
    static constexpr float power = 1;
    static constexpr int source(int i) { return plain(i); }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[1]) {
        const uint32_t word = eight_codes<width>(from);
        if constexpr (by_table) {
            const __m256i places = _mm256_setr_epi32(0, width, 2 * width, 3 * width, 4 * width, 5 * width, 6 * width, 7 * width);
            out[0] = as_f(_mm256_permutevar8x32_ps(values(), _mm256_srlv_epi32(_mm256_set1_epi32(static_cast<int>(word)), places)));
        } else {
            constexpr uint64_t mask = 0x0101010101010101u * ((1u << width) - 1);
            out[0] = from_bytes(_mm_cvtsi64_si128(static_cast<long long>(_pdep_u64(word, mask))));
        }
    }

  private:
    static ISOBIT_INLINE __m256 values() {
        constexpr int m = (1 << width) - 1;
        return _mm256_setr_ps(0 - zero, 1 - zero, 2 - zero, 3 - zero, (4 & m) - zero, (5 & m) - zero, (6 & m) - zero, (7 & m) - zero);
    }
};

// Each `lanes` lanes get the next value.
ISOBIT_INLINE F spread(const float *values, int lanes) {
    const __m256i index = _mm256_srlv_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0),
                                            _mm256_set1_epi32(__builtin_ctz(static_cast<unsigned>(lanes))));
    return as_f(_mm256_permutevar8x32_ps(_mm256_loadu_ps(values), index));
}

// Of eight floats the one that the lowest three bits of each lane name.
constexpr bool HAS_OF_EIGHT = true;
ISOBIT_INLINE F of_eight(F eight, I which) { return as_f(_mm256_permutevar8x32_ps(reinterpret_cast<__m256>(eight), reinterpret_cast<__m256i>(which))); }
ISOBIT_INLINE I bytes_at(const uint8_t *p) { return as_i(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)))); }

// Codes widened to 16 bits: vpmaddwd is exact where vpmaddubsw would saturate.
struct Int8 {
    typedef int16_t X;
    typedef int16_t Unit;
    struct V { __m256i low, high; };
    static constexpr int codes = 32, bias = 0, unit_bias = 0;
    static ISOBIT_INLINE V weights(const int8_t *from) { return {widened(from), widened(from + 16)}; }
    static ISOBIT_INLINE I dot(I acc, V w, const X *x) {
        return unit_dot(unit_dot(acc, as_i(w.low), as_i(load32(x))), as_i(w.high), as_i(load32(x + 16)));
    }
    static ISOBIT_INLINE I unit_weights(const int8_t *from) { return as_i(widened(from)); }
    static ISOBIT_INLINE I unit_dot(I acc, I w, I x) {
        return as_i(_mm256_add_epi32(reinterpret_cast<__m256i>(acc), _mm256_madd_epi16(reinterpret_cast<__m256i>(w), reinterpret_cast<__m256i>(x))));
    }

  private:
    static __m256i widened(const int8_t *from) { return _mm256_cvtepi8_epi16(load16(reinterpret_cast<const uint8_t *>(from))); }
};

struct Int4 {
    typedef __m256i Sum;  // in 16 bits: eight products of at most 24 * 128 fit, four by two halves of a pair
    static constexpr int VECTORS = 2, offset = 8;
    static constexpr float factor = 1;
    static ISOBIT_INLINE void unpack(I packed, I out[2]) {
        const __m256i pairs = reinterpret_cast<__m256i>(packed), mask = _mm256_set1_epi8(15);
        out[0] = as_i(_mm256_and_si256(pairs, mask)), out[1] = as_i(_mm256_and_si256(_mm256_srli_epi16(pairs, 4), mask));
    }
    static ISOBIT_INLINE Sum begin(I) { return _mm256_setzero_si256(); }
    static ISOBIT_INLINE Sum add(Sum sum, I codes, I x) {
        return _mm256_add_epi16(sum, _mm256_maddubs_epi16(reinterpret_cast<__m256i>(codes), reinterpret_cast<__m256i>(x)));
    }
    static ISOBIT_INLINE I end(I acc, Sum sum) { return acc + as_i(widened(sum, 1)); }
    static ISOBIT_INLINE I joined(const Sum (&sums)[3], I start) {
        const __m256i high = _mm256_slli_epi32(_mm256_add_epi32(widened(sums[0], 256), widened(sums[1], 1)), 8);
        return as_i(_mm256_add_epi32(high, _mm256_add_epi32(widened(sums[2], 1), reinterpret_cast<__m256i>(start))));
    }
    static ISOBIT_INLINE __m256i widened(Sum sum, short times) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(times)); }
    static ISOBIT_INLINE void unit_weights(const uint8_t *from, I out[4]) {
        const __m256i pairs = load32(from), mask = _mm256_set1_epi8(15);
        const __m256i even = _mm256_and_si256(pairs, mask), odd = _mm256_and_si256(_mm256_srli_epi16(pairs, 4), mask);
        out[0] = as_i(_mm256_cvtepu8_epi16(low(even))), out[1] = as_i(_mm256_cvtepu8_epi16(high(even)));
        out[2] = as_i(_mm256_cvtepu8_epi16(low(odd))), out[3] = as_i(_mm256_cvtepu8_epi16(high(odd)));
    }
    static ISOBIT_INLINE I step(const uint8_t *from, const int8_t *x) {
        const auto at = [&](int byte) ISOBIT_LAMBDA { return as_i(load32(x + byte)); };
        I codes[2];
        unpack(as_i(load32(from)), codes);
        const I start = at(64);
        return end(start, add(add(begin(start), codes[0], at(0)), codes[1], at(32)));
    }
};

// Twice the values, and 12 more: bytes that are multiplied as those of int4 are.
struct E2m1 : Int4 {
    static constexpr int offset = 12;
    static constexpr float factor = 0.5f;
    static ISOBIT_INLINE void unpack(I packed, I out[2]) {
        const __m256i values = _mm256_broadcastsi128_si256(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
        Int4::unpack(packed, out);
        for (int i = 0; i < 2; ++i) out[i] = as_i(_mm256_shuffle_epi8(values, reinterpret_cast<__m256i>(out[i])));
    }
};

// What a cache holds, eight numbers at a time. A float8 code, shifted, is a half: e4m3 2^8 too small.
struct Stored {
    static ISOBIT_INLINE F int8(const uint8_t *p) { return as_f(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight(p)))); }
    static ISOBIT_INLINE F e4m3(const uint8_t *p) {
        const __m128i shifted = _mm_slli_epi16(_mm_cvtepi8_epi16(eight(p)), 7);
        return halves(_mm_and_si128(shifted, _mm_set1_epi16(static_cast<short>(0xbf80)))) * splat(256.0f);
    }
    static ISOBIT_INLINE F e5m2(const uint8_t *p) { return halves(_mm_unpacklo_epi8(_mm_setzero_si128(), eight(p))); }
    static ISOBIT_INLINE F bf16(const uint8_t *p) {
        return as_f(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(p)), 16)));
    }
    static ISOBIT_INLINE F f16(const uint8_t *p) { return halves(load16(p)); }
    // The low halves of W bytes and the high ones: looked up as the upper bytes of float16, whose lower ones are zero.
    static ISOBIT_INLINE void e2m1(const uint8_t *p, F &low, F &high) {
        const __m128i mask = _mm_set1_epi8(15), bytes = eight(p);
        low = upper(_mm_and_si128(bytes, mask)), high = upper(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
    }

  private:
    static ISOBIT_INLINE F upper(__m128i codes) {
        const __m128i values = _mm_set_epi64x(static_cast<int64_t>(0xc6c4c2c0bebcb880u), 0x464442403e3c3800);
        return halves(_mm_unpacklo_epi8(_mm_setzero_si128(), _mm_shuffle_epi8(values, codes)));
    }
    static ISOBIT_INLINE __m128i eight(const uint8_t *p) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)); }
    static ISOBIT_INLINE F splat(float value) { return value - F{}; }
};

#include "kernels.inc.h"
#include "layer.inc.h"
#include "attention.inc.h"
#include "latent.inc.h"

bool available() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() && __builtin_cpu_supports("bmi2");
}

}  // namespace

const Isa avx2_isa = {"avx2", available, layout, arrange, few, many, PANELS * NR, absmax, round_activations, read_all, even, nullptr};
const LayerIsa avx2_layer = {"avx2", norm_row, gate_all, exp_all, rms_factor, prepare_head, padded_dim, put_cached, attend, attend_latents, merge};

}  // namespace isobit
