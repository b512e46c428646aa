// Few rows of activations by decoded weights: bound by memory, so codes are read once, in order, and prefetched.

// Several rows at once are several places in memory, which the hardware follows badly: half of what one row gives. So what comes after them is
// asked for in one go from its beginning on, at the pace at which they are read, into the first cache: on Zen 5 that is faster
// than into the second by 4 to 20 %, on Zen 4 it was not. Distances, and the numbers of rows below, are what was best for
// one thread that has the memory to itself.
constexpr int64_t AHEAD_OF_ROW = 4096, AHEAD_OF_ROWS = 8192;

ISOBIT_INLINE void prefetch(const void *codes) { __builtin_prefetch(codes, 0, 3); }

// Where N rows that begin at `codes` look ahead to.
template <int N>
ISOBIT_INLINE const uint8_t *ahead_of(const void *codes, int64_t row_bytes) {
    const int64_t rows = N * row_bytes;
    return static_cast<const uint8_t *>(codes) + (N == 1 ? AHEAD_OF_ROW : rows < AHEAD_OF_ROWS ? AHEAD_OF_ROWS : rows);
}

// When N rows are read from `at` on, for `bytes` each.
template <int N>
ISOBIT_INLINE void prefetch_for(const uint8_t *ahead, int64_t at, int64_t bytes) {
    for (int64_t line = 0; line < N * bytes; line += 64) prefetch(ahead + N * at + line);
}

// Accumulators of a sum. One hides the latency of a fused multiply-add where sums of four rows of weights are made at once.
constexpr int CHAINS = W >= 8 ? 1 : 4, SPAN_CHAINS = W >= 8 ? 1 : 2;

// Sums of N rows of weights by M rows of activations in C accumulators each, which take turns block by block and vector by
// vector. `shifted`: codes are `zero` above their values. It is taken off before the product: off the sum it would leave the
// rounding of both. Several rows of weights share the loads of activations, which in the first cache are in the way of
// codes when they are many. A sum is the same whatever N and M are.
template <class D, int N, int M, int C, bool shifted>
class Accumulators {
  public:
    F acc[N][M][C];

    // `codes` of the first row, row_bytes apart.
    ISOBIT_INLINE void block(const uint8_t *codes, int64_t row_bytes, const float *x, int64_t ldx, const F *zero, int first) {
        constexpr bool shared = N > 1 && M == 1;
        F values[shared ? VECTORS : 1];
        if constexpr (shared) unroll<VECTORS>([&](auto v) ISOBIT_LAMBDA { values[v] = load(x + v * W); });
        unroll<N>([&](auto n) ISOBIT_LAMBDA {
            F weights[VECTORS];
            D::block(codes + n * row_bytes, weights);
            unroll<VECTORS>([&](auto v) ISOBIT_LAMBDA {
                const F weight = shifted ? weights[v] - zero[n] : weights[v];
                unroll<M>([&](auto m) ISOBIT_LAMBDA {
                    if constexpr (shared) acc[n][m][(first + v) % C] += weight * values[v];
                    else acc[n][m][(first + v) % C] += weight * load(x + m * ldx + v * W);
                });
            });
        });
    }

    // Adds the products of `count` codes.
    ISOBIT_INLINE void add(const uint8_t *codes, int64_t row_bytes, int64_t count, const float *x, int64_t ldx, const F *zero) {
        Accumulators sums = *this;
        int64_t k = 0;
        const uint8_t *ahead = ahead_of<N>(codes, row_bytes), *const begin = codes;
        for (; k + AT_ONCE * D::codes <= count; k += AT_ONCE * D::codes, codes += AT_ONCE * BYTES) {
            prefetch_for<N>(ahead, codes - begin, AT_ONCE * BYTES);
            unroll<AT_ONCE>([&](auto b) ISOBIT_LAMBDA { sums.block(codes + b * BYTES, row_bytes, x + k + b * D::codes, ldx, zero, b * VECTORS); });
        }
        for (; k + D::codes <= count; k += D::codes, codes += BYTES) sums.block(codes, row_bytes, x + k, ldx, zero, 0);
        if (k < count) {
            // From a copy: nothing behind the codes is read.
            uint8_t copy[N][BYTES + 8] = {};
            for (int n = 0; n < N; ++n)
                __builtin_memcpy(copy[n], codes + n * row_bytes, static_cast<size_t>(((count - k) * D::bits + 7) / 8));
            sums.block(copy[0], BYTES + 8, x + k, ldx, zero, 0);
        }
        *this = sums;
    }

