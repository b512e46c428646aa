// Many rows of activations. Panels of 2 W outputs are decoded and transposed once for all rows, in units of 32 bits along
// k: one float32, two int16 or four int8; then tiles of R rows by 2 W outputs stay in registers.

constexpr int NR = 2 * W;                // outputs of a panel
constexpr int PANELS = 4;                // panels that one pass over the activations serves
constexpr int KC = W >= 16 ? 128 : 256;  // units: a panel of KC x NR fits in half of the first cache
constexpr int MR = W >= 16 ? 12 : W >= 8 ? 6 : 4;

// A kind of panel says
//   Acc          vectors of sums: F or I
//   grouped      sums are turned to floats with the scales of each span: they begin with first(v) and become last(acc, v),
//                where v is what the row of activations has for the span
//   scaled_sums  the scale of an output is applied to its sum at the end
//   units(l)     of a row of activations
//   depth(l)     units that one panel covers: whole chunks, and one span if grouped
//   UNITS_OF_LANE  if grouped: a lane's part of a span are so many units of the first half, and as many of the second
//   vectors      of W units in a chunk, what is decoded at a time
//   chunk(row's reader, codes, unit, out)
//   dot(acc, panel, unit)
//   WAYS         sums of every so-manieth unit that are added up on their own and then together, panel by panel

template <class D>
struct FloatPanels {
    typedef F Acc;
    static constexpr bool grouped = false, scaled_sums = false;
    static constexpr int WAYS = 1, vectors = D::codes / W;
    static int64_t units(const Layout &l) { return l.width; }
    static int64_t depth(const Layout &) { return KC; }
    static float factor() { return D::factor; }
    static float offset() { return D::offset; }

    static void scales_for(ScaleReader &reader, const Layout &l, int64_t row, int64_t begin, int64_t end, RowScales &s) {
        s = reader.read(row, begin / l.padded_span * l.per_span, ((end - 1) / l.padded_span + 1) * l.per_span);
    }

    static void chunk(const isobit_linear &w, const Layout &l, const RowScales &s, const uint8_t *codes, int64_t unit,
                      F out[vectors]) {
        const int64_t span = unit / l.padded_span, in_span = unit % l.padded_span;
        const int64_t count = smaller(l.span, w.k - span * l.span) - in_span;
        if (count <= 0) {
            for (int v = 0; v < vectors; ++v) out[v] = F{};
            return;
        }
        const uint8_t *at = codes + span * l.span_bytes + in_span * D::bits / 8;
        if (count >= D::codes) {
            D::block(at, out);
        } else {
            uint8_t copy[D::codes * D::bits / 8 + 8] = {};
            __builtin_memcpy(copy, at, static_cast<size_t>((count * D::bits + 7) / 8));
            D::block(copy, out);
        }
        if constexpr (D::scaled) {
            const F scale = l.one_scale ? splat(s.one_scale) : lanes_of(s.scales, span, l.per_span, l.lanes);
            if (l.shifted) {
                const F zero = l.one_scale ? splat(s.one_zero) : lanes_of(s.zeros, span, l.per_span, l.lanes);
                for (int v = 0; v < vectors; ++v) out[v] = (out[v] - zero) * scale;
            } else {
                for (int v = 0; v < vectors; ++v) out[v] *= scale;
            }
        }
    }
    static ISOBIT_INLINE F dot(F acc, F panel, const float *unit) { return acc + panel * splat(*unit); }
};

struct IntegerPanels {
    typedef I Acc;
    static constexpr int WAYS = 1;
    static float factor() { return 1; }
    static float offset() { return 0; }
    static ISOBIT_INLINE I dot(I acc, F panel, const float *unit) {
        int32_t codes;
        __builtin_memcpy(&codes, unit, 4);
        return Int8::unit_dot(acc, as_ints(panel), splat(codes));
    }
};

