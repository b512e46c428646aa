// Mixtures of experts: the choice of each token's experts, and what they give.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "grouped.h"
#include "isobit_cpu.h"
#include "layer.h"
#include "pool.h"

namespace isobit {

const char *problem(const isobit_experts &e, int64_t hidden) {
    for (const isobit_grouped *part : {&e.gate, &e.up, &e.down})
        if (const char *why = problem(*part)) return why;
    if (e.gate.experts != e.up.experts || e.down.experts != e.up.experts) return "gate, up and down are of different numbers of experts";
    if (e.gate.of.k != hidden || e.up.of.k != hidden || e.down.of.n != hidden) return "experts do not take and give the residual stream";
    if (e.gate.of.n != e.up.of.n || e.down.of.k != e.up.of.n) return "the linears of an expert do not fit each other";
    return problem_of_gate(e.activation, e.limit, true);
}

const char *problem(const isobit_router &r, int64_t hidden) {
    if (!r.weight) return "a null pointer";
    const int64_t experts = r.weight->n;
    float there;
    if (const char *why = problem(*r.weight, &there, 1, hidden, &there, experts)) return why;
    if (r.weight->k != hidden) return "a router does not take the residual stream";
    if (experts > std::numeric_limits<int32_t>::max()) return "sizes overflow";
    if (r.active < 1 || r.active > experts) return "a token goes to no more experts than there are, and to one at least";
    if (r.groups < 1 || experts % r.groups || r.active_groups < 1 || r.active_groups > r.groups) return "experts are not in such groups";
    if (r.active_groups * (experts / r.groups) < r.active) return "the groups that take part have fewer experts than a token goes to";
    if (r.scores < ISOBIT_SOFTMAX || r.scores > ISOBIT_SPARSEMIXER) return "unknown scores of a router";
    if (!std::isfinite(r.scale) || !(r.least_sum >= 0)) return "the scale of a router is not a number";
    if (r.scores == ISOBIT_SPARSEMIXER && !(r.tolerance >= 0)) return "the tolerance of a router is not a number";
    return nullptr;
}

namespace {

constexpr int64_t VALUES = 1 << 13;  // values a thread takes at a time: fewer are not worth waking it
constexpr int64_t HELD = 1 << 26;    // floats of what experts give that are held before they are added up: 256 MiB
constexpr int64_t KEPT = 1 << 20;    // of which so many are kept from one call to the next

// ---- the choice ----

void softmax(const LayerIsa &isa, float *values, int64_t count) {
    const float highest = *std::max_element(values, values + count);
    for (int64_t i = 0; i < count; ++i) values[i] -= highest;
    isa.exp(values, count, values);
    float total = 0;
    for (int64_t i = 0; i < count; ++i) total += values[i];
    for (int64_t i = 0; i < count; ++i) values[i] /= total;
}

// The best `count` of the values, the very best first; of equal ones the lower number. Takes them away.
void best_of(float *values, int64_t size, int64_t count, int32_t *found) {
    constexpr float TAKEN = -std::numeric_limits<float>::infinity();
    for (int64_t slot = 0; slot < count; ++slot) {
        int64_t best = -1;
        float most = TAKEN;
        for (int64_t i = 0; i < size; ++i)
            if (values[i] > most) most = values[i], best = i;
        while (best < 0 || (most == TAKEN && std::find(found, found + slot, static_cast<int32_t>(best)) != found + slot)) ++best;
        found[slot] = static_cast<int32_t>(best), values[best] = TAKEN;
    }
}

// The values of experts in groups that do not take part become minus infinity.
void keep_good_groups(const isobit_router &r, float *values, std::vector<float> &quality, std::vector<int32_t> &good) {
    const int64_t groups = r.groups, size = r.weight->n / groups;
    quality.resize(static_cast<size_t>(groups)), good.resize(static_cast<size_t>(r.active_groups));
    for (int64_t group = 0; group < groups; ++group) {
        const float *const of = values + group * size;
        float first = of[0], second = -std::numeric_limits<float>::infinity();
        for (int64_t i = 1; i < size; ++i) {
            second = std::max(second, std::min(first, of[i]));
            first = std::max(first, of[i]);
        }
        quality[static_cast<size_t>(group)] = r.best_two && size > 1 ? first + second : first;
    }
    best_of(quality.data(), groups, r.active_groups, good.data());
    for (int64_t group = 0; group < groups; ++group)
        if (std::find(good.begin(), good.end(), static_cast<int32_t>(group)) == good.end())
            std::fill_n(values + group * size, size, -std::numeric_limits<float>::infinity());
}

// SparseMixer's weights of the chosen experts `ids`, one after the other. `near`: memory, of as many floats as there are experts.
void mix_sparsely(const isobit_router &r, const LayerIsa &isa, const float *logits, const int32_t *ids, std::vector<float> &near, float *weights) {
    for (int64_t slot = 0; slot < r.active; ++slot) {
        const float own = logits[ids[slot]];
        int64_t count = 0;
        for (int64_t i = 0; i < r.weight->n; ++i) {
            if (std::find(ids, ids + slot, static_cast<int32_t>(i)) != ids + slot) continue;
            if ((own - logits[i]) / std::max(std::fabs(logits[i]), own) > r.tolerance) continue;  // 0 / 0 is not
            near[static_cast<size_t>(count++)] = logits[i] - own;
        }
        isa.exp(near.data(), count, near.data());
        float total = 0;
        for (int64_t i = 0; i < count; ++i) total += near[static_cast<size_t>(i)];
        weights[slot] = 1 / total;
    }
}

// One token: its logits become scores.
void choose(const isobit_router &r, const LayerIsa &isa, float *logits, int32_t *ids, Loose *weights) {
    static thread_local std::vector<float> choice, quality, chosen;
    static thread_local std::vector<int32_t> good;
    const int64_t experts = r.weight->n;
    if (r.scores == ISOBIT_SOFTMAX) softmax(isa, logits, experts);
    if (r.scores == ISOBIT_SIGMOID) {
        for (int64_t i = 0; i < experts; ++i) logits[i] = -logits[i];
        isa.exp(logits, experts, logits);
        for (int64_t i = 0; i < experts; ++i) logits[i] = 1 / (1 + logits[i]);
    }
    choice.assign(logits, logits + experts);
    if (const Loose *const correction = r.correction)
        for (int64_t i = 0; i < experts; ++i) choice[static_cast<size_t>(i)] += correction[i];
    if (r.groups > 1) keep_good_groups(r, choice.data(), quality, good);
    best_of(choice.data(), experts, r.active, ids);
    chosen.resize(static_cast<size_t>(r.active));
    for (int64_t i = 0; i < r.active; ++i) chosen[static_cast<size_t>(i)] = logits[ids[i]];
    if (r.scores == ISOBIT_SOFTMAX_BEHIND) softmax(isa, chosen.data(), r.active);
    if (r.scores == ISOBIT_SPARSEMIXER) mix_sparsely(r, isa, logits, ids, choice, chosen.data());
    float total = 0;
    for (const float weight : chosen) total += weight;
    const float by = r.renormalize ? std::max(total, r.least_sum) : 1;
    for (int64_t i = 0; i < r.active; ++i) weights[i] = chosen[static_cast<size_t>(i)] / by * r.scale;
}

// ---- what experts give ----

// Tokens by expert: pairs of a token and one of its slots, those of one expert together, in the order of tokens.
struct Visits {
    std::vector<Group> groups;
    std::vector<int32_t> token;  // [pairs]
    std::vector<int32_t> pair;   // [m, active]: which pair that is

