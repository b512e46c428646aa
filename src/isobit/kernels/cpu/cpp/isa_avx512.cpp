// AVX-512 (F, BW, DQ, VL, VNNI): sixteen floats.
#include <immintrin.h>

#include <atomic>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernels.h"
#include "layer.h"

namespace isobit {
namespace {

constexpr int W = 16;
// Of what some CPUs with AVX-512 have beside it, what is used: nothing, BF16, VBMI too (isobit_cpu_use_isa).
std::atomic<int> extensions{2};
typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));


ISOBIT_INLINE F as_f(__m512 value) { return reinterpret_cast<F>(value); }
ISOBIT_INLINE I as_i(__m512i value) { return reinterpret_cast<I>(value); }
ISOBIT_INLINE __m512i load64(const void *p) { return _mm512_loadu_si512(p); }
ISOBIT_INLINE __m128i load16(const uint8_t *p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
ISOBIT_INLINE __m256i load32(const uint8_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
ISOBIT_INLINE F from_bytes(__m128i bytes) { return as_f(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))); }

ISOBIT_INLINE F halves(__m256i values) { return as_f(_mm512_cvtph_ps(values)); }

constexpr bool FUSES = true;
ISOBIT_INLINE F fused(F a, F b, F acc) {
    return as_f(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(acc)));
}

constexpr int plain(int i) { return i; }
// The even codes of 32, then the odd ones.
constexpr int evens_first(int i) { return i < 16 ? 2 * i : 2 * (i - 16) + 1; }

