// Every format on every instruction set this machine has, against float64 from the same codes: linked with the library, needs
// nothing else, so that it also runs under an emulator: `make emulate`. Prints the instruction sets and the worst error of each.
//     linear_test ISAS      fails too if the library has others, e.g. "neon,portable"
#include <cmath>
#include <cstdio>
#include <sstream>
#include <string>
#include <vector>

#include "isobit_cpu.h"

namespace {

struct Case {
    const char *name;
    int32_t format, activations;
    int64_t group, block_rows, activation_group;
    int bits;
    float input_scale;
};

const Case CASES[] = {
    {"f32", ISOBIT_F32, ISOBIT_ACT_NONE, 0, 0, 0, 32, 0},
    {"bf16", ISOBIT_BF16, ISOBIT_ACT_NONE, 0, 0, 0, 16, 0},
    {"f16", ISOBIT_F16, ISOBIT_ACT_NONE, 0, 0, 0, 16, 0},
    {"e4m3", ISOBIT_E4M3FN, ISOBIT_ACT_NONE, 0, 1, 0, 8, 0},
    {"e4m3 by e4m3", ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 0, 1, 0, 8, 0},
    {"e4m3 by static e4m3", ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 0, 0, 0, 8, 0.01f},
    {"e4m3 by e4m3, blocks", ISOBIT_E4M3FN, ISOBIT_ACT_E4M3FN, 128, 128, 128, 8, 0},
    {"e5m2", ISOBIT_E5M2, ISOBIT_ACT_NONE, 0, 1, 0, 8, 0},
    {"e5m2 by e5m2", ISOBIT_E5M2, ISOBIT_ACT_E5M2, 0, 1, 0, 8, 0},
    {"int8", ISOBIT_INT8, ISOBIT_ACT_NONE, 0, 1, 0, 8, 0},
    {"int8 g64", ISOBIT_INT8, ISOBIT_ACT_NONE, 64, 1, 0, 8, 0},
    {"int8 by int8", ISOBIT_INT8, ISOBIT_ACT_INT8, 0, 1, 0, 8, 0},
    {"int4", ISOBIT_INT4, ISOBIT_ACT_NONE, 0, 1, 0, 4, 0},
    {"int4 g128", ISOBIT_INT4, ISOBIT_ACT_NONE, 128, 1, 0, 4, 0},
    {"int4 g32", ISOBIT_INT4, ISOBIT_ACT_NONE, 32, 1, 0, 4, 0},
    {"int4 g40", ISOBIT_INT4, ISOBIT_ACT_NONE, 40, 1, 0, 4, 0},
    {"int4 g16", ISOBIT_INT4, ISOBIT_ACT_NONE, 16, 1, 0, 4, 0},
    {"int4 g8", ISOBIT_INT4, ISOBIT_ACT_NONE, 8, 1, 0, 4, 0},
    {"int4 g128 by int8", ISOBIT_INT4, ISOBIT_ACT_INT8, 128, 1, 0, 4, 0},
    {"uint4 g128", ISOBIT_UINT4, ISOBIT_ACT_NONE, 128, 1, 0, 4, 0},
    {"uint4 g32", ISOBIT_UINT4, ISOBIT_ACT_NONE, 32, 1, 0, 4, 0},
    {"int3 g40", ISOBIT_INT3, ISOBIT_ACT_NONE, 40, 1, 0, 3, 0},
    {"int2 g32", ISOBIT_INT2, ISOBIT_ACT_NONE, 32, 1, 0, 2, 0},
};

uint32_t state = 1;
uint32_t next() { return state = state * 1664525u + 1013904223u; }
float uniform() { return static_cast<float>(static_cast<int32_t>(next())) / 2147483648.0f; }

// Value of a sign-exponent-mantissa code.
double small_float(uint32_t code, int exponent_bits, int mantissa_bits) {
    const int exponent = static_cast<int>(code >> mantissa_bits & ((1u << exponent_bits) - 1)), bias = (1 << (exponent_bits - 1)) - 1;
    const int mantissa = static_cast<int>(code & ((1u << mantissa_bits) - 1)), hidden = exponent ? 1 << mantissa_bits : 0;
    const double size = std::ldexp(mantissa + hidden, (exponent ? exponent : 1) - bias - mantissa_bits);
    return code >> (exponent_bits + mantissa_bits) & 1 ? -size : size;
}

uint32_t code_at(const uint8_t *row, int64_t k, int bits) {
    uint32_t code = 0;
    for (int bit = 0; bit < bits; ++bit) {
        const int64_t at = k * bits + bit;
        code |= static_cast<uint32_t>(row[at / 8] >> at % 8 & 1) << bit;
    }
    return code;
}

double value_of(int32_t format, uint32_t code, int zero) {
    switch (format) {
        case ISOBIT_F32: return small_float(code, 8, 23);
        case ISOBIT_BF16: return small_float(code, 8, 7);
        case ISOBIT_F16: return small_float(code, 5, 10);
        case ISOBIT_E4M3FN: return small_float(code, 4, 3);
        case ISOBIT_E5M2: return small_float(code, 5, 2);
        case ISOBIT_INT8: return static_cast<int8_t>(code);
        case ISOBIT_INT4: return static_cast<int>(code) - 8;
        case ISOBIT_UINT4: return static_cast<int>(code) - zero;
        case ISOBIT_INT3: return static_cast<int>(code) - 4;
        default: return static_cast<int>(code) - 2;
    }
}

double activation_value(int32_t activations, uint8_t code) {
    return value_of(activations == ISOBIT_ACT_INT8 ? ISOBIT_INT8 : activations == ISOBIT_ACT_E5M2 ? ISOBIT_E5M2 : ISOBIT_E4M3FN, code, 0);
}

// All bytes but NaN and infinities; wider floats of moderate size.
void fill(const Case &c, std::vector<uint8_t> &codes) {
    for (auto &byte : codes) {
        byte = static_cast<uint8_t>(next() >> 24);
        if (c.format == ISOBIT_E4M3FN && (byte & 0x7f) == 0x7f) byte ^= 1;
        if (c.format == ISOBIT_E5M2 && (byte & 0x7c) == 0x7c) byte ^= 4;
    }
    const size_t size = static_cast<size_t>(c.bits / 8);
    if (c.bits > 8)
        for (size_t i = size - 1; i < codes.size(); i += size) codes[i] = static_cast<uint8_t>(0x3c | (codes[i] & 0x81));
}

// What the law rounds x to: of all codes the nearest, of two the even one. By search, which shares nothing with the kernels.
uint8_t rounded(int32_t activations, float x, float scale) {
    const float q = x / scale;
    const int limit = activations == ISOBIT_ACT_E4M3FN ? 0x7e : activations == ISOBIT_ACT_E5M2 ? 0x7b : 127;
    int best = 0;
    for (int code = 1; code <= limit; ++code) {
        const double now = std::fabs(std::fabs(static_cast<double>(q)) - activation_value(activations, static_cast<uint8_t>(code)));
        const double before = std::fabs(std::fabs(static_cast<double>(q)) - activation_value(activations, static_cast<uint8_t>(best)));
        if (now < before || (now == before && code % 2 == 0)) best = code;
    }
    if (activations == ISOBIT_ACT_INT8) return static_cast<uint8_t>(q < 0 ? -best : best);
    return static_cast<uint8_t>(best | (std::signbit(q) ? 0x80 : 0));
}

// Error relative to what sums of such products come to (a single sum may be near zero by chance); above 1 if the call or its
// rounding is wrong.
double run(const Case &c, int64_t n, int64_t k, int64_t m) {
    const int64_t row_bytes = (k * c.bits + 7) / 8, groups = c.group ? (k + c.group - 1) / c.group : 1;
    const int64_t scale_rows = c.block_rows ? (n + c.block_rows - 1) / c.block_rows : 1;
    std::vector<uint8_t> codes(static_cast<size_t>(n * row_bytes)), zeros(static_cast<size_t>(scale_rows * groups));
    std::vector<uint16_t> scales(zeros.size());
    fill(c, codes);
    for (auto &zero : zeros) zero = static_cast<uint8_t>(next() >> 28);
    for (auto &scale : scales) scale = static_cast<uint16_t>(0x3c00 | next() >> 25);  // bfloat16 from 2^-7 on
    std::vector<float> x(static_cast<size_t>(m * k)), y(static_cast<size_t>(m * n)), bias(static_cast<size_t>(n));
    for (auto &value : x) value = uniform();
    for (auto &value : bias) value = uniform();
    isobit_linear w{};
    w.n = n, w.k = k, w.format = c.format, w.activations = c.activations, w.activation_group = static_cast<int32_t>(c.activation_group);
    w.input_scale = c.input_scale, w.group = c.group, w.block_rows = c.block_rows, w.row_bytes = row_bytes;
    w.scale_format = ISOBIT_BF16, w.codes = codes.data(), w.scales = c.bits <= 8 ? scales.data() : nullptr;
    w.zeros = c.format == ISOBIT_UINT4 ? zeros.data() : nullptr, w.bias = bias.data();
    if (isobit_cpu_linear(&w, x.data(), m, k, y.data(), n)) return std::printf("refused: %s\n", isobit_cpu_error()), 4;
    std::vector<double> values(x.begin(), x.end());
    if (c.activations) {
        const int64_t group = c.activation_group ? c.activation_group : k, shared = (k + group - 1) / group;
        std::vector<uint8_t> q(x.size());
        std::vector<float> s(static_cast<size_t>(m * shared));
        if (isobit_cpu_quantize(c.activations, c.activation_group, c.input_scale, x.data(), m, k, q.data(), s.data())) return 3;
        for (int64_t i = 0; i < m * k; ++i) {
            const size_t at = static_cast<size_t>(i);
            const float scale = s[static_cast<size_t>(i / k * shared + i % k / group)];
            if (q[at] != rounded(c.activations, x[at], scale)) return 2;
            values[at] = activation_value(c.activations, q[at]) * static_cast<double>(scale);
        }
    }
    std::vector<double> weights(static_cast<size_t>(n * k));
    for (int64_t row = 0; row < n; ++row)
        for (int64_t i = 0; i < k; ++i) {
            const int64_t at = (c.block_rows ? row / c.block_rows * groups : 0) + (c.group ? i / c.group : 0);
            const double scale = w.scales ? small_float(scales[static_cast<size_t>(at)], 8, 7) : 1;
            const uint32_t code = code_at(codes.data() + row * row_bytes, i, c.bits);
            weights[static_cast<size_t>(row * k + i)] = value_of(c.format, code, zeros[static_cast<size_t>(at)]) * scale;
        }
    double difference = 0, size = 0;
    for (int64_t r = 0; r < m; ++r)
        for (int64_t row = 0; row < n; ++row) {
            double exact = bias[static_cast<size_t>(row)];
            size += exact * exact;
            for (int64_t i = 0; i < k; ++i) {
                const double product = values[static_cast<size_t>(r * k + i)] * weights[static_cast<size_t>(row * k + i)];
                exact += product, size += product * product;
            }
            const double wrong = y[static_cast<size_t>(r * n + row)] - exact;
            difference += wrong * wrong;
        }
    const double error = std::sqrt(difference / size);
    return std::isfinite(error) ? error : 5;
}

bool whole(const Case &c, int64_t k) {  // groups of packed codes are whole, those of rounded activations too
    return !c.group || (c.activation_group || c.bits < 8 ? k % c.group == 0 : true);
}

bool all(const char *isa) {
    constexpr double MOST = 3e-6;
    double worst = 0;
    const char *where = "";
    int runs = 0;
    for (const Case &c : CASES)
        for (int64_t n : {1, 19})
            for (int64_t k : {1, 31, 160, 384, 515}) {
                if (!whole(c, k)) continue;
                for (int64_t m : {1, 2, 3, 4, 5, 17, 33}) {
                    const double error = run(c, n, k, m);
                    ++runs;
                    if (error > MOST)
                        std::printf("%s: %s, %d x %d, %d rows: error %.3g\n", isa, c.name, static_cast<int>(n), static_cast<int>(k), static_cast<int>(m), error);
                    if (error > worst) worst = error, where = c.name;
                }
            }
    std::printf("%s: %d linears, largest error %.3g (%s)\n", isa, runs, worst, where);
    return worst <= MOST;
}

}  // namespace

int main(int count, char **arguments) {
    isobit_cpu_set_threads(2);
    const std::string isas = isobit_cpu_isas();
    std::printf("%s\n", isas.c_str());
    if (count > 1 && isas != arguments[1]) return std::printf("wanted %s\n", arguments[1]), 1;
    std::stringstream names(isas);
    bool good = true;
    for (std::string isa; std::getline(names, isa, ',');) good = !isobit_cpu_use_isa(isa.c_str()) && all(isa.c_str()) && good;
    return good ? 0 : 1;
}
