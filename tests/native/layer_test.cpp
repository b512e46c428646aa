// What stands beside linears and attention in a decoder layer, on every instruction set against float64: norms, gated activations,
// exponentials; and whole layers, which must give the bits of the same calls made one after another. Options: isas.h.
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <vector>

#include "isas.h"
#include "stacks.h"

using namespace test;

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

bool norm_is_right(int32_t kind, bool biased, float times, int64_t rows, int64_t k, size_t shift) {
    constexpr float eps = 1e-5f;
    Values<float> x(rows * k, shift), delta(rows * k, shift ? shift + 1 : 0), weight(k, shift), bias(k, shift), sum(rows * k, shift), y(rows * k, shift);
    fill(x, 3), fill(delta), fill(weight), fill(bias);
    const isobit_norm norm{weight.data(), biased ? bias.data() : nullptr, eps, kind};
    if (isobit_cpu_norm(&norm, x.data(), delta.data(), times, rows, k, sum.data(), y.data())) return false;
    for (int64_t row = 0; row < rows; ++row) {
        double mean = 0, squares = 0;
        for (int64_t i = row * k; i < (row + 1) * k; ++i) {
            const volatile float added = delta[i] * times;
            if (sum[i] != x[i] + added) return false;
            if (kind == ISOBIT_LAYER) mean += sum[i] / static_cast<double>(k);
        }
        for (int64_t i = row * k; i < (row + 1) * k; ++i) squares += (sum[i] - mean) * (sum[i] - mean);
        const double factor = 1 / std::sqrt(squares / static_cast<double>(k) + eps);
        for (int64_t i = row * k; i < (row + 1) * k; ++i) {
            const double scaled = (sum[i] - mean) * factor * weight[i - row * k], exact = scaled + (biased ? bias[i - row * k] : 0);
            // What the mean takes away leaves the rounding of a whole row behind, and so does the bias.
            const double size = kind == ISOBIT_LAYER ? 1 + std::fabs(sum[i]) * factor : std::fabs(scaled);
            if (!(std::fabs(y[i] - exact) <= 1e-6 * (size + (biased ? std::fabs(exact) : 0)))) return false;
        }
    }
    // Only the sum; the sum in place of either; the norm of what is a sum already.
    Values<float> again(rows * k), only(rows * k);
    if (isobit_cpu_norm(nullptr, x.data(), delta.data(), times, rows, k, only.data(), nullptr) || !only.same(sum)) return false;
    if (isobit_cpu_norm(&norm, sum.data(), nullptr, 1, rows, k, nullptr, again.data()) || !again.same(y)) return false;
    if (isobit_cpu_norm(&norm, x.data(), delta.data(), times, rows, k, x.data(), again.data())) return false;
    if (!x.same(sum) || !again.same(y)) return false;
    for (int64_t i = 0; i < rows * k; ++i) x.put(i, only[i] - delta[i]);
    Values<float> back(rows * k);
    if (isobit_cpu_norm(nullptr, x.data(), delta.data(), times, rows, k, back.data(), nullptr)) return false;
    return !isobit_cpu_norm(nullptr, x.data(), delta.data(), times, rows, k, delta.data(), nullptr) && delta.same(back);
}

bool norms() {
    for (const int64_t k : {1, 2, 5, 15, 16, 33, 100, 1027, 20011})
        for (const int64_t rows : {0, 1, 3, 40}) {
            if (rows * k > 100000) continue;
            for (const size_t shift : {0, 1})
                for (const int32_t kind : {ISOBIT_RMS, ISOBIT_LAYER})
                    for (const bool biased : {false, true})
                        if (!norm_is_right(kind, biased, biased ? 0.22f : 1, rows, k, shift))
                            return std::printf("%d rows of %d, kind %d, bias %d\n", int(rows), int(k), int(kind), int(biased)), false;
        }
    return true;
}

