// The AVX-VNNI tier on a CPU without it: the same source, built a second time with the EVEX form of vpdpbusd, takes the
// place of the kernels that packed the weight.

#ifdef TMAC_HAS_VNNI_EVEX

#include <cstring>
#include <string>
#include <vector>

#include "core/cpu_features.h"
#define TMAC_VNNI_EVEX
#include "kernels/avx2/kernels.h"
#include "weights.h"

using namespace tmac;

namespace {

constexpr uint32_t kEvex = kAvx2 | kFma | kF16c | kAvx512f | kAvx512vl | kAvx512vnni;

bool can_run() { return (kEvex & ~cpu_features()) == 0; }

/// A kernel that this CPU runs and that packs into `layout`.
const Kernel* packer(const Kernel& kernel, const QuantSpec& spec, Layout layout) {
    for (const RegistryRow& row : registry()) {
        if (row.isa == Isa::avx2 && packed_layout({row.kernel, row.kernel}, spec) == layout &&
            row.kernel->features != kernel.features && serves(*row.kernel, spec)) {
            return row.kernel;
        }
    }
    return nullptr;
}

/// Shapes with tails, a row that fills an act group of every kind, and enough tokens for every block.
void check_layout(const Kernel& kernel, const QuantSpec& spec, const Kernel& packing) {
    const Kernel& reference = scalar_twin(kernel, spec);
    Random random(13);
    for (const auto& [n, k] : {std::pair{1, 1}, std::pair{33, 31}, std::pair{70, 300}, std::pair{300, 160}}) {
        const Weight weight = make_weight(random, spec, n, k);
        constexpr int64_t kTokens = 37;
        const std::vector<float> x = random.floats(kTokens * k);
        const PackedWeight plain = pack(weight.canonical(), {&reference, &reference}, 1);
        const std::vector<float> want = run_linear(plain, x, kTokens, 1);
        const PackedWeight packed = pack(weight.canonical(), {&packing, &packing}, 1);
        WeightView view = view_weight(packed.data(), packed.size());
        view.kernels = {&kernel, &kernel};
        for (const int64_t m : {1, 2, 3, 4, 5, 8, 16, 17, 37}) {
            CAPTURE(n, k, m);
            const std::vector<float> part(x.begin(), x.begin() + m * k);
            CHECK(run_linear(view, part, m, 1) == std::vector<float>(want.begin(), want.begin() + m * n));
        }
    }
}

}  // namespace

TEST_CASE("the forced AVX-VNNI kernels are those of the registry", "[avx_vnni]") {
    for (const auto& [evex, table] : {std::pair{&avx2::qgemm_mad_vnni_evex, &avx2::qgemm_mad_vnni},
                                      std::pair{&avx2::qgemm_trit_vnni_evex, &avx2::qgemm_trit_vnni}}) {
        REQUIRE(evex->count == table->count);
        for (int32_t i = 0; i < table->count; ++i) {
            const Kernel& forced = evex->kernels[i];
            CHECK(std::string(forced.name) == table->kernels[i].name);
            CHECK((forced.features & kAvxVnni) != 0);
            CHECK(find_kernel(forced.name) == &table->kernels[i]);
        }
    }
}

TEST_CASE("the AVX-VNNI kernels give the scalar kernel's bits", "[avx_vnni]") {
    if (!can_run()) {
        WARN("this CPU has no EVEX vpdpbusd: not run");
        return;
    }
    std::vector<const Kernel*> kernels;
    for (const KernelTable* table : {&avx2::qgemm_mad_vnni_evex, &avx2::qgemm_trit_vnni_evex}) {
        for (int32_t i = 0; i < table->count; ++i) {
            kernels.push_back(&table->kernels[i]);
        }
    }
    for (const Kernel* forced : kernels) {
        const Kernel& kernel = *forced;
        for (const QuantSpec& spec : specs_of(kernel)) {
            const Layout own = packed_layout({&kernel, &kernel}, spec);
            for (const Layout layout : {Layout::rows, Layout::quads, Layout::nibbles, Layout::trits, Layout::crumbs}) {
                const Kernel* packing = reads(kernel, layout) ? packer(kernel, spec, layout) : nullptr;
                INFO(kernel.name << " " << to_string(spec) << " " << name_of(layout));
                if (packing != nullptr) {
                    check_layout(kernel, spec, *packing);
                }
                // A token's int8 activations have no look-up kernel that packs rows, and crumbs are for small groups.
                CHECK((packing != nullptr || layout != own));
            }
        }
    }
}

#endif
