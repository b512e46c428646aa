// Few rows of float activations by int4 weights, through integer products.
//
// Within a block (B vectors of codes, 8 W weights each) activations are multiples of a power of two, of up to 23 bits beside the sign, written as three
// digits of a byte. Products by digits are exact in 32 bits, and so is their sum; a block's sum becomes a float32 only then.
// What the multiples leave of an activation is at most 2^-23 of the block's largest: what a float32 sum with that activation
// in it would round away as well. But a float32 sum would not where the largest meets a zero weight; so blocks in which half
// of the activations are far below the largest are none for this path (`even` below), and such a row goes by floats.
//
// An instruction set that has this path defines in Int4
//   VECTORS           the most vectors of codes in a block of one group
//   offset, factor    an unpacked code stands for (code - offset) * factor
//   unpack(codes, to) the codes of a vector at even places, and those at odd ones
//   Sum begin(I start), Sum add(Sum, I codes, I digits), I joined(Sum (&)[3], I start)
//                     the products of codes by one digit of the activations each, highest first, and those of the three and `start`,
//                     which the last began with.

template <class T, class = void>
struct HasDigits : std::false_type {};
template <class T>
struct HasDigits<T, std::void_t<decltype(&T::unpack)>> : std::true_type {};

constexpr int DIGITS = 3;
// Bytes of a block of activations: three digits of each, and W integers.
constexpr int64_t digit_block(int64_t codes) { return codes * DIGITS + 4 * W; }
constexpr float LARGEST_MULTIPLE = 127 * 65793.0f;       // three digits of 127
constexpr float FAR_BELOW = 1.0f / 2048;

// Behind the blocks of a row stands the unit of each.
inline int64_t digits_row_size(const Layout &l) { return l.width / l.block * (digit_block(l.block) + 4); }

// Groups of less than a vector: two vectors are a block all the same. They exchange lanes, so that the first has the first halves
// of the groups of both and the second their other halves: then a lane of both belongs to one group, and a sum becomes a float once for
// two vectors. This is how many lanes a half is; 0 for other groups.
inline int paired_lanes(const Layout &l) {
    return !l.one_scale && l.group % 16 == 0 && l.group < 8 * W && 8 * W % l.group == 0 ? static_cast<int>(l.group / 16) : 0;
}

// Which lane of two vectors comes to the lane `i` of the first; to that of the second comes the one `half` lanes behind. Of all orders the
// one that instruction sets have an instruction for.
constexpr int paired_lane(int half, int i) {
    const bool by_four = half == 1 || (half == 4 && W == 16);  // (first a, third a, first b, third b), else (first a, first b)
    const int unit = i / half, second = by_four ? unit / 2 % 2 : unit % 2;
    return second * W + (by_four ? unit / 4 * 4 + unit % 2 * 2 : unit / 2 * 2) * half + i % half;
}

template <int half, int behind, int... lane>
ISOBIT_INLINE I paired(I a, I b, std::integer_sequence<int, lane...>) {
    const F first = as_floats(a), second = as_floats(b);  // of integers GCC makes two steps where floats take one
    return as_ints(__builtin_shufflevector(first, second, (paired_lane(half, lane) + behind)...));
}

// The scales of the groups of two vectors, each in the lanes of its group.
template <int half, int... lane>
ISOBIT_INLINE F paired_scales(const float *values, std::integer_sequence<int, lane...>) {
    const F all = load(values);
    return __builtin_shufflevector(all, all, (paired_lane(half, lane) / (2 * half))...);
}

// Vectors of codes in a block: as many as the instruction set takes at once, where they belong to one group.
template <class Int4>
inline int vectors_of_block(const Layout &l) {
    if (l.many) return 1;
    if constexpr (HasDigits<Int4>::value) return l.paired ? 2 : l.one_scale || l.group % (8 * W * Int4::VECTORS) == 0 ? Int4::VECTORS : 1;
    return 1;
}