struct Int8Panels : IntegerPanels {
    static constexpr bool grouped = false, scaled_sums = true;
    static constexpr int vectors = 1;
    static int64_t units(const Layout &l) { return round_up(l.group, W * UNIT) / UNIT; }
    static int64_t depth(const Layout &) { return KC; }
    static void scales_for(ScaleReader &, const Layout &, int64_t, int64_t, int64_t, RowScales &) {}
    static void chunk(const isobit_linear &w, const Layout &, const RowScales &, const uint8_t *codes, int64_t unit, F out[1]) {
        const int64_t k = unit * UNIT, count = w.k - k;
        if (count >= W * UNIT) {
            out[0] = as_floats(Int8::unit_weights(reinterpret_cast<const int8_t *>(codes) + k));
        } else {
            int8_t copy[W * UNIT] = {};
            if (count > 0) __builtin_memcpy(copy, codes + k, static_cast<size_t>(count));
            out[0] = as_floats(Int8::unit_weights(copy));
        }
    }
};

struct Int4Panels : IntegerPanels {
    static constexpr bool grouped = true, scaled_sums = false;
    static constexpr int vectors = 8 / UNIT, UNITS_OF_LANE = 4 / UNIT;  // the even codes of all lanes come first, then the odd
    static int64_t units(const Layout &l) { return l.width / UNIT; }
    static int64_t depth(const Layout &l) { return l.span / UNIT; }
    static void scales_for(ScaleReader &, const Layout &, int64_t, int64_t, int64_t, RowScales &) {}
    static void chunk(const isobit_linear &w, const Layout &, const RowScales &, const uint8_t *codes, int64_t unit,
                      F out[vectors]) {
        const int64_t k = unit * UNIT, count = w.k - k;
        I halves[vectors];
        if (count >= 8 * W) {
            Int4::unit_weights(codes + k / 2, halves);
        } else {
            uint8_t copy[4 * W] = {};
            if (count > 0) __builtin_memcpy(copy, codes + k / 2, static_cast<size_t>((count + 1) / 2));
            Int4::unit_weights(copy, halves);
        }
        for (int v = 0; v < vectors; ++v) out[v] = as_floats(halves[v]);
    }
    static ISOBIT_INLINE I first(int32_t start) { return splat(start); }
    static ISOBIT_INLINE F last(I acc, int32_t) { return to_floats(acc); }
};

// Decodes `depth` units from `begin` on of NR rows into panel[depth][NR]; rows from `end` on become those of row end - 1.
template <class P>
void pack(const isobit_linear &w, const Layout &l, ScaleReader &reader, int64_t row, int64_t end, int64_t begin,
          int64_t depth, float *panel, float *rows) {
    for (int half = 0; half < NR; half += W) {
        for (int r = 0; r < W; ++r) {
            const int64_t n = smaller(row + half + r, end - 1);
            RowScales s{};
            P::scales_for(reader, l, n, begin, begin + depth, s);
            F values[P::vectors];
            for (int64_t at = 0; at < depth; at += P::vectors * W) {
                P::chunk(w, l, s, codes_of(w, n), begin + at, values);
                for (int v = 0; v < P::vectors; ++v) store(rows + (at + v * W + r) * W, values[v]);
            }
        }
        for (int64_t at = 0; at < depth; at += W) {
            F square[W];
            for (int r = 0; r < W; ++r) square[r] = load(rows + (at + r) * W);
            transpose(square);
            for (int r = 0; r < W; ++r) store(panel + (at + r) * NR + half, square[r]);
        }
    }
}

// What a panel of sums that are grouped needs to know of its span: `parts` groups of so many lanes each.
struct SpanGroups {
    const int32_t *of_rows;  // what the rows have for the groups, ldx apart
    const float *scales;     // [parts][NR], of the outputs
    int64_t parts;
    int lanes;
};

// R rows of activations by the units from `begin` to `end` of a panel.
template <class P, int R, int step = 1>
ISOBIT_INLINE void add_units(typename P::Acc (&acc)[R][2], const float *x, int64_t ldx, const float *panel, int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k += step) {
        const F first = load(panel + k * NR), second = load(panel + k * NR + W);
        for (int i = 0; i < R; ++i) {
            acc[i][0] = P::dot(acc[i][0], first, x + i * ldx + k);
            acc[i][1] = P::dot(acc[i][1], second, x + i * ldx + k);
        }
    }
}

