#include "kernels/registry.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>

#include "core/check.h"
#include "core/cpu_features.h"
#include "kernels/scalar/kernels.h"
#ifdef TMAC_HAS_X86_KERNELS
#include "kernels/avx2/kernels.h"
#include "kernels/avx512/kernels.h"
#endif
#ifdef TMAC_HAS_NEON_KERNELS
#include "kernels/neon/kernels.h"
#endif

namespace tmac {
namespace {

struct IsaTable {
    Isa isa;
    const KernelTable* table;
};

/// In order of preference.
std::vector<RegistryRow> collect() {
    const IsaTable tables[] = {
#ifdef TMAC_HAS_X86_KERNELS
        {Isa::avx512, &avx512::qgemm_lut},   {Isa::avx512, &avx512::qgemm_lut_fast},
        {Isa::avx512, &avx512::qgemm_mad},   {Isa::avx512, &avx512::qgemm_trit},
        {Isa::avx2, &avx2::qgemm_lut},       {Isa::avx2, &avx2::qgemm_lut_fast},
        {Isa::avx2, &avx2::qgemm_mad_vnni},  {Isa::avx2, &avx2::qgemm_mad},
        {Isa::avx2, &avx2::qgemm_trit_vnni}, {Isa::avx2, &avx2::qgemm_trit},
#endif
#ifdef TMAC_HAS_NEON_KERNELS
        {Isa::neon, &neon::qgemm_lut},       {Isa::neon, &neon::qgemm_lut_fast},
        {Isa::neon, &neon::qgemm_mad_i8mm},  {Isa::neon, &neon::qgemm_mad_dotprod},
        {Isa::neon, &neon::qgemm_mad},
#endif
        {Isa::scalar, &scalar::qgemm_lut},   {Isa::scalar, &scalar::qgemm_lut_fast},
        {Isa::scalar, &scalar::qgemm_mad},   {Isa::scalar, &scalar::qgemm_float},
        {Isa::scalar, &scalar::qgemm_trit},
    };
    std::vector<RegistryRow> rows;
    for (const IsaTable& entry : tables) {
        for (int32_t i = 0; i < entry.table->count; ++i) {
            rows.push_back({entry.isa, &entry.table->kernels[i]});
        }
    }
    return rows;
}

std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
}

constexpr Isa kIsas[] = {Isa::scalar, Isa::avx2, Isa::avx512, Isa::neon};

bool has_name(const std::string& name, Isa isa) { return name == name_of(isa); }

void check_isa(const Selection& chosen) {
    const bool known =
        std::any_of(std::begin(kIsas), std::end(kIsas), [&](Isa isa) { return has_name(chosen.isa, isa); });
    TMAC_CHECK(known, "[TMAC_ISA] unknown '", chosen.isa, "'; known are scalar, avx2, avx512, neon");
    const bool usable = std::any_of(registry().begin(), registry().end(), [&](const RegistryRow& row) {
        return has_name(chosen.isa, row.isa) && chosen.runnable(*row.kernel);
    });
    TMAC_CHECK(usable, "[TMAC_ISA] this CPU or build cannot run any kernel of '", chosen.isa, "'");
}

const Kernel* require_kernel(const std::string& name, const Selection& chosen) {
    const Kernel* kernel = find_kernel(name);
    TMAC_CHECK(kernel != nullptr, "[TMAC_KERNEL] unknown kernel '", name, "'; `tmac info` lists them");
    TMAC_CHECK(chosen.runnable(*kernel), "[TMAC_KERNEL] this CPU cannot run '", name, "'");
    return kernel;
}

}  // namespace

const std::vector<RegistryRow>& registry() {
    static const std::vector<RegistryRow> rows = collect();
    return rows;
}

const char* name_of(Isa isa) {
    static constexpr const char* kNames[] = {"scalar", "avx2", "avx512", "neon"};
    return kNames[static_cast<int>(isa)];
}

const char* name_of(Method method) {
    static constexpr const char* kNames[] = {"lut", "mad", "float", "lut_fast", "trit"};
    return kNames[static_cast<int>(method)];
}

const char* name_of(Layout layout) {
    static constexpr const char* kNames[] = {"planes",       "rows",  "quads", "nibbles", "wide_quads",
                                             "wide_nibbles", "bands", "trits", "crumbs"};
    return kNames[static_cast<int>(layout)];
}

const Kernel* find_kernel(std::string_view name) {
    for (const RegistryRow& row : registry()) {
        if (name == row.kernel->name) {
            return row.kernel;
        }
    }
    return nullptr;
}

const DotPeak* find_dot_peak(std::string_view name) {
    static constexpr DotPeak kPeaks[] = {
#ifdef TMAC_HAS_X86_KERNELS
        {"avx512", Isa::avx512, kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vnni, avx512::dot_peak},
        {"avx2_vnni", Isa::avx2, kAvx2 | kAvxVnni, avx2::dot_peak_vnni},
        {"avx2", Isa::avx2, kAvx2, avx2::dot_peak},
#endif
#ifdef TMAC_HAS_NEON_KERNELS
        {"neon_dotprod", Isa::neon, kDotprod, neon::dot_peak_dotprod},
        {"neon", Isa::neon, 0, neon::dot_peak},
#endif
        {"scalar", Isa::scalar, 0, scalar::dot_peak},
    };
    const auto* found =
        std::find_if(std::begin(kPeaks), std::end(kPeaks), [&](const DotPeak& peak) { return name == peak.name; });
    return found == std::end(kPeaks) ? nullptr : found;
}

bool serves(const Kernel& kernel, const QuantSpec& spec) {
    return kernel.bits == spec.bits && kernel.codebook == spec.codebook &&
           ((kernel.activations >> static_cast<int>(spec.activation)) & 1) != 0 &&
           (kernel.method == Method::lut_fast) == (spec.fast_aggregation != 0);
}

bool reads(const Kernel& kernel, Layout layout) { return (kernel.layouts & bit_of(layout)) != 0; }

bool Selection::runnable(const Kernel& kernel) const { return (kernel.features & ~features) == 0; }

bool Selection::selectable(const RegistryRow& row) const {
    const bool any_isa = row.kernel->method == Method::float_exact;  // the exact path has portable kernels only
    return runnable(*row.kernel) && (isa.empty() || any_isa || has_name(isa, row.isa));
}

Selection make_selection(uint32_t features, const std::string& isa, const std::string& kernel_names,
                         const std::string& method) {
    Selection chosen{features, isa, method, {}};
    TMAC_CHECK(method.empty() || method == name_of(Method::lut) || method == name_of(Method::mad) ||
                   method == name_of(Method::trit),
               "[TMAC_METHOD] unknown '", method, "'; known are lut, mad, trit");
    if (!isa.empty()) {
        check_isa(chosen);
    }
    std::istringstream names(kernel_names);
    for (std::string name; std::getline(names, name, ',');) {
        if (!name.empty()) {
            chosen.kernels.push_back(require_kernel(name, chosen));
        }
    }
    return chosen;
}

const Selection& selection() {
    static const Selection chosen =
        make_selection(cpu_features(), environment("TMAC_ISA"), environment("TMAC_KERNEL"), environment("TMAC_METHOD"));
    return chosen;
}

}  // namespace tmac
