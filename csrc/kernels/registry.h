#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/quant_spec.h"
#include "kernels/kernel.h"
#include "kernels/vector_ops.h"

namespace tmac {

struct RegistryRow {
    Isa isa;
    const Kernel* kernel;
};

/// Every kernel of this build in order of preference: the first that serves a spec and may be selected is taken.
const std::vector<RegistryRow>& registry();

const char* name_of(Isa isa);
const char* name_of(Method method);
const char* name_of(Layout layout);

/// The kernel called `name`, or null.
const Kernel* find_kernel(std::string_view name);

/// Whether the kernel can compute what `spec` means.
bool serves(const Kernel& kernel, const QuantSpec& spec);

/// Whether the kernel can read weights of `layout`.
bool reads(const Kernel& kernel, Layout layout);

/// A layer's two numerics classes (docs/numerics.md): one kernel for generated tokens, one for prompts, both over the
/// same bytes.
struct KernelPair {
    const Kernel* decode;
    const Kernel* prompt;
};

/// What a weight of `spec` is packed into: what decoding prefers, unless that would fill up small groups and both
/// kernels read a layout that does not. `for_prefixes`: a layout some leading planes of which can be read alone, where
/// both kernels read one.
Layout packed_layout(const KernelPair& kernels, const QuantSpec& spec, bool for_prefixes = false);

/// Regions of a layout that hold the first `planes` planes of a weight of `bits` and nothing else, or 0 where none do.
int32_t leading_regions(Layout layout, int32_t planes, int32_t bits);

/// A loop that only takes int8 dot products in registers: what the arithmetic of an instruction set can give.
struct DotPeak {
    const char* name;  ///< of the instruction set, with _<tech> where it has several
    Isa isa;
    uint32_t features;                                ///< CpuFeature bits that must be present
    int64_t (*run)(int64_t rounds, int32_t* result);  ///< returns the operations done
};

/// The loop of this name, or null.
const DotPeak* find_dot_peak(std::string_view name);

/// Which kernels may be chosen: read from the environment once, passed explicitly in tests.
struct Selection {
    uint32_t features;                   ///< of this CPU, less the hidden ones
    std::string isa;                     ///< TMAC_ISA, or empty
    std::string method;                  ///< TMAC_METHOD: pins both classes where the spec has it, or empty
    std::vector<const Kernel*> kernels;  ///< TMAC_KERNEL, each bound to the specs it serves

    bool runnable(const Kernel& kernel) const;
    bool selectable(const RegistryRow& row) const;
};

/// Throws std::invalid_argument on a name that is unknown or that this CPU cannot run.
Selection make_selection(uint32_t features, const std::string& isa, const std::string& kernel_names,
                         const std::string& method = "");

/// TMAC_CPU_FEATURES, TMAC_ISA, TMAC_KERNEL and TMAC_METHOD of this process.
const Selection& selection();

/// The float operations of this process: the best that it may run, or those of TMAC_ISA.
const VectorOps& vector_ops();

/// Those of an instruction set, or null: what this build has, whether the CPU can run it or not.
const VectorOps* find_vector_ops(std::string_view name);

/// The kernels for `spec`. Throws UnsupportedSpec when the selection has none.
KernelPair select_kernels(const QuantSpec& spec, const Selection& selection);

/// "decode" or "decode,prompt" as kernels; one name serves both phases. Throws std::invalid_argument on an unknown name
/// and where the second cannot read the first one's layout.
KernelPair parse_kernels(const std::string& names);

/// The kernels for weights of `spec` that lie in `layout` already: those that the selection prefers among the ones that
/// read it, whatever method it pins. Null pointers where there are none.
KernelPair kernels_reading(Layout layout, const QuantSpec& spec, const Selection& selection);

/// Every pair that the selection admits for `spec`, the default first: what the tuner measures.
std::vector<KernelPair> candidates(const QuantSpec& spec, const Selection& selection);

}  // namespace tmac
