#pragma once

#include <utility>

#include "kernels/neon/mad_codes.h"

// A few tokens at a time: codes are unpacked in registers, right before they are multiplied. Needs dotprod.

namespace tmac::neon {
namespace {

constexpr int32_t kPrefetch = 2048;  ///< bytes ahead in every region
constexpr int kMaxSmall = 4;         ///< tokens whose sums, for 16 rows, leave room for the codes in 32 registers

template <class Codes, int Lane>
TMAC_ALWAYS_INLINE int32x4_t dot_lane(int32x4_t sum, int8x16_t codes, int8x16_t q) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
    if constexpr (Codes::kUnsigned) {
        return vusdotq_laneq_s32(sum, vreinterpretq_u8_s8(codes), q, Lane);
    }
#endif
    return vdotq_laneq_s32(sum, codes, q, Lane);
}

/// Integer sums of 4 rows and one token. A single token has registers to spare: codes of planes are masked, but not
/// shifted down where they stand at different places of a byte, and each place has a sum of its own; codes of nibbles
/// have several sums, so that no product waits for the one before.
template <class Codes, bool Split>
struct Sums {
    static constexpr bool kByScale = Split && Codes::kScaled;
    static constexpr int kCount = !Split ? 1 : kByScale ? 8 : 4;  ///< those that nobody uses vanish
    int32x4_t parts[kCount];

    TMAC_ALWAYS_INLINE void start(int32_t value) {
        parts[0] = vdupq_n_s32(value);
        TMAC_UNROLL
        for (int i = 1; i < kCount; ++i) {
            parts[i] = vdupq_n_s32(0);
        }
    }

    /// Vector V of chunk C.
    template <int C, int V>
    TMAC_ALWAYS_INLINE void add(const Codes& codes, int8x16_t q) {
        constexpr int kLane = (C * Codes::kVectors + V) % 4;
        constexpr int kPart = kByScale ? Codes::template kScale<V> : kLane % kCount;
        const int8x16_t bytes = Split ? codes.template scaled<V>() : codes.template code<V>();
        parts[kPart] = dot_lane<Codes, kLane>(parts[kPart], bytes, q);
    }

    TMAC_ALWAYS_INLINE int32x4_t total() const {
        int32x4_t sum = parts[0];
        const auto add_parts = [&]<int... I>(std::integer_sequence<int, I...>) {
            ((sum = vaddq_s32(sum, kByScale ? vshrq_n_s32(parts[I + 1], I + 1) : parts[I + 1])), ...);
        };
        add_parts(std::make_integer_sequence<int, kCount - 1>());
        return end_of_sum<Codes>(sum);
    }
};

/// `Chunks` chunks of 16 rows times M tokens.
template <class Codes, int M, int Chunks, int... V>
TMAC_ALWAYS_INLINE void multiply_chunks(const uint8_t* codes, const QgemmArgs& args, const int8_t* q,
                                        Sums<Codes, M == 1> (&sums)[M][kStripVectors],
                                        std::integer_sequence<int, V...>) {
    constexpr int kFours = Codes::kVectors * Chunks;  ///< of columns
    int8x16_t columns[M][(kFours + 3) / 4];
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        const int8_t* token = q + m * args.act_stride;
        TMAC_UNROLL
        for (int i = 0; i < kFours / 4; ++i) {
            columns[m][i] = vld1q_s8(token + 16 * i);
        }
        if constexpr (kFours % 4 == 2) {
            columns[m][kFours / 4] = vcombine_s8(vld1_s8(token + kFours / 4 * 16), vdup_n_s8(0));
        } else if constexpr (kFours % 4 == 1) {
            columns[m][kFours / 4] = repeat_four(token + kFours / 4 * 16);
        }
    }
    const Regions regions(args);
    TMAC_UNROLL
    for (int region = 0; region < Codes::kRegions; ++region) {
        const uint8_t* ahead = in_region<Codes>(codes, regions, region) + kPrefetch;
        const int bytes = region == Codes::kRegions - 1 ? Codes::kLastBytes : Codes::kChunkBytes;
        TMAC_PREFETCH(ahead);
        TMAC_UNROLL
        for (int line = 64; line < (Codes::kTileRows == kStripRows ? Chunks * bytes : 0); line += 64) {
            TMAC_PREFETCH(ahead + line);
        }
    }
    const auto chunk = [&]<int C>() {
        TMAC_UNROLL
        for (int vector = 0; vector < kStripVectors; ++vector) {
            const Codes unpacked(codes + C * Codes::kChunkBytes + 16 * vector, regions);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                (sums[m][vector].template add<C, V>(unpacked, columns[m][(C * Codes::kVectors + V) / 4]), ...);
            }
        }
    };
    const auto all = [&]<int... C>(std::integer_sequence<int, C...>) { (chunk.template operator()<C>(), ...); };
    all(std::make_integer_sequence<int, Chunks>());
}

