// Every format on every instruction set of this machine, against float64 from the same codes: linked with the library, needs
// nothing else, so that it also runs under an emulator and with sanitizers. Prints the instruction sets and the worst error of each.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "isas.h"
#include "linears.h"

using namespace test;

namespace {

constexpr double MOST = 3e-6;

// The code of the largest number.
int last_code(int32_t activations) {
    return activations == ISOBIT_ACT_E2M1 ? 7 : activations == ISOBIT_ACT_E4M3FN ? 0x7e : activations == ISOBIT_ACT_E5M2 ? 0x7b : 127;
}

// What the law rounds x to: of all codes the nearest, of two the even one. By search, which shares nothing with the kernels.
uint8_t rounded(int32_t activations, float x, float scale) {
    const float q = x / scale;
    const int limit = last_code(activations);
    const double size = std::min(std::fabs(static_cast<double>(q)), activation_value(activations, static_cast<uint8_t>(limit)));
    int best = 0;
    double before = size;
    for (int code = 1; code <= limit; ++code) {
        const double now = std::fabs(size - activation_value(activations, static_cast<uint8_t>(code)));
        if (now < before || (now == before && code % 2 == 0)) best = code, before = now;
    }
    if (activations == ISOBIT_ACT_INT8) return static_cast<uint8_t>(q < 0 ? -best : best);
    return static_cast<uint8_t>(best | (std::signbit(q) ? limit == 7 ? 0x08 : 0x80 : 0));
}

// The activations as they enter the product; of rounded ones each code is compared with the law. False if one is another.
bool activations_of(const Linear &l, const Values<float> &x, int64_t m, std::vector<double> &values) {
    const int64_t k = l.w.k, group = l.c.activation_group ? l.c.activation_group : k, shared = (k + group - 1) / group;
    for (int64_t i = 0; i < m * k; ++i) values.push_back(x[i]);
    if (!l.c.activations) return true;
    Values<uint8_t> q(m * k);
    Values<float> scales(m * shared);
    if (isobit_cpu_quantize(l.c.activations, l.c.activation_scales, l.c.activation_group, l.c.input_scale, x.data(), m, k, q.data(), scales.data())) return false;
    for (int64_t i = 0; i < m * k; ++i) {
        const float scale = scales[i / k * shared + i % k / group];
        if (i % every() == 0 && q[i] != rounded(l.c.activations, x[i], scale)) return false;
        values[static_cast<size_t>(i)] = activation_value(l.c.activations, q[i]) * static_cast<double>(scale);
    }
    return true;
}

// Error relative to what sums of such products come to (a single sum may be near zero by chance); above 1 if the call or its
// rounding is wrong.
double error_of(const Linear &l, const Values<float> &x) {
    const int64_t n = l.w.n, k = l.w.k, m = x.size() / k;
    Values<float> y(m * n);
    if (isobit_cpu_linear(&l.w, x.data(), m, k, y.data(), n)) return std::printf("refused: %s\n", isobit_cpu_error()), 4;
    std::vector<double> values, weights(static_cast<size_t>(k));
    if (!activations_of(l, x, m, values)) return 2;
    double difference = 0, size = 0;
    for (int64_t row = 0; row < n; ++row) {
        for (int64_t i = 0; i < k; ++i) weights[static_cast<size_t>(i)] = l.weight(row, i);
        for (int64_t r = (every() - row % every()) % every(); r < m; r += every()) {
            double exact = l.w.bias ? l.bias[row] : 0;
            size += exact * exact;
            for (int64_t i = 0; i < k; ++i) {
                const double product = values[static_cast<size_t>(r * k + i)] * weights[static_cast<size_t>(i)];
                exact += product, size += product * product;
            }
            const double wrong = y[r * n + row] - exact;
            difference += wrong * wrong;
        }
    }
    const double error = size ? std::sqrt(difference / size) : 0;
    return std::isfinite(error) ? error : 5;
}

bool errors(const std::string &isa) {
    double worst = 0;
    const char *where = "";
    int runs = 0;
    for (const Case &c : CASES)
        for (int64_t n : {1, 19})
            for (int64_t k : {1, 31, 160, 384, 512, 515}) {
                if (!fits(c, k) || (k == 512) != (c.group == 256)) continue;
                for (int64_t m : {1, 2, 3, 4, 5, 9, 17, 29, 65}) {
                    if (n == 1 && m % 4 != 1) continue;
                    const Linear l(c, n, k);
                    Values<float> x(m * k);
                    fill(x);
                    const double error = error_of(l, x);
                    ++runs;
                    if (error > MOST)
                        std::printf("%s: %s, %d x %d, %d rows: error %.3g\n", isa.c_str(), c.name, int(n), int(k), int(m), error);
                    if (error > worst) worst = error, where = c.name;
                }
            }
    std::printf("%s: %d linears, largest error %.3g (%s)\n", isa.c_str(), runs, worst, where);
    return worst <= MOST;
}

// Each of the 256 codes, subnormals too, at each place modulo 256, alone in its sum, which is then rounded once, with the scale.
bool all_codes() {
    for (const int32_t format : {ISOBIT_E4M3FN, ISOBIT_E5M2, ISOBIT_INT8}) {
        constexpr int64_t n = 256, k = 256;
        Linear l(case_of(format, ISOBIT_ACT_NONE), n, k);
        for (int64_t i = 0; i < n * k; ++i) {
            const uint8_t code = static_cast<uint8_t>(i % k + i / k);
            l.codes.put(i, is_number(format, code) ? code : 0);
        }
        l.w.bias = nullptr, l.w.block_rows = 0;
        Values<float> x(k * k), y(k * n);
        for (int64_t i = 0; i < k * k; ++i) x.put(i, i % k == i / k ? 1.0f : 0.0f);
        for (const int64_t m : {int64_t{1}, int64_t{3}, int64_t{16}, k}) {
            for (int64_t first = 0; first + m <= k; first += m)
                if (isobit_cpu_linear(&l.w, x.data() + first * k, m, k, y.data() + first * n, n)) return false;
            for (int64_t at = 0; at < k / m * m; ++at)
                for (int64_t row = 0; row < n; ++row)
                    if (y[at * n + row] != static_cast<float>(l.weight(row, at)))
                        return std::printf("%s: code %d\n", l.c.name, l.codes[row * k + at]), false;
        }
    }
    return true;
}

// Each scale of 8 bits at each place, powers of two from 2^-100 to 2^100: one activation is not zero, so that a sum is one product.
bool all_scales() {
    for (const char *name : {"mxfp4", "nvfp4", "nvfp4, multiplied"})
        for (const int64_t m : {1, 70}) {
            constexpr int64_t n = 19, k = 384;
            Linear l(case_named(name), n, k);
            const int least = l.scale_format == ISOBIT_E8M0 ? 27 : 0, numbers = l.scale_format == ISOBIT_E8M0 ? 201 : 127;
            for (int first = 0; first < numbers; ++first) {
                for (int64_t i = 0; i < l.scales.size(); ++i) l.scales.put(i, static_cast<uint8_t>(least + (first + i) % numbers));
                l.w.bias = nullptr;
                Values<float> x(m * k), y(m * n);
                for (int64_t i = 0; i < m * k; ++i) x.put(i, i % k == (i / k * 29 + first) % k ? 1.0f : 0.0f);
                if (isobit_cpu_linear(&l.w, x.data(), m, k, y.data(), n)) return false;
                for (int64_t at = 0; at < m; ++at)
                    for (int64_t row = 0; row < n; ++row) {
                        const double exact = l.weight(row, (at * 29 + first) % k);
                        if (y[at * n + row] != static_cast<float>(exact))
                            return std::printf("%s: %g, not %g\n", name, double(y[at * n + row]), exact), false;
                    }
            }
        }
    return true;
}

// Codes that are no numbers are found wherever they are, and only there: the gap between rows is full of them.
bool numbers_and_others() {
    for (const int32_t format : {ISOBIT_E4M3FN, ISOBIT_E5M2})
        for (const int64_t k : {1, 31, 64, 333}) {
            Linear l(case_of(format, ISOBIT_ACT_NONE), 5, k, 3);
            if (isobit_cpu_has_nan(format, l.codes.data(), 5, l.row_bytes, k) != 0) return false;
            for (int code = 0; code < 256; ++code) {
                const int64_t at = static_cast<int64_t>(next() >> 8) % (5 * k), place = at / k * l.row_bytes + at % k;
                const uint8_t before = l.codes[place];
                l.codes.put(place, static_cast<uint8_t>(code));
                if (isobit_cpu_has_nan(format, l.codes.data(), 5, l.row_bytes, k) != !is_number(format, static_cast<uint8_t>(code)))
                    return std::printf("%s: code %d at %d of %d\n", l.c.name, code, static_cast<int>(at), static_cast<int>(5 * k)), false;
                l.codes.put(place, before);
            }
        }
    return true;
}

// Rounding at all midpoints between codes and the float32 on either side, at zeros, subnormals and beyond the largest.
bool midpoints() {
    for (const int32_t activations : {ISOBIT_ACT_E4M3FN, ISOBIT_ACT_E5M2, ISOBIT_ACT_INT8, ISOBIT_ACT_E2M1}) {
        const int limit = last_code(activations);
        std::vector<float> values = {0.0f, 1e-45f, 1e-38f, 1e30f, 3.4e38f};
        for (int code = 0; code < limit; ++code) {
            const auto value = [&](int of) { return activation_value(activations, static_cast<uint8_t>(of)); };
            const float middle = static_cast<float>((value(code) + value(code + 1)) / 2);
            for (const float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)}) values.push_back(x);
        }
        const int64_t count = 2 * static_cast<int64_t>(values.size());
        Values<float> x(count), scale(1);
        for (int64_t i = 0; i < count; ++i) x.put(i, values[static_cast<size_t>(i / 2)] * (i % 2 ? -1.0f : 1.0f));
        Values<uint8_t> codes(count);
        if (isobit_cpu_quantize(activations, ISOBIT_SCALES_FLOAT, 0, 1.0f, x.data(), 1, count, codes.data(), scale.data())) return false;
        for (int64_t i = 0; i < count; ++i)
            if (codes[i] != rounded(activations, x[i], 1.0f)) return std::printf("%g becomes code %d\n", double(x[i]), codes[i]), false;
    }
    return true;
}