struct DecodeF32 {
    static constexpr int bits = 32, codes = 32, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false;
    static constexpr float power = 1;
    static constexpr int source(int i) { return plain(i); }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[2]) { std::memcpy(out, from, 128); }
};
struct DecodeBf16 {
    static constexpr int bits = 16, codes = 32, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false;
    static constexpr float power = 1;
    static constexpr int source(int i) { return evens_first(i); }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[2]) {
        const __m512i pairs = load64(from);
        out[0] = as_f(_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)));
        out[1] = as_f(_mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000)))));
    }
};
struct DecodeF16 {
    static constexpr int bits = 16, codes = 32, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false;
    static constexpr float power = 1;
    static constexpr int source(int i) { return plain(i); }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[2]) { out[0] = halves(load32(from)), out[1] = halves(load32(from + 32)); }
};
// The bits of a code stand at the exponent and mantissa of a float32, which is 2^120 (e5m2: 2^112) too small, subnormals
// included. Activations are 2^48 too large, so that neither they nor the sums leave the range of float32; the rest is in
// the factor. NaN codes of e4m3 would come out as 480: such weights are not given to us.
template <int exponent_bits>
struct DecodeFloat8 {
    static constexpr int bits = 8, codes = 64, offset = 0;
    static constexpr float factor = exponent_bits == 4 ? 0x1p72f : 0x1p64f;
    static constexpr bool scaled = true;
    static constexpr float power = 0x1p48f;
    static constexpr int source(int i) { return i % W * 4 + i / W; }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[4]) {
        constexpr int down = 8 - exponent_bits;
        const __m512i fours = load64(from);
        const auto part = [](__m512i codes) ISOBIT_LAMBDA {
            return as_f(_mm512_castsi512_ps(_mm512_and_si512(_mm512_srai_epi32(codes, down), _mm512_set1_epi32(static_cast<int>(0x80000000u | 0x7f000000u >> down)))));
        };
        out[0] = part(_mm512_slli_epi32(fours, 24)), out[1] = part(_mm512_slli_epi32(fours, 16));
        out[2] = part(_mm512_slli_epi32(fours, 8)), out[3] = part(fours);
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
    static ISOBIT_INLINE void block(const uint8_t *from, F out[2]) {
        for (int v = 0; v < 2; ++v) out[v] = as_f(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(from + 16 * v))));
    }
};
// Eight codes in each lane; a permutation of a table of 16 floats looks at the lowest four bits only.
template <int zero>
struct DecodeWideInt4 {
    static constexpr int bits = 4, codes = 128, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = true;
    static constexpr float power = 1;
    static constexpr int source(int i) { return i % W * 8 + i / W; }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        const __m512 values = _mm512_sub_ps(_mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_ps(zero));
        const __m512i eights = load64(from);
        for (int v = 0; v < 8; ++v) out[v] = as_f(_mm512_permutexvar_ps(_mm512_srli_epi32(eights, 4 * v), values));
    }
};
struct DecodeE2m1 : DecodeWideInt4<0> {
    static ISOBIT_INLINE void block(const uint8_t *from, F out[8]) {
        const __m512 values = _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
        const __m512i eights = load64(from);
        for (int v = 0; v < 8; ++v) out[v] = as_f(_mm512_permutexvar_ps(_mm512_srli_epi32(eights, 4 * v), values));
    }
};
// The same with a word in all lanes, or one in each half of them, that has their codes. Words are broadcast while they are
// loaded, so that the permutation is the only one.
template <int width, int zero>
struct DecodePacked {
    static constexpr bool by_table = width <= 3;
    static constexpr int bits = width, codes = 32, offset = by_table ? 0 : zero;
    static constexpr float factor = 1;
    static constexpr bool scaled = true;
    static constexpr float power = 1;
    static constexpr int source(int i) { return plain(i); }
    static ISOBIT_INLINE void block(const uint8_t *from, F out[2]) {
        if constexpr (by_table) {
            for (int v = 0; v < 2; ++v) {
                __m512i words = _mm512_broadcastd_epi32(_mm_loadu_si32(from + BYTES[v][0]));
                if constexpr (width == 3) words = _mm512_mask_broadcastd_epi32(words, 0xFF00, _mm_loadu_si32(from + BYTES[v][1]));
                const __m512i shifted = _mm512_srlv_epi32(words, _mm512_load_si512(PLACES.shifts[v]));
                out[v] = as_f(_mm512_permutexvar_ps(shifted, _mm512_load_ps(PLACES.values)));
            }
        } else {
            constexpr uint64_t mask = 0x0101010101010101u * ((1u << width) - 1);
            for (int v = 0; v < 2; ++v) {
                const uint64_t low = _pdep_u64(eight_codes<width>(from + 2 * width * v), mask);
                const uint64_t high = _pdep_u64(eight_codes<width>(from + 2 * width * v + width), mask);
                out[v] = from_bytes(_mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low)));
            }
        }
    }

  private:
    // Where the words of both halves of 16 codes begin; the last one early, because nothing behind the block is read.
    static constexpr int BYTES[2][2] = {{0, width}, {2 * width, 4 * width - 4}};
    struct Places {
        alignas(64) uint32_t shifts[2][16];  // of the codes in their words
        alignas(64) float values[16];        // what the lowest four bits then mean
        constexpr Places() : shifts{}, values{} {
            for (int i = 0; i < 16; ++i) {
                for (int v = 0; v < 2; ++v) {
                    const int half = width == 3 ? i / 8 : 0;
                    shifts[v][i] = static_cast<uint32_t>((16 * v + i) * width - 8 * BYTES[v][half]);
                }
                values[i] = static_cast<float>((i & ((1 << width) - 1)) - zero);
            }
        }
    };
    static constexpr Places PLACES{};
};

// Each `lanes` lanes get the next value.
ISOBIT_INLINE F spread(const float *values, int lanes) {
    const __m512i index = _mm512_srlv_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                                            _mm512_set1_epi32(__builtin_ctz(static_cast<unsigned>(lanes))));
    return as_f(_mm512_permutexvar_ps(index, _mm512_loadu_ps(values)));
}

