// Vectors of W lanes: what GCC's and Clang's vector extensions leave to be said.

ISOBIT_INLINE F load(const Loose *p) {
    F value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

ISOBIT_INLINE I load(const int32_t *p) {
    I value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

ISOBIT_INLINE void store(Loose *p, F value) { __builtin_memcpy(p, &value, sizeof value); }
ISOBIT_INLINE F splat(float value) { return value - F{}; }
ISOBIT_INLINE I splat(int32_t value) { return value - I{}; }
ISOBIT_INLINE F as_floats(I value) { return reinterpret_cast<F>(value); }
ISOBIT_INLINE I as_ints(F value) { return reinterpret_cast<I>(value); }
ISOBIT_INLINE F to_floats(I value) { return __builtin_convertvector(value, F); }

// Calls f with the constants 0 .. n - 1: arrays indexed by them stay in registers.
template <class Function, int... i>
ISOBIT_INLINE void unrolled(Function f, std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>{}), ...);
}

template <int n, class Function>
ISOBIT_INLINE void unroll(Function f) {
    unrolled(f, std::make_integer_sequence<int, n>{});
}

// Calls f(vector) on count values, W at a time; what is behind them is zero.
template <class Function>
ISOBIT_INLINE void map(const Loose *x, int64_t count, Loose *y, Function f) {
    int64_t i = 0;
    for (; i + W <= count; i += W) store(y + i, f(load(x + i)));
    if (i < count) {
        float rest[W] = {};
        __builtin_memcpy(rest, x + i, static_cast<size_t>(count - i) * 4);
        store(rest, f(load(rest)));
        __builtin_memcpy(y + i, rest, static_cast<size_t>(count - i) * 4);
    }
}

// Adds the upper half of the lanes to the lower one until one is left: a fixed order, and few steps.
template <int half, class V, int... lane>
ISOBIT_INLINE V fold(V value, std::integer_sequence<int, lane...>) {
    return value + __builtin_shufflevector(value, value, (lane % half + half)...);
}

template <int half = W / 2, class V>
ISOBIT_INLINE auto sum(V value) {
    const V folded = fold<half>(value, std::make_integer_sequence<int, W>{});
    if constexpr (half > 1) return sum<half / 2>(folded);
    else return folded[0];
}

// Swaps blocks of `step` lanes between a and b: one step of a transposition.
template <int step, class V, int... lane>
ISOBIT_INLINE void exchange(V &a, V &b, std::integer_sequence<int, lane...>) {
    const V first = a;
    a = __builtin_shufflevector(first, b, (lane / step % 2 ? W + lane - step : lane)...);
    b = __builtin_shufflevector(first, b, (lane / step % 2 ? W + lane : lane + step)...);
}

// Sums of the lanes of W vectors, one in each lane: each what sum() gives.
template <int step = W / 2, class V>
ISOBIT_INLINE V sums_of(V rows[W]) {
    unroll<step>([&](auto i) ISOBIT_LAMBDA {
        exchange<step>(rows[i], rows[i + step], std::make_integer_sequence<int, W>{});
        rows[i] += rows[i + step];
    });
    if constexpr (step > 1) return sums_of<step / 2>(rows);
    else return rows[0];
}

template <int step = W / 2>
ISOBIT_INLINE void transpose(F rows[W]) {
    for (int i = 0; i < W; ++i)
        if (i / step % 2 == 0) exchange<step>(rows[i], rows[i + step], std::make_integer_sequence<int, W>{});
    if constexpr (step > 1) transpose<step / 2>(rows);
}

ISOBIT_INLINE float from_bits(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

ISOBIT_INLINE uint32_t as_bits(float value) {
    uint32_t bits;
    __builtin_memcpy(&bits, &value, 4);
    return bits;
}

ISOBIT_INLINE float from_bf16(uint16_t half) { return from_bits(static_cast<uint32_t>(half) << 16); }

ISOBIT_INLINE float from_f16(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
    if (size >= 0x7c00u) return from_bits(sign | 0x7f800000u | (size & 0x3ffu) << 13);
    // With the exponent of a float32 in place a float16 is 2^112 too small: exact, subnormals included.
    return from_bits(from_bits(size << 13) == 0 ? sign : sign | as_bits(from_bits(size << 13) * 5.192296858534828e33f));
}

// A product as it is, rounded: one that is contracted with the sum behind it here and not there would give results that depend on
// which function computes them.
template <class V>
ISOBIT_INLINE V rounded(V product) {
#if defined(__AVX512F__)
    __asm__("" : "+v"(product));
#elif defined(__x86_64__)
    __asm__("" : "+x"(product));
#elif defined(__aarch64__)
    __asm__("" : "+w"(product));
#else
    volatile V kept = product;
    product = kept;
#endif
    return product;
}

// acc + a * b, fused where the machine can: by name, since a compiler contracts one expression and not another.
template <class V>
ISOBIT_INLINE V multiply_add(V a, V b, V acc) {
    if constexpr (!FUSES) return acc + rounded(a * b);
    else if constexpr (std::is_same_v<V, float>) return __builtin_fmaf(a, b, acc);
    else return fused(a, b, acc);
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
