#include <algorithm>
#include <iterator>

#include "core/cpu_features.h"
#include "kernels/registry.h"
#include "kernels/scalar/vector_ops.h"
#ifdef TMAC_HAS_X86_KERNELS
#include "kernels/avx2/vector_ops.h"
#include "kernels/avx512/vector_ops.h"
#endif
#ifdef TMAC_HAS_NEON_KERNELS
#include "kernels/neon/vector_ops.h"
#endif

// The float operations of every instruction set.

namespace tmac {
namespace {

VectorOps vector_ops_of(Isa isa, uint32_t features, const NormOps& norm, const ElementOps& elements,
                        const SoftmaxOps& softmax, const FloatRowsOps& float_rows, const FeedbackOps& feedback,
                        const AttentionOps& attention, const GridOps& grid) {
    return {norm, elements, softmax, float_rows, feedback, attention, grid, name_of(isa), isa, features};
}

/// In order of preference.
const auto& all_vector_ops() {
    static const VectorOps kAll[] = {
#ifdef TMAC_HAS_X86_KERNELS
        vector_ops_of(Isa::avx512,
                      kAvx2 | kFma | kF16c | kAvx512f | kAvx512bw | kAvx512dq | kAvx512vl | kAvx512vbmi | kAvx512vnni,
                      avx512::norm, avx512::elements, avx512::softmax, avx512::float_rows, avx512::feedback,
                      avx512::attention, avx512::grid),
        vector_ops_of(Isa::avx2, kAvx2 | kFma | kF16c, avx2::norm, avx2::elements, avx2::softmax, avx2::float_rows,
                      avx2::feedback, avx2::attention, avx2::grid),
#endif
#ifdef TMAC_HAS_NEON_KERNELS
        vector_ops_of(Isa::neon, kNeon, neon::norm, neon::elements, neon::softmax, neon::float_rows, neon::feedback,
                      neon::attention, neon::grid),
#endif
        vector_ops_of(Isa::scalar, 0, scalar::norm, scalar::elements, scalar::softmax, scalar::float_rows,
                      scalar::feedback, scalar::attention, scalar::grid),
    };
    return kAll;
}

}  // namespace

const VectorOps* find_vector_ops(std::string_view name) {
    const auto& all = all_vector_ops();
    const auto* found =
        std::find_if(std::begin(all), std::end(all), [&](const VectorOps& ops) { return name == ops.name; });
    return found == std::end(all) ? nullptr : found;
}

const VectorOps& vector_ops() {
    static const VectorOps& chosen = [&]() -> const VectorOps& {
        const Selection& allowed = selection();
        const auto& all = all_vector_ops();
        const auto runnable = [&](const VectorOps& ops) { return (ops.features & ~allowed.features) == 0; };
        const auto* forced = std::find_if(std::begin(all), std::end(all), [&](const VectorOps& ops) {
            return runnable(ops) && allowed.isa == ops.name;
        });
        // Where a hidden feature takes the forced one away, the next best gives the same bits.
        return forced != std::end(all) ? *forced : *std::find_if(std::begin(all), std::end(all), runnable);
    }();
    return chosen;
}

}  // namespace tmac
