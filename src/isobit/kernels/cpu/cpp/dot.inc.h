// Few rows of int8 activations by int8 or int4 weights: exact integer sums.
//
// The including file defines
//   Int8: codes of a step; X, how activations are stored; bias, what weights are raised by to become unsigned;
//         V weights(const int8_t *), I dot(I, V, const X *).
//   Int4: step(const uint8_t *codes, const int8_t *x): the sums of a block of 8 W codes, where x holds the activations of the even
//         codes, those of the odd ones, and W integers to begin with: -8 times what each lane multiplies, because
//         stored codes are 8 above their values.

// Both products with many rows take activations in units of 32 bits.
typedef Int8::Unit UnitCode;  // int8_t, four to a unit, or int16_t, two to a unit
constexpr int UNIT = 4 / static_cast<int>(sizeof(UnitCode));

inline int64_t int8_row_size(int64_t k, bool many) {
    // Behind the codes stands what is to be taken off the sums.
    return many ? round_up(k, W * UNIT) * static_cast<int64_t>(sizeof(UnitCode)) + 8
                : round_up(k, Int8::codes) * static_cast<int64_t>(sizeof(Int8::X)) + 8;
}

template <class X>
inline int64_t put_codes(const Loose *values, int64_t k, int64_t padded, X *to) {
    int64_t total = 0;
    for (int64_t i = 0; i < k; ++i) {
        const int32_t code = static_cast<int32_t>(values[i]);
        to[i] = static_cast<X>(code);
        total += code;
    }
    for (int64_t i = k; i < padded; ++i) to[i] = 0;
    return total;
}

void arrange_int8(const Layout &l, const Loose *values, int64_t k, void *out) {
    int64_t shift, at;
    if (l.many) {
        at = round_up(k, W * UNIT);
        shift = put_codes(values, k, at, static_cast<UnitCode *>(out)) * Int8::unit_bias;
        at *= sizeof(UnitCode);
    } else {
        at = round_up(k, Int8::codes);
        shift = put_codes(values, k, at, static_cast<Int8::X *>(out)) * Int8::bias;
        at *= sizeof(Int8::X);
    }
    __builtin_memcpy(static_cast<uint8_t *>(out) + at, &shift, 8);
}

// The hardware follows one row of bytes nearly as fast as memory is, on newer processors by itself.
constexpr int64_t AHEAD_OF_BYTES = W >= 16 ? 0 : 512;

template <int M>
inline void int8_row(const isobit_linear &w, const int8_t *codes, const uint8_t *rows, int64_t row_size, int64_t out[M]) {
    constexpr int64_t LONGEST = 1 << 16;  // codes: 255 * 127 of them fit in the 32 bits of a sum
    const int64_t padded = round_up(w.k, Int8::codes), whole = w.k / Int8::codes * Int8::codes;
    const auto x = [&](int m) { return reinterpret_cast<const Int8::X *>(rows + m * row_size); };
    for (int m = 0; m < M; ++m) {
        int64_t shift;
        __builtin_memcpy(&shift, x(m) + padded, 8);
        out[m] = -shift;
    }
    int64_t begin = 0;
    do {  // the rest behind whole steps goes with the last run
        I acc[M] = {};
        const int64_t end = smaller(begin + LONGEST, whole);
        int64_t k = begin;
        for (; k < end; k += Int8::codes) {
            if constexpr (AHEAD_OF_BYTES > 0) prefetch(codes + k + AHEAD_OF_BYTES);
            const Int8::V weights = Int8::weights(codes + k);
            for (int m = 0; m < M; ++m) acc[m] = Int8::dot(acc[m], weights, x(m) + k);
        }
        if (k < w.k && k == whole) {
            int8_t copy[Int8::codes] = {};
            __builtin_memcpy(copy, codes + k, static_cast<size_t>(w.k - k));
            const Int8::V weights = Int8::weights(copy);
            for (int m = 0; m < M; ++m) acc[m] = Int8::dot(acc[m], weights, x(m) + k);
        }
        for (int m = 0; m < M; ++m) out[m] += sum(acc[m]);
        begin += LONGEST;
    } while (begin < whole);
}

