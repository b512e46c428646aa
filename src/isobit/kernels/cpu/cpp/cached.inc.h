// What a cache holds of keys and values, in each of its formats (docs/numerics.md section 9); included by attention.inc.h. The
// instruction sets give Stored, whose functions load W numbers.

// Finite values beyond the largest half become that; infinities and NaN stay. Ties to even.
inline uint16_t to_f16(float value) {
    const uint32_t bits = as_bits(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (size == 0x7f800000u) return static_cast<uint16_t>(sign | 0x7c00u);
    if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7bffu);
    if (size < 0x38800000u) {  // 2^-14: added to a power of two whose last place is the smallest half
        const float shifted = from_bits(size) + 0.5f;
        return static_cast<uint16_t>(sign | (as_bits(shifted) - 0x3f000000u));
    }
    return static_cast<uint16_t>(sign | ((size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13));
}

inline uint16_t to_bf16(float value) {
    const uint32_t bits = as_bits(value), size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    if (size < 0x7f800000u && size >= 0x7f7f8000u) return static_cast<uint16_t>((bits >> 16 & 0x8000u) | 0x7f7fu);
    return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

// Codes of values of a float format with `mantissa` bits and least normal 2^low. Integers alone: a loop that becomes vectors.
template <int mantissa, int low>
inline void float_codes(const float *values, int64_t count, uint8_t *codes) {
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bits = as_bits(values[i]), size = bits & 0x7fffffffu;
        const uint32_t normal = (size >> (23 - mantissa)) - ((127u + low - 1) << mantissa);
        const auto small = static_cast<uint32_t>(static_cast<int32_t>(from_bits(size) * static_cast<float>(1 << (mantissa - low))));
        codes[i] = static_cast<uint8_t>((bits >> 24 & 0x80u) | (size < (127u + low) << 23 ? small : normal));
    }
}

// The numbers of one head, as they are stored; their scale where they are codes.
void put_cached(int32_t format, const Loose *x, int64_t dim, void *to, Loose *scale) {
    auto *bytes = static_cast<uint8_t *>(to);
    if (format == ISOBIT_BF16 || format == ISOBIT_F16) {
        for (int64_t i = 0; i < dim; ++i) {
            const uint16_t half = format == ISOBIT_BF16 ? to_bf16(x[i]) : to_f16(x[i]);
            __builtin_memcpy(bytes + 2 * i, &half, 2);
        }
        return;
    }
    float values[LARGEST_HEAD];
    const int32_t law = format == ISOBIT_E4M3FN ? ISOBIT_ACT_E4M3FN : format == ISOBIT_E5M2 ? ISOBIT_ACT_E5M2 : ISOBIT_ACT_INT8;
    const float found = activation_scale(law, absmax(x, dim));
    *scale = found;
    round_activations(law, x, dim, found, values);
    if (format == ISOBIT_E4M3FN) float_codes<3, -6>(values, dim, bytes);
    else if (format == ISOBIT_E5M2) float_codes<2, -14>(values, dim, bytes);
    else
        for (int64_t i = 0; i < dim; ++i) bytes[i] = static_cast<uint8_t>(static_cast<int8_t>(values[i]));
}

// `count` numbers, exact, codes without their scales. What lies `ahead` (in numbers) is prefetched.
template <int size, class Load>
inline void take_with(const uint8_t *from, int64_t count, int64_t ahead, float *out, Load load_one) {
    int64_t i = 0;
    for (; i + W <= count; i += W) {
        if (ahead && i * size % (4 * LINE) == 0) __builtin_prefetch(from + (i + ahead) * size);
        store(out + i, load_one(from + i * size));
    }
    if (i < count) {
        uint8_t rest[W * size] = {};
        __builtin_memcpy(rest, from + i * size, static_cast<size_t>((count - i) * size));
        float last[W];
        store(last, load_one(rest));
        __builtin_memcpy(out + i, last, static_cast<size_t>(count - i) * 4);
    }
}

inline void take_cached(int32_t format, const uint8_t *from, int64_t count, int64_t ahead, float *out) {
    if (format == ISOBIT_BF16) take_with<2>(from, count, ahead, out, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::bf16(p); });
    else if (format == ISOBIT_F16) take_with<2>(from, count, ahead, out, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::f16(p); });
    else if (format == ISOBIT_E4M3FN) take_with<1>(from, count, ahead, out, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::e4m3(p); });
    else if (format == ISOBIT_E5M2) take_with<1>(from, count, ahead, out, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::e5m2(p); });
    else take_with<1>(from, count, ahead, out, [](const uint8_t *p) ISOBIT_LAMBDA { return Stored::int8(p); });
}

// Rows of scores or of weights of `count` keys, times the scale of each key.
inline void put_scales(const Loose *scales, int64_t count, int64_t rows, float *scores) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t j = 0; j < count; ++j) scores[row * KEYS + j] *= scales[j];
}