// A row with a NaN or an infinity gives NaN, codes 0 and scale NaN, and the other rows what they give alone.
bool rows_with_nan() {
    for (const Case &c : CASES)
        for (const int64_t m : {2, 5, 16, 17, 33}) {
            constexpr int64_t n = 9, k = 384;
            const Linear l(c, n, k);
            Values<float> x(m * k), y(m * n), without(m * n);
            fill(x);
            if (isobit_cpu_linear(&l.w, x.data(), m, k, without.data(), n)) return false;
            x.put((m / 2) * k + 77, m % 2 ? NAN : -INFINITY);
            if (isobit_cpu_linear(&l.w, x.data(), m, k, y.data(), n)) return false;
            for (int64_t i = 0; i < m * n; ++i) {
                const bool here = i / n == m / 2;
                // An infinity that meets a weight may stay one where activations are not rounded.
                if (here ? std::isfinite(y[i]) || (c.activations && !std::isnan(y[i])) : y[i] != without[i])
                    return std::printf("%s: %g beside NaN\n", c.name, double(y[i])), false;
            }
        }
    return true;
}

// Several linears in one call, and any number of threads, give the bits that each gives alone; no rows leave everything as it is.
bool together_and_apart() {
    constexpr int64_t k = 384, sizes[] = {150, 3, 40};
    for (size_t first = 0; first + 2 < std::size(CASES); ++first)
        for (const int64_t m : {0, 1, 3, 16, 17, 65}) {
            const Linear a(CASES[first], sizes[0], k), b(CASES[first], sizes[1], k), c(CASES[first + 2], sizes[2], k);
            const isobit_linear *const all[] = {&a.w, &b.w, &c.w};
            Values<float> x(m * k), alone[] = {Values<float>(m * 150), Values<float>(m * 3), Values<float>(m * 40)};
            fill(x);
            isobit_cpu_set_threads(1);
            for (int i = 0; i < 3; ++i)
                if (isobit_cpu_linear(all[i], x.data(), m, k, alone[i].data(), sizes[i])) return false;
            for (const int threads : {1, 2, 5}) {
                isobit_cpu_set_threads(threads);
                Values<float> y[] = {Values<float>(m * 150), Values<float>(m * 3), Values<float>(m * 40)};
                float *const to[] = {y[0].data(), y[1].data(), y[2].data()};
                if (isobit_cpu_linears(all, 3, x.data(), m, k, to, sizes)) return false;
                for (int i = 0; i < 3; ++i)
                    if (!y[i].same(alone[i])) return std::printf("%s: %d rows, %d threads\n", a.c.name, int(m), threads), false;
            }
            isobit_cpu_set_threads(2);
        }
    return true;
}

