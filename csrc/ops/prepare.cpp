#include "ops/prepare.h"

#include <algorithm>
#include <cmath>

#include "core/act_groups.h"
#include "core/half.h"
#include "core/thread_pool.h"
#include "ops/convert.h"

namespace tmac {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kReadPast = 4;  ///< bytes past a token's last that NEON reads to multiply them with zero codes

int64_t bytes_of_columns(Method method, int64_t padded_k) {
    switch (method) {
        case Method::lut:
        case Method::lut_fast:
            return padded_k * (kLutEntries / kLutGroup);
        case Method::mad:
        case Method::trit:
            return padded_k;
        case Method::float_exact:
            break;
    }
    return padded_k * static_cast<int64_t>(sizeof(float));
}

/// An odd number of cache lines: tokens that lie a power of two apart would all fall into the same sets of the cache.
int64_t bytes_per_token(const Kernel& kernel, int64_t padded_k) {
    const int64_t bytes = bytes_of_columns(kernel.method, padded_k);
    return kernel.token_block != 0 ? bytes : ((bytes + kReadPast + kLine - 1) / kLine | 1) * kLine;
}

/// Where a token's activations begin, and how far apart its groups of four columns are.
struct Place {
    int64_t begin;
    int64_t step;
};

Place place_of(const PreparedInput& input, int32_t tokens, int32_t token) {
    if (input.token_block == 0) {
        return {token * input.act_bytes, 4};
    }
    int32_t first = 0;
    int32_t count = tokens_in_block(tokens, input.token_block);
    while (first + count <= token) {
        first += count;
        count = tokens_in_block(tokens - first, input.token_block);
    }
    return {first * input.act_bytes + (token - first) * 4, count * 4};
}

/// The columns in the weight's order: the row itself where it already is.
const float* in_weight_order(const float* x, const WeightView& weight, std::vector<float>& permuted) {
    const int32_t* perm = weight.perm();
    if (perm == nullptr) {
        return x;
    }
    const auto k = static_cast<size_t>(weight.header.k);
    permuted.resize(k);
    for (size_t i = 0; i < k; ++i) {
        permuted[i] = x[perm[i]];
    }
    return permuted.data();
}

/// NaN, where a sum has overflowed already, or so large that one over groups might.
bool any_huge(const float* act_scales, size_t count) {
    return std::any_of(act_scales, act_scales + count, [](float value) { return !(value < kHugeActScale); });
}

bool all_finite(const float* values, int64_t count) {
    return std::all_of(values, values + count, [](float value) { return std::isfinite(value); });
}

}  // namespace

void reserve(const Kernel& kernel, const WeightView& weight, int32_t tokens, PreparedInput& out) {
    out.act_groups = make_act_groups(weight.header.spec, weight.header.k, weight.parts.k_chunk);
    out.padded_k = weight.parts.padded_k;
    out.act_bytes = bytes_per_token(kernel, out.padded_k);
    out.token_block = kernel.token_block;
    const auto groups = static_cast<size_t>(tokens) * out.act_groups.size();
    out.act.resize(static_cast<size_t>(tokens * out.act_bytes));
    out.act_scale.resize(groups);
    out.act_sum.resize(groups);
    out.act_isum.resize(groups);
    out.scaled_down.assign(static_cast<size_t>(tokens), 0);
}

void prepare_token(const Kernel& kernel, const WeightView& weight, const float* x, int32_t token,
                   std::vector<float>& permuted, PreparedInput& out) {
    const float* columns = in_weight_order(x, weight, permuted);
    const size_t groups = out.act_groups.size();
    const size_t first = static_cast<size_t>(token) * groups;
    const Place place = place_of(out, static_cast<int32_t>(out.scaled_down.size()), token);
    PrepareArgs args{&weight.header.spec,
                     weight.header.layout,
                     columns,
                     weight.header.k,
                     out.act_groups.data(),
                     static_cast<int32_t>(groups),
                     out.act.data() + place.begin,
                     place.step,
                     out.act_scale.data() + first,
                     out.act_sum.data() + first,
                     out.act_isum.data() + first};
    kernel.prepare(args);
    if (kernel.method == Method::float_exact) {
        return;
    }
    if (any_huge(args.act_scale, groups) && all_finite(columns, weight.header.k)) {
        std::vector<float> smaller(columns, columns + weight.header.k);
        std::for_each(smaller.begin(), smaller.end(), [](float& value) { value *= kScaleDown; });
        args.x = smaller.data();
        kernel.prepare(args);
        out.scaled_down[static_cast<size_t>(token)] = 1;
    }
    if (weight.code_scale != 1.0F) {
        std::for_each_n(args.act_scale, groups, [&](float& scale) { scale *= weight.code_scale; });
    }
}

int64_t tokens_at_once(const Kernel& kernel) {
    return kernel.method == Method::lut || kernel.method == Method::lut_fast ? kMaxLutTokens : kMaxTokens;
}

bool same_encoding(const Kernel& kernel, const WeightView& weight, const Kernel& other_kernel,
                   const WeightView& other) {
    const QuantSpec& spec = weight.header.spec;
    const QuantSpec& other_spec = other.header.spec;
    const bool same_columns = weight.perm() == nullptr && other.perm() == nullptr && weight.header.k == other.header.k;
    return same_columns && kernel.prepare == other_kernel.prepare && kernel.token_block == other_kernel.token_block &&
           weight.header.layout == other.header.layout && weight.parts.padded_k == other.parts.padded_k &&
           weight.code_scale == other.code_scale && spec.activation == other_spec.activation &&
           spec.group_size == other_spec.group_size;
}

void prepare(const Kernel& kernel, const WeightView& weight, const Tensor& x, int64_t first, int32_t tokens,
             int num_threads, PreparedInput& out) {
    reserve(kernel, weight, tokens, out);
    parallel_for(tokens, 1, tokens * x.columns < 4096 ? 1 : num_threads, [&](Range range) {
        std::vector<float> row(static_cast<size_t>(x.columns));
        std::vector<float> permuted;
        for (int64_t token = range.begin; token < range.end; ++token) {
            const float* values = row_of(x, first + token, row.data());
            prepare_token(kernel, weight, values, static_cast<int32_t>(token), permuted, out);
        }
    });
}

}  // namespace tmac