/// Rows [row, row + 16) times M tokens.
template <class Codes, int M>
void multiply_small(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t row, int32_t token) {
    const uint8_t* codes = codes_in_tiles<Codes>(args, row);
    const auto* q = static_cast<const int8_t*>(args.act) + token * args.act_stride;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    float32x4_t y[M][kStripVectors];
    TMAC_UNROLL
    for (int i = 0; i < M * kStripVectors; ++i) {
        y[i / kStripVectors][i % kStripVectors] = vdupq_n_f32(0.0F);
    }
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        Sums<Codes, M == 1> sums[M][kStripVectors];
        TMAC_UNROLL
        for (int i = 0; i < M * kStripVectors; ++i) {
            const int64_t at = first_group + int64_t{i / kStripVectors} * args.num_act_groups + g;
            sums[i / kStripVectors][i % kStripVectors].start(start_of_sum<Codes>(args.act_isum[at]));
        }
        const int32_t chunks = args.act_groups[g].padded_count / Codes::kColumns;
        constexpr auto kVectors = std::make_integer_sequence<int, Codes::kVectors>();
        constexpr int kAtOnce = Codes::kVectors == 2 ? 2 : 1;  // chunks: sixteen activations are one load
        int32_t chunk = 0;
        for (; chunk + kAtOnce <= chunks; chunk += kAtOnce) {
            TMAC_LOOP("mad", Codes::kBits, M, Codes::kColumns * kAtOnce, kStripRows);
            multiply_chunks<Codes, M, kAtOnce>(codes, args, q, sums, kVectors);
            codes += Codes::kChunkBytes * kAtOnce;
            q += Codes::kColumns * kAtOnce;
        }
        if (chunk < chunks) {
            multiply_chunks<Codes, M, 1>(codes, args, q, sums, kVectors);
            codes += Codes::kChunkBytes;
            q += Codes::kColumns;
        }
        const GroupPlace values = values_in_tiles<Codes>(args, row, args.act_groups[g]);
        TMAC_UNROLL
        for (int vector = 0; vector < kStripVectors; ++vector) {
            const GroupTerms<Floats> terms = epilogue.load(values + vector * kLanes);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int64_t at = first_group + int64_t{m} * args.num_act_groups + g;
                y[m][vector] =
                    epilogue.add(terms, sums[m][vector].total(), args.act_scale[at], args.act_sum[at], y[m][vector]);
            }
        }
    }
    TMAC_UNROLL
    for (int i = 0; i < M * kStripVectors; ++i) {
        store_rows(args.y + (token + i / kStripVectors) * args.ldy, row + i % kStripVectors * kLanes, args.row_end,
                   y[i / kStripVectors][i % kStripVectors]);
    }
}

/// All rows times `m` <= kMaxSmall tokens.
template <class Codes, int M>
void small_rows(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int32_t token) {
    for (int64_t row = args.row_begin; row < args.row_end; row += kStripRows) {
        multiply_small<Codes, M>(args, epilogue, row, token);
    }
}

template <class Codes, int Bits>
void qgemm_small(const QgemmArgs& args) {
    using Run = void (*)(const QgemmArgs&, const Epilogue<Floats>&, int32_t);
    static constexpr Run kRuns[kMaxSmall] = {small_rows<Codes, 1>, small_rows<Codes, 2>, small_rows<Codes, 3>,
                                             small_rows<Codes, 4>};
    const Epilogue<Floats> epilogue(args, static_cast<float>(1 << (Bits - 1)));
    // Blocks of equal size, so that five tokens cost no more than a block of three and one of two.
    for (int32_t token = 0, left = (args.m + kMaxSmall - 1) / kMaxSmall; token < args.m; --left) {
        const int32_t count = (args.m - token + left - 1) / left;
        kRuns[count - 1](args, epilogue, token);
        token += count;
    }
}

}  // namespace
}  // namespace tmac::neon
