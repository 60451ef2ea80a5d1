#pragma once

#include <utility>

#include "kernels/avx2/mad_codes.h"

// Many tokens: 32 rows of about 128 columns are unpacked once, into a panel that stays in the L1 cache, and
// multiplied with all tokens, a block at a time. Results wait in a small tile until all columns are through.

namespace tmac::avx2 {
namespace {

constexpr int kPanelRows = 32;
constexpr int kPanelVectors = kPanelRows / kLanes;
constexpr int kPair = 2;  ///< vectors of codes that are multiplied together: of 16 rows, or the two digits of 8

/// Whole chunks that hold an act group of 128 columns.
template <class Codes>
constexpr int kPanelColumns = (128 + Codes::kColumns - 1) / Codes::kColumns * Codes::kColumns;

/// Vectors of a step, the digits of a row side by side.
template <class Codes>
constexpr int kPanelWidth = kPanelVectors * Codes::kDigits;

template <class Codes>
struct Panel {
    alignas(64) uint8_t codes[kPanelColumns<Codes> / 4][kPanelWidth<Codes>][32];
    alignas(64) float y[kMaxTokens][kPanelVectors][kLanes];
    alignas(64) int32_t isum[kMaxTokens][kPanelWidth<Codes>][kLanes];  ///< of an act group longer than a panel
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
        const Codes codes(rows[0] + at, Regions(args));
        TMAC_UNROLL
        for (int vector = 0; vector < kPanelVectors; ++vector) {
            (store_bytes(steps[V][vector], codes.template code<V>(vector)), ...);
        }
    } else {
        for (int vector = 0; vector < vectors; ++vector) {
            const Codes codes(rows[vector] + at, Regions(args));
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
    bool first;      ///< starts the group's integer sums
    bool last;       ///< ends them: they enter the results
    int32_t column;  ///< its first, in padded columns
};

/// `Steps` steps of two neighbouring code vectors times M tokens.
template <class Dot, class Codes, int M, int Steps>
TMAC_ALWAYS_INLINE void add_steps(const uint8_t* codes, const int8_t* q, __m256i (&sums)[M][kPair]) {
    constexpr int kStepBytes = kPanelWidth<Codes> * 32;
    if constexpr (Codes::kInTwos) {
        TMAC_UNROLL
        for (int i = 0; i < Steps; i += 2) {
            const uint8_t* first = codes + i * kStepBytes;
            const __m256i vectors[2][kPair] = {{load_bytes(first), load_bytes(first + 32)},
                                               {load_bytes(first + kStepBytes), load_bytes(first + kStepBytes + 32)}};
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const __m256i four = broadcast_four(q + 4 * (i * M + m));
                const __m256i next = broadcast_four(q + 4 * ((i + 1) * M + m));
                sums[m][0] = Dot::add_two(sums[m][0], vectors[0][0], four, vectors[1][0], next);
                sums[m][1] = Dot::add_two(sums[m][1], vectors[0][1], four, vectors[1][1], next);
            }
        }
        return;
    }
    TMAC_UNROLL
    for (int i = 0; i < Steps; ++i) {
        const __m256i first_u8x32 = load_bytes(codes + i * kStepBytes);
        const __m256i second_u8x32 = load_bytes(codes + i * kStepBytes + 32);
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const __m256i four = broadcast_four(q + 4 * (i * M + m));
            sums[m][0] = Dot::add(sums[m][0], first_u8x32, four);
            sums[m][1] = Dot::add(sums[m][1], second_u8x32, four);
        }
    }
}

/// Adds two neighbouring code vectors times M tokens to `isum`. Sums go up to int32 every kRun steps.
template <class Dot, class Codes, int M>
TMAC_ALWAYS_INLINE void multiply_steps(const uint8_t* codes, const int8_t* q, int32_t steps,
                                       __m256i (&isum)[M][kPair]) {
    constexpr int32_t kStepBytes = kPanelWidth<Codes> * 32;
    constexpr bool kEven = Codes::kVectors % 2 == 0;
    constexpr int32_t kMany = kEven ? 8 : Codes::kVectors;  // a loop of few rounds ends where the CPU expects it
    constexpr int32_t kFew = kEven ? 2 : kMany;             // act groups are padded to a multiple of them
    constexpr int32_t kRun = Codes::kInTwos ? INT32_MAX : Dot::run(Codes::kLargest) / kMany * kMany;
    while (steps > 0) {
        int32_t left = steps < kRun ? steps : kRun;
        steps -= left;
        __m256i sums[M][kPair];
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            sums[m][0] = sums[m][1] = _mm256_setzero_si256();
        }
        for (; left >= kMany; left -= kMany) {
            add_steps<Dot, Codes, M, kMany>(codes, q, sums);
            codes += kMany * kStepBytes;
            q += 4 * kMany * M;
        }
        for (; left > 0; left -= kFew) {
            add_steps<Dot, Codes, M, kFew>(codes, q, sums);
            codes += kFew * kStepBytes;
            q += 4 * kFew * M;
        }
        TMAC_UNROLL
        for (int i = 0; i < M * kPair; ++i) {
            __m256i& sum = isum[i / kPair][i % kPair];
            const __m256i more = sums[i / kPair][i % kPair];
            sum = _mm256_add_epi32(sum, Codes::kInTwos ? more : Dot::widen(more));
        }
    }
}