void few_int8(const isobit_linear &w, const Layout &l, const void *rows, const float *act_scales, int64_t m, int64_t begin,
              int64_t end, float *y, int64_t ldy) {
    const Output out{w, act_scales, y, ldy};
    const uint8_t *x = static_cast<const uint8_t *>(rows);
    for (int64_t row = begin; row < end; ++row) {
        const int8_t *codes = reinterpret_cast<const int8_t *>(codes_of(w, row));
        const float scale = scale_at(w, w.block_rows ? row / w.block_rows : 0, row);
        int64_t sums[4], at = 0;
        const auto put = [&](int count) {
            for (int i = 0; i < count; ++i) out.put(at + i, row, static_cast<float>(sums[i]) * scale);
            at += count;
        };
        while (m - at >= 4) int8_row<4>(w, codes, x + at * l.row_size, l.row_size, sums), put(4);
        while (m - at >= 1) int8_row<1>(w, codes, x + at * l.row_size, l.row_size, sums), put(1);
    }
}

// ---------------------------------------------------------------------- int4

constexpr int64_t INT4_BLOCK = 12 * W;  // bytes of the activations of a block: 4 W even, 4 W odd, W integers

inline int64_t int4_row_size(const Layout &l) {
    if (!l.many) return l.width / l.block * INT4_BLOCK;
    return l.width * static_cast<int64_t>(sizeof(UnitCode)) + l.spans * l.per_span * 4;
}

void arrange_int4(const Layout &l, const Loose *values, int64_t k, void *out) {
    const auto code = [&](int64_t i) { return i < k ? static_cast<int32_t>(values[i]) : 0; };
    if (l.many) {
        UnitCode *to = static_cast<UnitCode *>(out);
        int32_t *starts = reinterpret_cast<int32_t *>(to + l.width);
        const int64_t shared = l.span / l.per_span;  // codes that have one scale
        for (int64_t s = 0; s < l.spans * l.per_span; ++s) starts[s] = 0;
        for (int64_t at = 0; at < l.width; at += 8 * W)
            for (int i = 0; i < 4 * W; ++i) {
                const int32_t even = code(at + 2 * i), odd = code(at + 2 * i + 1);
                to[at + i] = static_cast<UnitCode>(even);
                to[at + 4 * W + i] = static_cast<UnitCode>(odd);
                starts[(at + 2 * i) / shared] -= 8 * (even + odd);
            }
        return;
    }
    for (int64_t at = 0; at < l.width; at += 8 * W) {
        int8_t *to = static_cast<int8_t *>(out) + at / (8 * W) * INT4_BLOCK;
        for (int lane = 0; lane < W; ++lane) {
            int32_t start = 0;
            for (int j = 0; j < 4; ++j) {
                const int i = 4 * lane + j;
                const int32_t even = code(at + 2 * i), odd = code(at + 2 * i + 1);
                to[i] = static_cast<int8_t>(even);
                to[4 * W + i] = static_cast<int8_t>(odd);
                start -= 8 * (even + odd);
            }
            __builtin_memcpy(to + 8 * W + 4 * lane, &start, 4);
        }
    }
}

constexpr int INT4_ROWS = W >= 8 ? 2 : 1;  // of weights that share the loads of one row of activations

// N rows of weights by M rows of activations, where a block has several groups, each of some lanes.
template <int N, int M>
inline void int4_rows(const isobit_linear &w, const Layout &l, const uint8_t *codes, const float *const *scales, const int8_t *x,
                      float out[N][M]) {
    F total[N][M] = {};
    const uint8_t *ahead = ahead_of<N>(codes, w.row_bytes);
    const int64_t blocks_in_span = l.span / l.block, blocks = w.k / l.block, row_bytes = w.row_bytes, row_size = l.row_size;
    const auto step = [&](const uint8_t *from, int64_t apart, int64_t b, const F *scale) ISOBIT_LAMBDA {
        unroll<N>([&](auto n) ISOBIT_LAMBDA {
            unroll<M>([&](auto m) ISOBIT_LAMBDA {
                total[n][m] += to_floats(Int4::step(from + n * apart, x + m * row_size + b * INT4_BLOCK)) * scale[n];
            });
        });
    };
    const int64_t per_span = l.per_span;
    const int lanes = l.lanes;
    const auto scale_of = [&](int n, int64_t span) ISOBIT_LAMBDA {
        return spread(scales[n] + span * per_span, lanes);
    };
    int64_t b = 0;
    F scale[N];
    for (int64_t span = 0; b < blocks; ++span) {
        unroll<N>([&](auto n) ISOBIT_LAMBDA { scale[n] = scale_of(n, span); });
        for (const int64_t end = smaller(b + blocks_in_span, blocks); b < end; ++b) {
            prefetch_for<N>(ahead, b * (4 * W), 4 * W);
            step(codes + b * (4 * W), row_bytes, b, scale);
        }
    }
    if (b * l.block < w.k) {
        uint8_t copy[N][4 * W] = {};
        for (int n = 0; n < N; ++n) {
            __builtin_memcpy(copy[n], codes + n * row_bytes + b * (4 * W), static_cast<size_t>((w.k - b * l.block + 1) / 2));
            scale[n] = scale_of(n, b / blocks_in_span);
        }
        step(copy[0], 4 * W, b, scale);
    }
    for (int n = 0; n < N; ++n)
        for (int m = 0; m < M; ++m) out[n][m] = sum(total[n][m]);
}

