#include "kernels/registry.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <string>

#include "catch.h"
#include "core/check.h"
#include "core/cpu_features.h"

using namespace tmac;

namespace {

QuantSpec spec_of(int bits, Codebook codebook = Codebook::uniform, Activation activation = Activation::group) {
    QuantSpec spec;
    spec.bits = static_cast<uint8_t>(bits);
    spec.codebook = codebook;
    spec.activation = activation;
    return spec;
}

Isa isa_of(const Kernel& kernel) {
    for (const RegistryRow& row : registry()) {
        if (row.kernel == &kernel) {
            return row.isa;
        }
    }
    throw std::logic_error("not in the registry");
}

}  // namespace

TEST_CASE("names are unique and say method, width and ISA", "[registry]") {
    std::set<std::string> names;
    for (const RegistryRow& row : registry()) {
        const Kernel& kernel = *row.kernel;
        const std::string name = kernel.name;
        CAPTURE(name);
        CHECK(names.insert(name).second);
        CHECK(name.size() < 56);
        CHECK(find_kernel(name) == &kernel);
        CHECK(name.find(std::string("_") + name_of(kernel.method)) != std::string::npos);
        CHECK(name.find(std::string("_") + name_of(row.isa)) != std::string::npos);
        const std::string width =
            kernel.codebook == Codebook::ternary ? "_ternary" : "_w" + std::to_string(kernel.bits);
        CHECK(name.find(width) != std::string::npos);
        CHECK(kernel.run != nullptr);
        CHECK(kernel.prepare != nullptr);
        CHECK((row.isa == Isa::scalar) == (kernel.features == 0));
    }
    CHECK(find_kernel("qgemm_lut_w9_scalar") == nullptr);
}

TEST_CASE("every spec has a scalar kernel, whatever the CPU", "[registry]") {
    const Selection bare = make_selection(0, "", "");
    for (const Activation activation : {Activation::group, Activation::token, Activation::float_exact}) {
        for (int bits = 1; bits <= 8; ++bits) {
            CHECK(isa_of(*select_kernels(spec_of(bits, Codebook::uniform, activation), bare).decode) == Isa::scalar);
        }
        CHECK(isa_of(*select_kernels(spec_of(2, Codebook::ternary, activation), bare).decode) == Isa::scalar);
    }
}

TEST_CASE("a spec that nothing serves is a different error from a wrong name", "[registry]") {
    Selection none = make_selection(0, "", "");
    none.isa = "avx2";  // which no feature bit admits
    CHECK_THROWS_AS(select_kernels(spec_of(4), none), UnsupportedSpec);
    CHECK_THROWS_WITH(make_selection(0, "sse9", ""), TMAC_CONTAINS("sse9"));
    CHECK_THROWS_WITH(make_selection(0, "", "qgemm_magic"), TMAC_CONTAINS("qgemm_magic"));
}

TEST_CASE("an ISA that the CPU lacks cannot be forced", "[registry]") {
    CHECK_THROWS_AS(make_selection(0, "avx2", ""), std::invalid_argument);
    CHECK_THROWS_AS(make_selection(0, "neon", ""), std::invalid_argument);
    CHECK_NOTHROW(make_selection(0, "scalar", ""));
    for (const RegistryRow& row : registry()) {
        if (row.kernel->features != 0) {
            CHECK_THROWS_WITH(make_selection(0, "", row.kernel->name), TMAC_CONTAINS(row.kernel->name));
        }
    }
}

TEST_CASE("a forced ISA is what is chosen", "[registry]") {
    const Selection scalar = make_selection(~0U, "scalar", "");
    CHECK(isa_of(*select_kernels(spec_of(4), scalar).decode) == Isa::scalar);
    for (const RegistryRow& row : registry()) {
        const Selection forced = make_selection(~0U, name_of(row.isa), "");
        CHECK(forced.selectable(row));
        const QuantSpec spec =
            spec_of(row.kernel->bits, row.kernel->codebook,
                    (row.kernel->activations & 1) != 0 ? Activation::group : Activation::float_exact);
        if (serves(*row.kernel, spec)) {
            CHECK(isa_of(*select_kernels(spec, forced).decode) == row.isa);
        }
    }
}

TEST_CASE("forced kernels take the specs they serve, and leave the others alone", "[registry]") {
    const Selection forced = make_selection(~0U, "", "qgemm_lut_w2_scalar,qgemm_lut_w3_scalar");
    CHECK(std::string(select_kernels(spec_of(2), forced).decode->name) == "qgemm_lut_w2_scalar");
    CHECK(std::string(select_kernels(spec_of(3), forced).decode->name) == "qgemm_lut_w3_scalar");
    CHECK(select_kernels(spec_of(4), forced).decode == select_kernels(spec_of(4), make_selection(~0U, "", "")).decode);
}

