// Vectors of W lanes: what GCC's and Clang's vector extensions leave to be said.

inline F load(const float *p) {
    F value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

inline I load(const int32_t *p) {
    I value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

inline void store(float *p, F value) { __builtin_memcpy(p, &value, sizeof value); }
inline F splat(float value) { return value - F{}; }
inline I splat(int32_t value) { return value - I{}; }
inline F as_floats(I value) { return reinterpret_cast<F>(value); }
inline I as_ints(F value) { return reinterpret_cast<I>(value); }
inline F to_floats(I value) { return __builtin_convertvector(value, F); }

inline float sum(F value) {
    float total = 0;
    for (int i = 0; i < W; ++i) total += value[i];
    return total;
}

inline int64_t sum(I value) {
    int64_t total = 0;
    for (int i = 0; i < W; ++i) total += value[i];
    return total;
}

// Swaps blocks of `step` lanes between a and b: one step of a transposition.
template <int step, int... lane>
inline void exchange(F &a, F &b, std::integer_sequence<int, lane...>) {
    const F first = a;
    a = __builtin_shufflevector(first, b, (lane / step % 2 ? W + lane - step : lane)...);
    b = __builtin_shufflevector(first, b, (lane / step % 2 ? W + lane : lane + step)...);
}

template <int step = W / 2>
inline void transpose(F rows[W]) {
    for (int i = 0; i < W; ++i)
        if (i / step % 2 == 0) exchange<step>(rows[i], rows[i + step], std::make_integer_sequence<int, W>{});
    if constexpr (step > 1) transpose<step / 2>(rows);
}

inline float from_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t as_bits(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

inline float from_bf16(uint16_t half) { return from_bits(static_cast<uint32_t>(half) << 16); }

inline float from_f16(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
    if (size >= 0x7c00u) return from_bits(sign | 0x7f800000u | (size & 0x3ffu) << 13);
    // With the exponent of a float32 in place a float16 is 2^112 too small: exact, subnormals included.
    return from_bits(from_bits(size << 13) == 0 ? sign : sign | as_bits(from_bits(size << 13) * 5.192296858534828e33f));
}

// What the memory gives to a reader.
uint64_t read_all(const void *data, int64_t bytes) {
    const char *p = static_cast<const char *>(data);
    int64_t at = 0;
    typedef uint32_t U __attribute__((vector_size(sizeof(F))));
    U bits[8] = {};
    for (; at + 8 * static_cast<int64_t>(sizeof(U)) <= bytes; at += 8 * sizeof(U))
        for (int i = 0; i < 8; ++i) {
            U value;
            __builtin_memcpy(&value, p + at + i * sizeof(U), sizeof value);
            bits[i] ^= value;
        }
    uint64_t total = 0;
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < W; ++j) total += bits[i][j];
    for (; at < bytes; ++at) total += static_cast<unsigned char>(p[at]);
    return total;
}
