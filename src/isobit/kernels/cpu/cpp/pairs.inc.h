// Rows of rounded float activations by 8-bit floats, where there are dot products of pairs of bfloat16: every code of both is a
// bfloat16, the product of two is exact in float32, and so are these sums as good as those of float32 products, at twice their
// rate. The pairs of a group, or of 2 KC codes where a row has one scale, are added up in the order of k, those at even places and
// those at odd ones, and these sums in their order: with few rows as with many, so that a token's result is the same bits alone and
// in a prompt.
//
// An instruction set that has them defines Int8::Pairs with
//   bool available(): whether this machine has them too
//   F widen<exponent_bits>(const uint8_t *codes): 2 W codes as bfloat16, in their order
//   F dot(F acc, F a, F b): acc and the products of the pairs in each lane
//   F dot(F acc, F a, const uint8_t *b): the same with one pair for all lanes
//   bool looks_up(): whether the machine has what Look needs
//   Look, Widen: two ways to the same vectors, each with split<exponent_bits>(F codes, F out[2]), of four codes in each lane the
//       first two and the last two as bfloat16

template <class T, class = void>
struct HasPairs : std::false_type {};
template <class T>
struct HasPairs<T, std::void_t<typename T::Pairs>> : std::true_type {};

constexpr int64_t PAIR_BLOCK = 4 * W;  // codes that few rows take at a time

inline bool is_float8(int32_t format) { return format == ISOBIT_E4M3FN || format == ISOBIT_E5M2; }

// Whether a product can go by pairs. Groups must be whole blocks.
template <class Int8>
inline bool by_pairs(const isobit_linear &w) {
    if constexpr (HasPairs<Int8>::value)
        return is_float8(w.format) && (w.activations == ISOBIT_ACT_E4M3FN || w.activations == ISOBIT_ACT_E5M2) &&
               w.group % PAIR_BLOCK == 0 && Int8::Pairs::available();
    else return false;
}

// Behind the pairs of a row of activations stand the scales of its groups.
inline int64_t pairs_of_row(const Layout &l) { return round_up(l.span * l.spans, PAIR_BLOCK) / 2; }
inline int64_t pairs_row_size(const Layout &l) { return (pairs_of_row(l) + l.groups) * 4; }

void arrange_pairs(const Layout &l, const Loose *values, int64_t k, const float *group_scales, void *out) {
    uint16_t *to = static_cast<uint16_t *>(out);
    const int64_t padded = 2 * pairs_of_row(l);
    for (int64_t i = 0; i < k; ++i) to[i] = static_cast<uint16_t>(as_bits(values[i]) >> 16);
    for (int64_t i = k; i < padded; ++i) to[i] = 0;
    Loose *scales = reinterpret_cast<Loose *>(to + padded);
    for (int64_t g = 0; g < l.groups; ++g) scales[g] = group_scales ? group_scales[g] : 1;
}

template <class Int8, int exponent_bits, bool by_group>
struct PairPanels {
    typedef F Acc;
    static constexpr bool grouped = by_group, scaled_sums = !by_group;
    static constexpr int UNITS_OF_LANE = 0;  // a span is one group
    static constexpr int WAYS = 2, vectors = 1;
    static int64_t units(const Layout &l) { return pairs_of_row(l); }
    static int64_t depth(const Layout &l) { return by_group ? l.span / 2 : KC; }
    static float factor() { return 1; }
    static float offset() { return 0; }
    static void scales_for(ScaleReader &, const Layout &, int64_t, int64_t, int64_t, RowScales &) {}
    static void chunk(const isobit_linear &w, const Layout &, const RowScales &, const uint8_t *codes, int64_t unit, F out[1]) {
        const int64_t k = 2 * unit, count = w.k - k;
        if (count >= 2 * W) {
            out[0] = Int8::Pairs::template widen<exponent_bits>(codes + k);
        } else {
            uint8_t copy[2 * W] = {};
            if (count > 0) __builtin_memcpy(copy, codes + k, static_cast<size_t>(count));
            out[0] = Int8::Pairs::template widen<exponent_bits>(copy);
        }
    }
    static ISOBIT_INLINE F dot(F acc, F panel, const float *unit) {
        int32_t pair;
        __builtin_memcpy(&pair, unit, 4);
        return Int8::Pairs::dot(acc, panel, as_floats(splat(pair)));
    }
    static ISOBIT_INLINE F first(int32_t) { return F{}; }
    static ISOBIT_INLINE F last(F acc, int32_t row_scale) { return acc * as_floats(splat(row_scale)); }
};

