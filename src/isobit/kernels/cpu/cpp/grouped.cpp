// Linears of several experts in one call: rows are laid out once, those of one expert together, and the threads share the rows of weights
// of all, so that one token with a few experts is read at the speed of memory. A row gives the bits that its expert's linear gives alone.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <utility>

#include "grouped.h"
#include "layer.h"
#include "linears.h"
#include "pool.h"

namespace isobit {

const char *problem(const isobit_grouped &w) {
    const isobit_linear &of = w.of;
    float there;  // stands for activations and results, which are looked at elsewhere
    if (const char *why = problem(of, &there, 1, of.k, &there, of.n)) return why;
    if (w.experts < 1 || w.stride < of.n) return "sizes must be positive, and experts must not overlap";
    if (w.experts > LARGEST / of.k / w.stride || w.experts > FARTHEST / of.row_bytes / w.stride) return "sizes overflow";
    if (of.scales && (of.block_rows < 1 || w.stride % of.block_rows)) return "experts share scales";
    if (!w.input_scales) return nullptr;
    if (!(scaled_apart(of) || of.activation_scales == ISOBIT_SCALES_UNDER) || !of.input_scale) return "static scales of inputs belong to activations that have one";
    const Loose *const scales = w.input_scales;
    for (int64_t i = 0; i < w.experts; ++i)
        if (!(scales[i] > 0) || !std::isfinite(scales[i])) return "a static scale is one positive number";
    return nullptr;
}

isobit_linear linear_of(const isobit_grouped &w, int64_t expert) {
    isobit_linear one = w.of;
    one.codes = static_cast<const uint8_t *>(one.codes) + expert * w.stride * one.row_bytes;
    if (one.scales) {
        const int64_t at = expert * (w.stride / one.block_rows) * (one.group ? (one.k + one.group - 1) / one.group : 1);
        one.scales = static_cast<const uint8_t *>(one.scales) + at * scale_bytes(one.scale_format);
        if (one.zeros) one.zeros += at;
    }
    if (one.bias) one.bias += expert * one.n;
    if (one.over && one.over_each) one.over += expert * w.stride;
    if (w.input_scales) {
        const Loose *const scales = w.input_scales;
        one.input_scale = scales[expert];
    }
    return one;
}

namespace {

// How rows can be laid out.
enum Form { EVEN, UNEVEN, MANY, MANY_UNEVEN, FORMS };

// Rows of one expert that are laid out alike.
struct Run {
    int64_t expert, first, count;
    Form form;
    const uint8_t *laid;
};

// One call.
struct Work {
    const isobit_linear &w;
    const Isa &isa;
    Rows rows;
    Layout layouts[FORMS];
    std::vector<Run> runs;
    std::vector<int64_t> moved;  // where rows stood before those of a group that are laid out alike were brought together; empty: nowhere else

    Work(const isobit_linear &of, const Rows &given)
        : w(of), isa(isa_for(of)), rows(given),
          layouts{isa.layout(of, 1, true), isa.layout(of, 1, false), isa.layout(of, LARGEST, true), isa.layout(of, LARGEST, false)} {}

    const float *row(int64_t at) const { return rows.x + (rows.row ? rows.row[at] : at) * rows.ldx; }

    // Whether each of the rows of x can be written in digits; empty where none is.
    std::vector<uint8_t> find_even() const {
        if (layouts[EVEN].kind != Kind::DIGITS) return {};
        std::vector<uint8_t> found(static_cast<size_t>(rows.count));
        parallel(rows.count, 8, [&](int64_t begin, int64_t end) {
            for (int64_t at = begin; at < end; ++at) found[static_cast<size_t>(at)] = isa.even(layouts[EVEN], rows.x + at * rows.ldx, w.k);
        });
        return found;
    }

    // How a row is laid out depends on itself and on how many its expert takes, not on what the others hold.
    void find_runs(const std::vector<Group> &groups, int64_t total) {
        const std::vector<uint8_t> even = find_even();
        const auto is_even = [&](int64_t at) { return even.empty() || even[static_cast<size_t>(rows.row ? rows.row[at] : at)]; };
        std::vector<int64_t> order(static_cast<size_t>(total));
        std::iota(order.begin(), order.end(), 0);
        bool mixed = false;
        for (const Group &g : groups) {
            const bool many = isa.layout(w, g.count, true).many;
            int64_t digits = g.count;
            if (layouts[many ? MANY : EVEN].kind == Kind::DIGITS) {
                const auto first = order.begin() + g.first;
                digits = std::stable_partition(first, first + g.count, is_even) - first;
                mixed |= digits && digits < g.count;
            }
            if (digits) runs.push_back({g.expert, g.first, digits, many ? MANY : EVEN, nullptr});
            if (digits < g.count) runs.push_back({g.expert, g.first + digits, g.count - digits, isa.layout(w, g.count, false).many ? MANY_UNEVEN : UNEVEN, nullptr});
        }
        if (mixed) move(std::move(order));
    }

