// Rows of weights: their scales and zero points as floats, and blocks of codes.

// Scales of 8 bits. A float32 with the bits of an e4m3 code in place is 2^120 too small.
ISOBIT_INLINE float from_e8m0(uint32_t code) { return from_bits(code ? code << 23 : 0x00400000u); }
ISOBIT_INLINE float from_e4m3(uint32_t code) { return from_bits((code & 0x80u) << 24 | (code & 0x7fu) << 20) * 0x1p120f; }

inline float stored_scale(const isobit_linear &w, int64_t at) {
    const uint8_t *const from = static_cast<const uint8_t *>(w.scales) + scale_bytes(w.scale_format) * at;
    if (w.scale_format == ISOBIT_E8M0) return from_e8m0(*from);
    if (w.scale_format == ISOBIT_E4M3FN) return from_e4m3(*from);
    if (w.scale_format == ISOBIT_F32) {
        float value;
        __builtin_memcpy(&value, from, 4);
        return value;
    }
    uint16_t half;
    __builtin_memcpy(&half, from, 2);
    return w.scale_format == ISOBIT_BF16 ? from_bf16(half) : from_f16(half);
}

// The number above the scales of a row.
inline float over_of(const isobit_linear &w, int64_t row) {
    const Loose *const all = w.over;
    return all[w.over_each ? row : 0];
}

ISOBIT_INLINE float under(int32_t rule, float scale, float over) {
    return rule == ISOBIT_ALONE ? scale : rule == ISOBIT_MULTIPLIES ? scale * over : scale / over;
}

// A function by itself, so that the compiler makes no load of `over` a part of a vector: where there is none, its address is none, and
// QEMU (7.2) reads lanes that a mask leaves out, which processors do not.
[[gnu::noinline]] float scale_under(const isobit_linear &w, float scale, int64_t row) {
    return under(w.over_rule, scale, over_of(w, row));
}

// The scale of a row at a place of the stored ones.
inline float scale_at(const isobit_linear &w, int64_t at, int64_t row) {
    const float scale = stored_scale(w, at);
    return w.over_rule ? scale_under(w, scale, row) : scale;
}

typedef uint16_t FourHalves __attribute__((vector_size(8)));
typedef uint32_t FourWords __attribute__((vector_size(16)));
typedef float FourFloats __attribute__((vector_size(16)));
typedef uint16_t EightHalves __attribute__((vector_size(16)));
typedef uint32_t EightWords __attribute__((vector_size(32)));
typedef float EightFloats __attribute__((vector_size(32)));

// Four or eight scales of bfloat16.
template <class Halves, class Words, class Floats>
ISOBIT_INLINE void put_bf16(const uint8_t *from, float factor, float *to) {
    Halves halves;
    __builtin_memcpy(&halves, from, sizeof halves);
    const Words words = __builtin_convertvector(halves, Words) << 16;
    const Floats scales = reinterpret_cast<Floats>(words) * factor;
    __builtin_memcpy(to, &scales, sizeof scales);
}

// Any number of them: a row's few scales are a sixth of what short rows take if they go one by one. The last vector takes some a second time.
inline void put_bf16_scales(const uint8_t *from, int64_t count, float factor, float *to) {
    const auto eight = [&](int64_t i) ISOBIT_LAMBDA { put_bf16<EightHalves, EightWords, EightFloats>(from + 2 * i, factor, to + i); };
    const auto four = [&](int64_t i) ISOBIT_LAMBDA { put_bf16<FourHalves, FourWords, FourFloats>(from + 2 * i, factor, to + i); };
    int64_t i = 0;
    if (count >= 8) {
        for (; i + 8 <= count; i += 8) eight(i);
        if (i < count) eight(count - 8);
    } else if (count >= 4) {
        four(0), four(count - 4);
    } else {
        for (; i < count; ++i) {
            uint16_t half;
            __builtin_memcpy(&half, from + 2 * i, 2);
            to[i] = from_bf16(half) * factor;
        }
    }
}

constexpr int64_t AHEAD_OF_SCALES = 1024;  // bytes: too few are read at a time for the hardware to follow them

