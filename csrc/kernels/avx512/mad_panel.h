#pragma once

#include "kernels/avx512/mad_codes.h"

// Many tokens: 32 rows of about 128 columns are unpacked once, into a panel that stays in the L1 cache, and
// multiplied with all tokens, eight at a time. Results wait in a small tile until all columns are through.

namespace tmac::avx512 {
namespace {

constexpr int kPanelVectors = 2;  ///< registers of 16 rows
constexpr int kPanelTokens = kMaxTokens;

/// Whole chunks that hold an act group of 128 columns.
template <class Codes>
constexpr int kPanelColumns = (128 + Codes::kColumns - 1) / Codes::kColumns * Codes::kColumns;

template <class Codes>
struct Panel {
    alignas(64) uint8_t codes[kPanelColumns<Codes> / 4][kPanelVectors][64];
    alignas(64) float y[kPanelTokens][kPanelVectors][kLanes];
    alignas(64) int32_t isum[kPanelTokens][kPanelVectors][kLanes];  ///< of an act group that is longer than a panel
};

template <class Codes, int... V>
TMAC_ALWAYS_INLINE void unpack_chunk(const Codes& codes, uint8_t (*steps)[kPanelVectors][64], int vector,
                                     std::integer_sequence<int, V...>) {
    (_mm512_store_si512(steps[V][vector], codes.template code<V>()), ...);
}

/// The next `columns` of the rows' codes, four columns a step.
template <class Codes>
void fill_panel(const QgemmArgs& args, const uint8_t* const (&rows)[kPanelVectors], int vectors, int32_t columns,
                Panel<Codes>& panel) {
    const Regions regions(args);
    int64_t at = 0;
    for (int32_t column = 0; column < columns; column += Codes::kColumns) {
        for (int vector = 0; vector < vectors; ++vector) {
            unpack_chunk(Codes(rows[vector] + at, regions), panel.codes + column / 4, vector,
                         std::make_integer_sequence<int, Codes::kVectors>());
        }
        at += Codes::kChunkBytes;
    }
}

/// Asks for chunks [first, end) of the next panel. A few with every block of tokens: all at once would wait for each
/// other, and for what is unpacked meanwhile.
template <class Codes>
void prefetch_chunks(const QgemmArgs& args, const uint8_t* const (&rows)[kPanelVectors], int vectors, int32_t first,
                     int32_t end) {
    const Regions regions(args);
    for (int64_t at = int64_t{first} * Codes::kChunkBytes; at < int64_t{end} * Codes::kChunkBytes;
         at += Codes::kChunkBytes) {
        for (int vector = 0; vector < vectors; ++vector) {
            TMAC_UNROLL
            for (int region = 0; region < Codes::kRegions; ++region) {
                TMAC_PREFETCH(in_region<Codes>(rows[vector] + at, regions, region));
            }
            TMAC_UNROLL
            for (int line = 4 * Codes::kTileRows; line < Codes::kChunkBytes; line += 4 * Codes::kTileRows) {
                TMAC_PREFETCH(rows[vector] + at + line);
            }
        }
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

template <class Codes, int Bits, bool HasCoefficient, int M>
TMAC_ALWAYS_INLINE void multiply_panel(const QgemmArgs& args, const GroupTerms<Floats> (&terms)[kPanelVectors],
                                       const PanelPart& part, int32_t token, Panel<Codes>& panel) {
    constexpr int kUnroll = Codes::kColumns / 4;  // steps: every act group is padded to a multiple of them
    __m512i isum_i32x16[M][kPanelVectors];
    const int64_t groups = args.num_act_groups;  // known not to change when results are stored
    const int64_t first_group = token * groups + part.group;
    if (part.first) {
        const int32_t* act_isum = args.act_isum + first_group;
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            isum_i32x16[m][0] = start_of_sum<Codes, Bits>(act_isum[m * groups]);
            isum_i32x16[m][1] = isum_i32x16[m][0];
        }
    } else {
        TMAC_UNROLL
        for (int i = 0; i < M * kPanelVectors; ++i) {
            isum_i32x16[i / 2][i % 2] = _mm512_load_si512(panel.isum[token + i / 2][i % 2]);
        }
    }
    const int8_t* q = static_cast<const int8_t*>(args.act) + token * args.act_stride + int64_t{M} * part.column;
    for (int32_t begin = 0; begin < part.steps; begin += kUnroll) {
        TMAC_UNROLL
        for (int step = 0; step < kUnroll; ++step) {
            const __m512i first_u8x64 = _mm512_load_si512(panel.codes[begin + step][0]);
            const __m512i second_u8x64 = _mm512_load_si512(panel.codes[begin + step][1]);
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const __m512i four = broadcast_four(q + 4 * (step * M + m));
                isum_i32x16[m][0] = _mm512_dpbusd_epi32(isum_i32x16[m][0], first_u8x64, four);
                isum_i32x16[m][1] = _mm512_dpbusd_epi32(isum_i32x16[m][1], second_u8x64, four);
            }
        }
        q += 4 * kUnroll * M;
    }
    if (!part.last) {
        TMAC_UNROLL
        for (int i = 0; i < M * kPanelVectors; ++i) {
            _mm512_store_si512(panel.isum[token + i / 2][i % 2], isum_i32x16[i / 2][i % 2]);
        }
        return;
    }
    const float* act_scale = args.act_scale + first_group;
    const float* act_sum = args.act_sum + first_group;
    float (*y)[kPanelVectors][kLanes] = panel.y + token;
    TMAC_UNROLL
    for (int m = 0; m < M; ++m) {
        TMAC_UNROLL
        for (int v = 0; v < kPanelVectors; ++v) {
            const __m512i isum =
                Codes::kShift == 0 ? isum_i32x16[m][v] : _mm512_srai_epi32(isum_i32x16[m][v], Codes::kShift);
            _mm512_store_ps(y[m][v],
                            Epilogue<Floats>::add_known<HasCoefficient>(terms[v], isum, act_scale[m * groups],
                                                                        act_sum[m * groups], _mm512_load_ps(y[m][v])));
        }
    }
}

/// Codes of the panel after one that began at `codes` and took `columns` of the `left` ones of an act group.
template <class Codes>
TMAC_ALWAYS_INLINE const uint8_t* next_codes(const QgemmArgs& args, const uint8_t* codes, int64_t row, int32_t group,
                                             int32_t left, int32_t columns) {
    constexpr int64_t kRows = kPanelVectors * kLanes;
    if (columns < left) {
        return codes + int64_t{columns} / Codes::kColumns * Codes::kChunkBytes;
    }
    if (group + 1 < args.num_act_groups) {
        return codes_of_group<Codes>(args, row, args.act_groups[group + 1]);
    }
    return codes_of_group<Codes>(args, row + kRows < args.row_end ? row + kRows : row, args.act_groups[0]);
}

/// Rows [row, row + 32) times at most kPanelTokens tokens.
template <class Codes, int Bits, bool HasCoefficient>
void multiply_rows(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t row, Panel<Codes>& panel) {
    const int vectors = row + kLanes < args.row_end ? 2 : 1;
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
            fill_panel<Codes>(args, rows, vectors, columns, panel);
            const int32_t chunks = columns / Codes::kColumns;
            for (int v = 0; v < kPanelVectors; ++v) {
                rows[v] = next_codes<Codes>(args, rows[v], row + (v < vectors ? v : 0) * kLanes, g, left, columns);
            }
            const PanelPart part{g, columns / 4, done == 0, columns == left, group.padded_begin + done};
            for_each_even_block<kTokenBlock>(args.m, [&]<int M>(int32_t token) {
                prefetch_chunks<Codes>(args, rows, vectors, chunks * token / args.m, chunks * (token + M) / args.m);
                multiply_panel<Codes, Bits, HasCoefficient, M>(args, terms, part, token, panel);
            });
        }
    }
    for (int32_t token = 0; token < args.m; ++token) {
        for (int v = 0; v < vectors; ++v) {
            store_rows(args.y + token * args.ldy, row + v * kLanes, args.row_end, _mm512_load_ps(panel.y[token][v]));
        }
    }
}

template <class Codes, int Bits>
void qgemm_panel(const QgemmArgs& args) {
    Panel<Codes> panel;
    std::memset(panel.codes, 0, sizeof(panel.codes));  // 16 rows or fewer leave the second vector alone
    const Epilogue<Floats> epilogue(args, static_cast<float>(1 << (Bits - 1)));
    const auto run = epilogue.has_coefficient ? multiply_rows<Codes, Bits, true> : multiply_rows<Codes, Bits, false>;
    for (int64_t row = args.row_begin; row < args.row_end; row += kPanelVectors * kLanes) {
        run(args, epilogue, row, panel);
    }
}

}  // namespace
}  // namespace tmac::avx512