    ISOBIT_INLINE F total(int n, int m) const {
        F value = acc[n][m][0];
        for (int c = 1; c < C; ++c) value += acc[n][m][c];
        return value;
    }

  private:
    static constexpr int VECTORS = D::codes / W;
    static constexpr int64_t BYTES = D::codes * D::bits / 8;
    static constexpr int AT_ONCE = C > VECTORS ? C / VECTORS : 1;  // blocks before an accumulator comes again
};

// Spans of whole blocks, the common case: nothing in the loop but what must be done. Returns how many codes they are.
template <class D, int N, int M, bool shifted, bool several>
ISOBIT_INLINE int64_t whole_spans_of(const isobit_linear &w, const Layout &l, const uint8_t *codes, const RowScales *s, const float *x,
                                     int64_t ldx, F (&out)[N][M]) {
    constexpr int64_t BYTES = D::codes * D::bits / 8;
    const int64_t blocks = l.span / D::codes, spans = w.k / l.span, step = several ? l.per_span : 1, row_bytes = w.row_bytes;
    const int lanes = l.lanes;
    const auto lanes_at = [&](const float *values) { return several ? spread(values, lanes) : splat(*values); };
    const float *scales[N], *zeros[N];
    unroll<N>([&](auto n) ISOBIT_LAMBDA { scales[n] = s[n].scales, zeros[n] = s[n].zeros; });
    const uint8_t *ahead = ahead_of<N>(codes, row_bytes), *const begin = codes;
    F total[N][M] = {};
    for (int64_t at = 0; at < spans * step; at += step) {
        Accumulators<D, N, M, SPAN_CHAINS, shifted> acc{};
        F zero[N];
        if constexpr (shifted) unroll<N>([&](auto n) ISOBIT_LAMBDA { zero[n] = lanes_at(zeros[n] + at); });
        for (int64_t b = 0; b < blocks; ++b, codes += BYTES, x += D::codes) {
            prefetch_for<N>(ahead, codes - begin, BYTES);
            acc.block(codes, row_bytes, x, ldx, zero, 0);
        }
        unroll<N>([&](auto n) ISOBIT_LAMBDA {
            const F scale = lanes_at(scales[n] + at);
            unroll<M>([&](auto m) ISOBIT_LAMBDA { total[n][m] += acc.total(n, m) * scale; });
        });
    }
    unroll<N>([&](auto n) ISOBIT_LAMBDA { unroll<M>([&](auto m) ISOBIT_LAMBDA { out[n][m] = total[n][m]; }); });
    return spans * l.span;
}

template <class D, int N, int M, bool shifted>
ISOBIT_INLINE int64_t whole_spans(const isobit_linear &w, const Layout &l, const uint8_t *codes, const RowScales *s, const float *x,
                                  int64_t ldx, F (&out)[N][M]) {
    return l.per_span > 1 ? whole_spans_of<D, N, M, shifted, true>(w, l, codes, s, x, ldx, out)
                          : whole_spans_of<D, N, M, shifted, false>(w, l, codes, s, x, ldx, out);
}

// Spans from code k on, one row of weights.
template <class D, int M, bool shifted>
__attribute__((noinline)) void any_spans(const isobit_linear &w, const Layout &l, int64_t k, const uint8_t *codes, const RowScales &s,
                                         const float *x, int64_t ldx, F *total) {
    for (int64_t span = k / l.span; k < w.k; k += l.span, ++span) {
        Accumulators<D, 1, M, SPAN_CHAINS, shifted> acc{};
        const F zero = shifted ? lanes_of(s.zeros, span, l.per_span, l.lanes) : F{};
        acc.add(codes + span * l.span_bytes, 0, smaller(l.span, w.k - k), x + span * l.padded_span, ldx, &zero);
        const F scale = lanes_of(s.scales, span, l.per_span, l.lanes);
        unroll<M>([&](auto m) { total[m] += acc.total(0, m) * scale; });
    }
}

// N rows of weights by M rows of activations: the sums, with the scales of the weights.
template <class D, int N, int M, bool shifted>
inline void row_sums(const isobit_linear &w, const Layout &l, const uint8_t *codes, const RowScales *s, const float *x, int64_t ldx,
                     float out[N][M]) {
    if (l.one_scale) {
        Accumulators<D, N, M, CHAINS, shifted> acc{};
        F zero[N];
        unroll<N>([&](auto n) { zero[n] = splat(s[n].one_zero); });
        acc.add(codes, w.row_bytes, w.k, x, ldx, zero);
        unroll<N>([&](auto n) { unroll<M>([&](auto m) { out[n][m] = sum(acc.total(n, m)) * s[n].one_scale; }); });
        return;
    }
    F total[N][M] = {};
    int64_t k = 0;
    if (l.padded_span == l.span) k = whole_spans<D, N, M, shifted>(w, l, codes, s, x, ldx, total);
    if (k < w.k)
        for (int n = 0; n < N; ++n) any_spans<D, M, shifted>(w, l, k, codes + n * w.row_bytes, s[n], x, ldx, total[n]);
    unroll<N>([&](auto n) { unroll<M>([&](auto m) { out[n][m] = sum(total[n][m]); }); });
}