// The scales of a row, with the decoder's factor in them, and its zero points. One number each if the row has one scale;
// else arrays with an entry for each group that blocks can reach, zeros behind the last group.
struct RowScales {
    float one_scale, one_zero;
    const float *scales, *zeros;
};

// Scales of e4m3fn a vector at a time. But for subnormals, what a code is under a number is what its mantissa is under it, times a power of
// two: the lowest three bits choose one of eight numbers, and the exponent is added. The bits are those of a quotient or product for each
// code, and one takes 8 of them for all.
class MantissaScales {
  public:
    static constexpr int CODES = 32;  // at a time

    // Another number above, or the first. factor: a power of two.
    void prepare(int32_t rule, float over, float factor) {
        if (prepared_ && over == over_) return;
        prepared_ = usable_ = true, over_ = over;
        float eight[8];
        for (int i = 0; i < 8; ++i) {
            const float plain = under(rule, 1 + 0.125f * static_cast<float>(i), over);
            eight[i] = plain * (factor * 0x1p-7f);
            usable_ &= moderate(plain) && moderate(eight[i]);
        }
        for (int lane = 0; lane < W; ++lane) table_[lane] = eight[lane % 8];
    }

    // The scales of CODES codes. False, and nothing is done, if one is subnormal, zero or negative, or the number above is very large or small.
    bool put(const uint8_t *codes, float *scales) const {
        uint64_t other = 0;
        for (int i = 0; i < CODES; i += 8) {
            uint64_t some;
            __builtin_memcpy(&some, codes + i, 8);
            other |= some | (some - 0x0808080808080808u);
        }
        if (!usable_ || other & 0x8080808080808080u) return false;
        for (int i = 0; i < CODES; i += W) {
            const I wide = bytes_at(codes + i);
            store(scales + i, as_floats(as_ints(of_eight(table_, wide)) + ((wide & splat(0x78)) << 20)));
        }
        return true;
    }

  private:
    // Every exponent of a code may be added, or taken away.
    static bool moderate(float value) {
        const uint32_t exponent = as_bits(value) >> 23 & 0xffu;
        return exponent > 16 && exponent < 238;
    }

    F table_{};
    float over_ = 0;
    bool prepared_ = false, usable_ = false;
};

class ScaleReader {
  public:
    // `which` of the readers of a thread that are in use at the same time, 0 to W - 1.
    ScaleReader(const isobit_linear &w, const Layout &l, float offset, float factor, int which = 0)
        : w_(w), l_(l), offset_(offset), factor_(factor), entries_(round_up(l.width / smaller(l.group, l.span) + W, W)) {
        if (l.one_scale) return;
        space_ = buffer(which).floats(2 * entries_);
        for (int64_t g = l.groups; g < entries_; ++g) space_[g] = space_[entries_ + g] = 0;
    }

    // The scales of a row; of its groups, those from `first` to `last` - 1.
    RowScales read(int64_t row, int64_t first, int64_t last) {
        if (!w_.scales) return {factor_, 0, nullptr, nullptr};
        const int64_t at = w_.block_rows ? row / w_.block_rows * l_.groups : 0;
        if (l_.one_scale) return {scale_at(w_, at, row) * factor_, zero_at(at), nullptr, nullptr};
        fill(at, first, smaller(last, l_.groups), row);
        return {0, 0, space_, space_ + entries_};
    }

  private:
    static Buffer &buffer(int which) {
        static thread_local Buffer kept[W];
        return kept[which];
    }

    float zero_at(int64_t at) const { return w_.zeros ? static_cast<float>(w_.zeros[at]) : offset_; }

