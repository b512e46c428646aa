// Many rows of float activations by codes of 4 bits, through the integer products of digits.inc.h: where one instruction multiplies 64
// pairs of bytes, three digits cost three quarters of what float32 products do. Panels are those of int8 (many.inc.h). Blocks are of 8 W
// codes; of a block the sum of one digit is exact, and the blocks follow each other in float32. Groups are whole blocks: shorter
// ones would become floats too often.
//
// A row of activations has for each block its digits, the highest of all first, in units of four; and behind all of them for each block what
// the sum of the first digit begins with, and that of the third for both others (with zero points: for a zero point of 1), and its unit,
// times `factor` of the codes.

template <class Int4>
using HasManyDigits = std::integral_constant<bool, HasDigits<Int4>::value && UNIT == 4 && W >= 16>;

inline bool by_many_digits(const isobit_linear &w) { return HasManyDigits<Int4>::value && bits_of(w.format) == 4 && w.group % (8 * W) == 0; }

constexpr int64_t OF_BLOCK = 3;                                // numbers of 32 bits behind the digits
constexpr int64_t UNITS_OF_DIGIT = 2 * W, BLOCKS_AT_ONCE = 4;  // of a panel: a third of the first cache
constexpr int DIGIT_PANELS = 2;
constexpr int64_t OF_PANEL = BLOCKS_AT_ONCE * NR;

inline int64_t many_digits_row_size(const Layout &l) { return l.width * DIGITS + l.width / (8 * W) * OF_BLOCK * 4; }

template <class Int4>
void put_many_digits(const Layout &l, const Loose *values, int64_t k, int32_t offset, void *out) {
    int8_t *to = static_cast<int8_t *>(out);
    int32_t *of_block = reinterpret_cast<int32_t *>(to + l.width * DIGITS);
    for (int64_t at = 0; at < l.width; at += 8 * W, to += DIGITS * 8 * W, of_block += OF_BLOCK) {
        float copy[8 * W] = {};
        const float *from = values + at;
        if (at + 8 * W > k) {
            if (at < k) __builtin_memcpy(copy, from, static_cast<size_t>(k - at) * 4);
            from = copy;
        }
        float inverse;
        const float unit = unit_of(absmax(from, 8 * W), inverse) * Int4::factor;
        put_multiples(from, splat(inverse * 0x1p-8f), to, 8 * W, [](int, I) ISOBIT_LAMBDA {});
        int32_t totals[DIGITS] = {};
        for (int digit = 0; digit < DIGITS; ++digit)
            for (int i = 0; i < 8 * W; ++i) totals[digit] += to[digit * 8 * W + i];
        of_block[0] = -offset * totals[0], of_block[1] = -offset * (256 * totals[1] + totals[2]);
        __builtin_memcpy(of_block + 2, &unit, 4);
    }
}

template <class Int4>
void arrange_many_digits(const Layout &l, const Loose *values, int64_t k, int32_t offset, void *out) {
    if constexpr (HasManyDigits<Int4>::value) put_many_digits<Int4>(l, values, k, offset, out);
}

// What pack() needs to decode codes.
template <class Int4>
struct DigitPanels {
    static constexpr int vectors = 2;
    static void scales_for(ScaleReader &, const Layout &, int64_t, int64_t, int64_t, RowScales &) {}
    static void chunk(const isobit_linear &w, const Layout &, const RowScales &, const uint8_t *codes, int64_t unit, F out[vectors]) {
        const int64_t k = unit * UNIT, count = w.k - k;
        uint8_t copy[4 * W] = {};
        if (count < 8 * W && count > 0) __builtin_memcpy(copy, codes + k / 2, static_cast<size_t>((count + 1) / 2));
        I halves[vectors];
        Int4::unpack(loaded(reinterpret_cast<const int8_t *>(count >= 8 * W ? codes + k / 2 : copy)), halves);
        for (int v = 0; v < vectors; ++v) out[v] = as_floats(halves[v]);
    }
};

// What blocks of a panel have beside their codes, NR numbers a block.
struct OfOutputs {
    const float *scales;
    const int32_t *zeros;
};

// R rows of activations, digits and what stands behind them of their first block here, by `blocks` blocks of a panel. c: sums so far [R][NR].
template <int R, bool zero_points>
__attribute__((noinline)) void digit_tile(const float *x, const int32_t *of_block, int64_t ldx, const float *panel, int64_t blocks, OfOutputs outputs, float *c) {
    typedef IntegerPanels P;
    for (int64_t b = 0; b < blocks; ++b, of_block += OF_BLOCK, outputs.scales += NR, outputs.zeros += NR, panel += UNITS_OF_DIGIT * NR) {
        I acc[R][2];
        F high[R][2];
        const auto start = [&](int i, int h, int which) ISOBIT_LAMBDA {
            const I from = splat(of_block[i * ldx + which]);
            return zero_points ? from * load(outputs.zeros + h * W) : from;
        };
        const auto add = [&]() ISOBIT_LAMBDA { add_units<P, R>(acc, x, ldx, panel, 0, UNITS_OF_DIGIT), x += UNITS_OF_DIGIT; };
        for (int i = 0; i < R; ++i)
            for (int h = 0; h < 2; ++h) acc[i][h] = start(i, h, 0);
        add();
        for (int i = 0; i < R; ++i)
            for (int h = 0; h < 2; ++h) acc[i][h] = acc[i][h] * 256;
        add();
        for (int i = 0; i < R; ++i)
            for (int h = 0; h < 2; ++h) high[i][h] = to_floats(acc[i][h]), acc[i][h] = start(i, h, 1);
        add();
        const F scale[2] = {load(outputs.scales), load(outputs.scales + W)};
        for (int i = 0; i < R; ++i) {
            float unit;
            __builtin_memcpy(&unit, of_block + i * ldx + 2, 4);
            for (int h = 0; h < 2; ++h) {
                float *to = c + i * NR + h * W;
                store(to, multiply_add(multiply_add(high[i][h], splat(256.0f), to_floats(acc[i][h])), scale[h] * splat(unit), load(to)));
            }
        }
    }
}