template <class Int8, int exponent_bits>
inline void many_pairs_of(const isobit_linear &w, const Layout &l, const void *rows, int64_t m, int64_t begin, int64_t end,
                          const Output &out) {
    if (w.group) many_rows<PairPanels<Int8, exponent_bits, true>>(w, l, rows, m, begin, end, out);
    else many_rows<PairPanels<Int8, exponent_bits, false>>(w, l, rows, m, begin, end, out);
}

// Of M rows of activations and G vectors of outputs the sums, to c[M][NR].
template <class Int8, class Decoder, int exponent_bits, bool grouped, int G, int M>
class FewPairs {
    typedef typename Int8::Pairs Pairs;
    typedef PairPanels<Int8, exponent_bits, grouped> Panels;

  public:
    FewPairs(const isobit_linear &w, const Layout &l, const uint8_t *x, int64_t row, int64_t end, const float *scales, float *c)
        : x_(x), row_size_(l.row_size), ahead_(ahead_of<G * W>(codes_of(w, row), w.row_bytes)) {
        for (int r = 0; r < G * W; ++r) rows_[r] = codes_of(w, smaller(row + r, end - 1));
        F total[G][M] = {};
        const int64_t size = grouped ? l.group : 2 * KC;
        for (int64_t g = 0; g * size < w.k; ++g) {
            F acc[G][M][2] = {};
            const int64_t stop = smaller((g + 1) * size, w.k);
            int64_t at = g * size;
            for (; at + PAIR_BLOCK <= stop; at += PAIR_BLOCK) {
                prefetch_for<G * W>(ahead_, at, PAIR_BLOCK);
                unroll<G>([&](auto v) ISOBIT_LAMBDA { block(acc[v], [&](int r) ISOBIT_LAMBDA { return rows_[v * W + r] + at; }, at); });
            }
            if (at < stop) rest(acc, at, stop - at);
            const uint8_t *of_row = x_ + 4 * pairs_of_row(l) + 4 * g;
            unroll<G>([&](auto v) ISOBIT_LAMBDA {
                unroll<M>([&](auto m) ISOBIT_LAMBDA {
                    if constexpr (grouped) {
                        int32_t row_scale;
                        __builtin_memcpy(&row_scale, of_row + m * row_size_, 4);
                        total[v][m] += Panels::last(acc[v][m][0] + acc[v][m][1], row_scale) * load(scales + g * NR + v * W);
                    } else {
                        total[v][m] += acc[v][m][0];
                        total[v][m] += acc[v][m][1];
                    }
                });
            });
        }
        unroll<G>([&](auto v) ISOBIT_LAMBDA { unroll<M>([&](auto m) ISOBIT_LAMBDA { store(c + m * NR + v * W, total[v][m]); }); });
    }

  private:
    // A block of W rows: four codes of each come to stand in a lane.
    template <class From>
    ISOBIT_INLINE void block(F (&acc)[M][2], From from, int64_t at) const {
        F codes[W];
        unroll<W>([&](auto r) ISOBIT_LAMBDA { codes[r] = load(reinterpret_cast<const float *>(from(r))); });
        transpose(codes);
        unroll<W>([&](auto u) ISOBIT_LAMBDA {
            F pairs[2];
            Decoder::template split<exponent_bits>(codes[u], pairs);
            const uint8_t *x = x_ + 2 * at + 8 * u;
            unroll<2>([&](auto p) ISOBIT_LAMBDA {
                unroll<M>([&](auto m) ISOBIT_LAMBDA { acc[m][p] = Pairs::dot(acc[m][p], pairs[p], x + m * row_size_ + 4 * p); });
            });
        });
    }

