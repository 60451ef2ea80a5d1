#pragma once

#include <utility>

#include "kernels/neon/mad_codes.h"

// Many tokens: 16 rows of about 128 columns are unpacked once, into a panel that stays in the L1 cache, and
// multiplied with all tokens. Results wait in a small tile until all columns are through. `Dot` is one of the
// instructions that multiply bytes: what it wants to find in the panel, and how it multiplies a few tokens with it.
//
//     kTokens                                              tokens side by side
//     put(uint8_t* step, int vector, a, b)                 8 columns of 4 rows, as columns 0..3 and 4..7
//     multiply<Codes, M>(panel, steps, q, q_stride, isum)  adds M tokens' products with `steps` * 8 columns

namespace tmac::neon {
namespace {

constexpr int kPanelStepColumns = 8;
constexpr int kPanelStepBytes = kPanelStepColumns * kStripRows;
constexpr int32_t kPanelPrefetch = 1024;

/// Integer sums of one token and 16 rows.
using StripSums = int32x4_t[kStripVectors];

/// Chunks that are whole steps together.
template <class Codes>
constexpr int kFillChunks = 1 + Codes::kVectors % 2;

/// Of these as many as hold an act group of 128 columns.
template <class Codes>
constexpr int kPanelColumns = (127 / (kFillChunks<Codes> * Codes::kColumns) + 1) * kFillChunks<Codes> * Codes::kColumns;

template <class Codes>
struct Panel {
    alignas(64) uint8_t codes[kPanelColumns<Codes> / kPanelStepColumns][kPanelStepBytes];
    alignas(64) float y[kMaxTokens][kStripRows];
    alignas(64) int32_t isum[kMaxTokens][kStripRows];  ///< of an act group that is longer than a panel
};

template <class Dot, class Codes, int... Pair>
TMAC_ALWAYS_INLINE void unpack_vector(const Codes& codes, uint8_t (*steps)[kPanelStepBytes], int vector,
                                      std::integer_sequence<int, Pair...>) {
    (Dot::put(steps[Pair], vector, codes.template code<2 * Pair>(), codes.template code<2 * Pair + 1>()), ...);
}

/// Two chunks of an odd number of vectors. `second` is null where the act group ends before it: zero codes end the step
/// that it would have shared, times whatever activations follow.
template <class Dot, class Codes, int... Pair>
TMAC_ALWAYS_INLINE void unpack_two(const Codes& first, const Codes* second, uint8_t (*steps)[kPanelStepBytes],
                                   int vector, std::integer_sequence<int, Pair...>) {
    constexpr int kLast = Codes::kVectors - 1;
    (Dot::put(steps[Pair], vector, first.template code<2 * Pair>(), first.template code<2 * Pair + 1>()), ...);
    Dot::put(steps[kLast / 2], vector, first.template code<kLast>(),
             second == nullptr ? vdupq_n_s8(0) : second->template code<0>());
    if (second != nullptr) {
        (Dot::put(steps[kLast / 2 + 1 + Pair], vector, second->template code<2 * Pair + 1>(),
                  second->template code<2 * Pair + 2>()),
         ...);
    }
}

template <class Dot, class Codes>
TMAC_ALWAYS_INLINE void unpack_chunks(const uint8_t* codes, const Regions& regions, bool whole,
                                      uint8_t (*steps)[kPanelStepBytes], int vector) {
    constexpr std::make_integer_sequence<int, Codes::kVectors / 2> kEveryPair;
    const Codes first(codes + 16 * vector, regions);
    if constexpr (kFillChunks<Codes> == 1) {
        unpack_vector<Dot>(first, steps, vector, kEveryPair);
    } else if (whole) {
        const Codes second(codes + Codes::kChunkBytes + 16 * vector, regions);
        unpack_two<Dot>(first, &second, steps, vector, kEveryPair);
    } else {
        unpack_two<Dot, Codes>(first, nullptr, steps, vector, kEveryPair);
    }
}

/// `columns` of a strip's codes.
template <class Dot, class Codes>
void fill_panel(const uint8_t* codes, const Regions& regions, int32_t columns, Panel<Codes>& panel) {
    constexpr int kColumns = kFillChunks<Codes> * Codes::kColumns;
    for (int32_t column = 0; column < columns; column += kColumns) {
        TMAC_LOOP("fill", Codes::kBits, 1, kColumns, kStripRows);
        TMAC_UNROLL
        for (int i = 0; i < kFillChunks<Codes> * Codes::kRegions; ++i) {
            TMAC_PREFETCH(
                in_region<Codes>(codes + i % kFillChunks<Codes> * Codes::kChunkBytes, regions, i / kFillChunks<Codes>) +
                kPanelPrefetch);
        }
        TMAC_UNROLL
        for (int line = 4 * Codes::kTileRows; line < Codes::kChunkBytes; line += 4 * Codes::kTileRows) {
            TMAC_PREFETCH(codes + line + kPanelPrefetch);
        }
        TMAC_UNROLL
        for (int vector = 0; vector < kStripVectors; ++vector) {
            unpack_chunks<Dot, Codes>(codes, regions, column + kColumns <= columns,
                                      panel.codes + column / kPanelStepColumns, vector);
        }
        codes += kFillChunks<Codes> * Codes::kChunkBytes;
    }
}

/// A part of one act group.
struct PanelPart {
    int32_t group;
    int32_t steps;
    bool first;  ///< starts the group's integer sums
    bool last;   ///< ends them: they enter the results
    const int8_t* q;
};

template <class Dot, class Codes, int M>
TMAC_ALWAYS_INLINE void multiply_panel(const QgemmArgs& args, const Epilogue<Floats>& epilogue,
                                       const GroupTerms<Floats> (&terms)[kStripVectors], const PanelPart& part,
                                       int32_t token, Panel<Codes>& panel) {
    StripSums isum[M];
    const int64_t first_group = int64_t{token} * args.num_act_groups + part.group;
    TMAC_UNROLL
    for (int i = 0; i < M * kStripVectors; ++i) {
        const int m = i / kStripVectors;
        const int vector = i % kStripVectors;
        const int64_t at = first_group + int64_t{m} * args.num_act_groups;
        isum[m][vector] = part.first ? vdupq_n_s32(start_of_sum<Codes>(args.act_isum[at]))
                                     : vld1q_s32(panel.isum[token + m] + vector * kLanes);
    }
    Dot::template multiply<Codes, M>(panel.codes, part.steps, part.q + token * args.act_stride, args.act_stride, isum);
    TMAC_UNROLL
    for (int i = 0; i < M * kStripVectors; ++i) {
        const int m = i / kStripVectors;
        const int vector = i % kStripVectors;
        if (!part.last) {
            vst1q_s32(panel.isum[token + m] + vector * kLanes, isum[m][vector]);
            continue;
        }
        const int64_t at = first_group + int64_t{m} * args.num_act_groups;
        float* y = panel.y[token + m] + vector * kLanes;
        vst1q_f32(y, epilogue.add(terms[vector], end_of_sum<Codes>(isum[m][vector]), args.act_scale[at],
                                  args.act_sum[at], vld1q_f32(y)));
    }
}

/// Calls body.template operator()<M>(token) in blocks of Dot::kTokens, and of a power of two for the rest.
template <class Dot, class Body>
TMAC_ALWAYS_INLINE void for_each_block(int32_t m, const Body& body) {
    if constexpr (Dot::kTokens == 1) {
        for_each_token_block<1>(m, body);
    } else {
        for_each_token_block<Dot::kTokens, 2, 1>(m, body);
    }
}

/// Rows [row, row + 16) times all tokens.
template <class Dot, class Codes>
void multiply_strip(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t row, Panel<Codes>& panel) {
    const uint8_t* codes = codes_in_tiles<Codes>(args, row);
    std::memset(panel.y, 0, sizeof(panel.y[0]) * static_cast<size_t>(args.m));
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const ActGroup& group = args.act_groups[g];
        GroupTerms<Floats> terms[kStripVectors];
        TMAC_UNROLL
        for (int vector = 0; vector < kStripVectors; ++vector) {
            terms[vector] = epilogue.load(values_in_tiles<Codes>(args, row, group) + vector * kLanes);
        }
        for (int32_t done = 0; done < group.padded_count; done += kPanelColumns<Codes>) {
            const int32_t left = group.padded_count - done;
            const int32_t columns = left < kPanelColumns<Codes> ? left : kPanelColumns<Codes>;
            fill_panel<Dot, Codes>(codes, Regions(args), columns, panel);
            codes += columns / Codes::kColumns * Codes::kChunkBytes;
            const PanelPart part{g, (columns + kPanelStepColumns - 1) / kPanelStepColumns, done == 0, columns == left,
                                 static_cast<const int8_t*>(args.act) + group.padded_begin + done};
            for_each_block<Dot>(args.m, [&]<int M>(int32_t token) {
                multiply_panel<Dot, Codes, M>(args, epilogue, terms, part, token, panel);
            });
        }
    }
    for (int32_t token = 0; token < args.m; ++token) {
        for (int vector = 0; vector < kStripVectors; ++vector) {
            store_rows(args.y + token * args.ldy, row + vector * kLanes, args.row_end,
                       vld1q_f32(panel.y[token] + vector * kLanes));
        }
    }
}

template <class Dot, class Codes, int Bits>
void qgemm_panel(const QgemmArgs& args) {
    Panel<Codes> panel;
    const Epilogue<Floats> epilogue(args, static_cast<float>(1 << (Bits - 1)));
    for (int64_t row = args.row_begin; row < args.row_end; row += kStripRows) {
        multiply_strip<Dot, Codes>(args, epilogue, row, panel);
    }
}

}  // namespace
}  // namespace tmac::neon