// Of eight floats, which stand there twice, the one that the lowest three bits of each lane name.
constexpr bool HAS_OF_EIGHT = true;
ISOBIT_INLINE F of_eight(F eight, I which) { return as_f(_mm512_permutexvar_ps(reinterpret_cast<__m512i>(which), reinterpret_cast<__m512>(eight))); }
ISOBIT_INLINE I bytes_at(const uint8_t *p) { return as_i(_mm512_cvtepu8_epi32(load16(p))); }

// The subnormals of a format with so many bits of exponent, as bfloat16: mantissa * 2^(2 - bias - mantissa bits).
template <int exponent_bits>
struct Subnormals {
    alignas(64) uint16_t values[32];
    constexpr Subnormals() : values{} {
        constexpr int bits = 7 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
        for (int code = 1; code < 1 << bits; ++code) {
            int top = 0;
            while (code >> (top + 1)) ++top;
            const int exponent = top + 1 - bias - bits + 127, rest = (code - (1 << top)) << (7 - top);
            values[code] = static_cast<uint16_t>(exponent << 7 | rest);
        }
    }
};
template <int exponent_bits>
constexpr Subnormals<exponent_bits> SUBNORMALS{};

// The bytes of all magnitudes of a format as bfloat16: the upper ones with the exponent, and the lower ones.
template <int exponent_bits>
struct Bfloat16Bytes {
    alignas(64) uint8_t upper[128], lower[128];
    constexpr Bfloat16Bytes() : upper{}, lower{} {
        constexpr int bits = 7 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
        for (int code = 0; code < 128; ++code) {
            const int exponent = code >> bits, rest = (code & ((1 << bits) - 1)) << (7 - bits);
            const int value = exponent ? (exponent - bias + 127) << 7 | rest : Subnormals<exponent_bits>().values[code];
            upper[code] = static_cast<uint8_t>(value >> 8), lower[code] = static_cast<uint8_t>(value & 0xff);
        }
    }
};
template <int exponent_bits>
constexpr Bfloat16Bytes<exponent_bits> BFLOAT16_BYTES{};

// Of lower bytes and the upper ones behind them, those of two codes of each lane, from the `first` on.
template <int first>
struct LanePairs {
    alignas(64) uint8_t bytes[64];
    constexpr LanePairs() : bytes{} {
        for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>(i / 4 * 4 + first + i % 4 / 2 + i % 2 * 64);
    }
};
template <int first>
constexpr LanePairs<first> LANE_PAIRS{};