    // From copies: nothing behind the codes is read.
    __attribute__((noinline)) void rest(F (&acc)[G][M][2], int64_t at, int64_t count) const {
        for (int v = 0; v < G; ++v) {
            uint8_t copies[W][PAIR_BLOCK] = {};
            for (int r = 0; r < W; ++r) __builtin_memcpy(copies[r], rows_[v * W + r] + at, static_cast<size_t>(count));
            block(acc[v], [&](int r) ISOBIT_LAMBDA { return copies[r]; }, at);
        }
    }

    const uint8_t *x_;
    int64_t row_size_;
    const uint8_t *ahead_;
    const uint8_t *rows_[G * W];
};

// Rows at once: more of activations leave registers for one vector of outputs only, and their sums do not wait for each other.
constexpr int MORE_PAIRS = 8;

template <class Int8, class Decoder, int exponent_bits, bool grouped>
void few_pairs_of(const isobit_linear &w, const Layout &l, const uint8_t *x, int64_t m, int64_t begin, int64_t end, const Output &out) {
    static thread_local Buffer storage;
    float *c = storage.floats((MORE_PAIRS + (grouped ? l.groups : 0)) * NR), *scales = c + MORE_PAIRS * NR;
    for (int64_t row = begin; row < end; row += NR) {
        if constexpr (grouped) put_scales(w, l, row, end, 0, l.groups, scales);
        for (int64_t at = 0, count; at < m; at += count) {
            const uint8_t *from = x + at * l.row_size;
            const auto one = [&](auto rows) {
                for (int v = 0; v < 2 && row + v * W < end; ++v)
                    FewPairs<Int8, Decoder, exponent_bits, grouped, 1, rows>(w, l, from, row + v * W, end, scales + v * W, c + v * W);
            };
            count = m - at >= MORE_PAIRS ? MORE_PAIRS : m - at >= 4 ? 4 : m - at;
            if (count == MORE_PAIRS) one(std::integral_constant<int, MORE_PAIRS>{});
            else if (count == 4) one(std::integral_constant<int, 4>{});
            else if (count == 3) one(std::integral_constant<int, 3>{});
            else if (count == 2) one(std::integral_constant<int, 2>{});
            else one(std::integral_constant<int, 1>{});
            const Output shifted{w, out.act_scales ? out.act_scales + at : nullptr, out.y + at * out.ldy, out.ldy};
            finish<PairPanels<Int8, exponent_bits, grouped>>(w, c, count, row, end, shifted);
        }
    }
}

template <class Int8>
inline void few_pairs(const isobit_linear &w, const Layout &l, const void *rows, int64_t m, int64_t begin, int64_t end, const Output &out) {
    if constexpr (HasPairs<Int8>::value) {
        const auto by = [&](auto decoder, auto exponent_bits) {
            const uint8_t *x = static_cast<const uint8_t *>(rows);
            if (w.group) few_pairs_of<Int8, decltype(decoder), exponent_bits, true>(w, l, x, m, begin, end, out);
            else few_pairs_of<Int8, decltype(decoder), exponent_bits, false>(w, l, x, m, begin, end, out);
        };
        const auto with = [&](auto decoder) {
            if (w.format == ISOBIT_E4M3FN) by(decoder, std::integral_constant<int, 4>{});
            else by(decoder, std::integral_constant<int, 5>{});
        };
        if (Int8::Pairs::looks_up()) with(typename Int8::Pairs::Look{});
        else with(typename Int8::Pairs::Widen{});
    }
}

template <class Int8>
inline void many_pairs(const isobit_linear &w, const Layout &l, const void *rows, int64_t m, int64_t begin, int64_t end,
                       const Output &out) {
    if constexpr (HasPairs<Int8>::value) {
        if (w.format == ISOBIT_E4M3FN) many_pairs_of<Int8, 4>(w, l, rows, m, begin, end, out);
        else many_pairs_of<Int8, 5>(w, l, rows, m, begin, end, out);
    }
}
