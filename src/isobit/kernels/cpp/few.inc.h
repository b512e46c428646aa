// Few rows of activations by decoded weights: bound by memory, so codes are read once, in order, and prefetched.

// Codes are asked for a page ahead, into the second cache: the hardware stops at the end of each page, and fetching into
// the first cache would take the buffers that the loads need.
constexpr int64_t AHEAD = 4096;

ISOBIT_INLINE void prefetch(const void *codes) { __builtin_prefetch(static_cast<const uint8_t *>(codes) + AHEAD, 0, 2); }

// Sums of M rows of activations in C accumulators each, which take turns block by block and vector by vector. `shifted`: codes
// are `zero` above their values. It is taken off before the product: off the sum it would leave the rounding of both.
template <class D, int M, int C, bool shifted>
class Accumulators {
  public:
    F acc[M][C];

    ISOBIT_INLINE void block(const uint8_t *codes, const float *x, int64_t ldx, F zero, int first) {
        F weights[VECTORS];
        D::block(codes, weights);
        unroll<VECTORS>([&](auto v) __attribute__((always_inline)) {
            const F weight = shifted ? weights[v] - zero : weights[v];
            unroll<M>([&](auto m) __attribute__((always_inline)) { acc[m][(first + v) % C] += weight * load(x + m * ldx + v * W); });
        });
    }

    // Adds the products of `count` codes.
    ISOBIT_INLINE void add(const uint8_t *codes, int64_t count, const float *x, int64_t ldx, F zero) {
        Accumulators sums = *this;
        int64_t k = 0;
        for (; k + AT_ONCE * D::codes <= count; k += AT_ONCE * D::codes, codes += AT_ONCE * BYTES) {
            for (int64_t line = 0; line < AT_ONCE * BYTES; line += 64) prefetch(codes + line);
            unroll<AT_ONCE>([&](auto b) __attribute__((always_inline)) { sums.block(codes + b * BYTES, x + k + b * D::codes, ldx, zero, b * VECTORS); });
        }
        for (; k + D::codes <= count; k += D::codes, codes += BYTES) sums.block(codes, x + k, ldx, zero, 0);
        if (k < count) {
            // From a copy: nothing behind the codes is read.
            uint8_t copy[BYTES + 8] = {};
            __builtin_memcpy(copy, codes, static_cast<size_t>(((count - k) * D::bits + 7) / 8));
            sums.block(copy, x + k, ldx, zero, 0);
        }
        *this = sums;
    }

    ISOBIT_INLINE F total(int m) const {
        F value = acc[m][0];
        for (int c = 1; c < C; ++c) value += acc[m][c];
        return value;
    }

  private:
    static constexpr int VECTORS = D::codes / W;
    static constexpr int64_t BYTES = D::codes * D::bits / 8;
    static constexpr int AT_ONCE = C > VECTORS ? C / VECTORS : 1;  // blocks before an accumulator comes again
};

// How far a row is: what follows of it, and its sums so far.
template <int M>
struct Spans {
    F total[M];
    int64_t k;
    const float *scales, *zeros;
    const uint8_t *codes;
    const float *x;
};

// Spans of whole blocks, the common case: nothing in the loop but what must be done.
template <class D, int M, bool shifted, bool several>
ISOBIT_INLINE void whole_spans_of(int64_t k, const Layout &l, int64_t ldx, Spans<M> &at) {
    constexpr int64_t BYTES = D::codes * D::bits / 8;
    const int64_t blocks = l.span / D::codes, spans = k / l.span, step = several ? l.per_span : 1;
    const int lanes = l.lanes;
    const uint8_t *codes = at.codes;
    const float *x = at.x, *scales = at.scales, *zeros = at.zeros;
    const auto lanes_at = [&](const float *values) { return several ? spread(values, lanes) : splat(*values); };
    F total[M] = {};
    for (int64_t span = 0; span < spans; ++span, scales += step, zeros += step) {
        Accumulators<D, M, 2, shifted> acc{};
        const F zero = shifted ? lanes_at(zeros) : F{};
        for (int64_t b = 0; b < blocks; ++b, codes += BYTES, x += D::codes) {
            prefetch(codes);
            acc.block(codes, x, ldx, zero, 0);
        }
        const F scale = lanes_at(scales);
        unroll<M>([&](auto m) { total[m] += acc.total(m) * scale; });
    }
    unroll<M>([&](auto m) { at.total[m] = total[m]; });
    at.k = spans * l.span;
    at.codes = codes, at.x = x, at.scales = scales, at.zeros = zeros;
}

