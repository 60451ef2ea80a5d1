#include "layout/ggml_blocks.h"

#include <cstring>

#include "core/bits.h"

// The layouts are those of ggml-common.h and ggml-quants.c (`dequantize_row_*`), I2_S that of microsoft/BitNet on x86.
// Eight bytes at a time: compilers unroll the loops, which have constant lengths.

namespace tmac {
namespace {

/// The parts of one block.
struct Out {
    uint8_t* codes;
    int8_t* scales;
    int8_t* offsets;
    uint16_t* halves;

    void half(int which, const uint8_t* from) const { std::memcpy(halves + which, from, sizeof(uint16_t)); }
};

uint64_t load_8(const uint8_t* bytes) {
    uint64_t eight = 0;
    std::memcpy(&eight, bytes, sizeof(eight));
    return eight;
}

/// Fields of kBits bits: of each kRun bytes first all lowest fields, then the next; on top of the kBelow bits that the
/// codes have.
template <int kBits, int kBytes, int kRun, int kBelow = 0>
void fields(const uint8_t* bytes, uint8_t* codes) {
    constexpr int kFields = 8 / kBits;
    constexpr int kLength = kRun % 8 == 0 ? 8 : 1;  // of what is done at once
    constexpr uint64_t kMask = kLowBits * ((1U << kBits) - 1U);
    for (int run = 0; run < kBytes; run += kRun) {
        for (int i = 0; i < kRun; i += kLength) {
            uint64_t from = bytes[run + i];
            if constexpr (kLength == 8) {
                from = load_8(bytes + run + i);
            }
            for (int field = 0; field < kFields; ++field) {
                uint8_t* out = codes + run * kFields + field * kRun + i;
                uint64_t to = (from >> (field * kBits) & kMask) << kBelow;
                if constexpr (kBelow > 0) {
                    uint64_t below = 0;
                    std::memcpy(&below, out, kLength);
                    to |= below;
                }
                std::memcpy(out, &to, kLength);
            }
        }
    }
}

/// Bit i of the bytes is bit kPlace of code i.
template <int kBytes, int kPlace>
void single_bits(const uint8_t* bytes, uint8_t* codes) {
    for (int i = 0; i < kBytes; ++i) {
        uint64_t eight = 0;
        std::memcpy(&eight, codes + 8 * i, 8);
        eight |= spread_bits(bytes[i]) << kPlace;
        std::memcpy(codes + 8 * i, &eight, 8);
    }
}

void q4_0(const uint8_t* block, const Out& out) {
    out.half(0, block);
    fields<4, 16, 16>(block + 2, out.codes);
}

void q4_1(const uint8_t* block, const Out& out) {
    out.half(0, block);
    out.half(1, block + 2);
    fields<4, 16, 16>(block + 4, out.codes);
}

void q5_0(const uint8_t* block, const Out& out) {
    out.half(0, block);
    fields<4, 16, 16>(block + 6, out.codes);
    single_bits<4, 4>(block + 2, out.codes);
}

void q5_1(const uint8_t* block, const Out& out) {
    out.half(0, block);
    out.half(1, block + 2);
    fields<4, 16, 16>(block + 8, out.codes);
    single_bits<4, 4>(block + 4, out.codes);
}

void q8_0(const uint8_t* block, const Out& out) {
    out.half(0, block);
    for (int i = 0; i < 32; i += 8) {
        const uint64_t eight = load_8(block + 2 + i) ^ (kLowBits << 7);  // signed bytes plus 128
        std::memcpy(out.codes + i, &eight, 8);
    }
}

void q1_0(const uint8_t* block, const Out& out) {
    out.half(0, block);
    std::memset(out.codes, 0, 128);
    single_bits<16, 0>(block + 2, out.codes);
}

void q2_0(const uint8_t* block, const Out& out) {
    out.half(0, block);
    fields<2, 16, 1>(block + 2, out.codes);
}

/// A byte is the fraction 0.t0 t1 t2 t3 t4 in base 3, rounded up, of 256: times 3^n brings digit n to the front.
template <int kBytes, int kDigits>
uint8_t* base_3(const uint8_t* bytes, uint8_t* codes) {
    uint8_t rest[kBytes];  // memory of its own: the loops become vector instructions
    std::memcpy(rest, bytes, kBytes);
    for (int digit = 0; digit < kDigits; ++digit, codes += kBytes) {
        uint8_t digits[kBytes];
        for (int i = 0; i < kBytes; ++i) {
            digits[i] = static_cast<uint8_t>((rest[i] > 85) + (rest[i] > 170));  // rest * 3 / 256
            rest[i] = static_cast<uint8_t>(rest[i] * 3);                         // modulo 256
        }
        std::memcpy(codes, digits, kBytes);
    }
    return codes;
}

void tq1_0(const uint8_t* block, const Out& out) {
    out.half(0, block + 52);
    base_3<4, 4>(block + 48, base_3<16, 5>(block + 32, base_3<32, 5>(block, out.codes)));
}

void tq2_0(const uint8_t* block, const Out& out) {
    out.half(0, block + 64);
    fields<2, 64, 32>(block, out.codes);
}

/// Byte j has elements j, 32 + j, 64 + j and 96 + j, the first in its highest bits.
void i2_s(const uint8_t* block, const Out& out) {
    for (int field = 0; field < 4; ++field) {
        for (int i = 0; i < 32; ++i) {
            out.codes[32 * field + i] = static_cast<uint8_t>(block[i] >> (6 - 2 * field) & 3);
        }
    }
}

void q2_k(const uint8_t* block, const Out& out) {
    out.half(0, block + 80);
    out.half(1, block + 82);
    for (int i = 0; i < 16; ++i) {
        out.scales[i] = static_cast<int8_t>(block[i] & 15);
        out.offsets[i] = static_cast<int8_t>(block[i] >> 4);
    }
    fields<2, 64, 32>(block + 16, out.codes);
}

/// Three bits, the highest from a mask of 32 bytes: code - 4. Scales have six bits: scale - 32.
void q3_k(const uint8_t* block, const Out& out) {
    out.half(0, block + 108);
    uint8_t scales[16];
    fields<4, 8, 8>(block + 96, scales);
    fields<2, 4, 4, 4>(block + 104, scales);
    for (int i = 0; i < 16; ++i) {
        out.scales[i] = static_cast<int8_t>(scales[i] - 32);
    }
    fields<2, 64, 32>(block + 32, out.codes);
    fields<1, 32, 32, 2>(block, out.codes);
}

/// The twelve bytes of Q4_K and Q5_K -> eight scales and eight minima of six bits.
void sub_scales(const uint8_t* packed, const Out& out) {
    const uint8_t* first = packed;
    const uint8_t* second = packed + 4;
    const uint8_t* third = packed + 8;
    for (int i = 0; i < 4; ++i) {
        out.scales[i] = static_cast<int8_t>(first[i] & 63);
        out.offsets[i] = static_cast<int8_t>(second[i] & 63);
        out.scales[4 + i] = static_cast<int8_t>((third[i] & 15) | (first[i] >> 2 & 48));
        out.offsets[4 + i] = static_cast<int8_t>(third[i] >> 4 | (second[i] >> 2 & 48));
    }
}

void q4_k(const uint8_t* block, const Out& out) {
    out.half(0, block);
    out.half(1, block + 2);
    sub_scales(block + 4, out);
    fields<4, 128, 32>(block + 16, out.codes);
}

void q5_k(const uint8_t* block, const Out& out) {
    out.half(0, block);
    out.half(1, block + 2);
    sub_scales(block + 4, out);
    fields<4, 128, 32>(block + 48, out.codes);
    fields<1, 32, 32, 4>(block + 16, out.codes);
}

void q6_k(const uint8_t* block, const Out& out) {
    out.half(0, block + 208);
    std::memcpy(out.scales, block + 192, 16);
    fields<4, 128, 64>(block, out.codes);
    fields<2, 64, 32, 4>(block + 128, out.codes);
}

/// One block after the other.
template <void (*kSplit)(const uint8_t*, const Out&)>
void split_all(const GgmlBlock& type, const uint8_t* blocks, Range range, const GgmlParts& parts) {
    for (int64_t i = range.begin; i < range.end; ++i) {
        uint16_t halves[2] = {};
        const int64_t subs = i * type.subs;
        kSplit(blocks + i * type.bytes,
               {parts.codes + i * type.codes, parts.sub_scales == nullptr ? nullptr : parts.sub_scales + subs,
                parts.sub_offsets == nullptr ? nullptr : parts.sub_offsets + subs, halves});
        if (parts.scales != nullptr) {
            parts.scales[i] = halves[0];
        }
        if (parts.offsets != nullptr) {
            parts.offsets[i] = halves[1];
        }
    }
}

constexpr GgmlBlock kBlocks[] = {
    {"Q4_0", 18, 32, 0, false, 1, split_all<q4_0>},    {"Q4_1", 20, 32, 0, false, 2, split_all<q4_1>},
    {"Q5_0", 22, 32, 0, false, 1, split_all<q5_0>},    {"Q5_1", 24, 32, 0, false, 2, split_all<q5_1>},
    {"Q8_0", 34, 32, 0, false, 1, split_all<q8_0>},    {"Q1_0", 18, 128, 0, false, 1, split_all<q1_0>},
    {"Q2_0", 18, 64, 0, false, 1, split_all<q2_0>},    {"TQ1_0", 54, 256, 0, false, 1, split_all<tq1_0>},
    {"TQ2_0", 66, 256, 0, false, 1, split_all<tq2_0>}, {"I2_S", 32, 128, 0, false, 0, split_all<i2_s>},
    {"Q2_K", 84, 256, 16, true, 2, split_all<q2_k>},   {"Q3_K", 110, 256, 16, false, 1, split_all<q3_k>},
    {"Q4_K", 144, 256, 8, true, 2, split_all<q4_k>},   {"Q5_K", 176, 256, 8, true, 2, split_all<q5_k>},
    {"Q6_K", 210, 256, 16, false, 1, split_all<q6_k>},
};

}  // namespace

const GgmlBlock* find_ggml_block(std::string_view name) {
    for (const GgmlBlock& block : kBlocks) {
        if (block.name == name) {
            return &block;
        }
    }
    return nullptr;
}

void split_blocks(const GgmlBlock& type, const uint8_t* blocks, Range range, const GgmlParts& parts) {
    type.split(type, blocks, range, parts);
}

}  // namespace tmac
