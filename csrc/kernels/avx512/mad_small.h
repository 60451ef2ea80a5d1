#pragma once

#include "kernels/avx512/mad_codes.h"

// A few tokens at a time: codes are unpacked in registers, right before they are multiplied. One token's even streams
// are prefetched by a Zen 4, and doing it by hand as well cost 10 to 25 % (docs/kernels.md). More tokens dwell so long
// on every chunk that the CPU does not look ahead far enough. A Golden Cove's prefetchers stop at the end of every
// page, and it is asked by hand for any number of tokens (QgemmArgs::ask_ahead): 15 % for one token of 4 bits.

namespace tmac::avx512 {
namespace {

/// Bytes ahead in every region that are asked for: to wait in the L2 cache, as the L1 cache is too small for what comes
/// in the time of a memory access, and from there. 0: not.
struct Ahead {
    int far;
    int near;
};
constexpr Ahead kDwelling{8192, 0};      ///< many tokens, where one is left to the CPU
constexpr Ahead kAllByHand{4096, 1024};  ///< the same place in the next page

/// How the rows of a tile are taken for M tokens, so that sums stay within kSums registers: more and gcc spills.
template <class Codes, int M>
struct Shape {
    static constexpr int kSums = 16;
    /// Registers of 16 rows at once. A few tokens read a tile as it lies in memory, the only order in which a
    /// stream keeps the speed of memory; more tokens wait for arithmetic, and have rows share what is read of them.
    static constexpr int kVectors = M <= 4 ? Codes::kTileRows / kLanes : 2;
    /// Codes are only masked, not shifted down; those at different places of a byte have sums of their own.
    static constexpr bool kSplit = kVectors * M * Codes::kScales <= kSums;
    static constexpr bool kDwells = M > Codes::kStreamedTokens;
    static constexpr int kRegisters = kVectors * M * (kSplit ? Codes::kScales : 1);
    /// Chunks with sums of their own: few sums alone would wait for the latency of vpdpbusd. More columns together are
    /// too many instructions to look ahead over.
    static constexpr int kWanted = kRegisters <= 2 ? 4 : kRegisters <= 4 ? 2 : 1;
    static constexpr int kChunks = kWanted > 2 && kWanted* Codes::kColumns > 32 ? 2 : kWanted;
};

/// Integer sums of 16 rows and one token.
template <class Codes, int M>
struct Sums {
    static constexpr bool kSplit = Shape<Codes, M>::kSplit;
    static constexpr int kCount = kSplit ? Codes::kScales : 1;
    __m512i by_scale[kCount];

    TMAC_ALWAYS_INLINE void start(__m512i value) {
        by_scale[0] = value;
        for (int i = 1; i < kCount; ++i) {
            by_scale[i] = _mm512_setzero_si512();
        }
    }

    template <int V>
    TMAC_ALWAYS_INLINE void add(__m512i codes, __m512i q) {
        constexpr int kAt = kSplit ? Codes::template kScale<V> / (8 / Codes::kScales) : 0;
        by_scale[kAt] = _mm512_dpbusd_epi32(by_scale[kAt], codes, q);
    }

    TMAC_ALWAYS_INLINE void add(const Sums& more) {
        TMAC_UNROLL
        for (int i = 0; i < kCount; ++i) {
            by_scale[i] = _mm512_add_epi32(by_scale[i], more.by_scale[i]);
        }
    }