// The same where a span is one group: its sum is exact, as with many rows, and the groups follow each other as they do there. W spans
// of one block or two (B; 0: any number) are added up together. What lanes of integers come to does not depend on an order.
template <int N, int M, int B>
class Int4Groups {
  public:
    float out[N][M];

    Int4Groups(const isobit_linear &w, const Layout &l, const uint8_t *codes, const float *const *scales, const int8_t *x)
        : w_(w), l_(l), codes_(codes), x_(x), ahead_(ahead_of<N>(codes, w.row_bytes)), blocks_(B ? B : l.span / l.block) {
        for (int n = 0; n < N; ++n)
            for (int m = 0; m < M; ++m) out[n][m] = 0;
        int64_t span = 0;
        for (; (span + W) * l.span <= w.k; span += W)
            add(fold<1>([&](int i) ISOBIT_LAMBDA { return whole(span + mirrored(i)); }, 0), scales, span, W);
        if (span == l.spans) return;
        const int left = static_cast<int>(l.spans - span);
        add(l.spans * l.span == w.k ? last(span, left) : rest(span), scales, span, left);
    }

  private:
    struct Sums { I of[N][M]; };

    // fold() asks for parts by their lowest bits, and codes are read in order: which of W spans part i is, and which lane has the sum of span i.
    static constexpr int mirrored(int i) {
        int found = 0;
        for (int bit = 1; bit < W; bit *= 2) found = 2 * found + (i / bit) % 2;
        return found;
    }

    // Sums of the lanes of what `part` gives for W numbers, one in each lane.
    template <int step, class Part>
    ISOBIT_INLINE Sums fold(Part part, int i) const {
        if constexpr (step == W) {
            return part(i);
        } else {
            Sums a = fold<2 * step>(part, i), b = fold<2 * step>(part, i + step);
            unroll<N>([&](auto n) ISOBIT_LAMBDA {
                unroll<M>([&](auto m) ISOBIT_LAMBDA {
                    exchange<step>(a.of[n][m], b.of[n][m], std::make_integer_sequence<int, W>{});
                    a.of[n][m] += b.of[n][m];
                });
            });
            return a;
        }
    }

    ISOBIT_INLINE void step(const uint8_t *from, int64_t apart, int64_t b, Sums &sums) const {
        unroll<N>([&](auto n) ISOBIT_LAMBDA {
            unroll<M>([&](auto m) ISOBIT_LAMBDA { sums.of[n][m] += Int4::step(from + n * apart, x_ + m * l_.row_size + b * INT4_BLOCK); });
        });
    }

    ISOBIT_INLINE Sums whole(int64_t span) const {
        Sums sums{};
        const auto block = [&](int64_t b) ISOBIT_LAMBDA {
            prefetch_for<N>(ahead_, b * (4 * W), 4 * W);
            step(codes_ + b * (4 * W), w_.row_bytes, b, sums);
        };
        if constexpr (B > 0) unroll<B>([&](auto i) ISOBIT_LAMBDA { block(span * B + i); });
        else for (int64_t b = span * blocks_; b < (span + 1) * blocks_; ++b) block(b);
        return sums;
    }

    // Fewer than W spans.
    __attribute__((noinline)) Sums last(int64_t span, int left) const {
        return fold<1>([&](int i) ISOBIT_LAMBDA { return mirrored(i) < left ? whole(span + mirrored(i)) : Sums{}; }, 0);
    }