/// The panel times M tokens from `token` on.
template <class Dot, class Codes, bool HasCoefficient, int M>
TMAC_NOINLINE void multiply_block(const QgemmArgs& args, const Centre& centre, const GroupTerms<Floats>* terms,
                                  const PanelPart& part, int32_t token, int vectors, Panel<Codes>& panel) {
    __m256i from_i32x8[M];
    float act_scale[M];
    float act_sum[M];
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {  // before the stores, after which the compiler would read it all again
        const int64_t at = int64_t{token + m} * args.num_act_groups + part.group;
        from_i32x8[m] = start_of_count(centre, args.act_isum[at]);
        act_scale[m] = args.act_scale[at];
        act_sum[m] = args.act_sum[at];
    }
    const int8_t* q = static_cast<const int8_t*>(args.act) + token * args.act_stride + int64_t{M} * part.column;
    auto* waiting = reinterpret_cast<__m256i*>(panel.isum[token]);
    float* y = panel.y[token][0];
    for (int pair = 0; pair < vectors * Codes::kDigits; pair += kPair) {
        __m256i isum_i32x8[M][kPair];
        TMAC_UNROLL
        for (int i = 0; i < M * kPair; ++i) {
            isum_i32x8[i / kPair][i % kPair] =
                part.first ? _mm256_setzero_si256()
                           : _mm256_load_si256(waiting + i / kPair * kPanelWidth<Codes> + pair + i % kPair);
        }
        multiply_steps<Dot, Codes, M>(panel.codes[0][pair], q, part.steps, isum_i32x8);
        if (!part.last) {
            TMAC_UNROLL
            for (int i = 0; i < M * kPair; ++i) {
                _mm256_store_si256(waiting + i / kPair * kPanelWidth<Codes> + pair + i % kPair,
                                   isum_i32x8[i / kPair][i % kPair]);
            }
            continue;
        }
        TMAC_UNROLL
        for (int i = 0; i < kPair / Codes::kDigits; ++i) {
            const int vector = pair / Codes::kDigits + i;
            const GroupTerms<Floats> term = terms[vector];
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const __m256i isum = total_of<Codes>(isum_i32x8[m] + i * Codes::kDigits, centre, from_i32x8[m]);
                float* at = y + (m * kPanelVectors + vector) * kLanes;
                _mm256_store_ps(at, Epilogue<Floats>::add_known<HasCoefficient>(term, isum, act_scale[m], act_sum[m],
                                                                                _mm256_load_ps(at)));
            }
        }
    }
}

/// Rows [row, row + 32) times at most kMaxTokens tokens.
template <class Dot, class Codes, bool HasCoefficient>
void multiply_rows(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t row, Panel<Codes>& panel) {
    const int vectors = row + kPanelRows - Codes::kTileRows < args.row_end ? kPanelVectors : kPanelVectors / 2;
    const Centre centre = centre_of<Codes>(args);
    std::memset(panel.y, 0, sizeof(panel.y[0]) * static_cast<size_t>(args.m));
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const ActGroup& group = args.act_groups[g];
        GroupTerms<Floats> terms[kPanelVectors];
        const uint8_t* rows[kPanelVectors];
        for (int v = 0; v < kPanelVectors; ++v) {
            const int64_t first = row + (v < vectors ? v : 0) * kLanes;
            terms[v] = epilogue.load(values_of_rows<Codes>(args, first, group));
            rows[v] = codes_of_group<Codes>(args, first, group);
        }
        for (int32_t done = 0; done < group.padded_count; done += kPanelColumns<Codes>) {
            const int32_t left = group.padded_count - done;
            const int32_t columns = left < kPanelColumns<Codes> ? left : kPanelColumns<Codes>;
            const int32_t column = group.padded_begin + done;
            fill_panel<Codes>(args, rows, vectors, int64_t{done / Codes::kColumns} * Codes::kChunkBytes, columns,
                              panel);
            const PanelPart part{g, columns / 4, done == 0, columns == left, column};
            for_each_even_block<kTokenBlock>(args.m, [&]<int M>(int32_t token) {
                multiply_block<Dot, Codes, HasCoefficient, M>(args, centre, terms, part, token, vectors, panel);
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
    const Epilogue<Floats> epilogue(args, static_cast<float>(centre_of<Codes>(args).code));
    const auto run = epilogue.has_coefficient ? multiply_rows<Dot, Codes, true> : multiply_rows<Dot, Codes, false>;
    for (int64_t row = args.row_begin; row < args.row_end; row += kPanelRows) {
        run(args, epilogue, row, panel);
    }
}

}  // namespace
}  // namespace tmac::avx2
