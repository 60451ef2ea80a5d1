#pragma once

#include <cstdint>

#include "core/range.h"

// Where the keys and values of a sequence lie. Everything goes by the logical position in the sequence, so that a
// result does not depend on how a cache came to be.

namespace tmac {

/// What a cache holds keys and values as. i8: rounded, with one f32 scale per position and key head.
enum class CacheType : uint8_t { f32, f16, i8 };

inline constexpr int32_t kKeyGroup = 16;        ///< positions that lie side by side
inline constexpr int32_t kPagePositions = 64;   ///< that are allocated, shared and dropped together
inline constexpr int32_t kSpanPositions = 256;  ///< whose softmax is computed at once
inline constexpr int32_t kPageGroups = kPagePositions / kKeyGroup;
inline constexpr int32_t kSpanGroups = kSpanPositions / kKeyGroup;
inline constexpr int32_t kDotBytes = 4;  ///< of an i8 cache that are multiplied and added at once

constexpr int64_t element_bytes(CacheType type) {
    switch (type) {
        case CacheType::f32:
            return 4;
        case CacheType::f16:
            return 2;
        case CacheType::i8:
            break;
    }
    return 1;
}

/// The groups of one layer and key head, `groups` of them in one piece (a page has kPageGroups, the tail of a token
/// tree any number). One piece is head_bytes(groups) long:
///
///     keys          [groups][head_dim][16] elements    transposed: 16 positions are one register
///     values        [groups][16][padded_dim] elements  elements past head_dim are zero
///
/// and of i8, whose integers are stored plus 128 and lie in fours, as the CPUs' dot products of bytes take them:
///
///     keys          [groups][head_dim / 4][16][4]      columns in fours, rounded up
///     values        [groups][16 / 4][padded_dim][4]    positions in fours
///     key scales    [groups][16] f32
///     value scales  [groups][16] f32
///
/// In a page the key heads of a layer follow each other, and so do the layers. All sizes are in bytes.
struct CacheLayout {
    CacheType type = CacheType::f16;
    int32_t head_dim = 0;

    friend bool operator==(const CacheLayout&, const CacheLayout&) = default;

    constexpr int32_t padded_dim() const { return static_cast<int32_t>(round_up(head_dim, kKeyGroup)); }
    constexpr bool has_scales() const { return type == CacheType::i8; }

    /// That a key has a place for.
    constexpr int64_t key_columns() const { return type == CacheType::i8 ? round_up(head_dim, kDotBytes) : head_dim; }

    constexpr int64_t key_group_bytes() const { return key_columns() * kKeyGroup * element_bytes(type); }
    constexpr int64_t value_group_bytes() const { return int64_t{padded_dim()} * kKeyGroup * element_bytes(type); }
    constexpr int64_t scale_group_bytes() const { return has_scales() ? kKeyGroup * int64_t{sizeof(float)} : 0; }

    // From the start of a group's keys (of its values) to one element of them.
    constexpr int64_t key_element(int64_t column, int64_t lane) const {
        return type == CacheType::i8 ? (column / kDotBytes * kKeyGroup + lane) * kDotBytes + column % kDotBytes
                                     : (column * kKeyGroup + lane) * element_bytes(type);
    }
    constexpr int64_t value_element(int64_t column, int64_t lane) const {
        return type == CacheType::i8 ? (lane / kDotBytes * padded_dim() + column) * kDotBytes + lane % kDotBytes
                                     : (lane * padded_dim() + column) * element_bytes(type);
    }

    // From the start of a piece of `groups` groups to group `group`.
    constexpr int64_t key_offset(int64_t group) const { return group * key_group_bytes(); }
    constexpr int64_t value_offset(int64_t group, int64_t groups = kPageGroups) const {
        return groups * key_group_bytes() + group * value_group_bytes();
    }
    constexpr int64_t key_scale_offset(int64_t group, int64_t groups = kPageGroups) const {
        return groups * (key_group_bytes() + value_group_bytes()) + group * scale_group_bytes();
    }
    constexpr int64_t value_scale_offset(int64_t group, int64_t groups = kPageGroups) const {
        return key_scale_offset(groups + group, groups);
    }

    /// One key head of one layer; from one key head to the next.
    constexpr int64_t head_bytes(int64_t groups = kPageGroups) const {
        return groups * (key_group_bytes() + value_group_bytes() + 2 * scale_group_bytes());
    }
};

}  // namespace tmac
