// The parts of a decoder layer beside its linears and its attention: checks, and the division of work among threads.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "isobit_cpu.h"
#include "layer.h"
#include "pool.h"

namespace isobit {
namespace {

const LayerIsa *const LAYERS[] = {
#ifdef ISOBIT_AVX512
    &avx512_layer,
#endif
#ifdef ISOBIT_AVX2
    &avx2_layer,
#endif
#ifdef ISOBIT_NEON
    &neon_layer,
#endif
    &portable_layer,
};

constexpr int64_t VALUES = 1 << 13;  // values a thread takes at a time: fewer are not worth waking it

}  // namespace

const LayerIsa &current_layer() {
    const char *name = isobit_cpu_isa();
    for (const LayerIsa *layer : LAYERS)
        if (!std::strcmp(layer->name, name)) return *layer;
    return portable_layer;
}

const char *problem_of_gate(int32_t activation, float limit, bool has_up) {
    if (activation < ISOBIT_SILU || activation > ISOBIT_RELU2) return "unknown activation of a gate";
    if (limit == 0) return nullptr;
    if (!(limit > 0) || !std::isfinite(limit)) return "the limit of a gate is not a positive number, nor 0 for none";
    return has_up && activation == ISOBIT_SILU ? nullptr : "a gate with a limit is one of SiLU, and multiplies";
}

const char *problem(const isobit_norm &norm) {
    if (norm.kind != ISOBIT_RMS && norm.kind != ISOBIT_LAYER) return "unknown kind of a norm";
    return nullptr;
}

}  // namespace isobit

using namespace isobit;

extern "C" {

#define ISOBIT_EXPORT __attribute__((visibility("default")))

ISOBIT_EXPORT int isobit_cpu_norm(const isobit_norm *norm, const float *x, const float *delta, float factor, int64_t rows, int64_t k,
                                  float *sum, float *y) {
    if (!x || rows < 0 || k < 1 || rows > LARGEST / k || !std::isfinite(factor)) return fail("an argument is out of range");
    if ((delta && !sum) || (y && (!norm || !norm->weight)) || (!y && !delta)) return fail("a null pointer");
    if (const char *why = y ? problem(*norm) : nullptr) return fail(why);
    const LayerIsa &isa = current_layer();
    return guarded([&] {
        parallel(rows, std::max<int64_t>(1, VALUES / k), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
                isa.norm(norm, x + row * k, delta ? delta + row * k : nullptr, factor, k, sum ? sum + row * k : nullptr,
                         y ? y + row * k : nullptr);
        });
        return 0;
    });
}

ISOBIT_EXPORT int isobit_cpu_gate(int32_t activation, float limit, const float *gate, const float *up, int64_t rows, int64_t k,
                                  int64_t ldx, float *y) {
    if (const char *why = problem_of_gate(activation, limit, up)) return fail(why);
    if (!gate || !y || rows < 0 || k < 1 || ldx < k || rows > LARGEST / ldx) return fail("an argument is out of range");
    const LayerIsa &isa = current_layer();
    return guarded([&] {
        parallel(rows, std::max<int64_t>(1, VALUES / k), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) isa.gate(activation, limit, gate + row * ldx, up ? up + row * ldx : nullptr, k, y + row * k);
        });
        return 0;
    });
}

ISOBIT_EXPORT int isobit_cpu_exp(const float *x, int64_t count, float *y) {
    if (!x || !y || count < 0) return fail("an argument is out of range");
    current_layer().exp(x, count, y);
    return 0;
}

}  // extern "C"
