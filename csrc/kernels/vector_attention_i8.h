#pragma once

#include "kernels/vector_attention_span.h"
#include "kernels/vector_rounding.h"

// Attention over one span of a cache of i8: queries and weights become integers too, so that four products are one
// instruction, and their sums are exact. What `V` has for it beside kernels/vector_math.h:
//
//     kDots                                    how many Dots the registers hold
//     Dots                                     sixteen integer sums
//     Bytes, load_bytes(const uint8_t*)        sixteen times four bytes
//     store_multipliers(uint8_t*, F)           sixteen integers of [-kMostMultiplier, kMostMultiplier] in the form, of
//                                              kMultiplierBytes, that four() reads
//     Four, four(const uint8_t*, index)        multipliers [4 index, 4 index + 4) of sixteen
//     no_dots(), add_dots(Dots, Bytes, Four)   adds to each of the sums its four bytes times the multipliers, mod 2^32
//     dots_less(Dots, int32_t)                 the sums less a number, mod 2^32, as int32 rounded to F

namespace tmac {
namespace {

inline constexpr int32_t kLineBytes = 64;                 ///< of sixteen Dots' fours
inline constexpr int32_t kQuads = kKeyGroup / kDotBytes;  ///< fours in sixteen multipliers

/// Numbers as integers: x is about multiplier * unit.
struct RoundedScale {
    float unit;
    int32_t bias;  ///< what the 128 in every stored byte adds to the sum, mod 2^32
};

/// The multipliers of `count` numbers, read by load(at) in sixteens: rint(x * (most / largest)).
template <class V, class Load>
TMAC_ALWAYS_INLINE RoundedScale round_numbers(int32_t count, int32_t most, const Load& load, uint8_t* multipliers) {
    using F = typename V::F;
    const RoundingScale scale = rounding_scale<V>(count, static_cast<float>(most), load);
    F sum = V::set1(0.0F);  // below 2^24, so exact
    for (int32_t at = 0; at < count; at += kVectorLanes) {
        const F integers = scale.inverse != 0.0F ? rounded<V>(load(at), scale.inverse) : V::set1(0.0F);
        V::store_multipliers(multipliers + at / kVectorLanes * kMultiplierBytes, integers);
        sum = V::add(sum, integers);
    }
    return {scale.scale, static_cast<int32_t>(128U * static_cast<uint32_t>(static_cast<int32_t>(V::fold(sum))))};
}

template <class V>
void round_query(const float* q, int32_t head_dim, uint8_t* rounded) {
    const RoundedScale scale =
        round_numbers<V>(head_dim, most_multiplier(head_dim), sixteens_of<V>(q, head_dim), rounded);
    std::memcpy(rounded + rounded_query_bytes(head_dim) - sizeof(scale), &scale, sizeof(scale));
}

TMAC_ALWAYS_INLINE RoundedScale scale_of_query(const AttendArgs& args, int32_t query) {
    RoundedScale scale;
    std::memcpy(&scale, args.rounded_queries[query] + rounded_query_bytes(args.head_dim) - sizeof(scale),
                sizeof(scale));
    return scale;
}

/// Lines to be asked for early, piece by piece up to the first that is null.
class LinesAhead {
public:
    TMAC_ALWAYS_INLINE LinesAhead(const uint8_t* const* pieces, int32_t begin, int32_t end, int32_t lines)
        : lines_(lines) {
        for (int32_t piece = begin; pieces != nullptr && piece < end && pieces[piece] != nullptr; ++piece) {
            pieces_[count_++] = pieces[piece];
        }
        next_piece();
    }

    template <class V, int Count>
    TMAC_ALWAYS_INLINE void ask() {
        if (line_ == nullptr) {
            return;
        }
        TMAC_UNROLL
        for (int i = 0; i < Count; ++i) {
            V::prefetch(line_ + i * kLineBytes);
        }
        line_ += Count * kLineBytes;
        left_ -= Count;
        if (left_ <= 0) {
            next_piece();
        }
    }

private:
    TMAC_ALWAYS_INLINE void next_piece() {
        line_ = at_ < count_ ? pieces_[at_++] : nullptr;
        left_ = lines_;
    }