TEST_CASE("fast aggregation is served by its own class, whatever the method asked for", "[registry]") {
    for (int bits = 1; bits <= 4; ++bits) {
        QuantSpec spec = spec_of(bits);
        spec.fast_aggregation = 1;
        for (const RegistryRow& row : registry()) {
            CHECK_FALSE((serves(*row.kernel, spec) && serves(*row.kernel, spec_of(bits))));
        }
        for (const char* isa : {"", "scalar", "avx2", "avx512", "neon"}) {
            for (const char* method : {"", "lut", "mad"}) {
                CAPTURE(bits, isa, method);
                const std::string forced = isa;
                const auto& rows = registry();
                if (!forced.empty() && std::none_of(rows.begin(), rows.end(), [&](const RegistryRow& row) {
                        return forced == name_of(row.isa);
                    })) {
                    continue;  // a build without that ISA
                }
                const KernelPair pair = select_kernels(spec, make_selection(~0U, forced, "", method));
                CHECK(pair.decode->method == Method::lut_fast);
                CHECK(pair.prompt == pair.decode);
                CHECK((forced.empty() || name_of(isa_of(*pair.decode)) == forced));
            }
        }
    }
}

TEST_CASE("a pinned method serves what has it, and leaves the others alone", "[registry]") {
    const Selection lut = make_selection(~0U, "", "", "lut");
    const Selection mad = make_selection(~0U, "", "", "mad");
    const Selection free = make_selection(~0U, "", "");
    for (uint8_t bits = 1; bits <= 8; ++bits) {
        CHECK(select_kernels(spec_of(bits), mad).decode->method == Method::mad);
        CHECK(select_kernels(spec_of(bits), mad).prompt->method == Method::mad);
        const KernelPair pair = select_kernels(spec_of(bits), lut);
        if (bits <= 4) {
            CHECK(pair.decode->method == Method::lut);
            CHECK(pair.prompt == pair.decode);
        } else {  // there is no look-up of so many planes
            CHECK(pair.decode == select_kernels(spec_of(bits), free).decode);
        }
    }
    const QuantSpec token = spec_of(2, Codebook::ternary, Activation::token);
    CHECK(select_kernels(token, lut).decode == select_kernels(token, free).decode);
    CHECK(select_kernels(spec_of(4, Codebook::uniform, Activation::float_exact), mad).decode->method ==
          Method::float_exact);
    CHECK_THROWS_WITH(make_selection(~0U, "", "", "magic"), TMAC_CONTAINS("magic"));
}

TEST_CASE("a weight that is looked up has products for its prompts", "[registry]") {
    const Selection all = make_selection(~0U, "", "");
    for (const QuantSpec& spec : {spec_of(1), spec_of(2), spec_of(3), spec_of(4), spec_of(2, Codebook::ternary)}) {
        for (const KernelPair& pair : candidates(spec, all)) {
            CAPTURE(pair.decode->name, pair.prompt->name);
            if (pair.decode->method == Method::lut) {
                CHECK(pair.prompt->method == Method::mad);
            }
        }
    }
}

TEST_CASE("1.6 bits are a choice for ternary weights, never what is taken unasked", "[registry]") {
    const auto is_trit = [](const KernelPair& pair) { return pair.decode->method == Method::trit; };
    const Selection free = make_selection(~0U, "", "");
    const Selection pinned = make_selection(~0U, "", "", "trit");
    for (const Activation activation : {Activation::group, Activation::token}) {
        const QuantSpec spec = spec_of(2, Codebook::ternary, activation);
        CHECK_FALSE(is_trit(select_kernels(spec, free)));
        const std::vector<KernelPair> all = candidates(spec, free);
        CHECK(std::any_of(all.begin(), all.end(), is_trit));
        const KernelPair pair = select_kernels(spec, pinned);
        CHECK(is_trit(pair));
        CHECK(pair.prompt == pair.decode);
    }
    CHECK(select_kernels(spec_of(2), pinned).decode == select_kernels(spec_of(2), free).decode);
}

TEST_CASE("a hidden feature makes its kernels not runnable", "[registry]") {
    for (const RegistryRow& row : registry()) {
        for (const FeatureName& feature : feature_names()) {
            const Selection without = make_selection(~0U & ~static_cast<uint32_t>(feature.bit), "", "");
            CHECK(without.runnable(*row.kernel) == ((row.kernel->features & feature.bit) == 0));
        }
    }
}

TEST_CASE("groups of 16 are multiplied where look-ups would fill them up", "[registry]") {
    for (const char* isa : {"avx2", "avx512", "neon"}) {
        const bool built = std::any_of(registry().begin(), registry().end(),
                                       [&](const RegistryRow& row) { return name_of(row.isa) == std::string(isa); });
        for (const uint8_t bits : {uint8_t{2}, uint8_t{3}, uint8_t{4}, uint8_t{6}}) {
            if (!built) {
                continue;
            }
            QuantSpec spec = spec_of(bits);
            spec.group_size = 16;
            const KernelPair pair = select_kernels(spec, make_selection(~0U, isa, ""));
            CAPTURE(isa, int{bits}, pair.decode->name);
            CHECK(pair.decode->method == Method::mad);
            CHECK(layout_shape(packed_layout(pair, spec), bits).k_chunk <= 16);
            spec.group_size = 32;
            CHECK(packed_layout(pair, spec) == pair.decode->layout);
        }
    }
}