    int64_t size(const Run &run) const { return run.count * layouts[run.form].row_size; }

  private:
    void move(std::vector<int64_t> &&order) {
        sources_.reserve(order.size());
        for (const int64_t at : order) sources_.push_back(rows.row ? rows.row[at] : static_cast<int32_t>(at));
        rows.row = sources_.data();
        moved = std::move(order);
    }

    std::vector<int32_t> sources_;
};

// Rows that are each of one expert, or that experts round each in its own way: laid out where they are read.
void lay_out_each(Work &work, const isobit_grouped &w, int64_t total, Buffer &memory, float *scales) {
    int64_t bytes = 0;
    for (const Run &run : work.runs) bytes += work.size(run);
    uint8_t *next = static_cast<uint8_t *>(memory.room(bytes));
    std::vector<const Run *> of(static_cast<size_t>(total));
    for (Run &run : work.runs) {
        run.laid = next, next += work.size(run);
        std::fill_n(of.begin() + run.first, run.count, &run);
    }
    parallel(total, 8, [&](int64_t begin, int64_t end) {
        for (int64_t at = begin; at < end; ++at) {
            const Run &run = *of[static_cast<size_t>(at)];
            const Layout &l = work.layouts[run.form];
            uint8_t *const to = const_cast<uint8_t *>(run.laid) + (at - run.first) * l.row_size;
            lay_out_row(work.isa, w.input_scales ? linear_of(w, run.expert) : w.of, l, work.row(at), scales ? scales + at : nullptr, to);
        }
    });
}

// Rows that go to several experts: laid out once, and copied where an expert takes more than one.
void lay_out_shared(Work &work, Buffer &memory, float *scales) {
    const int64_t count = work.rows.count;
    std::vector<uint8_t> needed(static_cast<size_t>(count * FORMS));
    int64_t copied = 0, used[FORMS] = {}, starts[FORMS];
    for (const Run &run : work.runs) {
        for (int64_t at = run.first; at < run.first + run.count; ++at) needed[static_cast<size_t>(work.rows.row[at] * FORMS + run.form)] = 1;
        used[run.form] = work.layouts[run.form].row_size;
        if (run.count > 1) copied += work.size(run);
    }
    int64_t bytes = copied;
    for (int form = 0; form < FORMS; ++form) starts[form] = bytes, bytes += count * used[form];
    uint8_t *const all = static_cast<uint8_t *>(memory.room(bytes + (scales ? count * 4 : 0)));
    float *const row_scales = scales ? reinterpret_cast<float *>(all + bytes) : nullptr;
    const auto laid = [&](int64_t row, int form) { return all + starts[form] + row * used[form]; };
    parallel(count, 8, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            for (int form = 0; form < FORMS; ++form)
                if (needed[static_cast<size_t>(row * FORMS + form)])
                    lay_out_row(work.isa, work.w, work.layouts[form], work.rows.x + row * work.rows.ldx,
                                row_scales ? row_scales + row : nullptr, laid(row, form));
    });
    uint8_t *next = all;
    for (Run &run : work.runs) {
        run.laid = run.count > 1 ? next : laid(work.rows.row[run.first], run.form);
        if (run.count > 1) next += work.size(run);
    }
    parallel(static_cast<int64_t>(work.runs.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const Run &run = work.runs[static_cast<size_t>(i)];
            for (int64_t at = run.first; at < run.first + run.count; ++at) {
                const int64_t row = work.rows.row[at], size = used[run.form];
                if (run.count > 1) std::memcpy(const_cast<uint8_t *>(run.laid) + (at - run.first) * size, laid(row, run.form), static_cast<size_t>(size));
                if (scales) scales[at] = row_scales[row];
            }
        }
    });
}

struct Part {
    isobit_linear w;
    const Run *run;
    int64_t begin, end;
    float *y;
    int64_t ldy;
};