// Whether digits represent k activations well: all are numbers, of moderate size, and not far apart.
bool even(const Layout &l, const Loose *values, int64_t k) {
    for (int64_t at = 0; at < k; at += l.block) {
        const int64_t count = smaller(l.block, k - at);
        const float largest = absmax(values + at, count);
        if (largest == 0) continue;
        if (!(largest > 0x1p-60f && largest < 0x1p60f)) return false;
        const F limit = splat(largest * FAR_BELOW);
        I far{}, none{};  // counted down
        int64_t i = at;
        for (; i + W <= at + count; i += W) {
            const F size = as_floats(as_ints(load(values + i)) & splat(INT32_MAX));
            far += size < limit, none += size == F{};
        }
        int64_t above = i - at + sum(far), zeros = -sum(none);
        for (; i < at + count; ++i) {
            above += std::fabs(values[i]) >= limit[0];
            zeros += values[i] == 0;
        }
        if (2 * above <= count - zeros) return false;
    }
    return true;
}

// The power of two that activations up to `largest` are multiples of; and one over it.
inline float unit_of(float largest, float &inverse) {
    if (largest == 0) return inverse = 1;
    const float power = from_bits(as_bits(largest) & 0x7f800000u);  // largest is in [power, 2 * power)
    inverse = 0x1p22f / power;
    if (largest * inverse > LARGEST_MULTIPLE) inverse /= 2;
    return 1 / inverse;
}

// Even and odd places of two vectors.
template <int first, int... lane>
ISOBIT_INLINE I every_second(I a, I b, std::integer_sequence<int, lane...>) {
    return __builtin_shufflevector(a, b, (2 * lane + first)...);
}

// One byte of every lane. Compilers narrow 16 lanes in one instruction, and fewer of them one by one.
template <int byte, int... lane>
ISOBIT_INLINE void put_bytes(I values, int8_t *to, std::integer_sequence<int, lane...>) {
    typedef int8_t All __attribute__((vector_size(4 * W)));
    typedef int8_t Narrow __attribute__((vector_size(W)));
    Narrow chosen;
    if constexpr (W >= 16) {
        chosen = __builtin_convertvector(values >> (8 * byte), Narrow);
    } else {
        const All all = reinterpret_cast<All>(values);
        chosen = __builtin_shufflevector(all, all, (4 * lane + byte)...);
    }
    __builtin_memcpy(to, &chosen, sizeof chosen);
}

// The digits of W multiples to three places `apart` bytes apart, highest first. A byte above 127 is a negative digit and one
// more in the digit above: adding a half to both lower digits carries that, and leaves them 128 above what they are.
ISOBIT_INLINE void put_digits(I multiples, int8_t *to, int64_t apart) {
    const I digits = (multiples + splat(0x8080)) ^ splat(0x8080);
    unroll<DIGITS>([&](auto i) ISOBIT_LAMBDA {
        put_bytes<DIGITS - 1 - i>(digits, to + i * apart, std::make_integer_sequence<int, W>{});
    });
}

// The digits of 8 W activations: `to` and `apart` bytes on, those at even places first. factor: 2^-8 over their unit; sums(i, lanes): what
// two neighbours come to, pairs of them from i on.
template <class Sums>
ISOBIT_INLINE void put_multiples(const float *values, F factor, int8_t *to, int64_t apart, Sums sums) {
    const auto lanes = std::make_integer_sequence<int, W>{};
    const F magic = splat(12582912.0f);
    for (int part = 0; part < 4; ++part) {
        I both[2];
        for (int v = 0; v < 2; ++v) {
            // Nearest multiple: in two steps, because the sum with `magic` holds 22 bits only.
            const F scaled = load(values + (2 * part + v) * W) * factor, high = (scaled + magic) - magic;
            const F low = ((scaled - high) * splat(256.0f) + magic) - magic;
            both[v] = __builtin_convertvector(high, I) * 256 + __builtin_convertvector(low, I);
        }
        const I evens = every_second<0>(both[0], both[1], lanes), odds = every_second<1>(both[0], both[1], lanes);
        put_digits(evens, to + part * W, apart);
        put_digits(odds, to + 4 * W + part * W, apart);
        sums(part * W, evens + odds);
    }
}

// One block of `codes` activations; returns its unit.
inline float arrange_digit_block(const float *values, int64_t codes, int32_t offset, int8_t *to) {
    float inverse;
    const float unit = unit_of(absmax(values, codes), inverse);
    const F factor = splat(inverse * 0x1p-8f);
    int32_t starts[W] = {};
    for (int64_t at = 0; at < codes; at += 8 * W) {
        int32_t pairs[4 * W];
        put_multiples(values + at, factor, to + at, codes, [&](int i, I sums) ISOBIT_LAMBDA { __builtin_memcpy(pairs + i, &sums, sizeof sums); });
        for (int lane = 0; lane < W; ++lane)
            starts[lane] -= offset * (pairs[4 * lane] + pairs[4 * lane + 1] + pairs[4 * lane + 2] + pairs[4 * lane + 3]);
    }
    __builtin_memcpy(to + codes * DIGITS, starts, sizeof starts);
    return unit;
}