    void fill(int64_t at, int64_t first, int64_t last, int64_t row) {
        if (at == at_ && first_ <= first && last <= last_) return;  // rows of a block share their scales
        at_ = at, first_ = first, last_ = last;
        float *scales = space_, *zeros = space_ + entries_;
        const uint8_t *const from = static_cast<const uint8_t *>(w_.scales) + scale_bytes(w_.scale_format) * at;
        const int64_t size = scale_bytes(w_.scale_format);
        for (int64_t byte = size * first; byte < size * last; byte += 64) __builtin_prefetch(from + byte + AHEAD_OF_SCALES, 0, 3);
        const float over = w_.over_rule ? over_of(w_, row) : 1;
        const auto put = [&](int64_t begin, int64_t end, auto value) ISOBIT_LAMBDA {
            const float factor = factor_;
            if (w_.over_rule == ISOBIT_ALONE)
                for (int64_t g = begin; g < end; ++g) scales[g] = value(from, g) * factor;
            else if (w_.over_rule == ISOBIT_MULTIPLIES)
                for (int64_t g = begin; g < end; ++g) scales[g] = value(from, g) * over * factor;
            else
                for (int64_t g = begin; g < end; ++g) scales[g] = value(from, g) / over * factor;
        };
        if (w_.scale_format == ISOBIT_BF16 && w_.over_rule == ISOBIT_ALONE) put_bf16_scales(from + 2 * first, last - first, factor_, scales + first);
        else if (w_.scale_format == ISOBIT_BF16)
            put(first, last, [](const uint8_t *p, int64_t g) ISOBIT_LAMBDA {
                uint16_t half;
                __builtin_memcpy(&half, p + 2 * g, 2);
                return from_bf16(half);
            });
        else if (w_.scale_format == ISOBIT_E8M0) put(first, last, [](const uint8_t *p, int64_t g) ISOBIT_LAMBDA { return from_e8m0(p[g]); });
        else if (w_.scale_format == ISOBIT_E4M3FN) {
            const auto plain = [](const uint8_t *p, int64_t g) ISOBIT_LAMBDA { return from_e4m3(p[g]); };
            int64_t g = first;
            if constexpr (HAS_OF_EIGHT) {
                mantissas_.prepare(w_.over_rule, over, factor_);
                for (constexpr int CODES = MantissaScales::CODES; g + CODES <= last; g += CODES)
                    if (!mantissas_.put(from + g, scales + g)) put(g, g + CODES, plain);
            }
            put(g, last, plain);
        } else for (int64_t g = first; g < last; ++g) scales[g] = scale_at(w_, at + g, row) * factor_;
        if (l_.shifted)
            for (int64_t g = first; g < last; ++g) zeros[g] = zero_at(at + g);
    }

    const isobit_linear &w_;
    const Layout &l_;
    float offset_, factor_;
    int64_t entries_, at_ = -1, first_ = 0, last_ = 0;  // what has been read: the groups of a row from first_ to last_ - 1
    float *space_ = nullptr;
    MantissaScales mantissas_;
};

// Readers of as many rows at a time.
template <int N>
struct ScaleReaders {
    ScaleReader all[N];

    ScaleReaders(const isobit_linear &w, const Layout &l, float offset, float factor)
        : ScaleReaders(w, l, offset, factor, std::make_integer_sequence<int, N>{}) {}

  private:
    template <int... which>
    ScaleReaders(const isobit_linear &w, const Layout &l, float offset, float factor, std::integer_sequence<int, which...>)
        : all{{w, l, offset, factor, which}...} {}
};

// What each lane of span `s` is multiplied with.
ISOBIT_INLINE F lanes_of(const float *values, int64_t s, int64_t per_span, int lanes) {
    return per_span == 1 ? splat(values[s]) : spread(values + s * per_span, lanes);
}

inline const uint8_t *codes_of(const isobit_linear &w, int64_t row) {
    return static_cast<const uint8_t *>(w.codes) + row * w.row_bytes;
}

// Where sums go: scaled by what the activations were divided by, with the bias.
struct Output {
    const isobit_linear &w;
    const float *act_scales;
    Loose *y;
    int64_t ldy;

    float bias(int64_t n) const {
        const Loose *const all = w.bias;
        return all ? all[n] : 0;
    }

    void put(int64_t m, int64_t n, float value) const {
        if (act_scales) value *= act_scales[m];
        y[m * ldy + n] = rounded(value) + bias(n);
    }
};
