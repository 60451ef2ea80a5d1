#include "ops/pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/act_groups.h"
#include "core/check.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"
#include "layout/tiles.h"
#include "ops/dequantize.h"

namespace tmac {
namespace {

constexpr int64_t kRowsPerThread = 64;  ///< a multiple of every n_tile, so that no two threads share a tile

void check_shape(const WeightShape& weight, const KernelPair& kernels) {
    validate(weight.spec);
    for (const Kernel* kernel : {kernels.decode, kernels.prompt}) {
        if (!serves(*kernel, weight.spec)) {
            throw UnsupportedSpec(std::string(kernel->name) + " does not serve " + to_string(weight.spec));
        }
    }
    const bool fixed = weight.spec.zero_point == ZeroPoint::fixed;
    TMAC_CHECK((weight.zero_type == GroupType::none) == fixed,
               "[pack] zeros are wanted exactly where zero_point is not 'fixed'");
    const bool two_level = weight.spec.scale_format == ScaleFormat::two_level;
    TMAC_CHECK(fixed || (weight.zero_type == GroupType::i8) == two_level,
               "[pack] offsets are i8 exactly where scale_format is 'two_level'");
}

void check_parts(const WeightRows& rows, const PackedHeader& header) {
    TMAC_CHECK(rows.bits() == header.spec.bits, "[pack] ", rows.bits(), " planes for bits=", int{header.spec.bits});
    TMAC_CHECK(rows.scale_type == header.scale_type, "[pack] the scales' dtype is not the spec's scale_format");
    const bool fixed = header.spec.zero_point == ZeroPoint::fixed;
    TMAC_CHECK((rows.zero_type == GroupType::none) == fixed,
               "[pack] zeros are wanted exactly where zero_point is not 'fixed'");
    TMAC_CHECK(rows.zero_type == header.zero_type, "[pack] these zeros have another dtype than the weight's");
    const bool two_level = header.spec.scale_format == ScaleFormat::two_level;
    TMAC_CHECK((rows.super_scales != nullptr) == two_level,
               "[pack] super_scales are wanted exactly where scale_format is 'two_level'");
    TMAC_CHECK((rows.super_offsets != nullptr) == (two_level && !fixed),
               "[pack] super_offsets are wanted exactly where scale_format is 'two_level' and zero_point 'offset'");
}

/// Layout::trits has no room for a code 3, which planes can hold.
void check_trits(const PlanesView& planes, Range rows, int64_t first) {
    const int64_t row_bytes = planes.row_bytes();
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        uint8_t both = 0;
        for (int64_t i = 0; i < row_bytes; ++i) {
            both = static_cast<uint8_t>(both | (planes.row(0, row)[i] & planes.row(1, row)[i]));
        }
        TMAC_CHECK(both == 0, "[pack] row ", first + row, " of a ternary weight has a code 3; codes are 0, 1 and 2");
    }
}

void check_codes(const CodesView& codes, Codebook codebook, Range rows, int64_t first) {
    const int largest = codebook == Codebook::ternary ? 2 : (1 << codes.bits) - 1;
    for (int64_t row = rows.begin; row < rows.end; ++row) {
        const uint8_t* begin = codes.data + row * codes.k;
        uint8_t most = 0;
        for (int64_t i = 0; i < codes.k; ++i) {
            most = std::max(most, begin[i]);
        }
        TMAC_CHECK(most <= largest, "[pack] row ", first + row, " has a code ", int{most}, "; codes are 0 to ",
                   largest);
    }
}

PackedHeader make_header(const WeightShape& weight, const KernelPair& kernels, bool for_prefixes) {
    check_shape(weight, kernels);
    PackedHeader header{};
    std::memcpy(header.magic, kPackedMagic, sizeof(kPackedMagic));
    std::strncpy(header.kernel, kernels.decode->name, sizeof(header.kernel) - 1);
    std::strncpy(header.prompt_kernel, kernels.prompt->name, sizeof(header.prompt_kernel) - 1);
    header.spec = weight.spec;
    header.n = weight.n;
    header.k = weight.k;
    header.layout = packed_layout(kernels, weight.spec, for_prefixes);
    header.scale_type = scale_type_of(weight.spec.scale_format);
    header.zero_type = weight.zero_type;
    header.has_perm = weight.perm != nullptr ? 1 : 0;
    header.checksum = header_checksum(header);
    return header;
}

/// Calls body with ranges of `n` rows, whose first one is row `first` of a weight: no two share 64 rows of that.
template <class Body>
void for_rows(int64_t first, int64_t n, int num_threads, const Body& body) {
    const int64_t start = first / kRowsPerThread * kRowsPerThread;
    parallel_for(first + n - start, kRowsPerThread, num_threads, [&](Range range) {
        body(Range{std::max<int64_t>(0, start + range.begin - first), start + range.end - first});
    });
}

uint8_t* writable(const void* data) { return static_cast<uint8_t*>(const_cast<void*>(data)); }

}  // namespace

