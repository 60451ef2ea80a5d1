#pragma once

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"
#include "kernels/vector_softmax.h"

// Attention over one span of a cache (core/cache_layout.h): scores, softmax, sum of values. Sixteen positions of a key
// are a register, so scores need no fold; sixteen columns of a value are one.

namespace tmac {
namespace {

/// Sixteen elements of a cache from element `at` on.
template <class V, CacheType Type>
TMAC_ALWAYS_INLINE typename V::F load_cached(const uint8_t* group, int64_t at) {
    if constexpr (Type == CacheType::f32) {
        return V::load(reinterpret_cast<const float*>(group) + at);
    } else if constexpr (Type == CacheType::f16) {
        return V::load_f16(reinterpret_cast<const uint16_t*>(group) + at);
    } else {
        return V::load_i8(reinterpret_cast<const int8_t*>(group) + at);
    }
}

inline constexpr int32_t kQueriesAtOnce = 16;  ///< whose scores are kept
inline constexpr int32_t kQueryBlock = 4;      ///< that share a loaded key

/// Registers' worth of keys (of values) beside `queries` queries: a power of two.
template <class V>
constexpr int shared_by(int queries) {
    int count = 4;
    while (count > 1 && count * queries > V::kAccumulators) {
        count /= 2;
    }
    return count;
}

/// Calls body.template operator()<Count>() for count in [1, kQueryBlock].
template <class Body>
TMAC_ALWAYS_INLINE void with_count(int32_t count, const Body& body) {
    switch (count) {
        case 1:
            return body.template operator()<1>();
        case 2:
            return body.template operator()<2>();
        case 3:
            return body.template operator()<3>();
        default:
            return body.template operator()<4>();
    }
}

/// The groups of a span that a query reads.
struct Groups {
    int32_t begin;
    int32_t end;
};

TMAC_ALWAYS_INLINE Groups groups_of(const AttendArgs& args, int32_t query) {
    return {args.begin[query] / kKeyGroup, (args.end[query] + kKeyGroup - 1) / kKeyGroup};
}

TMAC_ALWAYS_INLINE bool reads_nothing(const AttendArgs& args, int32_t query) {
    return args.begin[query] >= args.end[query];
}

using Scores = float[kQueriesAtOnce][kSpanPositions];

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
            if constexpr (Type == CacheType::i8) {  // one line each, far from the others
                TMAC_PREFETCH(args.key_scales[group]);
                TMAC_PREFETCH(args.value_scales[group]);
            }
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
            F score = sums[q][g];
            if constexpr (Type == CacheType::i8) {
                score = V::multiply(score, V::load(args.key_scales[group + g]));
            }
            score = V::multiply(score, scale);
            if (args.softcap != 0.0F) {
                const F cap = V::set1(args.softcap);
                score = V::multiply(cap, tanh_of<V>(V::divide(score, cap)));
            }
            V::store(scores[q] + (group + g) * kKeyGroup, score);
        }
    }
}