// Zeros give zeros, a row with a NaN or an infinity gives no number where it should not, and the next row is itself.
bool norms_of_no_numbers() {
    constexpr int64_t k = 37;
    Values<float> x(3 * k), weight(k), y(3 * k);
    fill_with(x, 0), fill_with(weight, 2);
    x.put(k + 30, NAN);
    for (int64_t i = 0; i < k; ++i) x.put(2 * k + i, 1);
    const isobit_norm norm{weight.data(), nullptr, 1e-5f, ISOBIT_RMS};
    if (isobit_cpu_norm(&norm, x.data(), nullptr, 1, 3, k, nullptr, y.data())) return false;
    for (int64_t i = 0; i < k; ++i)
        if (y[i] != 0 || !std::isnan(y[k + i]) || std::fabs(y[2 * k + i] - 2) > 1e-4f) return false;
    return true;
}

double activated(int32_t activation, double x) {
    if (activation == ISOBIT_SILU) return x / (1 + std::exp(-x));
    if (activation == ISOBIT_RELU2) return x > 0 ? x * x : 0;
    if (activation == ISOBIT_GELU) return x * std::erfc(-x / std::sqrt(2.0)) / 2;
    const double u = std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
    return x / (1 + std::exp(-2 * u));
}

// An error of what goes into the exponential of GELU is one of the result that grows with it.
double most_wrong(int32_t activation, double x) {
    if (activation == ISOBIT_GELU) return 8e-7 + (x > 0 ? 0 : 2e-7 * x * x);
    return activation != ISOBIT_GELU_TANH || x > 0 ? 5e-7 : 5e-7 + 4e-7 * std::fabs(x + 0.044715 * x * x * x);
}

bool gate_is_right(int32_t activation, int64_t rows, int64_t k, int64_t gap, size_t shift) {
    const int64_t ldx = k + gap, size = rows ? (rows - 1) * ldx + k : 0;
    Values<float> gate(size, shift), up(size, shift ? shift + 1 : 0), y(rows * k, shift);
    for (int64_t i = 0; i < size; ++i) {
        const bool there = i % ldx < k;
        gate.put(i, there ? uniform() * (i % 3 ? 4 : 120) : NAN), up.put(i, there ? uniform() * 2 : NAN);
    }
    if (isobit_cpu_gate(activation, 0, gate.data(), up.data(), rows, k, ldx, y.data())) return false;
    Values<float> plain(rows * k, shift);
    if (isobit_cpu_gate(activation, 0, gate.data(), nullptr, rows, k, ldx, plain.data())) return false;
    for (int64_t i = 0; i < rows * k; ++i) {
        const double g = gate[i / k * ldx + i % k], u = up[i / k * ldx + i % k], exact = activated(activation, g) * u;
        // Below -88.7 the exponential leaves float32, and the result is zero instead of up to 3e-37 by `up`.
        if (!(std::fabs(y[i] - exact) <= most_wrong(activation, g) * std::fabs(exact) + 6e-37)) return std::printf("%g * %g: %g\n", g, u, double(y[i])), false;
        if (!(std::fabs(plain[i] * u - exact) <= most_wrong(activation, g) * std::fabs(exact) + 6e-37)) return std::puts("without up"), false;
    }
    if (gap) return true;
    return !isobit_cpu_gate(activation, 0, gate.data(), up.data(), rows, k, k, gate.data()) && !std::memcmp(gate.bytes(), y.bytes(), y.byte_count());
}

bool gates() {
    for (const int64_t k : {1, 3, 16, 31, 100, 1025})
        for (const int64_t rows : {0, 1, 4, 30})
            for (const int64_t gap : {0, 3})
                for (const size_t shift : {0, 1})
                    for (const int32_t activation : {ISOBIT_SILU, ISOBIT_GELU_TANH, ISOBIT_GELU, ISOBIT_RELU2})
                        if (!gate_is_right(activation, rows, k, gap, shift))
                            return std::printf("activation %d, %d rows of %d\n", int(activation), int(rows), int(k)), false;
    return true;
}

