// Few rows of rounded float activations by 8-bit floats, through pairs of bfloat16 (pairs.inc.h): half the instructions of
// decoding to float32, and half the bytes of activations.
//
// An instruction set that has this path defines in Int8::Pairs also
//   bool decodes(): whether this machine has what block() needs
//   block<exponent_bits>(const uint8_t *codes, F out[2]): 4 W codes as bfloat16
//   int source(int i): which of them the i-th is

template <class T, class = void>
struct DecodesPairs : std::false_type {};
template <class T>
struct DecodesPairs<T, std::void_t<decltype(&T::Pairs::decodes)>> : std::true_type {};

constexpr int64_t PAIR_BLOCK = 4 * W;  // codes

// Whether the product of few rows can go by pairs too. Groups must be whole blocks.
template <class Int8>
inline bool few_by_pairs(const isobit_linear &w) {
    if constexpr (DecodesPairs<Int8>::value) return by_pairs(w) && w.group % PAIR_BLOCK == 0 && Int8::Pairs::decodes();
    else return false;
}

// Behind the activations of a row stand the scales of its groups.
inline int64_t few_pairs_row_size(const isobit_linear &w, const Layout &l) { return 2 * round_up(w.k, PAIR_BLOCK) + 4 * l.groups; }

template <class Int8>
void arrange_few_pairs(const Layout &l, const Loose *values, int64_t k, const float *group_scales, void *out) {
    if constexpr (DecodesPairs<Int8>::value) {
        uint16_t *to = static_cast<uint16_t *>(out);
        for (int64_t at = 0; at < k; at += PAIR_BLOCK, to += PAIR_BLOCK) {
            float block[PAIR_BLOCK] = {};
            __builtin_memcpy(block, values + at, static_cast<size_t>(smaller(PAIR_BLOCK, k - at)) * 4);
            for (int i = 0; i < PAIR_BLOCK; ++i) to[i] = static_cast<uint16_t>(as_bits(block[Int8::Pairs::source(i)]) >> 16);
        }
        put_group_scales(l, group_scales, reinterpret_cast<Loose *>(to));
    }
}

// N rows of weights by M rows of activations. Sums are the same whatever N and M are.
template <class Pairs, int exponent_bits, int N, int M>
class PairTile {
  public:
    PairTile(const isobit_linear &w, const Layout &l, const uint8_t *codes, const RowScales *s, const uint8_t *x)
        : codes_(codes), row_bytes_(w.row_bytes), x_(x), row_size_(l.row_size), ahead_(ahead_of<N>(codes, w.row_bytes)) {
        const uint8_t *x_scales = x + 2 * round_up(w.k, PAIR_BLOCK);
        F total[N][M] = {};
        for (int64_t g = 0; g < l.groups; ++g) {
            Sums sums{};
            add(g * l.group, smaller((g + 1) * l.group, w.k), sums);
            unroll<N>([&](auto n) ISOBIT_LAMBDA {
                unroll<M>([&](auto m) ISOBIT_LAMBDA {
                    float scale = 1;  // one of all goes onto the sum
                    if (!l.one_scale) {
                        __builtin_memcpy(&scale, x_scales + m * row_size_ + 4 * g, 4);
                        scale *= s[n].scales[g];
                    }
                    total[n][m] += sums.of[n][m] * splat(scale);
                });
            });
        }
        for (int n = 0; n < N; ++n)
            for (int m = 0; m < M; ++m) {
                out[n][m] = sum(total[n][m]);
                if (!l.one_scale) continue;
                float scale;
                __builtin_memcpy(&scale, x_scales + m * row_size_, 4);
                out[n][m] *= s[n].one_scale * scale;
            }
    }

    float out[N][M];

  private:
    struct Sums { F of[N][M]; };