    TMAC_ALWAYS_INLINE __m512i total() const {
        __m512i sum = by_scale[0];
        constexpr int kStep = 8 / Codes::kScales;
        TMAC_UNROLL
        for (int i = 1; i < kCount; ++i) {
            sum = _mm512_add_epi32(sum, _mm512_srai_epi32(by_scale[i], i * kStep));
        }
        return Codes::kShift == 0 ? sum : _mm512_srai_epi32(sum, Codes::kShift);
    }
};

/// One chunk: the code vectors of R * 16 rows, each times M tokens. A broadcast of activations serves all rows.
template <class Codes, int R, int M, int... V>
TMAC_ALWAYS_INLINE void multiply_chunk(const Codes (&codes)[R], const int8_t* q, Sums<Codes, M> (&sums)[R][M],
                                       std::integer_sequence<int, V...>) {
    const auto step = [&]<int Vector>() {
        __m512i bytes[R];
        TMAC_UNROLL
        for (int r = 0; r < R; ++r) {
            bytes[r] = Sums<Codes, M>::kSplit ? codes[r].template scaled<Vector>() : codes[r].template code<Vector>();
        }
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const __m512i four = broadcast_four(q + 4 * (Vector * M + m));
            TMAC_UNROLL
            for (int r = 0; r < R; ++r) {
                sums[r][m].template add<Vector>(bytes[r], four);
            }
        }
    };
    (step.template operator()<V>(), ...);
}

/// Asks for what lies `By` ahead of one chunk of R * 16 rows in every region.
template <class Codes, int R, Ahead By>
TMAC_ALWAYS_INLINE void prefetch_chunk(const uint8_t* codes, const Regions& regions) {
    TMAC_UNROLL
    for (int region = 0; region < Codes::kRegions; ++region) {
        const uint8_t* place = in_region<Codes>(codes, regions, region);
        const int bytes = region == Codes::kRegions - 1 ? Codes::kLastBytes : Codes::kChunkBytes;
        TMAC_UNROLL
        for (int line = 0; line < bytes * R * kLanes / Codes::kTileRows; line += 64) {
            prefetch_l2(place + By.far + line);
            if constexpr (By.near != 0) {
                TMAC_PREFETCH(place + By.near + line);
            }
        }
    }
}

/// Rows [row, row + 16 R) times M tokens.
template <class Codes, int Bits, bool HasCoefficient, int R, int M, Levels Known>
void multiply_small(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t row, int32_t token) {
    constexpr int kChunks = Shape<Codes, M>::kChunks;
    const Regions regions(args);
    const uint8_t* codes[R];
    __m512 y[R][M];
    TMAC_UNROLL
    for (int r = 0; r < R; ++r) {
        codes[r] = codes_in_tiles<Codes>(args, row + r * kLanes);
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            y[r][m] = _mm512_setzero_ps();
        }
    }
    const auto* q = static_cast<const int8_t*>(args.act) + token * args.act_stride;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    const int32_t centre = mad_centre(*args.spec);
    const bool ask_ahead = args.ask_ahead;
    int64_t at = 0;
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        Sums<Codes, M> sums[kChunks][R][M];
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const __m512i start =
                start_of_sum<Codes>(centre, args.act_isum[first_group + int64_t{m} * args.num_act_groups + g]);
            TMAC_UNROLL
            for (int i = 0; i < kChunks * R; ++i) {
                sums[i / R][i % R][m].start(i < R ? start : _mm512_setzero_si512());
            }
        }
        const auto multiply_next = [&](Sums<Codes, M>(&to)[R][M]) {
            const auto unpacked = [&]<int... Row>(std::integer_sequence<int, Row...>) {
                const Codes loaded[R] = {Codes(codes[Row] + at, regions)...};
                multiply_chunk<Codes, R, M>(loaded, q, to, std::make_integer_sequence<int, Codes::kVectors>());
            };
            unpacked(std::make_integer_sequence<int, R>());
            if (ask_ahead) {
                prefetch_chunk<Codes, R, kAllByHand>(codes[0] + at, regions);
            } else if constexpr (Shape<Codes, M>::kDwells) {
                prefetch_chunk<Codes, R, kDwelling>(codes[0] + at, regions);
            }
            at += Codes::kChunkBytes;
            q += M * Codes::kColumns;
        };
        const int32_t chunks = args.act_groups[g].padded_count / Codes::kColumns;
        int32_t chunk = 0;
        if constexpr (Codes::kRowsInTurn && R > 2) {
            static_assert(kChunks == 1 && R * kLanes == Codes::kTileRows);
            multiply_rows_in_turn(codes[0] + at, q, chunks, sums[0]);
            at += int64_t{chunks} * Codes::kChunkBytes;
            q += chunks * M * Codes::kColumns;
            chunk = chunks;
        }
        for (; chunk + kChunks <= chunks; chunk += kChunks) {
            TMAC_UNROLL
            for (int i = 0; i < kChunks; ++i) {
                multiply_next(sums[i]);
            }
        }
        for (; kChunks > 1 && chunk < chunks; ++chunk) {
            multiply_next(sums[0]);
        }
        TMAC_UNROLL
        for (int r = 0; r < R; ++r) {
            const GroupTerms<Floats> terms =
                epilogue.load<Known>(values_of_rows<Codes>(args, row + r * kLanes, args.act_groups[g]));
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                TMAC_UNROLL
                for (int i = 1; i < kChunks; ++i) {
                    sums[0][r][m].add(sums[i][r][m]);
                }
                const int64_t index = first_group + int64_t{m} * args.num_act_groups + g;
                y[r][m] = Epilogue<Floats>::add_known<HasCoefficient>(
                    terms, sums[0][r][m].total(), args.act_scale[index], args.act_sum[index], y[r][m]);
            }
        }
    }
    TMAC_UNROLL
    for (int r = 0; r < R; ++r) {
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            store_rows(args.y + (token + m) * args.ldy, row + r * kLanes, args.row_end, y[r][m]);
        }
    }
}

/// Rows [row, row_end) of at most 64, times M tokens. Rows past the last one of a tile are zeros in memory, and not
/// stored.
template <class Codes, int Bits, int M, bool HasCoefficient>
void multiply_rows(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t row, int64_t row_end,
                   int32_t token) {
    constexpr int kAtOnce = Shape<Codes, M>::kVectors;
    static_assert(Codes::kTileRows % (kAtOnce * kLanes) == 0);
    with_levels<M>(args, [&]<Levels Known>() {
        for (; row < row_end; row += kAtOnce * kLanes) {
            multiply_small<Codes, Bits, HasCoefficient, kAtOnce, M, Known>(args, epilogue, row, token);
        }
    });
}

/// All blocks of tokens before the next rows: these come from memory once.
template <class Codes, int Bits, bool HasCoefficient>
void multiply_tokens(const QgemmArgs& args, const Epilogue<Floats>& epilogue) {
    constexpr int64_t kRows = 64;
    for (int64_t row = args.row_begin; row < args.row_end; row += kRows) {
        const int64_t row_end = row + kRows < args.row_end ? row + kRows : args.row_end;
        for_each_even_block<kTokenBlock>(args.m, [&]<int M>(int32_t token) {
            multiply_rows<Codes, Bits, M, HasCoefficient>(args, epilogue, row, row_end, token);
        });
    }
}

template <class Codes, int Bits>
void qgemm_small(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>(mad_centre(*args.spec)));
    epilogue.has_coefficient ? multiply_tokens<Codes, Bits, true>(args, epilogue)
                             : multiply_tokens<Codes, Bits, false>(args, epilogue);
}

}  // namespace
}  // namespace tmac::avx512