    void find(const int32_t *ids, int64_t m, int64_t active, int64_t experts) {
        const int64_t pairs = m * active;
        std::vector<int64_t> next(static_cast<size_t>(experts + 1));
        for (int64_t i = 0; i < pairs; ++i) ++next[static_cast<size_t>(ids[i] + 1)];
        groups.clear(), token.resize(static_cast<size_t>(pairs)), pair.resize(static_cast<size_t>(pairs));
        for (int64_t expert = 0; expert < experts; ++expert) {
            const int64_t count = next[static_cast<size_t>(expert + 1)], first = next[static_cast<size_t>(expert)];
            if (count) groups.push_back({expert, first, count});
            next[static_cast<size_t>(expert + 1)] = first + count;
        }
        for (int64_t i = 0; i < pairs; ++i) {
            const int64_t at = next[static_cast<size_t>(ids[i])]++;
            token[static_cast<size_t>(at)] = static_cast<int32_t>(i / active), pair[static_cast<size_t>(i)] = static_cast<int32_t>(at);
        }
    }
};

struct Call {
    const isobit_experts &e;
    int64_t active, hidden, inner;
    const float *x;
    int64_t ldx;
    const int32_t *ids;
    const float *weights;
    float *y, *wanted;  // wanted: what goes into down, or NULL