// The integers are minus `offset` times the sum of what each lane multiplies: what unpacked codes are above what they mean, with zero
// points 1.
void arrange_digits(const Layout &l, const float *values, int64_t k, int32_t offset, void *out) {
    const int64_t blocks = l.width / l.block, bytes = digit_block(l.block);
    int8_t *to = static_cast<int8_t *>(out);
    float *units = reinterpret_cast<float *>(to + blocks * bytes);
    for (int64_t b = 0; b < blocks; ++b) {
        float copy[16 * W], exchanged[16 * W];
        const float *from = values + b * l.block;
        if ((b + 1) * l.block > k) {
            __builtin_memset(copy, 0, sizeof copy);
            if (b * l.block < k) __builtin_memcpy(copy, from, static_cast<size_t>(k - b * l.block) * 4);
            from = copy;
        }
        if (l.paired) {
            for (int i = 0; i < 2 * W; ++i)
                __builtin_memcpy(exchanged + 8 * i, from + 8 * (paired_lane(l.paired, i % W) + i / W * l.paired), 32);
            from = exchanged;
        }
        units[b] = arrange_digit_block(from, l.block, offset, to + b * bytes);
    }
}

// A vector that is in a register from here on: compilers would rather load it again for each use.
ISOBIT_INLINE I loaded(const int8_t *from) {
    I value;
    __builtin_memcpy(&value, from, sizeof value);
#if defined(__AVX512F__)
    __asm__("" : "+v"(value));
#elif defined(__x86_64__)
    __asm__("" : "+x"(value));
#elif defined(__aarch64__)
    __asm__("" : "+w"(value));
#endif
    return value;
}

// How blocks and groups lie: a block has several groups, is one, or is a part of one; or it has two vectors that exchange lanes (below
// zero: how many).
constexpr int SEVERAL = 0, EACH = 1, PARTS = 2;

// N rows of weights: where their codes, scales and zero points are.
template <int N>
struct DigitRows {
    const uint8_t *codes[N];
    const float *scales[N], *zeros[N];
};

// N rows of weights by M rows of activations, blocks of B vectors of codes. What is loaded of the activations serves all of
// the weights.
template <class Int4, int B, int N, int M, bool zero_points, int groups>
class DigitTile {
  public:
    DigitTile(const isobit_linear &w, const Layout &l, const DigitRows<N> &rows, const int8_t *x) : l_(l), rows_(rows), x_(x), ahead_(ahead_of<N>(rows.codes[0], w.row_bytes)) {
        const int64_t blocks = w.k / l.block, in_span = groups == PARTS ? (l.span + l.block - 1) / l.block : 1;
        units_ = reinterpret_cast<const float *>(x + l.width / l.block * BLOCK);
        Sums sums{};
        int64_t b = 0;
        if constexpr (groups != PARTS) {
            for (; b < blocks; ++b) block(b, span(b), sums);
        } else {
            for (int64_t at = 0; b < blocks; ++at) {
                const Span scales = span(at);
                for (const int64_t end = smaller(b + in_span, blocks); b < end; ++b) block(b, scales, sums);
            }
        }
        if (b * l.block < w.k) {
            uint8_t copies[N][BYTES] = {};
            const uint8_t *from[N];
            for (int n = 0; n < N; ++n) {
                __builtin_memcpy(copies[n], rows.codes[n] + b * BYTES, static_cast<size_t>((w.k - b * l.block + 1) / 2));
                from[n] = copies[n];
            }
            block_at(from, b, span(b / in_span), sums);
        }
        for (int n = 0; n < N; ++n)
            for (int m = 0; m < M; ++m) out[n][m] = sum(sums.total[n][m]);
    }

    float out[N][M];

  private:
    static constexpr int64_t BYTES = 4 * W * B, BLOCK = digit_block(8 * W * B);  // of codes and of activations

    struct Sums { F total[N][M]; };
    struct Span { F scale[N]; I zero[N]; };