// vpdpbusd multiplies unsigned by signed bytes: weights are taken as w + 128.
struct Int8 {
    typedef int8_t X;
    typedef int8_t Unit;
    typedef __m512i V;
    static constexpr int codes = 64, bias = 128, unit_bias = 128;
    static ISOBIT_INLINE V weights(const int8_t *from) { return _mm512_xor_si512(load64(from), _mm512_set1_epi8(static_cast<char>(0x80))); }
    static ISOBIT_INLINE I dot(I acc, V w, const X *x) { return unit_dot(acc, as_i(w), as_i(load64(x))); }
    static ISOBIT_INLINE I unit_weights(const int8_t *from) { return as_i(weights(from)); }
    static ISOBIT_INLINE I unit_dot(I acc, I w, I x) {
        return as_i(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(w), reinterpret_cast<__m512i>(x)));
    }

    // Not every machine with AVX-512 has them: the instruction is written out, so that the file needs no flag for it.
    struct Pairs {
        static bool available() { return extensions > 0 && __builtin_cpu_supports("avx512bf16"); }
        static bool looks_up() { return extensions > 1 && __builtin_cpu_supports("avx512vbmi"); }
        static ISOBIT_INLINE F dot(F acc, F a, F b) {
            __asm__("vdpbf16ps %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
            return acc;
        }
        static ISOBIT_INLINE F dot(F acc, F a, const uint8_t *b) {
            __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(a), "m"(*reinterpret_cast<const int32_t *>(b)));
            return acc;
        }

        // Exponents move from one bias to the other; subnormals, which are normal bfloat16 numbers, come from a table. Of words
        // with a code below.
        template <int exponent_bits>
        static ISOBIT_INLINE F widen(__m512i words) {
            constexpr int mantissa = 7 - exponent_bits, bias = 128 - (1 << (exponent_bits - 1)), count = 1 << mantissa;
            const __m512i sizes = _mm512_and_si512(words, _mm512_set1_epi16(0x7f));
            const __m512i normal = _mm512_add_epi16(_mm512_slli_epi16(sizes, 7 - mantissa), _mm512_set1_epi16(bias << 7));
            const __m512i subnormals = load64(SUBNORMALS<exponent_bits>.values);
            const __mmask32 small = _mm512_cmplt_epu16_mask(sizes, _mm512_set1_epi16(count));
            const __m512i all = _mm512_mask_permutexvar_epi16(normal, small, sizes, subnormals);
            const __m512i signs = _mm512_slli_epi16(_mm512_and_si512(words, _mm512_set1_epi16(0x80)), 8);
            return as_f(_mm512_castsi512_ps(_mm512_or_si512(all, signs)));
        }
        template <int exponent_bits>
        static ISOBIT_INLINE F widen(const uint8_t *codes) { return widen<exponent_bits>(_mm512_cvtepu8_epi16(load32(codes))); }

        struct Widen {
            template <int exponent_bits>
            static ISOBIT_INLINE void split(F fours, F out[2]) {
                const __m512i codes = reinterpret_cast<__m512i>(fours), low = _mm512_set1_epi32(0xff), high = _mm512_set1_epi32(0xff0000);
                const auto words = [&](__m512i a, __m512i b) ISOBIT_LAMBDA { return _mm512_or_si512(_mm512_and_si512(a, low), _mm512_and_si512(b, high)); };
                out[0] = widen<exponent_bits>(words(codes, _mm512_slli_epi32(codes, 8)));
                out[1] = widen<exponent_bits>(words(_mm512_srli_epi32(codes, 16), _mm512_srli_epi32(codes, 8)));
            }
        };

        // vpermi2b looks up the bytes of 128 magnitudes, and brings upper and lower ones together.
        struct Look {
            template <int exponent_bits>
            static ISOBIT_INLINE void split(F fours, F out[2]) {
                const Bfloat16Bytes<exponent_bits> &bytes = BFLOAT16_BYTES<exponent_bits>;
                const __m512i codes = reinterpret_cast<__m512i>(fours), signs = _mm512_set1_epi8(static_cast<char>(0x80));
                const __m512i found = look_up(codes, load64(bytes.upper), load64(bytes.upper + 64));
                const __m512i upper = _mm512_ternarylogic_epi32(found, codes, signs, 0xf8);  // a | (b & c)
                const __m512i lower = look_up(codes, load64(bytes.lower), load64(bytes.lower + 64));
                out[0] = as_f(_mm512_castsi512_ps(look_up(load64(LANE_PAIRS<0>.bytes), lower, upper)));
                out[1] = as_f(_mm512_castsi512_ps(look_up(load64(LANE_PAIRS<2>.bytes), lower, upper)));
            }
            // Of 128 bytes those that the lowest seven bits name.
            static ISOBIT_INLINE __m512i look_up(__m512i places, __m512i low, __m512i high) {
                __asm__("vpermi2b %2, %1, %0" : "+v"(places) : "v"(low), "v"(high));
                return places;
            }
        };
    };
};