// A row gives the same bits alone and among any number of others where activations are rounded, so that what is rounded next does not
// depend on it. Without rounding, and where a block of int4 codes has several groups, that is promised for few rows only.
bool rows_alone() {
    constexpr int64_t n = 37;
    for (const Case &c : CASES)
        for (const int64_t k : {31, 384, 640, 1100}) {
            if (!fits(c, k)) continue;
            const int64_t most = !c.activations || c.format == ISOBIT_E2M1 ? 12 : c.bits == 4 && c.group < 128 ? 24 : 300;
            const Linear l(c, n, k);
            Values<float> x(101 * k), alone(101 * n), y(101 * n);
            fill(x);
            for (int64_t row = 0; row < std::min<int64_t>(most, 101); ++row)
                if (isobit_cpu_linear(&l.w, x.data() + row * k, 1, k, alone.data() + row * n, n)) return false;
            for (const int64_t m : {2, 3, 4, 5, 7, 8, 11, 12, 16, 17, 24, 25, 33, 40, 66, 101}) {
                if (m > most) continue;
                if (isobit_cpu_linear(&l.w, x.data(), m, k, y.data(), n)) return false;
                if (std::memcmp(y.data(), alone.data(), static_cast<size_t>(m * n) * 4))
                    return std::printf("%s: %d rows of %d are not what each is alone\n", c.name, int(m), int(k)), false;
            }
        }
    return true;
}