    ISOBIT_INLINE void block(const uint8_t *const (&from)[N], int64_t at, Sums &sums) const {
        F weights[N][2];
        unroll<N>([&](auto n) ISOBIT_LAMBDA { Pairs::template block<exponent_bits>(from[n], weights[n]); });
        unroll<M>([&](auto m) ISOBIT_LAMBDA {
            const float *x = reinterpret_cast<const float *>(x_ + m * row_size_ + 2 * at);
            unroll<2>([&](auto v) ISOBIT_LAMBDA {
                const F values = load(x + v * W);
                unroll<N>([&](auto n) ISOBIT_LAMBDA { sums.of[n][m] = Pairs::dot(sums.of[n][m], weights[n][v], values); });
            });
        });
    }

    // Adds the products of codes `at` to `end` - 1.
    ISOBIT_INLINE void add(int64_t at, int64_t end, Sums &into) const {
        Sums sums = into;
        const uint8_t *from[N];
        for (; at + PAIR_BLOCK <= end; at += PAIR_BLOCK) {
            prefetch_for<N>(ahead_, at, PAIR_BLOCK);
            unroll<N>([&](auto n) ISOBIT_LAMBDA { from[n] = codes_ + n * row_bytes_ + at; });
            block(from, at, sums);
        }
        if (at < end) {
            uint8_t copies[N][PAIR_BLOCK] = {};
            for (int n = 0; n < N; ++n) {
                __builtin_memcpy(copies[n], codes_ + n * row_bytes_ + at, static_cast<size_t>(end - at));
                from[n] = copies[n];
            }
            block(from, at, sums);
        }
        into = sums;
    }

    const uint8_t *codes_;
    int64_t row_bytes_;
    const uint8_t *x_;
    int64_t row_size_;
    const uint8_t *ahead_;
};

constexpr int PAIR_ROWS = 4;  // of weights at a time

template <class Pairs, int exponent_bits, int N>
inline void few_pairs_rows(const isobit_linear &w, const Layout &l, ScaleReader *readers, const uint8_t *x, int64_t m, int64_t row,
                           const Output &out) {
    RowScales s[N];
    for (int n = 0; n < N; ++n) s[n] = readers[n].read(row + n, 0, l.groups);
    int64_t at = 0;
    const auto put = [&](auto rows) {
        constexpr int M = rows;
        const PairTile<Pairs, exponent_bits, N, M> tile(w, l, codes_of(w, row), s, x + at * l.row_size);
        for (int i = 0; i < N; ++i)
            for (int j = 0; j < M; ++j) out.put(at + j, row + i, tile.out[i][j]);
        at += M;
    };
    while (m - at >= 4) put(std::integral_constant<int, 4>{});
    while (m - at >= 2) put(std::integral_constant<int, 2>{});
    if (m - at >= 1) put(std::integral_constant<int, 1>{});
}

template <class Pairs, int exponent_bits>
void few_pairs_of(const isobit_linear &w, const Layout &l, const uint8_t *x, const Output &out, int64_t m, int64_t begin, int64_t end) {
    ScaleReader readers[PAIR_ROWS] = {{w, l, 0, 1, 0}, {w, l, 0, 1, 1}, {w, l, 0, 1, 2}, {w, l, 0, 1, 3}};
    int64_t row = begin;
    for (; row + PAIR_ROWS <= end; row += PAIR_ROWS) few_pairs_rows<Pairs, exponent_bits, PAIR_ROWS>(w, l, readers, x, m, row, out);
    for (; row < end; ++row) few_pairs_rows<Pairs, exponent_bits, 1>(w, l, readers, x, m, row, out);
}

template <class Int8>
inline void few_pairs(const isobit_linear &w, const Layout &l, const void *rows, int64_t m, int64_t begin, int64_t end, const Output &out) {
    if constexpr (DecodesPairs<Int8>::value) {
        const uint8_t *x = static_cast<const uint8_t *>(rows);
        if (w.format == ISOBIT_E4M3FN) few_pairs_of<typename Int8::Pairs, 4>(w, l, x, out, m, begin, end);
        else few_pairs_of<typename Int8::Pairs, 5>(w, l, x, out, m, begin, end);
    }
}