struct Int4 {
    typedef I Sum;
    static constexpr int VECTORS = 1, offset = 8;
    static constexpr float factor = 1;
    static ISOBIT_INLINE void unpack(I packed, I out[2]) {
        __m512i pairs = reinterpret_cast<__m512i>(packed);
        __asm__("" : "+v"(pairs));  // one load for both
        const __m512i mask = _mm512_set1_epi8(15);
        out[0] = as_i(_mm512_and_si512(pairs, mask)), out[1] = as_i(_mm512_and_si512(_mm512_srli_epi16(pairs, 4), mask));
    }
    static ISOBIT_INLINE Sum begin(I acc) { return acc; }
    static ISOBIT_INLINE Sum add(Sum sum, I codes, I x) { return Int8::unit_dot(sum, codes, x); }
    static ISOBIT_INLINE I joined(const Sum (&sums)[3], I) {
        const auto up = [](I sum, int bits) ISOBIT_LAMBDA { return _mm512_slli_epi32(reinterpret_cast<__m512i>(sum), static_cast<unsigned>(bits)); };
        return as_i(_mm512_add_epi32(_mm512_add_epi32(up(sums[0], 16), up(sums[1], 8)), reinterpret_cast<__m512i>(sums[2])));
    }
    static ISOBIT_INLINE void unit_weights(const uint8_t *from, I out[2]) { unpack(as_i(load64(from)), out); }
    static ISOBIT_INLINE I step(const uint8_t *from, const int8_t *x) {
        I codes[2];
        unpack(as_i(load64(from)), codes);
        return add(add(as_i(load64(x + 128)), codes[0], as_i(load64(x))), codes[1], as_i(load64(x + 64)));
    }
};

// Twice the values, and 12 more: bytes that are multiplied as those of int4 are.
struct E2m1 : Int4 {
    static constexpr int offset = 12;
    static constexpr float factor = 0.5f;
    static ISOBIT_INLINE void unpack(I packed, I out[2]) {
        const __m512i values = _mm512_broadcast_i32x4(_mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
        Int4::unpack(packed, out);
        for (int i = 0; i < 2; ++i) out[i] = as_i(_mm512_shuffle_epi8(values, reinterpret_cast<__m512i>(out[i])));
    }
};

// What a cache holds, sixteen numbers at a time. A float8 code, shifted, is a half: e4m3 2^8 too small.
struct Stored {
    static ISOBIT_INLINE F int8(const uint8_t *p) { return as_f(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(p)))); }
    static ISOBIT_INLINE F e4m3(const uint8_t *p) {
        const __m256i shifted = _mm256_slli_epi16(_mm256_cvtepi8_epi16(load16(p)), 7);
        return halves(_mm256_and_si256(shifted, _mm256_set1_epi16(static_cast<short>(0xbf80)))) * splat(256.0f);
    }
    static ISOBIT_INLINE F e5m2(const uint8_t *p) { return halves(_mm256_slli_epi16(_mm256_cvtepu8_epi16(load16(p)), 8)); }
    static ISOBIT_INLINE F bf16(const uint8_t *p) {
        return as_f(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load32(p)), 16)));
    }
    static ISOBIT_INLINE F f16(const uint8_t *p) { return halves(load32(p)); }
    // The low halves of W bytes and the high ones.
    static ISOBIT_INLINE void e2m1(const uint8_t *p, F &low, F &high) {
        const __m512 values = _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);
        const __m512i bytes = _mm512_cvtepu8_epi32(load16(p));
        low = as_f(_mm512_permutexvar_ps(bytes, values)), high = as_f(_mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), values));
    }

  private:
    static ISOBIT_INLINE F splat(float value) { return value - F{}; }
};

#include "kernels.inc.h"
#include "layer.inc.h"
#include "attention.inc.h"
#include "latent.inc.h"

void use(int parts) { extensions = parts; }

bool available() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("fma") && has_f16c();
}

}  // namespace

const Isa avx512_isa = {"avx512", available, layout, arrange, few, many, PANELS * NR, absmax, round_activations, read_all, even, use};
const LayerIsa avx512_layer = {"avx512", norm_row, gate_all, exp_all, rms_factor, prepare_head, padded_dim, put_cached, attend, attend_latents, merge};

}  // namespace isobit