    // The same where the last one ends early.
    __attribute__((noinline)) Sums rest(int64_t span) const {
        const int64_t whole_blocks = w_.k / l_.block;
        I parts[N][M][W] = {};
        for (int64_t i = 0; span + i < l_.spans; ++i) {
            Sums sums{};
            for (int64_t b = (span + i) * blocks_; b < (span + i + 1) * blocks_ && b * l_.block < w_.k; ++b) {
                if (b < whole_blocks) {
                    step(codes_ + b * (4 * W), w_.row_bytes, b, sums);
                    continue;
                }
                uint8_t copy[N][4 * W] = {};
                for (int n = 0; n < N; ++n)
                    __builtin_memcpy(copy[n], codes_ + n * w_.row_bytes + b * (4 * W), static_cast<size_t>((w_.k - b * l_.block + 1) / 2));
                step(copy[0], 4 * W, b, sums);
            }
            for (int n = 0; n < N; ++n)
                for (int m = 0; m < M; ++m) parts[n][m][mirrored(static_cast<int>(i))] = sums.of[n][m];
        }
        Sums all;
        for (int n = 0; n < N; ++n)
            for (int m = 0; m < M; ++m) all.of[n][m] = sums_of(parts[n][m]);
        return all;
    }

    ISOBIT_INLINE void add(const Sums &sums, const float *const *scales, int64_t span, int count) {
        float values[N][M][W];
        unroll<N>([&](auto n) ISOBIT_LAMBDA { unroll<M>([&](auto m) ISOBIT_LAMBDA { store(values[n][m], to_floats(sums.of[n][m])); }); });
        for (int i = 0; i < count; ++i)
            for (int n = 0; n < N; ++n)
                for (int m = 0; m < M; ++m) out[n][m] = multiply_add(values[n][m][mirrored(i)], scales[n][span + i], out[n][m]);
    }

    const isobit_linear &w_;
    const Layout &l_;
    const uint8_t *codes_;
    const int8_t *x_;
    const uint8_t *ahead_;
    const int64_t blocks_;
};

template <int N>
inline void few_int4_rows(const isobit_linear &w, const Layout &l, ScaleReader *readers, const int8_t *x, int64_t m, int64_t row,
                          const Output &out) {
    RowScales s[N];
    const float *scales[N];
    for (int n = 0; n < N; ++n) {
        s[n] = readers[n].read(row + n, 0, l.groups);
        scales[n] = l.one_scale ? &s[n].one_scale : s[n].scales;
    }
    int64_t at = 0;
    const auto put = [&](auto rows_of_weights, auto rows, int first) ISOBIT_LAMBDA {
        constexpr int C = rows_of_weights, M = rows;
        const uint8_t *codes = codes_of(w, row + first);
        const int8_t *rows_from = x + at * l.row_size;
        const auto put_all = [&](const float (&sums)[C][M]) ISOBIT_LAMBDA {
            for (int n = 0; n < C; ++n)
                for (int i = 0; i < M; ++i) out.put(at + i, row + first + n, sums[n][i]);
        };
        if (l.per_span > 1) {
            float sums[C][M];
            int4_rows<C, M>(w, l, codes, scales + first, rows_from, sums);
            put_all(sums);
        } else if (l.span == l.block) {
            put_all(Int4Groups<C, M, 1>(w, l, codes, scales + first, rows_from).out);
        } else if (l.span == 2 * l.block) {
            put_all(Int4Groups<C, M, 2>(w, l, codes, scales + first, rows_from).out);
        } else {
            put_all(Int4Groups<C, M, 0>(w, l, codes, scales + first, rows_from).out);
        }
    };
    for (; m - at >= 2; at += 2)
        for (int n = 0; n < N; ++n) put(std::integral_constant<int, 1>{}, std::integral_constant<int, 2>{}, n);
    if (m - at >= 1) put(std::integral_constant<int, N>{}, std::integral_constant<int, 1>{}, 0);
}

void few_int4(const isobit_linear &w, const Layout &l, const void *rows, const float *act_scales, int64_t m, int64_t begin,
              int64_t end, float *y, int64_t ldy) {
    const Output out{w, act_scales, y, ldy};
    const int8_t *x = static_cast<const int8_t *>(rows);
    ScaleReader readers[] = {{w, l, 0, 1, 0}, {w, l, 0, 1, 1}};
    int64_t row = begin;
    for (; row + INT4_ROWS <= end; row += INT4_ROWS) few_int4_rows<INT4_ROWS>(w, l, readers, x, m, row, out);
    for (; row < end; ++row) few_int4_rows<1>(w, l, readers, x, m, row, out);
}