// What threads take: rows of weights of one expert, for all of its rows that are laid out alike; what takes longest comes first. `ends`: of the
// threads' shares; none where a part has many rows, and each thread takes the next one.
std::vector<Part> parts_of(const Work &work, const isobit_grouped *const *w, int64_t count, float *const *y, const int64_t *ldy, std::vector<int64_t> &ends) {
    std::vector<const Run *> order;
    for (const Run &run : work.runs) order.push_back(&run);
    std::stable_sort(order.begin(), order.end(), [](const Run *a, const Run *b) { return a->count > b->count; });
    const auto cost = [](const isobit_linear &of, const Run &run) { return of.row_bytes * ((run.count + 3) / 4); };
    int64_t bytes = 0;
    bool many = false;
    for (const Run *run : order) {
        many |= work.layouts[run->form].many;
        for (int64_t i = 0; i < count; ++i) bytes += w[i]->of.n * cost(w[i]->of, *run);
    }
    Shares shares(bytes);
    std::vector<Part> parts;
    for (const Run *run : order) {
        const Layout &l = work.layouts[run->form];
        for (int64_t i = 0; i < count; ++i) {
            const isobit_linear one = linear_of(*w[i], run->expert);
            for (int64_t n = 0, step; n < one.n; n += step) {
                step = l.many ? std::min(work.isa.panel, one.n - n) : shares.rows(one.n - n, cost(one, *run), l.rows);
                parts.push_back({one, run, n, n + step, y[i] + run->first * ldy[i], ldy[i]});
            }
        }
    }
    if (!many) ends = shares.ends();
    return parts;
}

// Where results of rows that have been moved are made, and from where they are brought to where they belong.
class Apart {
  public:
    std::vector<float *> y;
    std::vector<int64_t> ldy;

    Apart(const isobit_grouped *const *w, int64_t count, int64_t rows) {
        int64_t size = 0;
        for (int64_t i = 0; i < count; ++i) size += rows * w[i]->of.n;
        float *next = memory_.floats(size);
        for (int64_t i = 0; i < count; ++i) y.push_back(next), ldy.push_back(w[i]->of.n), next += rows * w[i]->of.n;
    }

    void put(const std::vector<int64_t> &places, float *const *to, const int64_t *to_ldy) const {
        for (size_t i = 0; i < y.size(); ++i)
            for (size_t at = 0; at < places.size(); ++at)
                std::memcpy(to[i] + places[at] * to_ldy[i], y[i] + static_cast<int64_t>(at) * ldy[i], static_cast<size_t>(ldy[i]) * 4);
    }

  private:
    Buffer memory_;
};

// Linears that take their rows laid out alike.
void run_alike(const isobit_grouped *const *w, int64_t count, const std::vector<Group> &groups, const Rows &rows, float *const *y,
               const int64_t *ldy) {
    static thread_local Buffer kept, kept_scales;
    Work work(w[0]->of, rows);
    const int64_t total = groups.back().first + groups.back().count;
    work.find_runs(groups, total);
    float *const scales = scaled_apart(work.w) ? kept_scales.floats(total) : nullptr;
    if (rows.row && !w[0]->input_scales && total > rows.count) lay_out_shared(work, kept, scales);
    else lay_out_each(work, *w[0], total, kept, scales);
    const bool moved = !work.moved.empty();
    const Apart apart(w, moved ? count : 0, total);
    std::vector<int64_t> ends;
    const std::vector<Part> parts = parts_of(work, w, count, moved ? apart.y.data() : y, moved ? apart.ldy.data() : ldy, ends);
    const auto run = [&](int64_t at) {
        const Part &p = parts[static_cast<size_t>(at)];
        const Layout &l = work.layouts[p.run->form];
        (l.many ? work.isa.many : work.isa.few)(p.w, l, p.run->laid, scales ? scales + p.run->first : nullptr, p.run->count, p.begin, p.end, p.y, p.ldy);
    };
    if (ends.empty())
        parallel(static_cast<int64_t>(parts.size()), 1, [&](int64_t begin, int64_t end) {
            for (int64_t at = begin; at < end; ++at) run(at);
        });
    else parallel_shares(ends, run);
    if (moved) apart.put(work.moved, y, ldy);
}

}  // namespace

void grouped(const isobit_grouped *const *w, int64_t count, const std::vector<Group> &groups, const Rows &rows, float *const *y,
             const int64_t *ldy) {
    for (int64_t first = 0, last; first < count; first = last) {
        for (last = first + 1; last < count && alike(w[first]->of, w[last]->of) && w[first]->input_scales == w[last]->input_scales;) ++last;
        run_alike(w + first, last - first, groups, rows, y + first, ldy + first);
    }
}

}  // namespace isobit