    ISOBIT_INLINE F lanes(const float *values, int64_t at) const {
        if constexpr (groups < 0) return paired_scales<-groups>(values + at * l_.per_span, std::make_integer_sequence<int, W>{});
        else return groups == SEVERAL ? spread(values + at * l_.per_span, l_.lanes) : splat(values[at]);
    }

    ISOBIT_INLINE Span span(int64_t at) const {
        Span s{};
        unroll<N>([&](auto n) ISOBIT_LAMBDA {
            s.scale[n] = lanes(rows_.scales[n], at);
            if constexpr (zero_points) s.zero[n] = __builtin_convertvector(lanes(rows_.zeros[n], at), I);
        });
        return s;
    }

    ISOBIT_INLINE void block(int64_t b, const Span &s, Sums &sums) const {
        const uint8_t *from[N];
        unroll<N>([&](auto n) ISOBIT_LAMBDA { from[n] = rows_.codes[n] + b * BYTES; });
        prefetch_for<N>(ahead_, b * BYTES, BYTES);
        block_at(from, b, s, sums);
    }

    ISOBIT_INLINE void block_at(const uint8_t *const (&from)[N], int64_t b, const Span &s, Sums &sums) const {
        I weights[N][2 * B];
        unroll<N>([&](auto n) ISOBIT_LAMBDA {
            I packed[B];
            unroll<B>([&](auto v) ISOBIT_LAMBDA { packed[v] = loaded(reinterpret_cast<const int8_t *>(from[n]) + 4 * W * v); });
            if constexpr (groups < 0) {
                const auto lanes = std::make_integer_sequence<int, W>{};
                const I first = packed[0], second = packed[1];
                packed[0] = paired<-groups, 0>(first, second, lanes), packed[1] = paired<-groups, -groups>(first, second, lanes);
            }
            unroll<B>([&](auto v) ISOBIT_LAMBDA { Int4::unpack(packed[v], weights[n] + 2 * v); });
        });
        unroll<M>([&](auto m) ISOBIT_LAMBDA {
            const int8_t *x = x_ + m * l_.row_size + b * BLOCK;
            const I starts = loaded(x + 8 * W * B * DIGITS);
            const float unit = units_[m * (l_.row_size / 4) + b];
            // No digit's sum waits for another's: a chain through all of them would fill the processor's queues.
            I start[N];
            typename Int4::Sum products[N][DIGITS];
            unroll<N>([&](auto n) ISOBIT_LAMBDA { start[n] = zero_points ? starts * s.zero[n] : starts; });
            unroll<DIGITS>([&](auto digit) ISOBIT_LAMBDA {
                unroll<N>([&](auto n) ISOBIT_LAMBDA { products[n][digit] = Int4::begin(digit < DIGITS - 1 ? I{} : start[n]); });
                unroll<2 * B>([&](auto i) ISOBIT_LAMBDA {
                    I digits;
                    if constexpr (N == 1) __builtin_memcpy(&digits, x + 4 * W * (2 * B * digit + i), sizeof digits);
                    else digits = loaded(x + 4 * W * (2 * B * digit + i));
                    unroll<N>([&](auto n) ISOBIT_LAMBDA { products[n][digit] = Int4::add(products[n][digit], weights[n][i], digits); });
                });
            });
            unroll<N>([&](auto n) ISOBIT_LAMBDA {
                sums.total[n][m] += to_floats(Int4::joined(products[n], start[n])) * (s.scale[n] * splat(unit));
            });
        });
    }

    const Layout &l_;
    const DigitRows<N> &rows_;
    const int8_t *x_;
    const uint8_t *ahead_;
    const float *units_;
};

constexpr int DIGIT_ROWS = 2, MOST_DIGIT_ROWS = W >= 16 ? 4 : DIGIT_ROWS;  // of weights at a time; for one row of activations
constexpr int64_t SHORT_ROW = 4096, IN_FIRST_CACHE = 32768;  // bytes of a row of activations

