#include "ops/row_block.h"

#include <cstring>
#include <vector>

#include "catch.h"
#include "kernels/registry.h"
#include "ops/dequantize.h"
#include "ops/pack.h"
#include "weights.h"

using namespace tmac;

namespace {

/// Row `row` of the weight from the bytes of its block alone.
std::vector<float> looked_up(const WeightView& weight, int64_t row) {
    const RowBlock block = row_block(weight, row);
    std::vector<uint8_t> memory(static_cast<size_t>(block.parts.bytes + 64));
    uint8_t* data = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
    for (const RowBlock::Piece& piece : block.pieces) {
        const uint8_t* from = piece.region < 0 ? weight.data : weight.regions[piece.region];
        REQUIRE(piece.to + piece.bytes <= block.parts.bytes);
        std::memcpy(data + piece.to, from + piece.from, static_cast<size_t>(piece.bytes));
    }
    const WeightView view = view_in_place(block.header, block.parts, weight.kernels, data);
    std::vector<float> values(static_cast<size_t>(weight.header.k));
    RowDequantizer(view).run(row - block.first, values.data());
    return values;
}

}  // namespace

TEST_CASE("row_block holds all that its rows need, in every layout") {
    Random random(5);
    std::vector<QuantSpec> specs;
    for (int bits = 1; bits <= 8; ++bits) {
        for (const ZeroPoint zero : {ZeroPoint::fixed, ZeroPoint::offset}) {
            for (const ScaleFormat format : {ScaleFormat::f16, ScaleFormat::two_level}) {
                QuantSpec spec;
                spec.bits = static_cast<uint8_t>(bits);
                spec.group_size = 32;
                spec.zero_point = zero;
                spec.scale_format = format;
                specs.push_back(spec);
            }
        }
    }
    QuantSpec ternary;
    ternary.bits = 2;
    ternary.codebook = Codebook::ternary;
    ternary.fixed_zero = 1.0F;
    ternary.group_size = -1;
    specs.push_back(ternary);
    for (const QuantSpec& spec : specs) {
        for (const KernelPair& kernels : candidates(spec, selection())) {
            for (const bool for_prefixes : {false, true}) {
                const int64_t n = 300;
                const int64_t k = 90;
                const PackedWeight packed = pack(make_weight(random, spec, n, k).canonical(), kernels, 1, for_prefixes);
                const WeightView view = view_weight(packed.data(), packed.size());
                RowDequantizer rows(view);
                std::vector<float> wanted(static_cast<size_t>(k));
                for (int64_t row = 0; row < n; row += 7) {
                    rows.run(row, wanted.data());
                    REQUIRE(looked_up(view, row) == wanted);
                }
                rows.run(n - 1, wanted.data());
                REQUIRE(looked_up(view, n - 1) == wanted);
            }
        }
    }
}