// A gate with a limit, on both sides of it.
bool limits() {
    constexpr float limit = 1.5f;
    for (const int64_t k : {1, 16, 37, 300}) {
        Values<float> gate(k), up(k), y(k);
        fill(gate, 4), fill(up, 4);
        if (isobit_cpu_gate(ISOBIT_SILU, limit, gate.data(), up.data(), 1, k, k, y.data())) return false;
        for (int64_t i = 0; i < k; ++i) {
            const double g = std::min(gate[i], limit), u = std::max(-limit, std::min(up[i], limit)), exact = (u + 1) * g / (1 + std::exp(-1.702 * g));
            if (!(std::fabs(y[i] - exact) <= 1e-6 * std::fabs(g))) return std::printf("%g, %g: %g\n", double(gate[i]), double(up[i]), double(y[i])), false;
        }
    }
    return true;
}

// Within one unit in the last place, subnormal results too; the same value wherever it stands.
bool exponentials() {
    std::vector<float> values = {0.0f, -0.0f, 1e-40f, -1e-40f, INF, -INF, NAN, 88.7228f, 88.7229f, 89.0f, 1e30f, -1e30f, -103.9f, -104.1f};
    for (float x = -106; x < 90; x += 0.0137f * static_cast<float>(every())) values.push_back(x);
    while (values.size() % 64 != 61) values.push_back(uniform() * 80);
    const int64_t count = static_cast<int64_t>(values.size());
    Values<float> x(count, 1), y(count, 1), one(1);
    for (int64_t i = 0; i < count; ++i) x.put(i, values[static_cast<size_t>(i)]);
    if (isobit_cpu_exp(x.data(), count, y.data())) return false;
    for (int64_t i = 0; i < count; ++i) {
        const float exact = static_cast<float>(std::exp(static_cast<double>(x[i])));
        const bool good = std::isnan(exact) ? std::isnan(y[i])
                                            : y[i] == exact || y[i] == std::nextafter(exact, INF) || y[i] == std::nextafter(exact, -1.0f);
        if (!good || y[i] < 0) return std::printf("exp(%.9g) = %.9g\n", double(x[i]), double(y[i])), false;
        if (isobit_cpu_exp(x.data() + i, 1, one.data()) || std::memcmp(one.bytes(), y.bytes() + 4 * i, 4)) return std::puts("alone"), false;
    }
    return true;
}

bool same_as_by_hand(const Stack &stack, int64_t batch, int64_t tokens, int64_t past, bool shared_cache) {
    const uint32_t seed = state();
    Run by_hand(stack, batch, tokens, past, shared_cache);
    if (!by_hand.call_by_call()) return std::puts("by hand"), false;
    for (const int threads : {1, 2, 5}) {
        state() = seed;
        Run at_once(stack, batch, tokens, past, shared_cache);
        isobit_cpu_set_threads(threads);
        const int failed = isobit_cpu_layers(stack.layers.data(), static_cast<int64_t>(stack.layers.size()), &at_once.step, at_once.x.data());
        isobit_cpu_set_threads(2);
        if (failed || !at_once.x.same(by_hand.x) || !at_once.keys.same(by_hand.keys) || !at_once.values.same(by_hand.values)) return false;
    }
    for (int64_t i = 0; i < by_hand.x.size(); ++i)
        if (!std::isfinite(by_hand.x[i])) return std::puts("not finite"), false;
    return true;
}

bool layers() {
    const Stack stack;
    for (const int64_t batch : {1, 2})
        for (const int64_t tokens : {1, 3, 20})
            for (const int64_t past : {0, 70})
                for (const bool shared_cache : {false, true})
                    if (!same_as_by_hand(stack, batch, tokens, past, shared_cache))
                        return std::printf("batch %d, %d tokens behind %d\n", int(batch), int(tokens), int(past)), false;
    return true;
}

const Check CHECKS[] = {
    {"norms", norms}, {"norms of no numbers", norms_of_no_numbers}, {"gates", gates}, {"limits", limits}, {"exponentials", exponentials}, {"layers", layers},
};

}  // namespace

int main(int count, char **arguments) {
    return on_every_isa(count, arguments, [](const std::string &isa) { return run_all(isa, "norms, gates, exponentials, layers", CHECKS); });
}
