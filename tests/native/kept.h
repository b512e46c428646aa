// Caches in each of their formats for the native tests, every part in exact memory of its own.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "exact.h"
#include "isobit_cpu.h"
#include "linears.h"

namespace test {

struct Form {
    int32_t format;
    int64_t group = 0;
    int32_t group_format = 0;

    int64_t bits() const { return format == ISOBIT_F32 ? 32 : format == ISOBIT_BF16 || format == ISOBIT_F16 ? 16 : format == ISOBIT_E2M1 ? 4 : 8; }
    bool one_scale() const { return group ? group_format == ISOBIT_E4M3FN : bits() == 8; }
    int64_t groups(int64_t dim) const { return group ? (dim + group - 1) / group : 0; }
};

inline const Form FORMS[] = {
    {ISOBIT_F32}, {ISOBIT_BF16}, {ISOBIT_F16}, {ISOBIT_E4M3FN}, {ISOBIT_E5M2}, {ISOBIT_INT8}, {ISOBIT_E4M3FN, 32, ISOBIT_E8M0},
    {ISOBIT_E2M1, 32, ISOBIT_E8M0}, {ISOBIT_E2M1, 16, ISOBIT_E4M3FN}, {ISOBIT_E4M3FN, 48, ISOBIT_E4M3FN},
};

// Keys or values: rows of `dim` numbers, all of them finite and of about 1.
struct KeptPart {
    const Form form;
    const int64_t dim;
    Values<uint8_t> numbers, groups;
    Values<float> scales;

    KeptPart(const Form &of, int64_t rows, int64_t numbers_of_a_row, size_t shift)
        : form(of), dim(numbers_of_a_row), numbers(rows * dim * of.bits() / 8, shift), groups(rows * of.groups(dim), shift), scales(rows, shift) {
        for (int64_t i = 0; i < rows * dim * form.bits() / 8; ++i) put(i);
        for (int64_t i = 0; i < groups.size(); ++i)
            groups.put(i, static_cast<uint8_t>(form.group_format == ISOBIT_E8M0 ? 119 + next() % 8 : 0x28 + next() % 32));
        for (int64_t i = 0; i < rows; ++i) scales.put(i, form.group ? 0.25f + uniform() / 8 : form.format == ISOBIT_INT8 ? 0.01f : 0.02f);
    }

    // A number as it counts.
    double at(int64_t row, int64_t d) const {
        const uint8_t *const from = numbers.data() + row * dim * form.bits() / 8;
        uint32_t code;
        if (form.format == ISOBIT_E2M1) code = from[d % (dim / 2)] >> (d < dim / 2 ? 0 : 4) & 15u;
        else code = code_at(from, d, static_cast<int>(form.bits()));
        double value = value_of(form.format, code, 0);
        if (form.group) value *= value_of(form.group_format, groups[row * form.groups(dim) + d / form.group], 0);
        return form.one_scale() ? value * static_cast<double>(scales[row]) : value;
    }
    // All of them, row by row.
    std::vector<double> all() const {
        std::vector<double> found;
        for (int64_t row = 0; row < scales.size(); ++row)
            for (int64_t d = 0; d < dim; ++d) found.push_back(at(row, d));
        return found;
    }
    float *one_scales() { return form.one_scale() ? scales.data() : nullptr; }
    uint8_t *group_scales() { return form.group ? groups.data() : nullptr; }

  private:
    void put(int64_t at) {
        const int64_t bytes = form.bits() / 8;
        if (bytes < 2) return numbers.put(at, static_cast<uint8_t>(next() >> 8 & (bytes ? 0xbfu : 0xffu)));
        if (at % bytes) return;
        const float value = uniform();
        uint32_t word;
        std::memcpy(&word, &value, 4);
        const auto half = static_cast<uint16_t>(form.format == ISOBIT_F16 ? 0x3800u | (word >> 16 & 0x83ffu) : word >> 16);
        if (bytes == 4) std::memcpy(numbers.bytes() + at, &value, 4);
        else std::memcpy(numbers.bytes() + at, &half, 2);
    }
};

inline isobit_cached held_in(KeptPart &keys, KeptPart &values) {
    return {keys.numbers.data(), values.numbers.data(), keys.one_scales(), values.one_scales(), keys.group_scales(), values.group_scales(),
            keys.form.group, keys.form.format, keys.form.group_format};
}

}  // namespace test
