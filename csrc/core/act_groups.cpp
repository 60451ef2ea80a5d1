#include "core/act_groups.h"

#include <algorithm>

#include "core/range.h"

namespace tmac {
namespace {

int64_t group_columns(const QuantSpec& spec, int64_t k) {
    return spec.group_size == -1 ? k : std::min<int64_t>(spec.group_size, k);
}

int64_t piece_columns(const QuantSpec& spec) {
    return spec.activation == Activation::group ? kActGroupSize : kTokenGroupSize;
}

/// Padded columns of one weight group of `count` columns.
int64_t padded_group(int64_t count, int64_t piece, int64_t k_chunk) {
    return count / piece * round_up(piece, k_chunk) + round_up(count % piece, k_chunk);
}

}  // namespace

std::vector<ActGroup> make_act_groups(const QuantSpec& spec, int64_t k, int32_t k_chunk) {
    const int64_t group = group_columns(spec, k);
    const int64_t piece = piece_columns(spec);
    std::vector<ActGroup> result;
    result.reserve(static_cast<size_t>(num_groups(spec, k) * ((group + piece - 1) / piece)));
    int32_t padded = 0;
    for (int64_t begin = 0, index = 0; begin < k; begin += group, ++index) {
        const int64_t end = std::min(k, begin + group);
        for (int64_t at = begin; at < end; at += piece) {
            const int64_t count = std::min(piece, end - at);
            const auto padded_count = static_cast<int32_t>(round_up(count, k_chunk));
            result.push_back({static_cast<int32_t>(at), static_cast<int32_t>(count), padded, padded_count,
                              static_cast<int32_t>(index)});
            padded += padded_count;
        }
    }
    return result;
}

int64_t padded_columns(const QuantSpec& spec, int64_t k, int32_t k_chunk) {
    const int64_t group = group_columns(spec, k);
    const int64_t piece = piece_columns(spec);
    return k / group * padded_group(group, piece, k_chunk) + padded_group(k % group, piece, k_chunk);
}

}  // namespace tmac
