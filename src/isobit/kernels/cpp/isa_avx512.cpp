// AVX-512 (F, BW, DQ, VL, VNNI): sixteen floats.
#include <immintrin.h>

#include <cstring>
#include <vector>

#include "kernels.h"

namespace isobit {
namespace {

constexpr int W = 16;
typedef float F __attribute__((vector_size(64)));

inline F as_f(__m512 value) { return reinterpret_cast<F>(value); }
inline __m128i load16(const uint8_t *p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
inline __m256i load32(const uint8_t *p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)); }
inline F from_bytes(__m128i bytes) { return as_f(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes))); }

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
        for (int v = 0; v < BLOCK / W; ++v)
            out[v] = as_f(_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load32(codes + 32 * v)), 16)));
    }
};
struct DecodeF16 {
    static constexpr int bits = 16, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        for (int v = 0; v < BLOCK / W; ++v) out[v] = as_f(_mm512_cvtph_ps(load32(codes + 32 * v)));
    }
};
// As in isa_avx2.cpp: the byte in the upper half of a float16, for e4m3 one to the right and times 2^8.
struct DecodeE4m3 {
    static constexpr int bits = 8, offset = 0;
    static constexpr float factor = 256;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        const __m256i keep = _mm256_set1_epi16(static_cast<short>(0xbf80));
        for (int v = 0; v < BLOCK / W; ++v) {
            const __m256i wide = _mm256_slli_epi16(_mm256_cvtepu8_epi16(load16(codes + 16 * v)), 8);
            out[v] = as_f(_mm512_cvtph_ps(_mm256_and_si256(_mm256_srai_epi16(wide, 1), keep)));
        }
    }
};
struct DecodeE5m2 {
    static constexpr int bits = 8, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        for (int v = 0; v < BLOCK / W; ++v)
            out[v] = as_f(_mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(load16(codes + 16 * v)), 8)));
    }
};
struct DecodeInt8 {
    static constexpr int bits = 8, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        for (int v = 0; v < BLOCK / W; ++v)
            out[v] = as_f(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(codes + 16 * v))));
    }
};
template <int zero>
struct DecodeInt4 {
    static constexpr int bits = 4, offset = zero;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = true;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        const __m128i bytes = load16(codes), mask = _mm_set1_epi8(15);
        out[0] = from_bytes(_mm_and_si128(bytes, mask));
        out[1] = from_bytes(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask));
    }
};
template <int width, int zero>
struct DecodePacked {
    static constexpr int bits = width, offset = zero;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        constexpr uint64_t spread = 0x0101010101010101u * ((1u << width) - 1);
        for (int v = 0; v < BLOCK / W; ++v) {
            uint64_t sixteen = 0;
            std::memcpy(&sixteen, codes + 2 * width * v, 2 * width);
            const uint64_t low = _pdep_u64(sixteen, spread), high = _pdep_u64(sixteen >> (8 * width), spread);
            out[v] = from_bytes(_mm_set_epi64x(static_cast<long long>(high), static_cast<long long>(low)));
        }
    }
};
using DecodeInt3 = DecodePacked<3, 4>;
using DecodeInt2 = DecodePacked<2, 2>;

struct Int8Dot {
    static constexpr int64_t LONGEST = 1 << 15;  // 255 * 127 * 2^15 fits 31 bits
    template <int R, int M>
    static void tile(const int8_t *w, int64_t w_stride, const int8_t *x, int64_t x_stride, int64_t n,
                     int64_t totals[R][M]) {
        // vpdpbusd multiplies unsigned by signed bytes: weights are taken as w + 128, and 128 times the sum of x is taken
        // off again, counted in the same pass.
        const __m512i flip = _mm512_set1_epi8(static_cast<char>(0x80));
        __m512i acc[R][M], sums[M];
        for (int m = 0; m < M; ++m) {
            sums[m] = _mm512_setzero_si512();
            for (int r = 0; r < R; ++r) acc[r][m] = _mm512_setzero_si512();
        }
        const __m512i ones = _mm512_set1_epi8(1);
        for (int64_t k = 0; k < n; k += 64) {
            const __mmask64 mask = n - k >= 64 ? ~__mmask64{0} : (__mmask64{1} << (n - k)) - 1;
            __m512i weights[R];
            for (int r = 0; r < R; ++r) weights[r] = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, w + r * w_stride + k), flip);
            for (int m = 0; m < M; ++m) {
                const __m512i values = _mm512_maskz_loadu_epi8(mask, x + m * x_stride + k);
                sums[m] = _mm512_dpbusd_epi32(sums[m], ones, values);
                for (int r = 0; r < R; ++r) acc[r][m] = _mm512_dpbusd_epi32(acc[r][m], weights[r], values);
            }
        }
        for (int m = 0; m < M; ++m) {
            const int64_t shift = int64_t{128} * _mm512_reduce_add_epi32(sums[m]);
            for (int r = 0; r < R; ++r) totals[r][m] += _mm512_reduce_add_epi32(acc[r][m]) - shift;
        }
    }
};

#include "kernels.inc.h"

bool available() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("bmi2") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

}  // namespace

const Isa avx512_isa = {"avx512", available, arrange, gemv, gemm, PANELS * NR, int8_linear, absmax, round_activations, read_all};

}  // namespace isobit
