#pragma once

#include "kernels/vector_attention_span.h"

// Attention over one span of a cache of floats (core/cache_layout.h): scores, softmax, sum of values. Sixteen positions
// of a key are a register, so scores need no fold; sixteen columns of a value are one.

namespace tmac {
namespace {

/// Sixteen elements of a cache of floats from element `at` on.
template <class V, CacheType Type>
TMAC_ALWAYS_INLINE typename V::F load_cached(const uint8_t* group, int64_t at) {
    if constexpr (Type == CacheType::f32) {
        return V::load(reinterpret_cast<const float*>(group) + at);
    } else {
        return V::load_f16(reinterpret_cast<const uint16_t*>(group) + at);
    }
}

/// What a call reads, group by group: keys, values, and the keys of the next call. A group asks for the one kAhead
/// further on: groups begin new streams, too short for the CPU to see them.
template <CacheType Type>
class Prefetch {
public:
    static constexpr int32_t kAhead = 4;
    static constexpr int32_t kLine = 64;
    static constexpr int32_t kVectorsInLine = kLine / (kVectorLanes * static_cast<int32_t>(element_bytes(Type)));

    TMAC_ALWAYS_INLINE Prefetch(const AttendArgs& args, const Groups& groups) : groups_(groups) {
        // Where there is nothing to ask for, what is being read stands in.
        const uint8_t* first = groups.begin < groups.end ? args.keys[groups.begin] : nullptr;
        const auto ask = [&](const uint8_t* piece) { pieces_[count_++] = piece != nullptr ? piece : first; };
        for (int32_t group = groups.begin; group < groups.end; ++group) {
            ask(args.keys[group]);
        }
        for (int32_t group = groups.begin; group < groups.end; ++group) {
            ask(args.values[group]);
        }
        for (int32_t group = 0; group < kAhead; ++group) {
            ask(args.next_keys != nullptr ? args.next_keys[group] : nullptr);
        }
    }

    // What to ask for beside the keys (the values) of a group; null: nothing.
    TMAC_ALWAYS_INLINE const uint8_t* const* beside_keys(int32_t group) const {
        return pieces_ + (group - groups_.begin) + kAhead;
    }
    TMAC_ALWAYS_INLINE const uint8_t* beside_values(int32_t group) const {
        return pieces_[groups_.end - groups_.begin + (group - groups_.begin) + kAhead];
    }

private:
    Groups groups_;
    int32_t count_ = 0;
    const uint8_t* pieces_[2 * kSpanGroups + kAhead];
};

/// Scores of `Queries` queries from `first` on with the groups [group, group + Count). `ahead`: groups to ask for, or
/// null.
template <class V, CacheType Type, int Queries, int Count>
TMAC_ALWAYS_INLINE void score_groups(const AttendArgs& args, const float* const* queries, int32_t group,
                                     const uint8_t* const* ahead, float (*scores)[kSpanPositions]) {
    using F = typename V::F;
    constexpr int32_t kStep = Prefetch<Type>::kVectorsInLine;
    F sums[Queries][Count];
    const uint8_t* keys[Count];
    TMAC_UNROLL
    for (int g = 0; g < Count; ++g) {
        keys[g] = args.keys[group + g];
        TMAC_UNROLL
        for (int q = 0; q < Queries; ++q) {
            sums[q][g] = V::set1(0.0F);
        }
    }
    const auto add = [&](int32_t d) {
        F elements[Queries];
        TMAC_UNROLL
        for (int q = 0; q < Queries; ++q) {
            elements[q] = V::set1(queries[q][d]);
        }
        TMAC_UNROLL
        for (int g = 0; g < Count; ++g) {
            const F key = load_cached<V, Type>(keys[g], int64_t{d} * kKeyGroup);
            TMAC_UNROLL
            for (int q = 0; q < Queries; ++q) {
                sums[q][g] = V::fma(elements[q], key, sums[q][g]);
            }
        }
    };
    // The groups ahead are asked for one after the other, line by line: a stream that the CPU sees and runs ahead of.
    const int32_t lines = args.head_dim / kStep;
    int32_t asked = 0;
    const uint8_t* line = ahead == nullptr ? nullptr : *ahead++;
    int32_t d = 0;
    for (; d + kStep <= args.head_dim; d += kStep) {
        if (line != nullptr) {
            TMAC_UNROLL
            for (int g = 0; g < Count; ++g) {
                V::prefetch(line + g * Prefetch<Type>::kLine);
            }
            line += Count * Prefetch<Type>::kLine;
            asked += Count;
            if (asked >= lines && d + 2 * kStep <= args.head_dim) {
                asked -= lines;
                line = *ahead++;
            }
        }
        TMAC_UNROLL
        for (int32_t i = 0; i < kStep; ++i) {
            add(d + i);
        }
    }
    for (; d < args.head_dim; ++d) {
        add(d);
    }
    const F scale = V::set1(args.scale);
    for (int g = 0; g < Count; ++g) {
        for (int q = 0; q < Queries; ++q) {
            V::store(scores[q] + (group + g) * kKeyGroup, capped<V>(args, V::multiply(sums[q][g], scale)));
        }
    }
}

/// Scores of queries [first, first + count) with every group that one of them reads.
template <class V, CacheType Type>
TMAC_ALWAYS_INLINE void score_block(const AttendArgs& args, int32_t first, int32_t count, const Groups& groups,
                                    const Prefetch<Type>* prefetch, float (*scores)[kSpanPositions]) {
    const float* const* queries = args.queries + first;
    with_count(count, [&]<int Queries>() {
        constexpr int kMost = shared_by(Queries, 4, V::kAccumulators);
        const auto score = [&]<int Count>(int64_t at) {
            const int32_t group = groups.begin + static_cast<int32_t>(at);
            score_groups<V, Type, Queries, Count>(args, queries, group,
                                                  prefetch == nullptr ? nullptr : prefetch->beside_keys(group), scores);
        };
        if constexpr (kMost == 4) {
            for_each_piece<4, 2, 1>(groups.end - groups.begin, score);
        } else {
            for_each_piece<2, 1>(groups.end - groups.begin, score);
        }
    });
}

/// Adds lanes [begin, end) of one group's values to 16 Count columns of the partial results, which `values` and
/// `partials` point at. `weights`: of the group's lanes, kSpanPositions apart.
template <class V, CacheType Type, int Queries, int Count>
TMAC_ALWAYS_INLINE void add_columns(const uint8_t* values, int32_t padded_dim, int32_t begin, int32_t end,
                                    const float* weights, const uint8_t* ahead, float* partials, int64_t stride) {
    using F = typename V::F;
    F sums[Queries][Count];
    TMAC_UNROLL
    for (int i = 0; i < Queries * Count; ++i) {
        sums[i / Count][i % Count] = V::load(partials + i / Count * stride + i % Count * kVectorLanes);
    }
    for (int32_t j = begin; j < end; ++j) {
        F weight[Queries];
        TMAC_UNROLL
        for (int q = 0; q < Queries; ++q) {
            weight[q] = V::set1(weights[q * kSpanPositions + j]);
        }
        TMAC_UNROLL
        for (int c = 0; c < Count; ++c) {
            if (ahead != nullptr && c % Prefetch<Type>::kVectorsInLine == 0) {
                V::prefetch(ahead + (int64_t{j} * padded_dim + c * kVectorLanes) * element_bytes(Type));
            }
            const F value = load_cached<V, Type>(values, int64_t{j} * padded_dim + c * kVectorLanes);
            TMAC_UNROLL
            for (int q = 0; q < Queries; ++q) {
                sums[q][c] = V::fma(weight[q], value, sums[q][c]);
            }
        }
    }
    TMAC_UNROLL
    for (int i = 0; i < Queries * Count; ++i) {
        V::store(partials + i / Count * stride + i % Count * kVectorLanes, sums[i / Count][i % Count]);
    }
}

/// The same for all columns.
template <class V, CacheType Type>
TMAC_ALWAYS_INLINE void add_values(const AttendArgs& args, int32_t group, int32_t begin, int32_t end, int32_t query,
                                   int32_t count, const float* weights, const uint8_t* ahead) {
    const uint8_t* values = args.values[group];
    const auto padded_dim = static_cast<int32_t>(round_up(args.head_dim, kKeyGroup));
    float* partials = args.partials + query * args.partial_stride;
    with_count(count, [&]<int Queries>() {
        constexpr int kMost = shared_by(Queries, 4, V::kAccumulators);
        const auto add = [&]<int Count>(int64_t at) {
            const int64_t column = at * kVectorLanes;
            add_columns<V, Type, Queries, Count>(values + column * element_bytes(Type), padded_dim, begin, end, weights,
                                                 ahead == nullptr ? nullptr : ahead + column * element_bytes(Type),
                                                 partials + column, args.partial_stride);
        };
        if constexpr (kMost == 4 && Queries == 1 && V::kAccumulators >= 8) {
            for_each_piece<8, 4, 2, 1>(padded_dim / kVectorLanes, add);
        } else if constexpr (kMost == 4) {
            for_each_piece<4, 2, 1>(padded_dim / kVectorLanes, add);
        } else {
            for_each_piece<2, 1>(padded_dim / kVectorLanes, add);
        }
    });
}

/// The lanes of a group that a query reads.
struct LaneRange {
    int32_t begin;
    int32_t end;