template <int R, bool zero_points>
inline void digit_tile_rest(int64_t rows, const float *x, const int32_t *of_block, int64_t ldx, const float *panel, int64_t blocks, const OfOutputs &outputs, float *c) {
    if constexpr (R > 0) {
        if (rows >= R) digit_tile<R, zero_points>(x, of_block, ldx, panel, blocks, outputs, c);
        else digit_tile_rest<R - 1, zero_points>(rows, x, of_block, ldx, panel, blocks, outputs, c);
    }
}

// zeros[NR]: the zero points of NR rows in a group.
inline void put_zeros(const isobit_linear &w, const Layout &l, int64_t row, int64_t end, int64_t group, int32_t *zeros) {
    for (int r = 0; r < NR; ++r) zeros[r] = w.zeros[(w.block_rows ? smaller(row + r, end - 1) / w.block_rows : 0) * l.groups + group];
}

template <class Int4, bool zero_points>
void many_digits_of(const isobit_linear &w, const Layout &l, const void *rows, int64_t m, int64_t begin, int64_t end, const Output &out) {
    static thread_local Buffer storage;
    const float *x = static_cast<const float *>(rows);
    const int64_t ldx = l.row_size / 4, c_size = m * NR, blocks_of_row = l.width / (8 * W);
    constexpr int64_t PANEL = OF_PANEL * UNITS_OF_DIGIT;
    float *panels = storage.floats(DIGIT_PANELS * (PANEL + c_size + 2 * OF_PANEL) + BLOCKS_AT_ONCE * UNITS_OF_DIGIT * W);
    float *c = panels + DIGIT_PANELS * PANEL, *scales = c + DIGIT_PANELS * c_size, *square = scales + DIGIT_PANELS * OF_PANEL;
    int32_t *zeros = reinterpret_cast<int32_t *>(square + BLOCKS_AT_ONCE * UNITS_OF_DIGIT * W);
    ScaleReader reader(w, l, 0, 1);
    for (int64_t row = begin; row < end; row += DIGIT_PANELS * NR) {
        const int count = static_cast<int>(smaller(DIGIT_PANELS, (end - row + NR - 1) / NR));
        __builtin_memset(c, 0, static_cast<size_t>(count * c_size) * 4);
        for (int64_t block = 0; block < blocks_of_row; block += BLOCKS_AT_ONCE) {
            const int64_t blocks = smaller(BLOCKS_AT_ONCE, blocks_of_row - block);
            for (int p = 0; p < count; ++p) {
                const int64_t first = row + p * NR;
                pack<DigitPanels<Int4>>(w, l, reader, first, end, block * UNITS_OF_DIGIT, blocks * UNITS_OF_DIGIT, panels + p * PANEL, square);
                for (int64_t b = 0; b < blocks; ++b) {
                    const int64_t group = (block + b) * 8 * W / l.group, to = p * OF_PANEL + b * NR;
                    put_scales(w, l, first, end, group, 1, scales + to);
                    if constexpr (zero_points) put_zeros(w, l, first, end, group, zeros + to);
                }
            }
            const float *digits = x + block * DIGITS * UNITS_OF_DIGIT;
            const int32_t *of_block = reinterpret_cast<const int32_t *>(x + DIGITS * l.width / UNIT) + block * OF_BLOCK;
            for (int64_t at = 0; at < m; at += MR)
                for (int p = 0; p < count; ++p)
                    digit_tile_rest<MR, zero_points>(m - at, digits + at * ldx, of_block + at * ldx, ldx, panels + p * PANEL, blocks,
                                                     {scales + p * OF_PANEL, zeros + p * OF_PANEL}, c + p * c_size + at * NR);
        }
        for (int p = 0; p < count; ++p) finish<FloatPanels<DecodeF32>>(w, c + p * c_size, m, row + p * NR, end, out);
    }
}

template <class Int4>
inline void many_digits(const isobit_linear &w, const Layout &l, const void *rows, int64_t m, int64_t begin, int64_t end, const Output &out) {
    if constexpr (HasManyDigits<Int4>::value) {
        if (w.zeros) many_digits_of<Int4, true>(w, l, rows, m, begin, end, out);
        else many_digits_of<Int4, false>(w, l, rows, m, begin, end, out);
    }
}