template <class D, int M, bool shifted>
ISOBIT_INLINE void whole_spans(int64_t k, const Layout &l, int64_t ldx, Spans<M> &at) {
    l.per_span > 1 ? whole_spans_of<D, M, shifted, true>(k, l, ldx, at) : whole_spans_of<D, M, shifted, false>(k, l, ldx, at);
}

template <class D, int M, bool shifted>
__attribute__((noinline)) void any_spans(int64_t k, const Layout &l, int64_t ldx, Spans<M> &at) {
    for (; at.k < k; at.k += l.span, at.codes += l.span_bytes, at.x += l.padded_span) {
        Accumulators<D, M, 2, shifted> acc{};
        const F zero = shifted ? lanes_of(at.zeros, 0, l.per_span, l.lanes) : F{};
        acc.add(at.codes, smaller(l.span, k - at.k), at.x, ldx, zero);
        const F scale = lanes_of(at.scales, 0, l.per_span, l.lanes);
        unroll<M>([&](auto m) { at.total[m] += acc.total(m) * scale; });
        at.scales += l.per_span, at.zeros += l.per_span;
    }
}

// One row of weights by M rows of activations: the sums, with the scales of the weights.
template <class D, int M, bool shifted>
inline void row_sums(const isobit_linear &w, const Layout &l, const uint8_t *codes, const RowScales &s, const float *x,
                     int64_t ldx, float out[M]) {
    if (l.one_scale) {
        Accumulators<D, M, 4, shifted> acc{};  // enough to hide the latency of a fused multiply-add; the same for every M
        acc.add(codes, w.k, x, ldx, splat(s.one_zero));
        unroll<M>([&](auto m) { out[m] = sum(acc.total(m)) * s.one_scale; });
        return;
    }
    Spans<M> at{{}, 0, s.scales, s.zeros, codes, x};
    if (l.padded_span == l.span) whole_spans<D, M, shifted>(w.k, l, ldx, at);
    if (at.k < w.k) any_spans<D, M, shifted>(w.k, l, ldx, at);
    unroll<M>([&](auto m) { out[m] = sum(at.total[m]); });
}

// Rows of activations that one decoding serves: as many as leave registers for the rest.
constexpr int ROWS_AT_ONCE = W >= 16 ? 4 : 2;

template <class D, bool shifted>
void few_floats_of(const isobit_linear &w, const Layout &l, const float *x, const float *act_scales, int64_t m, int64_t begin,
                   int64_t end, float *y, int64_t ldy) {
    const Output out{w, act_scales, y, ldy};
    ScaleReader reader(w, l, D::offset, D::factor);
    const int64_t ldx = l.row_size / 4;
    for (int64_t row = begin; row < end; ++row) {
        const uint8_t *codes = codes_of(w, row);
        const RowScales s = reader.read(row, 0, l.groups);
        float sums[4];
        int64_t at = 0;
        const auto put = [&](int count) {
            for (int i = 0; i < count; ++i) out.put(at + i, row, sums[i]);
            at += count;
        };
        // Every M adds in the same order, so that what a row gives does not depend on how many there are.
        if constexpr (ROWS_AT_ONCE >= 4)
            while (m - at >= 4) row_sums<D, 4, shifted>(w, l, codes, s, x + at * ldx, ldx, sums), put(4);
        while (m - at >= 2) row_sums<D, 2, shifted>(w, l, codes, s, x + at * ldx, ldx, sums), put(2);
        if (m - at >= 1) row_sums<D, 1, shifted>(w, l, codes, s, x + at * ldx, ldx, sums), put(1);
    }
}

template <class D>
void few_floats(const isobit_linear &w, const Layout &l, const float *x, const float *act_scales, int64_t m, int64_t begin,
                int64_t end, float *y, int64_t ldy) {
    if constexpr (D::offset != 0) return few_floats_of<D, true>(w, l, x, act_scales, m, begin, end, y, ldy);
    else if constexpr (D::bits == 4)
        if (w.zeros) return few_floats_of<D, true>(w, l, x, act_scales, m, begin, end, y, ldy);
    few_floats_of<D, false>(w, l, x, act_scales, m, begin, end, y, ldy);
}
