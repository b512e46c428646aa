// AVX2 with FMA, F16C and BMI2: eight floats.
#include <immintrin.h>

#include <cstring>
#include <vector>

#include "kernels.h"

namespace isobit {
namespace {

constexpr int W = 8;
typedef float F __attribute__((vector_size(32)));

inline F as_f(__m256 value) { return reinterpret_cast<F>(value); }
inline __m128i load16(const uint8_t *p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
inline F from_bytes(__m128i bytes) { return as_f(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes))); }

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
            out[v] = as_f(_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load16(codes + 16 * v)), 16)));
    }
};
struct DecodeF16 {
    static constexpr int bits = 16, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = false, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        for (int v = 0; v < BLOCK / W; ++v) out[v] = as_f(_mm256_cvtph_ps(load16(codes + 16 * v)));
    }
};
// e5m2 is the upper byte of a float16. e4m3 shifted one to the right is the upper part of a float16 whose exponent is 8 too
// low; the factor 2^8 is exact, subnormals included, and goes to the scale. NaN codes would come out as 480: such weights are not given to us.
struct DecodeE4m3 {
    static constexpr int bits = 8, offset = 0;
    static constexpr float factor = 256;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        const __m128i zero = _mm_setzero_si128(), keep = _mm_set1_epi16(static_cast<short>(0xbf80));
        for (int half = 0; half < 2; ++half) {
            const __m128i bytes = load16(codes + 16 * half);
            const __m128i low = _mm_and_si128(_mm_srai_epi16(_mm_unpacklo_epi8(zero, bytes), 1), keep);
            const __m128i high = _mm_and_si128(_mm_srai_epi16(_mm_unpackhi_epi8(zero, bytes), 1), keep);
            out[2 * half] = as_f(_mm256_cvtph_ps(low));
            out[2 * half + 1] = as_f(_mm256_cvtph_ps(high));
        }
    }
};
struct DecodeE5m2 {
    static constexpr int bits = 8, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        const __m128i zero = _mm_setzero_si128();
        for (int half = 0; half < 2; ++half) {
            const __m128i bytes = load16(codes + 16 * half);
            out[2 * half] = as_f(_mm256_cvtph_ps(_mm_unpacklo_epi8(zero, bytes)));
            out[2 * half + 1] = as_f(_mm256_cvtph_ps(_mm_unpackhi_epi8(zero, bytes)));
        }
    }
};
struct DecodeInt8 {
    static constexpr int bits = 8, offset = 0;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = false;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        for (int v = 0; v < BLOCK / W; ++v) {
            const __m128i eight = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(codes + 8 * v));
            out[v] = as_f(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight)));
        }
    }
};
template <int zero>
struct DecodeInt4 {
    static constexpr int bits = 4, offset = zero;
    static constexpr float factor = 1;
    static constexpr bool scaled = true, split = true;
    static void block(const uint8_t *codes, F out[BLOCK / W]) {
        const __m128i bytes = load16(codes), mask = _mm_set1_epi8(15);
        const __m128i even = _mm_and_si128(bytes, mask), odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
        out[0] = from_bytes(even);
        out[1] = from_bytes(_mm_unpackhi_epi64(even, even));
        out[2] = from_bytes(odd);
        out[3] = from_bytes(_mm_unpackhi_epi64(odd, odd));
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
            uint32_t eight = 0;
            std::memcpy(&eight, codes + width * v, width);
            out[v] = from_bytes(_mm_cvtsi64_si128(static_cast<long long>(_pdep_u64(eight, spread))));
        }
    }
};
using DecodeInt3 = DecodePacked<3, 4>;
using DecodeInt2 = DecodePacked<2, 2>;

struct Int8Dot {
    static constexpr int64_t LONGEST = 1 << 16;
    template <int R, int M>
    static void tile(const int8_t *w, int64_t w_stride, const int8_t *x, int64_t x_stride, int64_t n,
                     int64_t totals[R][M]) {
        // |x| times w with the sign of x: a pair of products is at most 2 * 127 * 128 = 32512 and fits 16 bits, because
        // activation codes end at 127.
        const __m256i ones = _mm256_set1_epi16(1);
        __m256i acc[R][M];
        for (int r = 0; r < R; ++r)
            for (int m = 0; m < M; ++m) acc[r][m] = _mm256_setzero_si256();
        const auto add = [&](const int8_t *ws, int64_t ws_stride, const int8_t *xs, int64_t xs_stride) {
            __m256i weights[R];
            for (int r = 0; r < R; ++r) weights[r] = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(ws + r * ws_stride));
            for (int m = 0; m < M; ++m) {
                const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(xs + m * xs_stride));
                const __m256i size = _mm256_abs_epi8(values);
                for (int r = 0; r < R; ++r) {
                    const __m256i pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(clamp(weights[r]), values));
                    acc[r][m] = _mm256_add_epi32(acc[r][m], _mm256_madd_epi16(pairs, ones));
                }
            }
        };
        int64_t k = 0;
        for (; k + 32 <= n; k += 32) add(w + k, w_stride, x + k, x_stride);
        for (int r = 0; r < R; ++r)
            for (int m = 0; m < M; ++m) totals[r][m] += sum(acc[r][m]);
        for (; k < n; ++k)
            for (int r = 0; r < R; ++r)
                for (int m = 0; m < M; ++m) totals[r][m] += w[r * w_stride + k] * x[m * x_stride + k];
        correct<R, M>(w, w_stride, x, x_stride, n / 32 * 32, totals);
    }

  private:
    // The sign of -128 cannot be turned in 8 bits: it is taken as -127 here, and what is missing is added by `correct`.
    static __m256i clamp(__m256i weights) { return _mm256_max_epi8(weights, _mm256_set1_epi8(-127)); }

    static int64_t sum(__m256i values) {
        int32_t lanes[8];
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(lanes), values);
        int64_t total = 0;
        for (int lane : lanes) total += lane;
        return total;
    }

    template <int R, int M>
    static void correct(const int8_t *w, int64_t w_stride, const int8_t *x, int64_t x_stride, int64_t n,
                        int64_t totals[R][M]) {
        const __m256i lowest = _mm256_set1_epi8(-128);
        for (int r = 0; r < R; ++r)
            for (int64_t k = 0; k < n; k += 32) {
                const __m256i weights = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(w + r * w_stride + k));
                uint32_t found = static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(weights, lowest)));
                for (; found; found &= found - 1)
                    for (int m = 0; m < M; ++m) totals[r][m] -= x[m * x_stride + k + __builtin_ctz(found)];
            }
    }
};

#include "kernels.inc.h"

bool available() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
           __builtin_cpu_supports("bmi2");
}

}  // namespace

const Isa avx2_isa = {"avx2", available, arrange, gemv, gemm, PANELS * NR, int8_linear, absmax, round_activations, read_all};

}  // namespace isobit