    int64_t floats_of_pair() const { return 2 * inner + hidden + (e.on_input ? hidden : 0); }

    // Inputs of pairs, times their weights.
    Rows weighted(const Visits &v, int64_t m, float *to) const {
        const Loose *const by = weights;
        parallel(m, std::max<int64_t>(1, VALUES / hidden / active), [&](int64_t begin, int64_t end) {
            for (int64_t i = begin * active; i < end * active; ++i) {
                const Loose *const from = x + i / active * ldx;
                float *const row = to + int64_t{v.pair[static_cast<size_t>(i)]} * hidden;
                for (int64_t k = 0; k < hidden; ++k) row[k] = from[k] * by[i];
            }
        });
        return {to, hidden, nullptr, m * active};
    }

    void add_up(const Visits &v, int64_t m, const float *results) const {
        const Loose *const by = weights;
        parallel(m, std::max<int64_t>(1, VALUES / hidden / active), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                Loose *const to = y + row * hidden;
                for (int64_t slot = 0; slot < active; ++slot) {
                    const int64_t i = row * active + slot;
                    const float *const from = results + int64_t{v.pair[static_cast<size_t>(i)]} * hidden;
                    const float weight = e.on_input ? 1 : by[i];
                    if (slot) for (int64_t k = 0; k < hidden; ++k) to[k] += weight * from[k];
                    else for (int64_t k = 0; k < hidden; ++k) to[k] = weight * from[k];
                }
            }
        });
    }

    // `m` tokens; `memory`: for all pairs.
    void some(int64_t m, float *memory) const {
        static thread_local Visits v;
        v.find(ids, m, active, e.up.experts);
        const int64_t pairs = m * active, strides[] = {inner, inner};
        float *const gates = memory, *const ups = gates + pairs * inner, *const results = ups + pairs * inner;
        const Rows given = e.on_input ? weighted(v, m, results + pairs * hidden) : Rows{x, ldx, v.token.data(), m};
        const isobit_grouped *const in[] = {&e.gate, &e.up}, *const out[] = {&e.down};
        float *const both[] = {gates, ups};
        grouped(in, 2, v.groups, given, both, strides);
        const LayerIsa &isa = current_layer();
        parallel(pairs, std::max<int64_t>(1, VALUES / inner), [&](int64_t begin, int64_t end) {
            for (int64_t at = begin; at < end; ++at)
                isa.gate(e.activation, e.limit, gates + at * inner, ups + at * inner, inner, gates + at * inner);
        });
        if (wanted) std::memcpy(wanted, gates, static_cast<size_t>(pairs * inner) * 4);
        grouped(out, 1, v.groups, {gates, inner, nullptr, pairs}, &results, &hidden);
        add_up(v, m, results);
    }