// R rows of activations by one panel. c: sums so far [R][NR].
template <class P, int R>
ISOBIT_INLINE void tile(const float *x, int64_t ldx, const float *panel, int64_t depth, float *c, const SpanGroups &g) {
    typedef typename P::Acc Acc;
    Acc acc[R][2];
    if constexpr (P::WAYS > 1) {
        Acc first[R][2];
        for (int way = 0; way < P::WAYS; ++way) {
            for (int i = 0; i < R; ++i) acc[i][0] = acc[i][1] = Acc{};
            add_units<P, R, P::WAYS>(acc, x, ldx, panel, way, depth);
            for (int i = 0; i < R; ++i)
                for (int h = 0; h < 2; ++h) {
                    float *to = c + i * NR + h * W;
                    if (way + 1 < P::WAYS && P::grouped) first[i][h] = acc[i][h];
                    else if (!P::grouped) store(to, load(to) + acc[i][h]);
                    else store(to, load(to) + P::last(first[i][h] + acc[i][h], g.of_rows[i * ldx]) * load(g.scales + h * W));
                }
        }
    } else if constexpr (P::grouped) {
        const int64_t units = g.parts > 1 ? g.lanes * P::UNITS_OF_LANE : depth;
        for (int64_t p = 0; p < g.parts; ++p) {
            for (int i = 0; i < R; ++i) acc[i][0] = acc[i][1] = P::first(g.of_rows[i * ldx + p]);
            add_units<P, R>(acc, x, ldx, panel, p * units, (p + 1) * units);
            if (g.parts > 1) add_units<P, R>(acc, x, ldx, panel, W * P::UNITS_OF_LANE + p * units, W * P::UNITS_OF_LANE + (p + 1) * units);
            for (int i = 0; i < R; ++i)
                for (int h = 0; h < 2; ++h) {
                    float *to = c + i * NR + h * W;
                    store(to, multiply_add(P::last(acc[i][h], g.of_rows[i * ldx + p]), load(g.scales + p * NR + h * W), load(to)));
                }
        }
    } else {
        for (int i = 0; i < R; ++i) {
            __builtin_memcpy(&acc[i][0], c + i * NR, sizeof(Acc));
            __builtin_memcpy(&acc[i][1], c + i * NR + W, sizeof(Acc));
        }
        add_units<P, R>(acc, x, ldx, panel, 0, depth);
        for (int i = 0; i < R; ++i)
            for (int h = 0; h < 2; ++h) __builtin_memcpy(c + i * NR + h * W, &acc[i][h], sizeof(Acc));
    }
}

template <class P, int R>
inline void tile_rest(int64_t rows, const float *x, int64_t ldx, const float *panel, int64_t depth, float *c, const SpanGroups &g) {
    if constexpr (R > 0) {
        if (rows >= R) tile<P, R>(x, ldx, panel, depth, c, g);
        else tile_rest<P, R - 1>(rows, x, ldx, panel, depth, c, g);
    }
}

// What the sums of NR outputs begin with.
template <class P>
inline void begin_sums(const Layout &l, const uint8_t *rows, int64_t m, float *c) {
    if constexpr (std::is_same_v<P, Int8Panels>) {
        const int64_t at = P::units(l) * 4;
        for (int64_t i = 0; i < m; ++i) {
            int64_t shift;
            __builtin_memcpy(&shift, rows + i * l.row_size + at, 8);
            const I start = splat(static_cast<int32_t>(-shift));
            for (int j = 0; j < NR; j += W) __builtin_memcpy(c + i * NR + j, &start, sizeof start);
        }
    } else {
        __builtin_memset(c, 0, static_cast<size_t>(m * NR) * 4);
    }
}