    friend bool operator==(const LaneRange&, const LaneRange&) = default;
};

TMAC_ALWAYS_INLINE LaneRange lanes_of(const AttendArgs& args, int32_t query, int32_t group) {
    const int32_t from = args.begin[query] - group * kKeyGroup;
    const int32_t to = args.end[query] - group * kKeyGroup;
    return {from > 0 ? from : 0, to < kKeyGroup ? to : kKeyGroup};
}

/// One group's values for queries [first, last): neighbours that read the same lanes share them.
template <class V, CacheType Type>
TMAC_ALWAYS_INLINE void add_group(const AttendArgs& args, int32_t group, int32_t first, int32_t last,
                                  const Prefetch<Type>& prefetch, const Scores& weights) {
    for (int32_t query = first; query < last;) {
        const LaneRange lanes = lanes_of(args, query, group);
        int32_t count = 1;
        while (count < kQueryBlock && query + count < last && lanes_of(args, query + count, group) == lanes) {
            ++count;
        }
        if (lanes.begin < lanes.end) {
            add_values<V, Type>(args, group, lanes.begin, lanes.end, query, count,
                                weights[query - first] + group * kKeyGroup,
                                query == 0 ? prefetch.beside_values(group) : nullptr);
        }
        query += count;
    }
}

template <class V, CacheType Type>
void attend_floats(const AttendArgs& args) {
    const Prefetch<Type> prefetch(args, all_groups(args, 0, args.num_queries));
    Scores scores;
    for_each_kept(args, [&](int32_t first, int32_t last) {
        for_each_block(args, first, last, kQueryBlock, [&](int32_t query, int32_t count, const Groups& groups) {
            score_block<V, Type>(args, query, count, groups, query == 0 ? &prefetch : nullptr,
                                 scores + (query - first));
        });
        weigh_queries<V>(args, first, last, scores);
        const Groups groups = all_groups(args, first, last);
        for (int32_t group = groups.begin; group < groups.end; ++group) {
            add_group<V, Type>(args, group, first, last, prefetch, scores);
        }
    });
}

}  // namespace
}  // namespace tmac
