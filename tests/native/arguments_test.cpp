// Arguments that no call can serve: each must be refused with a reason and leave what it was given alone. Options: isas.h.
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>

#include "attentions.h"
#include "isas.h"
#include "stacks.h"

using namespace test;

namespace {

constexpr int64_t LARGEST = std::numeric_limits<int64_t>::max(), HUGE_SIZE = int64_t{1} << 62;
constexpr float INF = std::numeric_limits<float>::infinity();

// A call must fail, and say why in words of its own, not in those of the failure before.
template <class Call>
bool refused(const char *what, Call call) {
    isobit_cpu_use_isa("none such");
    const std::string before = isobit_cpu_error();
    const auto status = call();
    if (static_cast<int64_t>(status) >= 0) return std::printf("%s: accepted\n", what), false;
    const std::string why = isobit_cpu_error();
    return (!why.empty() && why != before) || (std::printf("%s: no reason\n", what), false);
}

template <class Subject>
struct Spoiled {
    const char *what;
    void (*spoil)(Subject &);
};

// ---- linears ----

struct LinearCall {
    isobit_linear w;
    const float *x;
    int64_t m, ldx;
    float *y;
    int64_t ldy;
};

const Spoiled<LinearCall> LINEARS[] = {
    {"no such format", [](LinearCall &c) { c.w.format = 12; }},
    {"a format of scales", [](LinearCall &c) { c.w.format = ISOBIT_E8M0; }},
    {"groups of e2m1 that do not fill vectors", [](LinearCall &c) { c.w.format = ISOBIT_E2M1, c.w.activations = ISOBIT_ACT_NONE, c.w.group = 40; }},
    {"a negative format", [](LinearCall &c) { c.w.format = -1; }},
    {"n = 0", [](LinearCall &c) { c.w.n = 0; }},
    {"n < 0", [](LinearCall &c) { c.w.n = -3; }},
    {"k = 0", [](LinearCall &c) { c.w.k = 0; }},
    {"k < 0", [](LinearCall &c) { c.w.k = -128; }},
    {"huge n", [](LinearCall &c) { c.w.n = c.ldy = HUGE_SIZE; }},
    {"huge k", [](LinearCall &c) { c.w.k = c.ldx = HUGE_SIZE; }},
    {"largest k", [](LinearCall &c) { c.w.k = c.ldx = c.w.row_bytes = LARGEST; }},
    {"m < 0", [](LinearCall &c) { c.m = -1; }},
    {"huge m", [](LinearCall &c) { c.m = HUGE_SIZE; }},
    {"no codes", [](LinearCall &c) { c.w.codes = nullptr; }},
    {"no x", [](LinearCall &c) { c.x = nullptr; }},
    {"no y", [](LinearCall &c) { c.y = nullptr; }},
    {"short ldx", [](LinearCall &c) { c.ldx = c.w.k - 1; }},
    {"ldx < 0", [](LinearCall &c) { c.ldx = -c.w.k; }},
    {"largest ldx", [](LinearCall &c) { c.ldx = LARGEST; }},
    {"short ldy", [](LinearCall &c) { c.ldy = c.w.n - 1; }},
    {"largest ldy", [](LinearCall &c) { c.ldy = LARGEST; }},
    {"short row_bytes", [](LinearCall &c) { --c.w.row_bytes; }},
    {"row_bytes < 0", [](LinearCall &c) { c.w.row_bytes = -c.w.row_bytes; }},
    {"largest row_bytes", [](LinearCall &c) { c.w.row_bytes = LARGEST; }},
    {"group < 0", [](LinearCall &c) { c.w.group = -128; }},
    {"a group that ends inside of a byte", [](LinearCall &c) { c.w.group = 31; }},
    {"largest group", [](LinearCall &c) { c.w.group = LARGEST; }},
    {"largest even group", [](LinearCall &c) { c.w.group = LARGEST - 1; }},
    {"block_rows < 0", [](LinearCall &c) { c.w.block_rows = -1; }},
    {"no scales", [](LinearCall &c) { c.w.scales = nullptr; }},
    {"scales of no format", [](LinearCall &c) { c.w.scale_format = ISOBIT_INT8; }},
    {"zero points of a symmetric format", [](LinearCall &c) { c.w.zeros = static_cast<const uint8_t *>(c.w.codes); }},
    {"no zero points", [](LinearCall &c) { c.w.format = ISOBIT_UINT4; }},
    {"scales of bf16", [](LinearCall &c) { c.w.format = ISOBIT_BF16, c.w.row_bytes = 2 * c.w.k, c.w.group = 0; }},
    {"no such activations", [](LinearCall &c) { c.w.activations = 5; }},
    {"8-bit scales of rows", [](LinearCall &c) { c.w.scale_format = ISOBIT_E8M0, c.w.group = 0; }},
    {"8-bit scales of blocks", [](LinearCall &c) { c.w.scale_format = ISOBIT_E8M0, c.w.block_rows = 2; }},
    {"a rule and nothing above", [](LinearCall &c) { c.w.over_rule = ISOBIT_DIVIDES; }},
    {"something above and no rule", [](LinearCall &c) { c.w.over = c.x; }},
    {"no such rule", [](LinearCall &c) { c.w.over = c.x, c.w.over_rule = 3; }},
    {"something above the scales of rows", [](LinearCall &c) { c.w.over = c.x, c.w.over_rule = ISOBIT_DIVIDES, c.w.group = 0; }},
    {"no such scales of activations", [](LinearCall &c) { c.w.activation_group = 128, c.w.activation_scales = 3; }},
    {"few-bit scales of a token", [](LinearCall &c) { c.w.activation_scales = ISOBIT_SCALES_POWERS; }},
    {"few-bit scales of activations under nothing", [](LinearCall &c) { c.w.activation_group = 128, c.w.activation_scales = ISOBIT_SCALES_UNDER; }},
    {"negative activations", [](LinearCall &c) { c.w.activations = -1; }},
    {"rounded activations by bf16", [](LinearCall &c) {
         c.w.format = ISOBIT_BF16, c.w.row_bytes = 2 * c.w.k, c.w.scales = nullptr, c.w.group = 0, c.w.activations = ISOBIT_ACT_INT8;
     }},
    {"another group of activations", [](LinearCall &c) { c.w.activations = ISOBIT_ACT_INT8, c.w.activation_group = 64; }},
    {"activation_group < 0", [](LinearCall &c) { c.w.activations = ISOBIT_ACT_INT8, c.w.activation_group = -128; }},
    {"a negative static scale", [](LinearCall &c) { c.w.activations = ISOBIT_ACT_INT8, c.w.input_scale = -1; }},
    {"a static scale that is no number", [](LinearCall &c) { c.w.activations = ISOBIT_ACT_INT8, c.w.input_scale = NAN; }},
    {"an infinite static scale", [](LinearCall &c) { c.w.activations = ISOBIT_ACT_INT8, c.w.input_scale = INF; }},
    {"a static scale of groups", [](LinearCall &c) { c.w.activations = ISOBIT_ACT_INT8, c.w.activation_group = 128, c.w.input_scale = 1; }},
};

bool linears() {
    constexpr int64_t n = 6, k = 256, m = 3;
    const Linear l(case_of(ISOBIT_INT4, ISOBIT_ACT_INT8), n, k);  // the first int4 with groups of 128
    Values<float> x(m * k), y(m * n), before(m * n);
    fill(x), fill(y);
    std::memcpy(before.bytes(), y.bytes(), y.byte_count());
    bool good = true;
    for (const auto &wrong : LINEARS) {
        LinearCall c{l.w, x.data(), m, k, y.data(), n};
        wrong.spoil(c);
        good = refused(wrong.what, [&] { return isobit_cpu_linear(&c.w, c.x, c.m, c.ldx, c.y, c.ldy); }) && good;
        // The second of two: the first is not computed either.
        const isobit_linear *const both[] = {&l.w, &c.w};
        float *const to[] = {y.data(), c.y};
        const int64_t strides[] = {n, c.ldy};
        good = refused(wrong.what, [&] { return isobit_cpu_linears(both, 2, c.x, c.m, c.ldx, to, strides); }) && good;
        if (!y.same(before)) return std::printf("%s: something was written\n", wrong.what), false;
    }
    const isobit_linear *const missing[] = {&l.w, nullptr}, *const one[] = {&l.w};
    float *const to[] = {y.data(), y.data()};
    const int64_t strides[] = {n, n};
    good = refused("no linear", [&] { return isobit_cpu_linear(nullptr, x.data(), m, k, y.data(), n); }) && good;
    good = refused("no linears", [&] { return isobit_cpu_linears(nullptr, 1, x.data(), m, k, to, strides); }) && good;
    good = refused("a missing linear", [&] { return isobit_cpu_linears(missing, 2, x.data(), m, k, to, strides); }) && good;
    good = refused("no outputs", [&] { return isobit_cpu_linears(one, 1, x.data(), m, k, nullptr, strides); }) && good;
    good = refused("no strides", [&] { return isobit_cpu_linears(one, 1, x.data(), m, k, to, nullptr); }) && good;
    for (const int64_t count : {int64_t{0}, int64_t{-1}})
        good = refused("count of linears", [&] { return isobit_cpu_linears(one, count, x.data(), m, k, to, strides); }) && good;
    return good && y.same(before);
}

// ---- rounding, codes, reading, settings ----

bool quantize() {
    Values<float> x(6), scales(2);
    Values<uint8_t> codes(6);
    fill(x);
    struct Call {
        int32_t activations = ISOBIT_ACT_INT8, rule = ISOBIT_SCALES_FLOAT;
        int64_t group = 0;
        float scale = 0;
        const float *x;
        int64_t m = 2, k = 3;
        uint8_t *codes;
        float *scales;
    };
    static const Spoiled<Call> CALLS[] = {
        {"rounded to nothing", [](Call &c) { c.activations = ISOBIT_ACT_NONE; }},
        {"no such activations", [](Call &c) { c.activations = 5; }},
        {"no such scales", [](Call &c) { c.rule = 3, c.group = 3; }},
        {"few-bit scales of a token", [](Call &c) { c.rule = ISOBIT_SCALES_POWERS; }},
        {"few-bit scales under nothing", [](Call &c) { c.rule = ISOBIT_SCALES_UNDER, c.group = 3; }},
        {"no x", [](Call &c) { c.x = nullptr; }},
        {"no codes", [](Call &c) { c.codes = nullptr; }},
        {"no scales", [](Call &c) { c.scales = nullptr; }},
        {"m < 0", [](Call &c) { c.m = -1; }},
        {"k = 0", [](Call &c) { c.k = 0; }},
        {"huge m", [](Call &c) { c.m = HUGE_SIZE; }},
        {"group < 0", [](Call &c) { c.group = -1; }},
        {"scale < 0", [](Call &c) { c.scale = -1; }},
        {"a scale that is no number", [](Call &c) { c.scale = NAN; }},
    };
    bool good = true;
    for (const auto &wrong : CALLS) {
        Call c;
        c.x = x.data(), c.codes = codes.data(), c.scales = scales.data();
        wrong.spoil(c);
        good = refused(wrong.what, [&] { return isobit_cpu_quantize(c.activations, c.rule, c.group, c.scale, c.x, c.m, c.k, c.codes, c.scales); }) && good;
    }
    return good;
}

bool codes_and_bytes() {
    const Values<uint8_t> codes(64);
    const auto has_nan = [&](const char *what, int32_t format, const void *from, int64_t rows, int64_t row_bytes, int64_t k) {
        return refused(what, [&] { return isobit_cpu_has_nan(format, from, rows, row_bytes, k); });
    };
    bool good = has_nan("codes of int8", ISOBIT_INT8, codes.data(), 2, 32, 32);
    good = has_nan("no codes", ISOBIT_E4M3FN, nullptr, 2, 32, 32) && good;
    good = has_nan("rows < 0", ISOBIT_E4M3FN, codes.data(), -2, 32, 32) && good;
    good = has_nan("k = 0", ISOBIT_E4M3FN, codes.data(), 2, 32, 0) && good;
    good = has_nan("short rows", ISOBIT_E4M3FN, codes.data(), 2, 31, 32) && good;
    good = has_nan("huge rows", ISOBIT_E4M3FN, codes.data(), HUGE_SIZE, HUGE_SIZE, 32) && good;
    good = refused("no bytes to read", [] { return isobit_cpu_read(nullptr, 64); }) && good;
    return refused("fewer than no bytes", [&] { return isobit_cpu_read(codes.data(), -64); }) && good;
}

bool settings() {
    const std::string isa = isobit_cpu_isa();
    const int threads = isobit_cpu_threads();
    bool good = true;
    for (const int count : {0, -1, 4097}) good = refused("threads", [&] { return isobit_cpu_set_threads(count); }) && good;
    if (isobit_cpu_use_isa(nullptr) >= 0 || isobit_cpu_use_isa("") >= 0) return false;
    return good && isa == isobit_cpu_isa() && threads == isobit_cpu_threads();
}

// ---- the rest of a layer ----

bool norms_and_gates() {
    constexpr int64_t rows = 2, k = 5;
    Values<float> x(rows * k), delta(rows * k), weight(k), y(rows * k);
    const auto norm = [&](const char *what, const float *from, const float *add, const float *by, int64_t m, int64_t n, float *sum, float *to) {
        const isobit_norm of{by, nullptr, 1e-5f, ISOBIT_RMS};
        return refused(what, [&] { return isobit_cpu_norm(&of, from, add, 1, m, n, sum, to); });
    };
    const auto gate = [&](const char *what, const float *g, const float *u, int64_t m, int64_t n, int64_t ldx, float *to) {
        return refused(what, [&] { return isobit_cpu_gate(ISOBIT_SILU, 0, g, u, m, n, ldx, to); });
    };
    float *const a = x.data(), *const b = delta.data(), *const c = y.data();
    bool good = norm("norm of nothing", nullptr, b, weight.data(), rows, k, a, c);
    good = norm("no weight", a, b, nullptr, rows, k, a, c) && good;
    good = norm("nowhere for the sum", a, b, weight.data(), rows, k, nullptr, c) && good;
    good = norm("nothing to do", a, nullptr, weight.data(), rows, k, nullptr, nullptr) && good;
    good = norm("rows < 0", a, b, weight.data(), -1, k, a, c) && good;
    good = norm("k = 0", a, b, weight.data(), rows, 0, a, c) && good;
    good = norm("huge rows", a, b, weight.data(), HUGE_SIZE, k, a, c) && good;
    good = gate("no gate", nullptr, b, rows, k, k, c) && good;
    good = gate("no y", a, b, rows, k, k, nullptr) && good;
    good = gate("rows < 0", a, b, -1, k, k, c) && good;
    good = gate("k = 0", a, b, rows, 0, k, c) && good;
    good = gate("short rows", a, b, rows, k, k - 1, c) && good;
    good = gate("huge distance", a, b, rows, k, LARGEST, c) && good;
    for (const int32_t code : {-1, 4})
        good = refused("no such activation", [&] { return isobit_cpu_gate(code, 0, a, b, rows, k, k, c); }) && good;
    for (const float limit : {-1.0f, INF, static_cast<float>(NAN)})
        good = refused("no such limit", [&] { return isobit_cpu_gate(ISOBIT_SILU, limit, a, b, rows, k, k, c); }) && good;
    good = refused("a limit without up", [&] { return isobit_cpu_gate(ISOBIT_SILU, 7, a, nullptr, rows, k, k, c); }) && good;
    good = refused("a limit of another activation", [&] { return isobit_cpu_gate(ISOBIT_GELU, 7, a, b, rows, k, k, c); }) && good;
    const isobit_norm unknown{weight.data(), nullptr, 1e-5f, 2}, of{weight.data(), nullptr, 1e-5f, ISOBIT_LAYER};
    good = refused("no such norm", [&] { return isobit_cpu_norm(&unknown, a, b, 1, rows, k, a, c); }) && good;
    good = refused("no norm", [&] { return isobit_cpu_norm(nullptr, a, b, 1, rows, k, a, c); }) && good;
    good = refused("a factor that is no number", [&] { return isobit_cpu_norm(&of, a, b, NAN, rows, k, a, c); }) && good;
    good = refused("exp of nothing", [&] { return isobit_cpu_exp(nullptr, 5, c); }) && good;
    good = refused("exp to nowhere", [&] { return isobit_cpu_exp(a, 5, nullptr); }) && good;
    return refused("exp of fewer than none", [&] { return isobit_cpu_exp(a, -1, c); }) && good;
}

// An attention and what its sequences say: three new tokens behind four in each of two, blocks of seven.
struct AttentionCall {
    isobit_attention a;
    isobit_sequences &s = a.sequences;
    int32_t starts[3] = {0, 3, 6}, lengths[2] = {7, 7}, table[4] = {0, -1, 1, -1};
    int64_t slots[6] = {4, 5, 6, 11, 12, 13};