// CPUs with AVX-512 that lack its extensions: the same checks without BF16, and without VBMI the same bits.
bool without_parts(const std::string &isa) {
    constexpr int64_t n = 37, k = 1100, m = 45;
    if (isobit_cpu_use_isa((isa + "-vnni").c_str())) return true;
    bool good = rows_alone();
    for (const int32_t format : {ISOBIT_E4M3FN, ISOBIT_E5M2}) {
        const Linear l(case_of(format, format == ISOBIT_E4M3FN ? ISOBIT_ACT_E4M3FN : ISOBIT_ACT_E5M2), n, k);
        Values<float> x(m * k), y(m * n), wanted(m * n);
        fill(x);
        for (const int64_t rows : {int64_t{1}, int64_t{5}, m}) {
            good = !isobit_cpu_use_isa(isa.c_str()) && !isobit_cpu_linear(&l.w, x.data(), rows, k, wanted.data(), n) && good;
            good = !isobit_cpu_use_isa((isa + "-bf16").c_str()) && !isobit_cpu_linear(&l.w, x.data(), rows, k, y.data(), n) && good;
            if (std::memcmp(y.data(), wanted.data(), static_cast<size_t>(rows * n) * 4)) good = false, std::printf("%s: without VBMI\n", l.c.name);
        }
        isobit_cpu_use_isa((isa + "-vnni").c_str());
        good = error_of(l, x) <= MOST && good;
    }
    return !isobit_cpu_use_isa(isa.c_str()) && good;
}

