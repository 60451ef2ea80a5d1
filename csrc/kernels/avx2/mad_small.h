#pragma once

#include <utility>

#include "kernels/avx2/mad_codes.h"

// A few tokens at a time: codes are unpacked in registers, right before they are multiplied. The CPU prefetches these
// even streams by itself (docs/kernels.md).

namespace tmac::avx2 {
namespace {

/// Whether rows are unpacked one after the other, not side by side, so that a broadcast of activations serves one only.
template <class Codes>
inline constexpr bool kRowsInTurn = false;

/// Vectors of 8 rows that go together: at most 8 registers of sums, and never rows of two tiles, which would be streams
/// of their own.
template <class Codes, int M>
constexpr int kSmallVectors = kRowsInTurn<Codes> && M == 1                              ? 8
                              : M * Codes::kDigits > 4                                  ? 1
                              : M * Codes::kDigits > 2 || Codes::kTileRows < 4 * kLanes ? 2
                                                                                        : 4;

/// Integer sums of R * 8 rows and M tokens.
template <class Codes, int R, int M>
struct Sums {
    __m256i of[R][M][Codes::kDigits];

    TMAC_ALWAYS_INLINE void clear() {
        TMAC_UNROLL
        for (int i = 0; i < R * M * Codes::kDigits; ++i) {
            of[i / (M * Codes::kDigits)][i / Codes::kDigits % M][i % Codes::kDigits] = _mm256_setzero_si256();
        }
    }
};

/// One chunk: the code vectors of R * 8 rows, each times M tokens. A broadcast of activations serves all rows.
template <class Dot, class Codes, int R, int M, int... V>
TMAC_ALWAYS_INLINE void multiply_chunk(const Codes (&codes)[R], const int8_t* q, Sums<Codes, R, M>& sums,
                                       std::integer_sequence<int, V...>) {
    const auto step = [&]<int Vector, int Digit>() {
        __m256i bytes[R];
        TMAC_UNROLL
        for (int r = 0; r < R; ++r) {
            bytes[r] = codes[r].template code<Vector, Digit>();
        }
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            const __m256i four = broadcast_four(q + 4 * (Vector * M + m));
            TMAC_UNROLL
            for (int r = 0; r < R; ++r) {
                sums.of[r][m][Digit] = Dot::add(sums.of[r][m][Digit], bytes[r], four);
            }
        }
    };
    const auto two_steps = [&]<int Vector>() {
        if constexpr (Vector % 2 == 0) {
            __m256i first[R];
            __m256i second[R];
            TMAC_UNROLL
            for (int r = 0; r < R; ++r) {
                first[r] = codes[r].template code<Vector, 0>();
                second[r] = codes[r].template code<Vector + 1, 0>();
            }
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const __m256i first_four = broadcast_four(q + 4 * (Vector * M + m));
                const __m256i second_four = broadcast_four(q + 4 * ((Vector + 1) * M + m));
                TMAC_UNROLL
                for (int r = 0; r < R; ++r) {
                    __m256i& sum = sums.of[r][m][0];
                    sum = Dot::add_two(sum, first[r], first_four, second[r], second_four);
                }
            }
        }
    };
    if constexpr (Codes::kInTwos) {
        (two_steps.template operator()<V>(), ...);
    } else {
        (step.template operator()<V, 0>(), ...);
    }
    if constexpr (Codes::kDigits == 2) {
        (step.template operator()<V, 1>(), ...);
    }
}

/// The same for 8 of the rows.
template <class Dot, class Codes, int R, int M, int... V>
TMAC_ALWAYS_INLINE void multiply_row(const Codes& codes, const int8_t* q, int row, Sums<Codes, R, M>& sums,
                                     std::integer_sequence<int, V...>) {
    static_assert(Codes::kDigits == 1);
    const auto step = [&]<int Vector>() {
        const __m256i bytes = codes.template code<Vector, 0>();
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            __m256i& sum = sums.of[row][m][0];
            sum = Dot::add(sum, bytes, broadcast_four(q + 4 * (Vector * M + m)));
        }
    };
    (step.template operator()<V>(), ...);
}

/// One chunk from byte `at` on. A function, because gcc leaves a lambda of this size alone, and its sums in memory.
template <class Dot, class Codes, int R, int M, int... Row>
TMAC_ALWAYS_INLINE void unpack_and_multiply(const uint8_t* const (&rows)[R], int64_t at, const Regions& regions,
                                            const int8_t* q, Sums<Codes, R, M>& sums,
                                            std::integer_sequence<int, Row...>) {
    constexpr std::make_integer_sequence<int, Codes::kVectors> kEveryVector;
    if constexpr (kRowsInTurn<Codes>) {
        (multiply_row<Dot>(Codes(rows[Row] + at, regions), q, Row, sums, kEveryVector), ...);
    } else {
        const Codes unpacked[R] = {Codes(rows[Row] + at, regions)...};
        multiply_chunk<Dot, Codes, R, M>(unpacked, q, sums, kEveryVector);
    }
}