    const uint8_t* pieces_[kSpanGroups];
    int32_t count_ = 0;
    int32_t at_ = 0;
    int32_t lines_;
    int32_t left_ = 0;
    const uint8_t* line_ = nullptr;
};

/// Queries that share loaded bytes.
template <class V>
constexpr int32_t queries_at_once() {
    return V::kDots < kQueryBlock ? V::kDots : kQueryBlock;
}

/// for_each_piece with sizes from `Most`, a power of two up to 8, down to 1.
template <int Most, class Body>
TMAC_ALWAYS_INLINE void for_each_halved(int64_t count, const Body& body) {
    if constexpr (Most == 8) {
        for_each_piece<8, 4, 2, 1>(count, body);
    } else if constexpr (Most == 4) {
        for_each_piece<4, 2, 1>(count, body);
    } else if constexpr (Most == 2) {
        for_each_piece<2, 1>(count, body);
    } else {
        for_each_piece<1>(count, body);
    }
}

/// Scores of `Queries` queries from `first` on with the groups [group, group + Count).
template <class V, int Queries, int Count>
TMAC_ALWAYS_INLINE void score_groups_i8(const AttendArgs& args, int32_t first, int32_t group, LinesAhead* ahead,
                                        float (*scores)[kSpanPositions]) {
    typename V::Dots dots[Queries][Count];
    TMAC_UNROLL
    for (int i = 0; i < Queries * Count; ++i) {
        dots[i / Count][i % Count] = V::no_dots();
    }
    const uint8_t* const* queries = args.rounded_queries + first;
    const uint8_t* const* keys = args.keys + group;
    const auto add = [&](int32_t quad, int64_t multipliers, int index) {
        typename V::Four fours[Queries];
        TMAC_UNROLL
        for (int q = 0; q < Queries; ++q) {
            fours[q] = V::four(queries[q] + multipliers, index);
        }
        TMAC_UNROLL
        for (int g = 0; g < Count; ++g) {
            const typename V::Bytes bytes = V::load_bytes(keys[g] + int64_t{quad} * kLineBytes);
            TMAC_UNROLL
            for (int q = 0; q < Queries; ++q) {
                dots[q][g] = V::add_dots(dots[q][g], bytes, fours[q]);
            }
        }
    };
    const auto quads = static_cast<int32_t>(round_up(args.head_dim, kDotBytes) / kDotBytes);
    int32_t quad = 0;
    int64_t multipliers = 0;
    for (; quad + kQuads <= quads; quad += kQuads, multipliers += kMultiplierBytes) {
        if (ahead != nullptr) {
            ahead->ask<V, kQuads * Count>();
        }
        TMAC_UNROLL
        for (int index = 0; index < kQuads; ++index) {
            add(quad + index, multipliers, index);
        }
    }
    for (int index = 0; quad + index < quads; ++index) {
        add(quad + index, multipliers, index);
    }
    for (int q = 0; q < Queries; ++q) {
        const RoundedScale scale = scale_of_query(args, first + q);
        const auto factor = V::set1(scale.unit * args.scale);
        for (int g = 0; g < Count; ++g) {
            const auto product = V::multiply(V::dots_less(dots[q][g], scale.bias), V::load(args.key_scales[group + g]));
            V::store(scores[q] + (group + g) * kKeyGroup, capped<V>(args, V::multiply(product, factor)));
        }
    }
}

/// The weights of a query's values as integers, those of the value scales among them.
struct RoundedWeights {
    alignas(kLineBytes) uint8_t multipliers[kSpanGroups * kMultiplierBytes];
    RoundedScale scale;
};

/// Multipliers of all positions of `groups`, zero where the query does not read.
template <class V>
TMAC_ALWAYS_INLINE void round_weights(const AttendArgs& args, int32_t query, const Groups& groups, const float* weights,
                                      RoundedWeights& rounded) {
    const Groups own = groups_of(args, query);
    const int32_t begin = args.begin[query];
    const int32_t end = args.end[query];
    const auto load = [&](int32_t at) {
        const int32_t group = own.begin + at / kKeyGroup;
        const int32_t position = group * kKeyGroup;
        const auto weight = V::multiply(V::load(weights + position), V::load(args.value_scales[group]));
        return position < begin || position + kKeyGroup > end
                   ? V::select_range(weight, V::set1(0.0F), begin - position, end - position)
                   : weight;
    };
    if (own.begin != groups.begin || own.end != groups.end) {
        std::memset(rounded.multipliers, 0, sizeof(rounded.multipliers));
    }
    rounded.scale = round_numbers<V>((own.end - own.begin) * kKeyGroup, most_multiplier(kSpanPositions), load,
                                     rounded.multipliers + own.begin * kMultiplierBytes);
}

/// The sums of 16 Count columns from register `column` on, over all of `groups`.
template <class V, int Queries, int Count>
TMAC_ALWAYS_INLINE void sum_columns_i8(const AttendArgs& args, int32_t first, const Groups& groups, int64_t column,
                                       LinesAhead* ahead, const RoundedWeights* weights) {
    typename V::Dots dots[Queries][Count];
    TMAC_UNROLL
    for (int i = 0; i < Queries * Count; ++i) {
        dots[i / Count][i % Count] = V::no_dots();
    }
    const int64_t quad_bytes = round_up(args.head_dim, kKeyGroup) * kDotBytes;
    for (int32_t group = groups.begin; group < groups.end; ++group) {
        const uint8_t* values = args.values[group] + column * kLineBytes;
        if (ahead != nullptr) {
            ahead->ask<V, kQuads * Count>();
        }
        for (int quad = 0; quad < kQuads; ++quad) {
            typename V::Four fours[Queries];
            TMAC_UNROLL
            for (int q = 0; q < Queries; ++q) {
                fours[q] = V::four(weights[q].multipliers + group * kMultiplierBytes, quad);
            }
            TMAC_UNROLL
            for (int c = 0; c < Count; ++c) {
                const typename V::Bytes bytes = V::load_bytes(values + quad * quad_bytes + c * kLineBytes);
                TMAC_UNROLL
                for (int q = 0; q < Queries; ++q) {
                    dots[q][c] = V::add_dots(dots[q][c], bytes, fours[q]);
                }
            }
        }
    }
    for (int q = 0; q < Queries; ++q) {
        float* partial = args.partials + (first + q) * args.partial_stride + column * kVectorLanes;
        const auto unit = V::set1(weights[q].scale.unit);
        for (int c = 0; c < Count; ++c) {
            V::store(partial + c * kVectorLanes, V::multiply(V::dots_less(dots[q][c], weights[q].scale.bias), unit));
        }
    }
}

template <class V>
void attend_i8(const AttendArgs& args) {
    const Groups all = all_groups(args, 0, args.num_queries);
    if (args.next_keys != nullptr) {
        for (int32_t group = 0; group < kSpanGroups && args.next_keys[group] != nullptr; ++group) {
            V::prefetch(reinterpret_cast<const uint8_t*>(args.next_key_scales[group]));
            V::prefetch(reinterpret_cast<const uint8_t*>(args.next_value_scales[group]));
        }
    }
    const int64_t registers = round_up(args.head_dim, kKeyGroup) / kVectorLanes;
    const auto lines = static_cast<int32_t>(registers * kKeyGroup / kDotBytes);
    // While keys are read, the values; while these are, the keys of the next call.
    LinesAhead values_ahead(args.values, all.begin, all.end, lines);
    LinesAhead keys_ahead(args.next_keys, 0, kSpanGroups, lines);
    constexpr int32_t kQueries = queries_at_once<V>();
    Scores scores;
    RoundedWeights weights[kQueries];
    for_each_kept(args, [&](int32_t first, int32_t last) {
        for_each_block(args, first, last, kQueries, [&](int32_t query, int32_t count, const Groups& groups) {
            with_count(count, [&]<int Queries>() {
                if constexpr (Queries <= kQueries) {
                    for_each_halved<shared_by(Queries, 4, V::kDots)>(
                        groups.end - groups.begin, [&]<int Count>(int64_t at) {
                            score_groups_i8<V, Queries, Count>(args, query, groups.begin + static_cast<int32_t>(at),
                                                               query == 0 ? &values_ahead : nullptr,
                                                               scores + (query - first));
                        });
                }
            });
        });
        weigh_queries<V>(args, first, last, scores);
        for_each_block(args, first, last, kQueries, [&](int32_t query, int32_t count, const Groups& groups) {
            for (int32_t q = 0; q < count; ++q) {
                round_weights<V>(args, query + q, groups, scores[query + q - first], weights[q]);
            }
            with_count(count, [&]<int Queries>() {
                if constexpr (Queries <= kQueries) {
                    for_each_halved<shared_by(Queries, 8, V::kDots)>(registers, [&]<int Count>(int64_t column) {
                        sum_columns_i8<V, Queries, Count>(args, query, groups, column,
                                                          query == 0 ? &keys_ahead : nullptr, weights);
                    });
                }
            });
        });
    });
}

}  // namespace
}  // namespace tmac