// Activations of any size, and next to one that is a million times larger and meets a zero weight, count in full.
bool sizes_of_activations() {
    constexpr int64_t n = 5, k = 384, large = 200;
    for (const Case &c : CASES)
        for (const int64_t m : {1, 65}) {
            Linear l(c, n, k);
            l.w.bias = nullptr;
            Values<float> x(m * k);
            // Decoded 8-bit floats are far too small until the end (docs/numerics.md section 6): tinier products leave float32.
            const bool float8 = (!c.activations || c.activation_group) && (c.format == ISOBIT_E4M3FN || c.format == ISOBIT_E5M2);
            for (const float size : {float8 ? 1e-12f : 1e-25f, 1e20f}) {
                fill(x, size);
                if (!(error_of(l, x) <= MOST)) return std::printf("%s, %d rows of about %g\n", c.name, int(m), double(size)), false;
            }
            if (c.bits != 4 || c.activations) continue;
            for (int64_t row = 0; row < n; ++row) {
                const int64_t at = row * l.row_bytes + large / 2, scale = (c.block_rows ? row * l.groups : 0) + (c.group ? large / c.group : 0);
                const int zero = c.format == ISOBIT_UINT4 ? l.zeros[scale] : c.format == ISOBIT_E2M1 ? 0 : 8;
                l.codes.put(at, static_cast<uint8_t>((l.codes[at] & 0xf0) | zero));
            }
            fill(x);
            for (int64_t row = 0; row < m; ++row) x.put(row * k + large, 3e6f);
            if (!(error_of(l, x) <= MOST)) return std::printf("%s, %d rows with one large value\n", c.name, int(m)), false;
        }
    return true;
}

// Integer sums are exact however long a row is: the largest codes of one sign, which would leave 32 bits.
bool long_rows() {
    const Case &c = case_of(ISOBIT_INT8, ISOBIT_ACT_INT8);
    for (const int64_t k : {65537, 131072, 131073, 140003})
        for (const int64_t m : {1, 4, 17})
            for (const float sign : {1.0f, -1.0f}) {
                Linear l(c, 1, k);
                for (int64_t i = 0; i < k; ++i) l.codes.put(i, sign < 0 ? 0x7f : 0x80);
                l.w.bias = nullptr;
                Values<float> x(m * k), y(m);
                fill_with(x, sign);
                if (isobit_cpu_linear(&l.w, x.data(), m, k, y.data(), 1)) return false;
                const double exact = l.weight(0, 0) * static_cast<double>(k) * sign;
                for (int64_t i = 0; i < m; ++i)
                    if (!(std::fabs(y[i] - exact) <= 1e-6 * std::fabs(exact)))
                        return std::printf("%d codes, %d rows: %g, not %g\n", int(k), int(m), double(y[i]), exact), false;
            }
    return true;
}