// Rows of weights and of activations that are multiplied at once: as many as leave registers for the rest.
constexpr int TILE = W >= 8 ? 4 : 2;

// Of them the rows of weights that go with m rows of activations. Of 16 bits two, by one row that fills less than half of the first cache: it is in
// the way of codes there, and read for two as fast as for four.
template <class D>
constexpr int weights_at_once(int m, bool small) {
    if (W < 8) return m == 1 && D::bits <= 8 && D::codes / W <= 4 ? 2 : 1;
    if (m == 1 && D::bits > 8) return small ? 2 : 4;
    return m == 4 && D::bits < 8 ? 2 : 4;
}

constexpr int64_t SMALL_ROW = 16384;

// The sums of M rows of activations from the `at`-th on by N rows of weights, so many of these at once.
template <class D, int N, int M, bool shifted, int together>
inline void put_sums_by(const isobit_linear &w, const Layout &l, int64_t row, const RowScales *s, const float *x, int64_t at, const Output &out) {
    const int64_t ldx = l.row_size / 4;
    for (int n = 0; n < N; n += together) {
        float sums[together][M];
        row_sums<D, together, M, shifted>(w, l, codes_of(w, row + n), s + n, x + at * ldx, ldx, sums);
        for (int i = 0; i < together; ++i)
            for (int m = 0; m < M; ++m) out.put(at + m, row + n + i, sums[i][m]);
    }
}

// The same, as many as the tile has room for.
template <class D, int N, int M, bool shifted>
inline void put_sums(const isobit_linear &w, const Layout &l, int64_t row, const RowScales *s, const float *x, int64_t at, const Output &out) {
    constexpr int small = N == 1 ? 1 : weights_at_once<D>(M, true), large = N == 1 ? 1 : weights_at_once<D>(M, false);
    if constexpr (small != large)
        if (l.row_size > SMALL_ROW) return put_sums_by<D, N, M, shifted, large>(w, l, row, s, x, at, out);
    put_sums_by<D, N, M, shifted, small>(w, l, row, s, x, at, out);
}

template <class D, int N, bool shifted>
inline void few_of_rows(const isobit_linear &w, const Layout &l, ScaleReader *readers, int64_t row, const float *x, int64_t m,
                        const Output &out) {
    RowScales s[N];
    for (int n = 0; n < N; ++n) s[n] = readers[n].read(row + n, 0, l.groups);
    int64_t at = 0;
    if constexpr (W >= 16)
        for (; m - at >= 4; at += 4) put_sums<D, N, 4, shifted>(w, l, row, s, x, at, out);
    for (; m - at >= 2; at += 2) put_sums<D, N, 2, shifted>(w, l, row, s, x, at, out);
    if (m - at >= 1) put_sums<D, N, 1, shifted>(w, l, row, s, x, at, out);
}

template <class D, bool shifted>
void few_floats_of(const isobit_linear &w, const Layout &l, const float *x, const Output &out, int64_t m, int64_t begin, int64_t end) {
    constexpr auto offset = D::offset;
    constexpr auto factor = D::factor;
    ScaleReader readers[] = {{w, l, offset, factor, 0}, {w, l, offset, factor, 1}, {w, l, offset, factor, 2}, {w, l, offset, factor, 3}};
    int64_t row = begin;
    for (; row + TILE <= end; row += TILE) few_of_rows<D, TILE, shifted>(w, l, readers, row, x, m, out);
    for (; row < end; ++row) few_of_rows<D, 1, shifted>(w, l, readers, row, x, m, out);
}

template <class D>
void few_floats(const isobit_linear &w, const Layout &l, const float *x, const float *act_scales, int64_t m, int64_t begin,
                int64_t end, float *y, int64_t ldy) {
    const Output out{w, act_scales, y, ldy};
    if constexpr (D::offset != 0) return few_floats_of<D, true>(w, l, x, out, m, begin, end);
    else if constexpr (D::bits == 4)
        if (w.zeros) return few_floats_of<D, true>(w, l, x, out, m, begin, end);
    few_floats_of<D, false>(w, l, x, out, m, begin, end);
}