/// Scores of queries [first, first + count) with every group that one of them reads.
template <class V, CacheType Type>
TMAC_ALWAYS_INLINE void score_block(const AttendArgs& args, int32_t first, int32_t count, const Groups& groups,
                                    const Prefetch<Type>* prefetch, float (*scores)[kSpanPositions]) {
    const float* const* queries = args.queries + first;
    with_count(count, [&]<int Queries>() {
        constexpr int kMost = shared_by<V>(Queries);
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

/// All scores of queries [first, last): neighbours whose groups touch share the keys.
template <class V, CacheType Type>
TMAC_ALWAYS_INLINE void score_queries(const AttendArgs& args, int32_t first, int32_t last,
                                      const Prefetch<Type>& prefetch, Scores& scores) {
    for (int32_t query = first; query < last;) {
        if (reads_nothing(args, query)) {
            ++query;
            continue;
        }
        Groups groups = groups_of(args, query);
        int32_t count = 1;
        while (count < kQueryBlock && query + count < last && !reads_nothing(args, query + count)) {
            const Groups next = groups_of(args, query + count);
            if (next.begin > groups.end || next.end < groups.begin) {
                break;
            }
            groups.begin = next.begin < groups.begin ? next.begin : groups.begin;
            groups.end = next.end > groups.end ? next.end : groups.end;
            ++count;
        }
        score_block<V, Type>(args, query, count, groups, query == 0 ? &prefetch : nullptr, scores + (query - first));
        query += count;
    }
}

/// Scores of a query become the weights of its values; stores the largest score and the sum of the exponentials.
template <class V, CacheType Type>
TMAC_ALWAYS_INLINE void softmax_span(const AttendArgs& args, int32_t query, float* scores, float* largest_and_sum) {
    using F = typename V::F;
    const Groups groups = groups_of(args, query);
    const int32_t begin = args.begin[query];
    const int32_t end = args.end[query];
    const F nothing = V::set1(-INFINITY);
    F largest = nothing;
    for (int32_t group = groups.begin; group < groups.end; ++group) {
        const int32_t at = group * kKeyGroup;
        F score = V::load(scores + at);
        if (at < begin || at + kKeyGroup > end) {
            score = V::select_range(score, nothing, begin - at, end - at);
            V::store(scores + at, score);
        }
        largest = V::max(score, largest);
    }
    largest_and_sum[0] = largest_lane<V>(largest);
    const F subtract = V::set1(largest_and_sum[0]);
    F sum = V::set1(0.0F);
    for (int32_t group = groups.begin; group < groups.end; ++group) {
        const int32_t at = group * kKeyGroup;
        F weight = exp_bounded<V>(V::subtract(V::load(scores + at), subtract));
        if (at < begin || at + kKeyGroup > end) {
            weight = V::select_range(weight, V::set1(0.0F), begin - at, end - at);
        }
        sum = V::add(sum, weight);
        if constexpr (Type == CacheType::i8) {
            weight = V::multiply(weight, V::load(args.value_scales[group]));
        }
        V::store(scores + at, weight);
    }
    largest_and_sum[1] = V::fold(sum);
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
        constexpr int kMost = shared_by<V>(Queries);
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

/// The groups that any of queries [first, last) reads.
TMAC_ALWAYS_INLINE Groups all_groups(const AttendArgs& args, int32_t first, int32_t last) {
    Groups all{kSpanGroups, 0};
    for (int32_t query = first; query < last; ++query) {
        if (!reads_nothing(args, query)) {
            const Groups groups = groups_of(args, query);
            all.begin = groups.begin < all.begin ? groups.begin : all.begin;
            all.end = groups.end > all.end ? groups.end : all.end;
        }
    }
    return all.begin < all.end ? all : Groups{0, 0};
}

template <class V, CacheType Type>
void attend_span(const AttendArgs& args) {
    const int64_t padded_dim = round_up(args.head_dim, kKeyGroup);
    const Prefetch<Type> prefetch(args, all_groups(args, 0, args.num_queries));
    Scores scores;
    for (int32_t first = 0; first < args.num_queries; first += kQueriesAtOnce) {
        const int32_t last = args.num_queries - first < kQueriesAtOnce ? args.num_queries : first + kQueriesAtOnce;
        score_queries<V, Type>(args, first, last, prefetch, scores);
        for (int32_t query = first; query < last; ++query) {
            float* partial = args.partials + query * args.partial_stride;
            std::memset(partial, 0, static_cast<size_t>(padded_dim) * sizeof(float));
            if (reads_nothing(args, query)) {
                partial[padded_dim] = -INFINITY;
                partial[padded_dim + 1] = 0.0F;
            } else {
                softmax_span<V, Type>(args, query, scores[query - first], partial + padded_dim);
            }
        }
        const Groups groups = all_groups(args, first, last);
        for (int32_t group = groups.begin; group < groups.end; ++group) {
            add_group<V, Type>(args, group, first, last, prefetch, scores);
        }
    }
}

template <class V>
void attend(const AttendArgs& args) {
    switch (args.type) {
        case CacheType::f32:
            return attend_span<V, CacheType::f32>(args);
        case CacheType::f16:
            return attend_span<V, CacheType::f16>(args);
        case CacheType::i8:
            return attend_span<V, CacheType::i8>(args);
    }
}

template <class V>
void merge(const float* from, float* into, int32_t head_dim) {
    using F = typename V::F;
    const int64_t padded_dim = round_up(head_dim, kKeyGroup);
    const float* from_tail = from + padded_dim;  // the largest score, the sum
    float* into_tail = into + padded_dim;
    const auto empty = [](const float* tail) { return tail[0] == -INFINITY && tail[1] == 0.0F; };
    if (empty(from_tail)) {
        return;
    }
    if (empty(into_tail)) {
        std::memcpy(into, from, static_cast<size_t>(padded_dim + 2) * sizeof(float));
        return;
    }
    const float largest = into_tail[0] > from_tail[0] ? into_tail[0] : from_tail[0];
    const F into_factor = exp_bounded<V>(V::set1(into_tail[0] - largest));
    const F from_factor = exp_bounded<V>(V::set1(from_tail[0] - largest));
    const auto merged = [&](F before, F after) { return V::fma(after, from_factor, V::multiply(before, into_factor)); };
    for (int64_t at = 0; at < padded_dim; at += kVectorLanes) {
        V::store(into + at, merged(V::load(into + at), V::load(from + at)));
    }
    store_some<V>(into_tail + 1, 1, merged(V::set1(into_tail[1]), V::set1(from_tail[1])));
    into_tail[0] = largest;
}

template <class V>
void finish(const float* partial, int32_t head_dim, float* y) {
    const typename V::F sum = V::set1(partial[round_up(head_dim, kKeyGroup) + 1]);
    for_each_lanes<V>(head_dim, [&](int64_t at, const auto& load, const auto& store) {
        store(y + at, V::divide(load(partial + at), sum));
    });
}

}  // namespace
}  // namespace tmac