template <class P>
inline void finish(const isobit_linear &w, const float *c, int64_t m, int64_t row, int64_t end, const Output &out) {
    const int count = static_cast<int>(smaller(NR, end - row));
    float scales[NR] = {}, bias[NR] = {};
    for (int n = 0; n < count; ++n) {
        if constexpr (P::scaled_sums) scales[n] = scale_at(w, w.block_rows ? (row + n) / w.block_rows : 0, row + n);
        else scales[n] = 1;
        bias[n] = out.bias(row + n);
    }
    for (int64_t i = 0; i < m; ++i) {
        const F act_scale = splat(out.act_scales ? out.act_scales[i] : 1);
        Loose *y = out.y + i * out.ldy + row;
        for (int n = 0; n < count; n += W) {
            F value = load(c + i * NR + n);
            if constexpr (std::is_same_v<P, Int8Panels>) value = to_floats(as_ints(value));
            value = rounded(value * load(scales + n) * act_scale) + load(bias + n);
            if (n + W <= count) store(y + n, value);
            else __builtin_memcpy(y + n, &value, static_cast<size_t>(count - n) * 4);
        }
    }
}

// scales[parts][NR]: those of NR rows and of the groups from `group` on; zeros behind the last group.
inline void put_scales(const isobit_linear &w, const Layout &l, int64_t row, int64_t end, int64_t group, int64_t parts, float *scales) {
    const auto scales_of = [&](int r) { return (w.block_rows ? smaller(row + r, end - 1) / w.block_rows : 0) * l.groups; };
    const bool shared = scales_of(0) == scales_of(NR - 1);
    for (int r = 0; r < (shared ? 1 : NR); ++r) {
        const int64_t at = scales_of(r);
        for (int64_t p = 0; p < parts; ++p) scales[p * NR + r] = group + p < l.groups ? scale_at(w, at + group + p, smaller(row + r, end - 1)) : 0;
    }
    if (!shared) return;
    for (int64_t p = 0; p < parts; ++p)
        for (int r = 0; r < NR; r += W) store(scales + p * NR + r, splat(scales[p * NR]));
}

template <class P>
void many_rows(const isobit_linear &w, const Layout &l, const void *rows, int64_t m, int64_t begin, int64_t end,
               const Output &out) {
    static thread_local Buffer storage;
    const uint8_t *laid = static_cast<const uint8_t *>(rows);
    const float *x = static_cast<const float *>(rows);
    const int64_t ldx = l.row_size / 4, units = P::units(l), depth = round_up(P::depth(l), W);
    const int64_t panel_size = depth * NR, c_size = m * NR, parts = P::grouped ? l.per_span : 1;
    float *panels = storage.floats(PANELS * (panel_size + c_size + parts * NR) + depth * W);
    float *c = panels + PANELS * panel_size, *square = c + PANELS * c_size, *scales = square + depth * W;
    ScaleReader reader(w, l, P::offset(), P::factor());
    for (int64_t row = begin; row < end; row += PANELS * NR) {
        const int count = static_cast<int>(smaller(PANELS, (end - row + NR - 1) / NR));
        for (int p = 0; p < count; ++p) begin_sums<P>(l, laid, m, c + p * c_size);
        for (int64_t unit = 0; unit < units; unit += depth) {
            const int64_t deep = smaller(depth, units - unit), group = unit / depth * parts;
            for (int p = 0; p < count; ++p) {
                pack<P>(w, l, reader, row + p * NR, end, unit, deep, panels + p * panel_size, square);
                if constexpr (P::grouped) put_scales(w, l, row + p * NR, end, group, parts, scales + p * parts * NR);
            }
            const int32_t *of_rows = reinterpret_cast<const int32_t *>(laid + units * 4) + group;
            for (int64_t at = 0; at < m; at += MR)
                for (int p = 0; p < count; ++p)
                    tile_rest<P, MR>(m - at, x + at * ldx + unit, ldx, panels + p * panel_size, deep, c + p * c_size + at * NR,
                                     {of_rows + at * ldx, scales + p * parts * NR, parts, l.lanes});
        }
        for (int p = 0; p < count; ++p) finish<P>(w, c + p * c_size, m, row + p * NR, end, out);
    }
}