    void run(int64_t m) {
        static thread_local Buffer kept;
        const int64_t of_token = floats_of_pair() * active, at_once = std::max<int64_t>(1, std::min(m, HELD / of_token));
        Buffer own;  // that of a long prompt is given back
        float *const memory = (at_once * of_token > KEPT ? own : kept).floats(at_once * of_token);
        for (int64_t left = m; left > 0; left -= at_once) {
            const int64_t now = std::min(at_once, left);
            some(now, memory);
            x += now * ldx, ids += now * active, weights += now * active, y += now * hidden;
            if (wanted) wanted += now * active * inner;
        }
    }
};

}  // namespace
}  // namespace isobit

using namespace isobit;

extern "C" {

#define ISOBIT_EXPORT __attribute__((visibility("default")))

ISOBIT_EXPORT int isobit_cpu_experts(const isobit_experts *e, const float *x, int64_t m, int64_t ldx, const int32_t *ids, const float *weights,
                                     int64_t active, float *y, float *inner) {
    if (!e || !x || !ids || !weights || !y) return fail("a null pointer");
    const int64_t hidden = e->down.of.n;
    if (const char *why = problem(*e, hidden)) return fail(why);
    if (m < 0 || active < 1 || active > e->up.experts || ldx < hidden || ldx > LARGEST) return fail("an argument is out of range");
    if (m > std::numeric_limits<int32_t>::max() / active || m > LARGEST / ldx || m > LARGEST / active / (2 * e->up.of.n + 2 * hidden))
        return fail("sizes overflow");
    for (int64_t i = 0; i < m * active; ++i)
        if (ids[i] < 0 || ids[i] >= e->up.experts) return fail("a token goes to an expert that is not there");
    return guarded([&] {
        Call{*e, active, hidden, e->up.of.n, x, ldx, ids, weights, y, inner}.run(m);
        return 0;
    });
}

ISOBIT_EXPORT int isobit_cpu_route(const isobit_router *r, const float *x, int64_t m, int64_t ldx, int32_t *ids, float *weights) {
    if (!r || !x || !ids || !weights || !r->weight) return fail("a null pointer");
    if (const char *why = problem(*r, r->weight->k)) return fail(why);
    const int64_t experts = r->weight->n;
    if (m < 0 || m > LARGEST / experts) return fail("an argument is out of range");
    return guarded([&] {
        static thread_local Buffer kept;
        float *const logits = kept.floats(m * experts);
        if (const int failed = isobit_cpu_linear(r->weight, x, m, ldx, logits, experts)) return failed;
        const LayerIsa &isa = current_layer();
        parallel(m, std::max<int64_t>(1, VALUES / experts), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) choose(*r, isa, logits + row * experts, ids + row * r->active, weights + row * r->active);
        });
        return 0;
    });
}

ISOBIT_EXPORT int isobit_cpu_gate_by(const float *x, const float *weight, int64_t rows, int64_t k, float *y, int64_t n) {
    if (!x || !weight || !y || rows < 0 || k < 1 || n < 1 || rows > LARGEST / n) return fail("an argument is out of range");
    isobit_linear gate{};
    gate.n = 1, gate.k = k, gate.format = ISOBIT_F32, gate.row_bytes = 4 * k, gate.alike = 1, gate.codes = weight;
    return guarded([&] {
        static thread_local Buffer kept;
        float *const by = kept.floats(rows);
        if (const int failed = isobit_cpu_linear(&gate, x, rows, k, by, 1)) return failed;
        for (int64_t row = 0; row < rows; ++row) by[row] = -by[row];
        current_layer().exp(by, rows, by);
        parallel(rows, std::max<int64_t>(1, VALUES / n), [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const float factor = 1 / (1 + by[row]);
                Loose *const to = y + row * n;
                for (int64_t i = 0; i < n; ++i) to[i] *= factor;
            }
        });
        return 0;
    });
}

}  // extern "C"