// How many rows of weights are multiplied with one row of activations at a time. Activations are seven times the bytes of codes, so where they do not stay
// in the first cache the more the better. Where they do: products take them from memory as fast as from registers, and one row of
// codes is followed better; of short rows four share what each costs beside its codes. Two rows need all registers of AVX2. Measured on Zen 5.
template <int groups>
inline int rows_by_one(const Layout &l) {
    if (l.row_size > IN_FIRST_CACHE) return MOST_DIGIT_ROWS;
    if (W == 8) return 1;
    return groups < 0 ? DIGIT_ROWS : W < 16 || l.row_size <= SHORT_ROW ? MOST_DIGIT_ROWS : 1;
}

template <class Int4, int B, int N, bool zero_points, int groups>
inline void digits_rows(const isobit_linear &w, const Layout &l, ScaleReader *readers, const int8_t *x, const Output &out,
                        int64_t m, int64_t row) {
    DigitRows<N> rows;
    RowScales s[N];
    for (int n = 0; n < N; ++n) {
        s[n] = readers[n].read(row + n, 0, l.groups);
        rows.codes[n] = codes_of(w, row + n);
        rows.scales[n] = l.one_scale ? &s[n].one_scale : s[n].scales;
        rows.zeros[n] = l.one_scale ? &s[n].one_zero : s[n].zeros;
    }
    int64_t at = 0;
    const auto put = [&](auto count) {
        constexpr int M = count;
        const DigitTile<Int4, B, N, M, zero_points, groups> tile(w, l, rows, x + at * l.row_size);
        for (int i = 0; i < M; ++i)
            for (int n = 0; n < N; ++n) out.put(at + i, row + n, tile.out[n][i]);
        at += M;
    };
    if constexpr (N <= DIGIT_ROWS)
        while (m - at >= 2) put(std::integral_constant<int, 2>{});
    if (m - at >= 1) put(std::integral_constant<int, 1>{});
}

template <class Int4, int B, bool zero_points, int groups>
void few_digits_of(const isobit_linear &w, const Layout &l, const int8_t *x, const Output &out, int64_t m, int64_t begin,
                   int64_t end) {
    ScaleReaders<MOST_DIGIT_ROWS> readers(w, l, 0, Int4::factor);
    int64_t row = begin;
    const int together = m > 1 ? DIGIT_ROWS : rows_by_one<groups>(l);
    if (together > DIGIT_ROWS)
        for (; row + MOST_DIGIT_ROWS <= end; row += MOST_DIGIT_ROWS) digits_rows<Int4, B, MOST_DIGIT_ROWS, zero_points, groups>(w, l, readers.all, x, out, m, row);
    if (together > 1)
        for (; row + DIGIT_ROWS <= end; row += DIGIT_ROWS) digits_rows<Int4, B, DIGIT_ROWS, zero_points, groups>(w, l, readers.all, x, out, m, row);
    for (; row < end; ++row) digits_rows<Int4, B, 1, zero_points, groups>(w, l, readers.all, x, out, m, row);
}

template <class Int4>
void few_digits(const isobit_linear &w, const Layout &l, const void *rows, const float *act_scales, int64_t m, int64_t begin,
                int64_t end, float *y, int64_t ldy) {
    if constexpr (HasDigits<Int4>::value) {
        const Output out{w, act_scales, y, ldy};
        const int8_t *x = static_cast<const int8_t *>(rows);
        const auto run = [&](auto zero_points) {
            constexpr bool zeros = zero_points;
            const auto blocks_of = [&](auto vectors) {
                constexpr int B = vectors;
                if (l.span == l.block) few_digits_of<Int4, B, zeros, EACH>(w, l, x, out, m, begin, end);
                else few_digits_of<Int4, B, zeros, PARTS>(w, l, x, out, m, begin, end);
            };
            const auto pairs_of = [&](auto half) {
                if constexpr (2 * half < W) few_digits_of<Int4, 2, zeros, -half>(w, l, x, out, m, begin, end);
            };
            if (l.paired == 1) pairs_of(std::integral_constant<int, 1>{});
            else if (l.paired == 2) pairs_of(std::integral_constant<int, 2>{});
            else if (l.paired == 4) pairs_of(std::integral_constant<int, 4>{});
            else if (l.per_span > 1) few_digits_of<Int4, 1, zeros, SEVERAL>(w, l, x, out, m, begin, end);
            else if (l.block == 8 * W) blocks_of(std::integral_constant<int, 1>{});
            else blocks_of(std::integral_constant<int, Int4::VECTORS>{});
        };
        if (w.zeros) run(std::true_type{});
        else run(std::false_type{});
    }
}