// Activations that need the largest digits of all, by the largest int4 codes of either sign: what a lane adds up to stays below 2^31.
bool largest_digits() {
    constexpr float LARGEST = 127 * 65793.0f;
    for (const Case &c : CASES) {
        if (c.bits != 4 || c.activations) continue;
        for (const int64_t k : {128, 384, 512, 640})
            for (const uint8_t codes : {0x00, 0x08, 0x77, 0x7f, 0x80, 0xff}) {
                if (!fits(c, k) || (k == 512) != (c.group == 256)) continue;
                Linear l(c, 1, k);
                for (int64_t i = 0; i < l.codes.size(); ++i) l.codes.put(i, codes);
                l.w.bias = nullptr;
                for (const float sign : {1.0f, -1.0f}) {
                    constexpr int64_t most = 66;
                    Values<float> x(most * k), y(most);
                    double exact = 0, size = 0;
                    for (int64_t i = 0; i < most * k; ++i) x.put(i, i % k % 2 ? LARGEST : sign * LARGEST);
                    for (int64_t i = 0; i < k; ++i) {
                        const double product = x[i] * l.weight(0, i);
                        exact += product, size += std::fabs(product);
                    }
                    for (const int64_t m : {int64_t{1}, int64_t{13}, most}) {
                        if (isobit_cpu_linear(&l.w, x.data(), m, k, y.data(), 1)) return false;
                        for (int64_t row = 0; row < m; ++row)
                            if (!(std::fabs(y[row] - exact) <= (m == 1 ? 1 : 4) * MOST * size))  // float32 sums of one value all err alike
                                return std::printf("%s: %d codes %02x, %d rows: %g, not %g\n", c.name, int(k), codes, int(m), double(y[row]), exact), false;
                    }
                }
            }
    }
    return true;
}

// Rows with a value far above the others are no rows of digits. Rows of both kinds in one call give what they give where all are of theirs, in
// any order, and are as exact; all numbers of rows that a tile takes, outputs of more than one panel.
bool digits_and_others() {
    for (const Case &c : CASES) {
        if (c.bits != 4 || c.activations) continue;
        const int64_t n = 75, k = c.group == 256 ? 512 : c.group == 40 ? 520 : c.group ? 384 : 515;
        const Linear l(c, n, k);
        for (const int64_t m : {3, 7, 13, 14, 15, 17, 18, 19, 21, 22, 23, 24, 40, 80}) {
            if (every() > 1 && m > 13) continue;
            Values<float> even(m * k), uneven(m * k), mixed(m * k), y[] = {Values<float>(m * n), Values<float>(m * n), Values<float>(m * n)};
            fill(even);
            for (int64_t i = 0; i < m * k; ++i) {
                uneven.put(i, i % k % 96 == 5 ? 3e6f : even[i]);
                mixed.put(i, i / k % 3 == m % 3 ? uneven[i] : even[i]);
            }
            const Values<float> *const inputs[] = {&even, &uneven, &mixed};
            for (int i = 0; i < 3; ++i)
                if (isobit_cpu_linear(&l.w, inputs[i]->data(), m, k, y[i].data(), n)) return false;
            for (int64_t row = 0; row < m; ++row) {
                const bool other = row % 3 == m % 3;
                if (std::memcmp(y[2].bytes() + 4 * row * n, y[other].bytes() + 4 * row * n, static_cast<size_t>(4 * n)))
                    return std::printf("%s: row %d of %d depends on what is beside it\n", c.name, int(row), int(m)), false;
            }
            if (!(error_of(l, mixed) <= MOST)) return std::printf("%s: %d rows of both kinds\n", c.name, int(m)), false;
        }
    }
    return true;
}

const Check CHECKS[] = {
    {"all codes", all_codes},
    {"all scales", all_scales},
    {"codes that are no numbers", numbers_and_others},
    {"rounding at midpoints", midpoints},
    {"rows with NaN", rows_with_nan},
    {"sizes of activations", sizes_of_activations},
    {"long rows", long_rows},
    {"largest digits", largest_digits},
    {"rows of digits and others", digits_and_others},
    {"several linears, several threads", together_and_apart},
    {"rows alone", rows_alone},
};

}  // namespace

int main(int count, char **arguments) {
    return on_every_isa(count, arguments, [](const std::string &isa) { return errors(isa) && run_all(isa, "codes, rounding, NaN, several at once, alone", CHECKS) && without_parts(isa); });
}