void check_permutation(const int32_t* perm, int64_t k) {
    std::vector<bool> seen(static_cast<size_t>(k));
    for (int64_t i = 0; i < k; ++i) {
        TMAC_CHECK(perm[i] >= 0 && perm[i] < k && !seen[static_cast<size_t>(perm[i])], "[perm] entry ", i, " = ",
                   perm[i], " is out of range or stands twice");
        seen[static_cast<size_t>(perm[i])] = true;
    }
}

Packer::Packer(const WeightShape& weight, const KernelPair& kernels, bool for_prefixes)
    : header_(make_header(weight, kernels, for_prefixes)),
      parts_(packed_parts(header_)),
      kernels_(kernels),
      packed_(header_, parts_),
      act_groups_(act_groups_of(view())),
      written_(static_cast<size_t>(header_.n)) {
    if (weight.perm != nullptr) {
        std::memcpy(packed_.data() + parts_.perm, weight.perm, static_cast<size_t>(header_.k) * sizeof(int32_t));
    }
}

void Packer::add(const WeightRows& rows, int64_t first, int num_threads) {
    check_parts(rows, header_);
    TMAC_CHECK(rows.k() == header_.k, "[pack] rows have ", rows.k(), " columns, the weight ", header_.k);
    mark(first, rows.n());
    for_rows(first, rows.n(), num_threads, [&](Range range) { write(rows, range, first); });
}

void Packer::add_blocks(const GgmlBlock& type, const uint8_t* blocks, int64_t n, int64_t first, int num_threads) {
    const bool two_level = type.subs > 0;
    const int64_t per_row = header_.k / type.codes;
    WeightRows like{};
    like.codes = {blocks, header_.spec.bits, n, header_.k};
    like.scale_type = two_level ? GroupType::i8 : GroupType::f16;
    like.zero_type = type.halves < 2 ? GroupType::none : like.scale_type;
    TMAC_CHECK(type.halves > 0 && header_.k % type.codes == 0 && header_.scale_type == like.scale_type &&
                   header_.zero_type == like.zero_type &&
                   num_groups(header_.spec, header_.k) == per_row * std::max(type.subs, 1),
               "[pack] blocks of ", std::string(type.name), " are not rows of a weight of ", to_string(header_.spec));
    mark(first, n);
    for_rows(first, n, num_threads, [&](Range range) {
        constexpr int64_t kRows = 16;  // their codes stay in the cache
        const auto count = static_cast<size_t>(kRows * per_row);
        std::vector<uint8_t> codes(static_cast<size_t>(kRows * header_.k));
        std::vector<int8_t> subs(count * static_cast<size_t>(type.subs));
        std::vector<int8_t> sub_offsets(type.sub_offsets ? subs.size() : 0);
        std::vector<uint16_t> scales(count);
        std::vector<uint16_t> offsets(type.halves > 1 ? count : 0);
        const GgmlParts parts{codes.data(), subs.data(), sub_offsets.data(), scales.data(),
                              offsets.empty() ? nullptr : offsets.data()};
        for (int64_t row = range.begin; row < range.end; row += kRows) {
            const int64_t rows = std::min(kRows, range.end - row);
            split_blocks(type, blocks + row * per_row * type.bytes, {0, rows * per_row}, parts);
            TMAC_CHECK(all_finite(scales.data(), GroupType::f16, rows * per_row) &&
                           (offsets.empty() || all_finite(offsets.data(), GroupType::f16, rows * per_row)),
                       "[pack] NaN or Inf in the scales of rows ", first + row, " to ", first + row + rows - 1);
            WeightRows some = like;
            some.codes = {codes.data(), header_.spec.bits, rows, header_.k};
            const uint16_t* of_offsets = offsets.empty() ? nullptr : offsets.data();
            some.scales = two_level ? static_cast<const void*>(subs.data()) : scales.data();
            some.zeros = two_level && type.sub_offsets ? static_cast<const void*>(sub_offsets.data()) : of_offsets;
            some.super_scales = two_level ? scales.data() : nullptr;
            some.super_offsets = two_level ? of_offsets : nullptr;
            write(some, {0, rows}, first + row);
        }
    });
}