    explicit AttentionCall(const isobit_attention &of) : a(of) {
        s.starts = starts, s.lengths = lengths, s.table = table, s.table_stride = 2, s.slots = slots;
    }
};

const Spoiled<AttentionCall> ATTENTIONS[] = {
    {"no sequences", [](AttentionCall &c) { c.s.count = 0; }},
    {"fewer than no sequences", [](AttentionCall &c) { c.s.count = -1; }},
    {"huge number of sequences", [](AttentionCall &c) { c.s.count = HUGE_SIZE; }},
    {"no tokens", [](AttentionCall &c) { c.s.tokens = 0; }},
    {"more tokens than the sequences have", [](AttentionCall &c) { ++c.s.tokens; }},
    {"fewer tokens than the sequences have", [](AttentionCall &c) { --c.s.tokens; }},
    {"huge tokens", [](AttentionCall &c) { c.s.tokens = HUGE_SIZE; }},
    {"no starts", [](AttentionCall &c) { c.s.starts = nullptr; }},
    {"no lengths", [](AttentionCall &c) { c.s.lengths = nullptr; }},
    {"no table", [](AttentionCall &c) { c.s.table = nullptr; }},
    {"no slots", [](AttentionCall &c) { c.s.slots = nullptr; }},
    {"a table without columns", [](AttentionCall &c) { c.s.table_stride = 0; }},
    {"largest table", [](AttentionCall &c) { c.s.table_stride = LARGEST; }},
    {"blocks without tokens", [](AttentionCall &c) { c.s.block = 0; }},
    {"blocks < 0", [](AttentionCall &c) { c.s.blocks = -2; }},
    {"largest block", [](AttentionCall &c) { c.s.block = LARGEST; }},
    {"largest blocks", [](AttentionCall &c) { c.s.blocks = LARGEST; }},
    {"huge block and blocks", [](AttentionCall &c) { c.s.block = c.s.blocks = int64_t{1} << 34; }},
    {"a sequence before the first token", [](AttentionCall &c) { c.starts[0] = -1; }},
    {"a token of nobody", [](AttentionCall &c) { c.starts[0] = 1; }},
    {"a sequence that ends before it starts", [](AttentionCall &c) { c.starts[1] = 7; }},
    {"starts far away", [](AttentionCall &c) { c.starts[1] = std::numeric_limits<int32_t>::max(); }},
    {"starts < 0", [](AttentionCall &c) { c.starts[1] = std::numeric_limits<int32_t>::min(); }},
    {"fewer tokens than are new", [](AttentionCall &c) { c.lengths[1] = 2; }},
    {"length < 0", [](AttentionCall &c) { c.lengths[1] = -7; }},
    {"longer than its blocks", [](AttentionCall &c) { c.lengths[1] = 15; }},
    {"largest length", [](AttentionCall &c) { c.lengths[1] = std::numeric_limits<int32_t>::max(); }},
    {"blocks that keys do not fit into", [](AttentionCall &c) { c.lengths[1] = 8, c.table[3] = 0; }},
    {"a block beyond the cache", [](AttentionCall &c) { c.table[2] = 2, c.slots[3] = 18, c.slots[4] = 19, c.slots[5] = 20; }},
    {"a block in front of the cache", [](AttentionCall &c) { c.table[2] = -1, c.slots[3] = -3, c.slots[4] = -2, c.slots[5] = -1; }},
    {"a block of both", [](AttentionCall &c) { c.table[2] = 0, c.slots[3] = 4, c.slots[4] = 5, c.slots[5] = 6; }},
    {"a slot beyond the cache", [](AttentionCall &c) { c.slots[5] = 14; }},
    {"a slot in front of the cache", [](AttentionCall &c) { c.slots[3] = -2; }},
    {"largest slot", [](AttentionCall &c) { c.slots[0] = LARGEST; }},
    {"another's slot", [](AttentionCall &c) { c.slots[0] = 11; }},
    {"a token that is not stored", [](AttentionCall &c) { c.slots[2] = -1; }},
    {"padding that is stored", [](AttentionCall &c) { c.lengths[1] = 0; }},
    {"a scale that is no number", [](AttentionCall &c) { c.a.of.scale = NAN; }},
    {"softcap < 0", [](AttentionCall &c) { c.a.of.softcap = -1; }},
    {"a softcap that is no number", [](AttentionCall &c) { c.a.of.softcap = NAN; }},
    {"an infinite softcap", [](AttentionCall &c) { c.a.of.softcap = INF; }},
    {"heads = 0", [](AttentionCall &c) { c.a.heads = 0; }},
    {"kv_heads < 0", [](AttentionCall &c) { c.a.kv_heads = -2; }},
    {"heads that cannot be shared", [](AttentionCall &c) { c.a.heads = 3; }},
    {"no dimensions", [](AttentionCall &c) { c.a.dim = 0; }},
    {"odd dimensions", [](AttentionCall &c) { c.a.dim = 7; }},
    {"too many dimensions", [](AttentionCall &c) { c.a.dim = 514, c.a.ldq = c.a.ldk = c.a.ldv = c.a.ldo = 4096; }},
    {"window < 0", [](AttentionCall &c) { c.a.of.window = -1; }},
    {"huge heads", [](AttentionCall &c) { c.a.heads = HUGE_SIZE, c.a.ldq = c.a.ldo = LARGEST; }},
    {"huge kv_heads", [](AttentionCall &c) { c.a.heads = c.a.kv_heads = HUGE_SIZE; }},
    {"short ldq", [](AttentionCall &c) { --c.a.ldq; }},
    {"short ldk", [](AttentionCall &c) { --c.a.ldk; }},
    {"short ldv", [](AttentionCall &c) { --c.a.ldv; }},
    {"short ldo", [](AttentionCall &c) { --c.a.ldo; }},
    {"largest ldq", [](AttentionCall &c) { c.a.ldq = LARGEST; }},
    {"largest ldk", [](AttentionCall &c) { c.a.ldk = LARGEST; }},
    {"largest ldv", [](AttentionCall &c) { c.a.ldv = LARGEST; }},
    {"largest ldo", [](AttentionCall &c) { c.a.ldo = LARGEST; }},
    {"no q", [](AttentionCall &c) { c.a.q = nullptr; }},
    {"no k", [](AttentionCall &c) { c.a.k = nullptr; }},
    {"no v", [](AttentionCall &c) { c.a.v = nullptr; }},
    {"no cos", [](AttentionCall &c) { c.a.cos = nullptr; }},
    {"no sin", [](AttentionCall &c) { c.a.sin = nullptr; }},
    {"no keys", [](AttentionCall &c) { c.a.held.keys = nullptr; }},
    {"no values", [](AttentionCall &c) { c.a.held.values = nullptr; }},
    {"no out", [](AttentionCall &c) { c.a.out = nullptr; }},
    {"a norm of queries alone", [](AttentionCall &c) { c.a.of.k_norm = nullptr; }},
    {"a norm of keys alone", [](AttentionCall &c) { c.a.of.q_norm = nullptr; }},
    {"chunk < 0", [](AttentionCall &c) { c.a.of.chunk = -1; }},
    {"rotated < 0", [](AttentionCall &c) { c.a.of.rotated = -2; }},
    {"an odd number is rotated", [](AttentionCall &c) { c.a.of.rotated = 3; }},
    {"more is rotated than there is", [](AttentionCall &c) { c.a.of.rotated = 10; }},
    {"no such norm of queries", [](AttentionCall &c) { c.a.of.qk_norm = 4; }},
    {"weights of no norm", [](AttentionCall &c) { c.a.of.qk_norm = ISOBIT_QK_NONE; }},
    {"a norm without weights", [](AttentionCall &c) { c.a.of.q_norm = c.a.of.k_norm = nullptr; }},
};

bool attentions() {
    const Shape shape{2, 3, 4, 4, 2, 8, 0, 0, ISOBIT_QK_HEAD};
    const uint32_t seed = state();
    const Attention before(shape);
    state() = seed;
    const Attention t(shape);
    bool good = refused("no attention", [] { return isobit_cpu_attention(nullptr); });
    for (const auto &wrong : ATTENTIONS) {
        AttentionCall c(t.a);
        wrong.spoil(c);
        good = refused(wrong.what, [&] { return isobit_cpu_attention(&c.a); }) && good;
        if (!t.q.same(before.q) || !t.keys.same(before.keys) || !t.values.same(before.values) || !t.out.same(before.out))
            return std::printf("%s: something was written\n", wrong.what), false;
    }
    const AttentionCall right(t.a);
    return !isobit_cpu_attention(&right.a) && good;
}

// ---- whole layers ----

struct LayersCall {
    isobit_layer layers[2];
    int64_t count;
    isobit_step step;
    float *x;
    isobit_linear spare{};
    isobit_places spare_places{};
};

const Spoiled<LayersCall> LAYERS[] = {
    {"no layers", [](LayersCall &c) { c.count = 0; }},
    {"fewer than no layers", [](LayersCall &c) { c.count = -1; }},
    {"no x", [](LayersCall &c) { c.x = nullptr; }},
    {"no q", [](LayersCall &c) { c.layers[1].q = nullptr; }},
    {"no k", [](LayersCall &c) { c.layers[1].k = nullptr; }},
    {"no v", [](LayersCall &c) { c.layers[1].v = nullptr; }},
    {"no o", [](LayersCall &c) { c.layers[1].o = nullptr; }},
    {"a limit without a gate", [](LayersCall &c) { c.layers[0].gate = nullptr, c.layers[0].limit = 7; }},
    {"limit < 0", [](LayersCall &c) { c.layers[0].limit = -7; }},
    {"no up", [](LayersCall &c) { c.layers[1].up = nullptr; }},
    {"no down", [](LayersCall &c) { c.layers[1].down = nullptr; }},
    {"no such norm", [](LayersCall &c) { c.layers[1].before_attention.kind = 2; }},
    {"no such last norm", [](LayersCall &c) { c.layers[0].after_mlp.kind = -1; }},
    {"a factor that is no number", [](LayersCall &c) { c.layers[1].factor = NAN; }},
    {"positions < 0", [](LayersCall &c) { c.layers[1].places = -1; }},
    {"positions that are not there", [](LayersCall &c) { c.layers[1].places = c.step.kinds_of_places; }},
    {"positions of other heads", [](LayersCall &c) { c.layers[1].places = 0; }},
    {"no positions", [](LayersCall &c) { c.step.places = nullptr; }},
    {"positions of none", [](LayersCall &c) { c.step.kinds_of_places = 0; }},
    {"chunk < 0 in the last layer", [](LayersCall &c) { c.layers[1].of.chunk = -1; }},
    {"q of another input", [](LayersCall &c) { c.layers[0].q = c.layers[0].down; }},
    {"o of another output", [](LayersCall &c) { c.layers[1].o = c.layers[1].gate; }},
    {"down of another output", [](LayersCall &c) { c.layers[1].down = c.layers[1].up; }},
    {"up unlike gate", [](LayersCall &c) { c.layers[0].up = c.layers[1].up; }},
    {"k unlike v", [](LayersCall &c) { c.layers[0].k = c.layers[1].k; }},
    {"more heads than q has", [](LayersCall &c) { ++c.layers[0].heads; }},
    {"heads = 0", [](LayersCall &c) { c.layers[0].heads = 0; }},
    {"kv_heads < 0", [](LayersCall &c) { c.layers[0].kv_heads = -2; }},
    {"dim = 0", [](LayersCall &c) { c.layers[0].dim = 0; }},
    {"huge heads", [](LayersCall &c) { c.layers[0].heads = HUGE_SIZE + c.layers[0].heads; }},
    {"window < 0", [](LayersCall &c) { c.layers[0].of.window = -1; }},
    {"a norm of queries alone", [](LayersCall &c) { c.layers[0].of.k_norm = nullptr; }},
    {"window < 0 in the last layer", [](LayersCall &c) { c.layers[1].of.window = -1; }},
    {"unknown format in the last layer", [](LayersCall &c) { c.spare = *c.layers[1].down, c.spare.format = 99, c.layers[1].down = &c.spare; }},
    {"no codes in the last layer", [](LayersCall &c) { c.spare = *c.layers[1].up, c.spare.codes = nullptr, c.layers[1].up = &c.spare; }},
    {"no such activation", [](LayersCall &c) { c.layers[1].activation = 4; }},
    {"softcap < 0", [](LayersCall &c) { c.layers[1].of.softcap = -1; }},
    {"no sequences", [](LayersCall &c) { c.step.sequences.count = 0; }},
    {"tokens < 0", [](LayersCall &c) { c.step.sequences.tokens = -1; }},
    {"huge tokens", [](LayersCall &c) { c.step.sequences.tokens = int64_t{1} << 33; }},
    {"more tokens than there are", [](LayersCall &c) { ++c.step.sequences.tokens; }},
    {"a full cache", [](LayersCall &c) { c.step.sequences.block -= 2; }},
    {"no slots", [](LayersCall &c) { c.step.sequences.slots = nullptr; }},
    {"fewer blocks", [](LayersCall &c) { c.step.sequences.blocks = 0; }},
    {"cache_stride < 0", [](LayersCall &c) { c.step.cache_stride = -1; }},
    {"largest cache_stride", [](LayersCall &c) { c.step.cache_stride = LARGEST; }},
    {"no keys", [](LayersCall &c) { c.step.held.keys = nullptr; }},
    {"no values", [](LayersCall &c) { c.step.held.values = nullptr; }},
    {"no cos", [](LayersCall &c) { c.spare_places = c.step.places[0], c.spare_places.cos = nullptr, c.step.places = &c.spare_places; }},
    {"no sin", [](LayersCall &c) { c.spare_places = c.step.places[0], c.spare_places.sin = nullptr, c.step.places = &c.spare_places; }},
};

bool layers() {
    const Stack stack;
    const uint32_t seed = state();
    Run run(stack, 1, 2, 3, false);
    state() = seed;
    const Run before(stack, 1, 2, 3, false);
    bool good = refused("no layers", [&] { return isobit_cpu_layers(nullptr, 1, &run.step, run.x.data()); });
    good = refused("no step", [&] { return isobit_cpu_layers(stack.layers.data(), 1, nullptr, run.x.data()); }) && good;
    for (const auto &wrong : LAYERS) {
        LayersCall c{{stack.layers[0], stack.layers[1]}, 2, run.step, run.x.data(), {}, {}};
        wrong.spoil(c);
        good = refused(wrong.what, [&] { return isobit_cpu_layers(c.layers, c.count, &c.step, c.x); }) && good;
        if (!run.x.same(before.x) || !run.keys.same(before.keys) || !run.values.same(before.values))
            return std::printf("%s: something was written\n", wrong.what), false;
    }
    return good;
}

const Check CHECKS[] = {
    {"linears", linears},   {"rounding", quantize},         {"codes and bytes", codes_and_bytes}, {"settings", settings},
    {"attention", attentions}, {"norms and gates", norms_and_gates}, {"layers", layers},
};

}  // namespace

int main(int count, char **arguments) {
    return on_every_isa(count, arguments, [](const std::string &isa) { return run_all(isa, "bad arguments are refused", CHECKS); });
}
