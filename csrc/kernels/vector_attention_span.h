#pragma once

#include "kernels/vector_math.h"
#include "kernels/vector_ops.h"
#include "kernels/vector_softmax.h"

// What attention over one span has in common for all types of cache: which queries go together, the softmax, and what
// is asked for early.

namespace tmac {
namespace {

inline constexpr int32_t kQueriesAtOnce = 16;  ///< whose scores are kept
inline constexpr int32_t kQueryBlock = 4;      ///< that share a loaded key

/// Registers' worth of keys (of values) beside `queries` queries, so that `registers` hold their sums: `most`, a power
/// of two, or a smaller one, at least 1.
constexpr int shared_by(int queries, int most, int registers) {
    int count = most;
    while (count > 1 && count * queries > registers) {
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

/// Calls body(first, count, groups) for queries [first, last) in blocks of at most `most` neighbours whose groups
/// touch; `groups` are those that one of them reads.
template <class Body>
TMAC_ALWAYS_INLINE void for_each_block(const AttendArgs& args, int32_t first, int32_t last, int32_t most,
                                       const Body& body) {
    for (int32_t query = first; query < last;) {
        if (reads_nothing(args, query)) {
            ++query;
            continue;
        }
        Groups groups = groups_of(args, query);
        int32_t count = 1;
        while (count < most && query + count < last && !reads_nothing(args, query + count)) {
            const Groups next = groups_of(args, query + count);
            if (next.begin > groups.end || next.end < groups.begin) {
                break;
            }
            groups.begin = next.begin < groups.begin ? next.begin : groups.begin;
            groups.end = next.end > groups.end ? next.end : groups.end;
            ++count;
        }
        body(query, count, groups);
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

using Scores = float[kQueriesAtOnce][kSpanPositions];

/// Sixteen scores with the softcap, where there is one.
template <class V>
TMAC_ALWAYS_INLINE typename V::F capped(const AttendArgs& args, typename V::F score) {
    if (args.softcap == 0.0F) {
        return score;
    }
    const typename V::F cap = V::set1(args.softcap);
    return V::multiply(cap, tanh_of<V>(V::divide(score, cap)));
}

/// Scores of a query become the weights of its values; stores the largest score and the sum of the exponentials.
template <class V>
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
        V::store(scores + at, weight);
    }
    largest_and_sum[1] = V::fold(sum);
}

/// What attend leaves of a query beside the sum of its values, which become zero here: softmax_span for those that
/// read.
template <class V>
TMAC_ALWAYS_INLINE void weigh_queries(const AttendArgs& args, int32_t first, int32_t last, Scores& scores) {
    const int64_t padded_dim = round_up(args.head_dim, kKeyGroup);
    for (int32_t query = first; query < last; ++query) {
        float* partial = args.partials + query * args.partial_stride;
        std::memset(partial, 0, static_cast<size_t>(padded_dim) * sizeof(float));
        if (reads_nothing(args, query)) {
            partial[padded_dim] = -INFINITY;
            partial[padded_dim + 1] = 0.0F;
        } else {
            softmax_span<V>(args, query, scores[query - first], partial + padded_dim);
        }
    }
}

/// Calls body(first, last) for all queries, as many at a time as have their scores kept.
template <class Body>
TMAC_ALWAYS_INLINE void for_each_kept(const AttendArgs& args, const Body& body) {
    for (int32_t first = 0; first < args.num_queries; first += kQueriesAtOnce) {
        body(first, args.num_queries - first < kQueriesAtOnce ? args.num_queries : first + kQueriesAtOnce);
    }
}

}  // namespace
}  // namespace tmac