/// Rows of `rows`, whose row 0 is row `first` of the weight.
void Packer::write(const WeightRows& rows, Range of_rows, int64_t first) {
    const WeightView weight = view();
    if (rows.codes.data != nullptr) {
        check_codes(rows.codes, header_.spec.codebook, of_rows, first);
        codes_to_layout(rows.codes, act_groups_, tiled_codes(weight), of_rows, first);
    } else {
        if (header_.layout == Layout::trits) {
            check_trits(rows.planes, of_rows, first);
        }
        planes_to_layout(rows.planes, act_groups_, tiled_codes(weight), of_rows, first);
    }
    const GroupArrays arrays{writable(rows.scales), writable(rows.zeros), const_cast<uint16_t*>(rows.super_scales),
                             const_cast<uint16_t*>(rows.super_offsets)};
    move_groups(Direction::to_tiles, weight, arrays, {first + of_rows.begin, first + of_rows.end}, first);
}

void Packer::mark(int64_t first, int64_t n) {
    TMAC_CHECK(first >= 0 && n >= 0 && first + n <= header_.n, "[pack] rows ", first, " to ", first + n,
               " are not in a weight of ", header_.n, " rows");
    const std::lock_guard<std::mutex> lock(mutex_);
    TMAC_CHECK(!finished_, "[pack] rows after the last one");
    for (int64_t row = first; row < first + n; ++row) {
        TMAC_CHECK(!written_[static_cast<size_t>(row)], "[pack] row ", row, " came twice");
        written_[static_cast<size_t>(row)] = true;
    }
}

PackedWeight Packer::finish() {
    const std::lock_guard<std::mutex> lock(mutex_);
    TMAC_CHECK(!finished_, "[pack] rows after the last one");
    const auto missing = std::find(written_.begin(), written_.end(), false);
    TMAC_CHECK(missing == written_.end(), "[pack] row ", missing - written_.begin(), " is missing");
    finished_ = true;
    return std::move(packed_);
}

PackedWeight pack(const CanonicalWeight& weight, const KernelPair& kernels, int num_threads, bool for_prefixes) {
    const WeightShape shape{weight.spec, weight.planes.n, weight.planes.k, weight.zero_type, weight.perm};
    Packer packer(shape, kernels, for_prefixes);
    packer.add({weight.planes,
                {},
                weight.scales,
                weight.scale_type,
                weight.zeros,
                weight.zero_type,
                weight.super_scales,
                weight.super_offsets},
               0, num_threads);
    return packer.finish();
}

bool all_finite(const void* values, GroupType type, int64_t count) {
    bool finite = true;
    if (type == GroupType::f16) {
        for (int64_t i = 0; i < count; ++i) {
            finite &= (static_cast<const uint16_t*>(values)[i] & 0x7c00U) != 0x7c00U;
        }
    } else if (type == GroupType::f32) {
        for (int64_t i = 0; i < count; ++i) {
            finite &= (static_cast<const uint32_t*>(values)[i] & 0x7f800000U) != 0x7f800000U;
        }
    }
    return finite;
}

void unpack(const WeightView& weight, uint8_t* planes, const GroupArrays& groups, int32_t* perm, int num_threads) {
    if (perm != nullptr && weight.perm() != nullptr) {
        std::memcpy(perm, weight.perm(), static_cast<size_t>(weight.header.k) * sizeof(int32_t));
    }
    const std::vector<ActGroup> act_groups = act_groups_of(weight);
    const PlanesView shape{planes, weight.header.spec.bits, weight.header.n, weight.header.k};
    parallel_for(weight.header.n, kRowsPerThread, num_threads, [&](Range range) {
        move_groups(Direction::to_rows, weight, groups, range, 0);
        layout_to_planes(tiled_codes(weight), act_groups, shape, planes + range.begin * shape.row_bytes(), range.begin,
                         range.end);
    });
}

}  // namespace tmac
