// Runs a program's checks on every instruction set that the library has on this machine. All of them take
//     [ISAS [EVERY [ISA [SLACK]]]]
//         ISAS    fails if the library has others, e.g. "neon,portable"
//         EVERY   compares only each so-manieth value with float64 where there are many, because that takes long under an emulator
//         ISA     on this one alone
//         SLACK   see exact.h
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

#include "exact.h"
#include "isobit_cpu.h"

namespace test {

struct Check {
    const char *name;
    bool (*holds)();
};

inline int64_t &every() {
    static int64_t value = 1;
    return value;
}

// Whether all hold. `what` they are says the last line.
template <size_t count>
bool run_all(const std::string &isa, const char *what, const Check (&checks)[count]) {
    bool good = true;
    for (const Check &check : checks)
        if (!check.holds()) good = false, std::printf("%s: wrong: %s; the library says: %s\n", isa.c_str(), check.name, isobit_cpu_error());
    if (good) std::printf("%s: %s\n", isa.c_str(), what);
    return good;
}

// The program's exit status.
template <class Function>
int on_every_isa(int count, char **arguments, Function holds) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what was found is seen even if the program then ends by a signal
    const std::string isas = isobit_cpu_isas(), only = count > 3 ? arguments[3] : "";
    std::printf("%s\n", isas.c_str());
    if (count > 1 && isas != arguments[1]) return std::printf("wanted %s\n", arguments[1]), 1;
    if (isas.substr(0, isas.find(',')) != isobit_cpu_isa()) return std::printf("%s is in use, not the best\n", isobit_cpu_isa()), 1;
    if (count > 4) slack() = static_cast<size_t>(std::atoi(arguments[4]));
    if (!guarded()) return std::puts("memory here cannot be protected, so that these tests would not see reads behind its end"), 1;
    if (count > 2) every() = std::max(1, std::atoi(arguments[2]));
    isobit_cpu_set_threads(2);
    std::stringstream names(isas);
    bool good = true;
    int tried = 0;
    for (std::string isa; std::getline(names, isa, ',');) {
        if (!only.empty() && isa != only) continue;
        good = !isobit_cpu_use_isa(isa.c_str()) && holds(isa) && good, ++tried;
    }
    return good && tried ? 0 : 1;
}

}  // namespace test
