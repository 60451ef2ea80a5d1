#include <algorithm>
#include <sstream>

#include "core/check.h"
#include "core/cpu_features.h"
#include "kernels/registry.h"

// Which kernels serve a spec: what the environment pins, else the shipped default table.

namespace tmac {
namespace {

/// The shipped table: the better class for generated tokens, measured at 1 and at 8 tokens (docs/kernels.md). With few
/// planes a look-up does the work of four multiplications; with many, unpacked codes need one multiplication each.
struct Shipped {
    Isa isa;
    uint32_t features;    ///< CpuFeature bits that must be present for the row to hold
    int32_t widest_lut;   ///< weights up to this width are looked up, wider ones multiplied
    bool ternary_by_lut;  ///< rounded tables cost a ternary weight twice the error of int8 activations
};
constexpr Shipped kShipped[] = {
    {Isa::avx512, 0, 2, false}, {Isa::avx2, 0, 3, false},   {Isa::neon, kDotprod, 3, false},
    {Isa::neon, 0, 4, true},    {Isa::scalar, 0, 4, false},
};

/// Small groups, which most layouts of fewer than 4 bits fill up to twice their columns.
constexpr int32_t kSmallGroup = layout_shape(Layout::crumbs, 2).k_chunk;
bool has_small_groups(const QuantSpec& spec) { return spec.group_size >= 1 && spec.group_size <= kSmallGroup; }

/// Whether the instruction set multiplies small groups in a layout that leaves them as they are.
bool multiplies_unpadded(Isa isa, const QuantSpec& spec) {
    const auto& rows = registry();
    return has_small_groups(spec) && std::any_of(rows.begin(), rows.end(), [&](const RegistryRow& row) {
               const Layout layout = packed_layout({row.kernel, row.kernel}, spec);
               return row.isa == isa && isa != Isa::scalar && row.kernel->method == Method::mad &&
                      serves(*row.kernel, spec) && layout_shape(layout, spec.bits).k_chunk <= kSmallGroup;
           });
}

Method default_method(Isa isa, const QuantSpec& spec, uint32_t features) {
    if (spec.activation == Activation::float_exact) {
        return Method::float_exact;
    }
    if (spec.fast_aggregation != 0) {
        return Method::lut_fast;
    }
    const Shipped* row = std::find_if(std::begin(kShipped), std::end(kShipped), [&](const Shipped& shipped) {
        return shipped.isa == isa && (features & shipped.features) == shipped.features;
    });
    bool lut = spec.codebook == Codebook::ternary ? row->ternary_by_lut : spec.bits <= row->widest_lut;
    lut = lut && !multiplies_unpadded(isa, spec);
    return lut && spec.activation == Activation::group ? Method::lut : Method::mad;
}

/// Whether TMAC_METHOD says anything about `spec`. Where no instruction set has a kernel of that method (a look-up of 8
/// bits, say), the spec keeps the one class that it has, so that a model of several widths can be pinned.
bool pins(const Selection& selection, const QuantSpec& spec) {
    const auto& rows = registry();
    return !selection.method.empty() && std::any_of(rows.begin(), rows.end(), [&](const RegistryRow& row) {
        return selection.method == name_of(row.kernel->method) && serves(*row.kernel, spec);
    });
}

bool admits(const Selection& selection, const Kernel& kernel, const QuantSpec& spec) {
    return !pins(selection, spec) || selection.method == name_of(kernel.method);
}

/// Rows that may decode `spec`, those of the best instruction set first, and there the shipped method first.
std::vector<const RegistryRow*> decoders(const QuantSpec& spec, const Selection& selection) {
    std::vector<const RegistryRow*> rows;
    for (const RegistryRow& row : registry()) {
        if (serves(*row.kernel, spec) && selection.selectable(row) && admits(selection, *row.kernel, spec)) {
            rows.push_back(&row);
        }
    }
    if (!rows.empty()) {
        const Isa best = rows.front()->isa;
        std::stable_partition(rows.begin(), rows.end(), [&](const RegistryRow* row) {
            return row->isa == best && row->kernel->method == default_method(best, spec, selection.features);
        });
    }
    return rows;
}

/// The kernel for prompts beside `decode`: a vectorized `mad` of the same instruction set where it reads the layout.
const Kernel* prompt_beside(const RegistryRow& decode, const QuantSpec& spec, const Selection& selection) {
    if (pins(selection, spec) || decode.kernel->method == Method::float_exact) {
        return decode.kernel;
    }
    for (const RegistryRow& row : registry()) {
        if (row.isa == decode.isa && row.kernel->method == Method::mad && serves(*row.kernel, spec) &&
            reads(*row.kernel, decode.kernel->layout) && selection.selectable(row)) {
            return row.kernel;
        }
    }
    return decode.kernel;
}

const Kernel* require_named(const std::string& name) {
    const Kernel* kernel = find_kernel(name);
    TMAC_CHECK(kernel != nullptr, "[pack] unknown kernel '", name, "'");
    return kernel;
}

/// What TMAC_KERNEL says of `spec`: the first name that serves it decodes; another one that reads the same layout takes
/// the prompts.
KernelPair pinned(const QuantSpec& spec, const Selection& selection) {
    KernelPair pair{nullptr, nullptr};
    for (const Kernel* kernel : selection.kernels) {
        if (!serves(*kernel, spec)) {
            continue;
        }
        if (pair.decode == nullptr) {
            pair = {kernel, kernel};
        } else if (pair.prompt == pair.decode && reads(*kernel, pair.decode->layout)) {
            pair.prompt = kernel;
        }
    }
    return pair;
}

}  // namespace

int32_t leading_regions(Layout layout, int32_t planes, int32_t bits) {
    switch (layout) {
        case Layout::nibbles:
        case Layout::wide_nibbles:
            return planes == 4 && bits > 4 ? 1 : 0;
        case Layout::crumbs:
            return planes == 2 && bits == 3 ? 1 : 0;
        case Layout::trits:
            return 0;
        default:
            return planes < bits ? planes : 0;
    }
}

Layout packed_layout(const KernelPair& kernels, const QuantSpec& spec, bool for_prefixes) {
    const auto both_read = [&](Layout layout) {
        return reads(*kernels.decode, layout) && reads(*kernels.prompt, layout);
    };
    const bool unpadded = has_small_groups(spec) && both_read(Layout::crumbs);
    const Layout preferred = unpadded ? Layout::crumbs : kernels.decode->layout;
    const auto has_prefix = [&](Layout layout) {
        int32_t planes = spec.bits - 1;
        while (planes > 0 && leading_regions(layout, planes, spec.bits) == 0) {
            --planes;
        }
        return planes > 0;
    };
    if (!for_prefixes || has_prefix(preferred) || spec.codebook != Codebook::uniform) {
        return preferred;
    }
    constexpr Layout kOfPlanes[] = {Layout::wide_quads, Layout::quads, Layout::bands, Layout::rows, Layout::planes};
    const auto* found = std::find_if(std::begin(kOfPlanes), std::end(kOfPlanes),
                                     [&](Layout layout) { return both_read(layout) && has_prefix(layout); });
    return found == std::end(kOfPlanes) ? preferred : *found;
}

KernelPair parse_kernels(const std::string& names) {
    const size_t comma = names.find(',');
    const Kernel* decode = require_named(names.substr(0, comma));
    const Kernel* prompt = comma == std::string::npos ? decode : require_named(names.substr(comma + 1));
    TMAC_CHECK(reads(*prompt, decode->layout), "[pack] ", prompt->name, " cannot read the layout of ", decode->name);
    return {decode, prompt};
}

std::vector<KernelPair> candidates(const QuantSpec& spec, const Selection& selection) {
    if (const KernelPair pair = pinned(spec, selection); pair.decode != nullptr) {
        return {pair};
    }
    std::vector<KernelPair> pairs;
    for (const RegistryRow* row : decoders(spec, selection)) {
        pairs.push_back({row->kernel, prompt_beside(*row, spec, selection)});
    }
    return pairs;
}

KernelPair kernels_reading(Layout layout, const QuantSpec& spec, const Selection& selection) {
    const auto among = [&](const Selection& from) {
        KernelPair pair = pinned(spec, from);
        if (pair.decode != nullptr && reads(*pair.decode, layout) && reads(*pair.prompt, layout)) {
            return pair;
        }
        for (const RegistryRow* row : decoders(spec, from)) {
            if (reads(*row->kernel, layout)) {
                const Kernel* prompt = prompt_beside(*row, spec, from);
                return KernelPair{row->kernel, reads(*prompt, layout) ? prompt : row->kernel};
            }
        }
        return KernelPair{nullptr, nullptr};
    };
    const KernelPair preferred = among(selection);
    if (preferred.decode != nullptr || selection.method.empty()) {
        return preferred;
    }
    Selection any_method = selection;
    any_method.method.clear();
    return among(any_method);
}

KernelPair select_kernels(const QuantSpec& spec, const Selection& selection) {
    const std::vector<KernelPair> pairs = candidates(spec, selection);
    if (pairs.empty()) {
        throw UnsupportedSpec("no kernel serves " + to_string(spec) +
                              (selection.isa.empty() ? "" : " with TMAC_ISA=" + selection.isa) +
                              (selection.method.empty() ? "" : " with TMAC_METHOD=" + selection.method));
    }
    return pairs.front();
}

}  // namespace tmac
