// Many rows of rounded float activations by 8-bit floats, where there are dot products of pairs of bfloat16: every code of
// both is a bfloat16, the product of two is exact in float32, and so are these sums as good as those of float32 products,
// at twice their rate.
//
// An instruction set that has them defines Int8::Pairs with
//   bool available(): whether this machine has them too
//   F widen<exponent_bits>(const uint8_t *codes): 2 W codes as bfloat16, in their order
//   F dot(F acc, F a, F b): acc and the products of the pairs in each lane

template <class T, class = void>
struct HasPairs : std::false_type {};
template <class T>
struct HasPairs<T, std::void_t<typename T::Pairs>> : std::true_type {};

template <class Int8>
inline bool pairs_available() {
    if constexpr (HasPairs<Int8>::value) return Int8::Pairs::available();
    else return false;
}

inline bool is_float8(int32_t format) { return format == ISOBIT_E4M3FN || format == ISOBIT_E5M2; }

// Whether the product of many rows can go by pairs. Groups must be whole vectors of them.
inline bool by_pairs(const isobit_linear &w) {
    return is_float8(w.format) && (w.activations == ISOBIT_ACT_E4M3FN || w.activations == ISOBIT_ACT_E5M2) &&
           w.group % (2 * W) == 0 && pairs_available<Int8>();
}

// Behind the pairs of a row of activations stand the scales of its groups.
inline int64_t pairs_of_row(const Layout &l) { return round_up(l.span * l.spans, 2 * W) / 2; }
inline int64_t pairs_row_size(const Layout &l) { return (pairs_of_row(l) + l.groups) * 4; }

inline void put_group_scales(const Layout &l, const float *group_scales, Loose *to) {
    for (int64_t g = 0; g < l.groups; ++g) to[g] = group_scales ? group_scales[g] : 1;
}

void arrange_pairs(const Layout &l, const Loose *values, int64_t k, const float *group_scales, void *out) {
    uint16_t *to = static_cast<uint16_t *>(out);
    const int64_t padded = 2 * pairs_of_row(l);
    for (int64_t i = 0; i < k; ++i) to[i] = static_cast<uint16_t>(as_bits(values[i]) >> 16);
    for (int64_t i = k; i < padded; ++i) to[i] = 0;
    put_group_scales(l, group_scales, reinterpret_cast<Loose *>(to + padded));
}

template <class Int8, int exponent_bits, bool by_group>
struct PairPanels {
    typedef F Acc;
    static constexpr bool grouped = by_group, scaled_sums = !by_group;
    static constexpr int UNITS_OF_LANE = 0;  // a span is one group
    static constexpr int vectors = 1;
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

template <class Int8>
inline void many_pairs(const isobit_linear &w, const Layout &l, const void *rows, int64_t m, int64_t begin, int64_t end,
                       const Output &out) {
    if constexpr (HasPairs<Int8>::value) {
        if (w.format == ISOBIT_E4M3FN) many_pairs_of<Int8, 4>(w, l, rows, m, begin, end, out);
        else many_pairs_of<Int8, 5>(w, l, rows, m, begin, end, out);
    }
}