/// `chunks` chunks from byte `at` on.
template <class Dot, class Codes, int R, int M>
TMAC_ALWAYS_INLINE void multiply_chunks(const uint8_t* const (&rows)[R], int64_t at, int32_t chunks,
                                        const Regions& regions, const int8_t* q, Sums<Codes, R, M>& sums) {
    for (int32_t chunk = 0; chunk < chunks; ++chunk) {
        unpack_and_multiply<Dot>(rows, at, regions, q, sums, std::make_integer_sequence<int, R>());
        at += Codes::kChunkBytes;
        q += M * Codes::kColumns;
    }
}

/// Rows [row, row + 8 R) times M tokens.
template <class Dot, class Codes, bool HasCoefficient, int R, int M>
void multiply_small(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int64_t row, int32_t token) {
    // Chunks that a sum holds.
    constexpr int kRun = Codes::kInTwos ? INT32_MAX : Dot::run(Codes::kLargest) / Codes::kVectors;
    const Centre centre = centre_of<Codes>(args);
    const uint8_t* codes[R];
    __m256 y[R][M];
    TMAC_UNROLL
    for (int r = 0; r < R; ++r) {
        codes[r] = codes_in_tiles<Codes>(args, row + r * kLanes);
        TMAC_UNROLL
        for (int m = 0; m < M; ++m) {
            y[r][m] = _mm256_setzero_ps();
        }
    }
    const auto* q = static_cast<const int8_t*>(args.act) + token * args.act_stride;
    const int64_t first_group = int64_t{token} * args.num_act_groups;
    for (int32_t g = 0; g < args.num_act_groups; ++g) {
        const ActGroup& group = args.act_groups[g];
        const int32_t chunks = group.padded_count / Codes::kColumns;
        const int32_t first = group.padded_begin / Codes::kColumns;
        prefetch_values(args, values_in_tiles<Codes>(args, row, group), Codes::kTileRows);
        Sums<Codes, R, M> isum_i32x8;
        isum_i32x8.clear();
        for (int32_t done = 0; done < chunks; done += kRun) {
            Sums<Codes, R, M> sums;
            sums.clear();
            multiply_chunks<Dot, Codes, R, M>(codes, int64_t{first + done} * Codes::kChunkBytes,
                                              chunks - done < kRun ? chunks - done : kRun, Regions(args),
                                              q + int64_t{first + done} * Codes::kColumns * M, sums);
            TMAC_UNROLL
            for (int r = 0; r < R; ++r) {
                TMAC_UNROLL
                for (int i = 0; i < M * Codes::kDigits; ++i) {
                    __m256i& sum = isum_i32x8.of[r][i / Codes::kDigits][i % Codes::kDigits];
                    const __m256i more = sums.of[r][i / Codes::kDigits][i % Codes::kDigits];
                    sum = _mm256_add_epi32(sum, Codes::kInTwos ? more : Dot::widen(more));
                }
            }
        }
        TMAC_UNROLL
        for (int r = 0; r < R; ++r) {
            const GroupTerms<Floats> terms = epilogue.load(values_in_tiles<Codes>(args, row + r * kLanes, group));
            TMAC_UNROLL
            for (int m = 0; m < M; ++m) {
                const int64_t index = first_group + int64_t{m} * args.num_act_groups + g;
                const __m256i isum =
                    total_of<Codes>(isum_i32x8.of[r][m], centre, start_of_count(centre, args.act_isum[index]));
                y[r][m] = Epilogue<Floats>::add_known<HasCoefficient>(terms, isum, args.act_scale[index],
                                                                      args.act_sum[index], y[r][m]);
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

/// All rows times M tokens.
template <class Dot, class Codes, bool HasCoefficient, int M>
void small_rows(const QgemmArgs& args, const Epilogue<Floats>& epilogue, int32_t token) {
    constexpr int kVectors = kSmallVectors<Codes, M>;
    int64_t row = args.row_begin;
    for (; row + (kVectors - 1) * kLanes < args.row_end; row += kVectors * kLanes) {
        multiply_small<Dot, Codes, HasCoefficient, kVectors, M>(args, epilogue, row, token);
    }
    for (; row < args.row_end; row += kLanes) {
        multiply_small<Dot, Codes, HasCoefficient, 1, M>(args, epilogue, row, token);
    }
}

template <class Dot, class Codes>
void qgemm_small(const QgemmArgs& args) {
    const Epilogue<Floats> epilogue(args, static_cast<float>(centre_of<Codes>(args).code));
    for_each_even_block<kTokenBlock>(args.m, [&]<int M>(int32_t token) {
        epilogue.has_coefficient ? small_rows<Dot, Codes, true, M>(args, epilogue, token)
                                 : small_rows<Dot, Codes, false, M>(args, epilogue, token);
    });
}

}  // namespace
}  // namespace tmac::avx2
