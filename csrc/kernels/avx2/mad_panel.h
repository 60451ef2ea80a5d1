#pragma once

#include <utility>

#include "kernels/avx2/mad_codes.h"

// Many tokens: 32 rows of at most 128 columns are unpacked once, into a panel that stays in the L1 cache, and
// multiplied with all tokens, four at a time. Results wait in a small tile until all columns are through.

namespace tmac::avx2 {
namespace {

constexpr int kPanelRows = 32;
constexpr int kPanelVectors = kPanelRows / kLanes;
constexpr int kPanelColumns = 128;
constexpr int kPanelSteps = kPanelColumns / 4;
constexpr int kPanelTokens = 128;  ///< tokens per pass
constexpr int kBlock = 4;          ///< tokens that are multiplied together
constexpr int kPair = 2;           ///< and vectors of codes: of 16 rows, or the two digits of 8

/// Vectors of a step, the digits of a row side by side.
template <class Codes>
constexpr int kPanelWidth = kPanelVectors * Codes::kDigits;

template <class Codes>
struct Panel {
    alignas(64) uint8_t codes[kPanelSteps][kPanelWidth<Codes>][32];
    alignas(64) float y[kPanelTokens][kPanelVectors][kLanes];
    alignas(64) int32_t isum[kPanelTokens][kPanelWidth<Codes>][kLanes];  ///< of an act group longer than a panel
    alignas(64) int8_t q[kBlock][kPanelColumns];  ///< a block's activations, out of rows that may lie 4 KiB apart
};

TMAC_ALWAYS_INLINE void store_bytes(void* bytes, __m256i values) {
    _mm256_store_si256(reinterpret_cast<__m256i*>(bytes), values);
}

/// The vectors of one chunk, `steps[V]` being four columns. `vectors`: how many groups of 8 rows there are.
template <class Codes, int... V>
TMAC_ALWAYS_INLINE void unpack_chunk(const QgemmArgs& args, const uint8_t* const (&rows)[kPanelVectors], int vectors,
                                     int64_t at, uint8_t (*steps)[kPanelWidth<Codes>][32],
                                     std::integer_sequence<int, V...>) {
    if constexpr (Codes::kTogether == kPanelVectors) {
        const Codes codes(rows[0] + at, args.region_stride);
        TMAC_UNROLL
        for (int vector = 0; vector < kPanelVectors; ++vector) {
            (store_bytes(steps[V][vector], codes.template code<V>(vector)), ...);
        }
    } else {
        for (int vector = 0; vector < vectors; ++vector) {
            const Codes codes(rows[vector] + at, args.region_stride);
            (store_bytes(steps[V][vector * Codes::kDigits], codes.template code<V, 0>()), ...);
            if constexpr (Codes::kDigits == 2) {
                (store_bytes(steps[V][vector * 2 + 1], codes.template code<V, 1>()), ...);
            }
        }
    }
}

template <class Codes>
TMAC_NOINLINE void fill_panel(const QgemmArgs& args, const uint8_t* const (&rows)[kPanelVectors], int vectors,
                              int64_t at, int32_t columns, Panel<Codes>& panel) {
    for (int32_t column = 0; column < columns; column += Codes::kColumns) {
        unpack_chunk<Codes>(args, rows, vectors, at, panel.codes + column / 4,
                            std::make_integer_sequence<int, Codes::kVectors>());
        at += Codes::kChunkBytes;
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

/// Adds `steps` (even) steps of two neighbouring code vectors times M tokens to `isum`, M rows of `isum_stride`
/// vectors. Sums go up to int32 every `run` steps.
template <class Dot, int M>
TMAC_NOINLINE void multiply_pair(const uint8_t* codes, int64_t step_bytes, int32_t steps, int32_t run,
                                 const int8_t (*q)[kPanelColumns], __m256i* isum, int64_t isum_stride) {
    const int8_t* four_columns = q[0];
    while (steps > 0) {
        int32_t left = steps < run ? steps : run;
        steps -= left;
        __m256i sums[M][kPair];
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            sums[m][0] = sums[m][1] = _mm256_setzero_si256();
        }
        for (; left > 0; left -= 2) {
            TMAC_UNROLL
            for (int i = 0; i < 2; ++i) {
                const __m256i first_u8x32 = load_bytes(codes + i * step_bytes);
                const __m256i second_u8x32 = load_bytes(codes + i * step_bytes + 32);
                TMAC_UNROLL
                for (int m = 0; m < M; ++m) {
                    const __m256i four = broadcast_four(four_columns + m * kPanelColumns + 4 * i);
                    sums[m][0] = Dot::add(sums[m][0], first_u8x32, four);
                    sums[m][1] = Dot::add(sums[m][1], second_u8x32, four);
                }
            }
            codes += 2 * step_bytes;
            four_columns += 8;
        }
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            TMAC_UNROLL
            for (int i = 0; i < kPair; ++i) {
                __m256i* sum = isum + m * isum_stride + i;
                _mm256_store_si256(sum, _mm256_add_epi32(_mm256_load_si256(sum), Dot::widen(sums[m][i])));
            }
        }
    }
}

/// Copies M tokens' activations of a part together and asks for the next tokens'.
template <int M>
TMAC_ALWAYS_INLINE void gather_block(const PanelPart& part, int64_t q_stride, int8_t (*block)[kPanelColumns]) {
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        const int8_t* q = part.q + m * q_stride;
        for (int32_t column = 0; column < part.steps * 4; column += 8) {
            std::memcpy(block[m] + column, q + column, 8);
        }
    }
}

/// The panel times M tokens from `token` on.
template <class Dot, class Codes, int M>
TMAC_ALWAYS_INLINE void multiply_block(const QgemmArgs& args, const Epilogue<Floats>& epilogue, const Centre& centre,
                                       const GroupTerms<Floats>* terms, const PanelPart& part, int32_t token,
                                       int vectors, Panel<Codes>& panel) {
    constexpr int kWidth = kPanelWidth<Codes>;
    constexpr int kRun = Dot::run(Codes::kLargest) / 2 * 2;
    auto* isum_i32x8 = reinterpret_cast<__m256i*>(panel.isum[token]);
    if (part.first) {
        std::memset(isum_i32x8, 0, sizeof(panel.isum[0]) * M);
    }
    PanelPart block = part;
    block.q += token * args.act_stride;
    gather_block<M>(block, args.act_stride, panel.q);
    for (int pair = 0; pair < vectors * Codes::kDigits; pair += kPair) {
        multiply_pair<Dot, M>(panel.codes[0][pair], kWidth * 32, part.steps, kRun, panel.q, isum_i32x8 + pair, kWidth);
    }
    if (!part.last) {
        return;
    }
    for (int m = 0; m < M; ++m) {
        const int64_t at = int64_t{token + m} * args.num_act_groups + part.group;
        TMAC_UNROLL
        for (int v = 0; v < kPanelVectors; ++v) {
            float* y = panel.y[token + m][v];
            const __m256i isum =
                total_of<Codes>(isum_i32x8 + m * kWidth + v * Codes::kDigits, centre, args.act_isum[at]);
            _mm256_store_ps(y, epilogue.add(terms[v], isum, args.act_scale[at], args.act_sum[at], _mm256_load_ps(y)));
        }
    }
}

/// Rows [row, row + 32) times at most kPanelTokens tokens.
template <class Dot, class Codes>
void multiply_rows(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t row, Panel<Codes>& panel) {
    const int vectors = row + kPanelRows - Codes::kTileRows < args.row_end ? kPanelVectors : kPanelVectors / 2;
    const Centre centre = centre_of<Codes>(args);
    const uint8_t* rows[kPanelVectors];
    for (int v = 0; v < kPanelVectors; ++v) {
        rows[v] = codes_of_rows<Codes>(args, row + (v < vectors ? v : 0) * kLanes);
    }
    std::memset(panel.y, 0, sizeof(panel.y[0]) * static_cast<size_t>(args.m));
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const ActGroup& group = args.act_groups[g];
        GroupTerms<Floats> terms[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) {
            terms[v] =
                epilogue.load(values_of_rows<Codes>(args, row + (v < vectors ? v : 0) * kLanes, group.weight_group));
        }
        for (int32_t done = 0; done < group.padded_count; done += kPanelColumns) {
            const int32_t left = group.padded_count - done;
            const int32_t columns = left < kPanelColumns ? left : kPanelColumns;
            const int32_t column = group.padded_begin + done;
            fill_panel<Codes>(args, rows, vectors, int64_t{column / Codes::kColumns} * Codes::kChunkBytes, columns,
                              panel);
            const PanelPart part{g, columns / 4, done == 0, columns == left,
                                 static_cast<const int8_t*>(args.act) + column};
            for_each_token_block<kBlock, 2, 1>(args.m, [&]<int M>(int32_t token) {
                multiply_block<Dot, Codes, M>(args, epilogue, centre, terms, part, token, vectors, panel);
            });
        }
    }
    for (int32_t token = 0; token < args.m; ++token) {
        for (int v = 0; v < vectors; ++v) {
            store_rows(args.y + token * args.ldy, row + v * kLanes, args.row_end, _mm256_load_ps(panel.y[token][v]));
        }
    }
}

template <class Dot, class Codes>
void qgemm_panel(const QgemmArgs& args) {
    Panel<Codes> panel;
    for (int32_t token = 0; token < args.m; token += kPanelTokens) {
        QgemmArgs part = args;
        part.m = args.m - token < kPanelTokens ? args.m - token : kPanelTokens;
        part.act = static_cast<const int8_t*>(args.act) + token * args.act_stride;
        part.act_scale += int64_t{token} * args.num_act_groups;
        part.act_sum += int64_t{token} * args.num_act_groups;
        part.act_isum += int64_t{token} * args.num_act_groups;
        part.y += token * args.ldy;
        const Epilogue<Floats> epilogue(part, static_cast<float>(centre_of<Codes>(args).code));
        for (int64_t row = args.row_begin; row < args.row_end; row += kPanelRows) {
            multiply_rows<Dot>(part, epilogue, row, panel);
        }
    }
}

}  // namespace
}  // namespace tmac::avx2
