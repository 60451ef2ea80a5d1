#include "ops/weight_view.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "core/check.h"
#include "kernels/registry.h"

namespace tmac {
namespace {

/// A kernel that the header names: it must read the header's layout and serve its spec.
template <size_t Size>
const Kernel* kernel_of(const PackedHeader& header, const char (&name)[Size]) {
    const auto length = static_cast<size_t>(std::find(name, std::end(name), '\0') - name);
    const Kernel* kernel = find_kernel({name, length});
    TMAC_CHECK(
        kernel != nullptr,
        "[linear] the weight was packed for a kernel that this build does not have: load it from its planes again");
    TMAC_CHECK(selection().runnable(*kernel), "[linear] the weight was packed for ", kernel->name,
               ", which this CPU cannot run: load it from its planes again");
    TMAC_CHECK(reads(*kernel, header.layout) && serves(*kernel, header.spec),
               "[linear] the weight's layout or spec is not that of ", kernel->name);
    return kernel;
}

void check_group_types(const PackedHeader& header) {
    const bool two_level = header.spec.scale_format == ScaleFormat::two_level;
    TMAC_CHECK(two_level ? header.scale_type == GroupType::i8
                         : header.scale_type == GroupType::f16 || header.scale_type == GroupType::f32,
               "[packed weight] scales must be f16 or f32, or i8 where they have two levels");
    const bool fixed = header.spec.zero_point == ZeroPoint::fixed;
    TMAC_CHECK(
        (header.zero_type == GroupType::none) == fixed && (header.zero_type == GroupType::i8) == (two_level && !fixed),
        "[packed weight] zeros do not fit the spec");
}

WeightView view_bytes(const uint8_t* data, int64_t size, bool whole) {
    WeightView view = view_header(data, size);
    const int64_t wanted = whole ? view.parts.bytes : view.parts.codes;
    TMAC_CHECK(size == wanted, "[packed weight] the header speaks of ", wanted, " bytes",
               whole ? "" : " before the codes", ", but there are ", size);
    view.data = data;
    check_perm(view);
    return view;
}

}  // namespace

RegionOffsets WeightView::region_offsets() const {
    RegionOffsets offsets{};
    for (int32_t region = 0; region < parts.num_regions; ++region) {
        offsets.of[region] = regions[region] - regions[0];
    }
    return offsets;
}

WeightView view_in_place(const PackedHeader& header, const PackedParts& parts, const KernelPair& kernels,
                         const uint8_t* data) {
    WeightView view{header, parts, kernels, data, {}};
    for (int32_t region = 0; region < parts.num_regions; ++region) {
        view.regions[region] = data + parts.codes + region * parts.region_stride;
    }
    return view;
}

WeightView view_weight(const uint8_t* data, int64_t size) {
    const WeightView view = view_bytes(data, size, true);
    return view_in_place(view.header, view.parts, view.kernels, data);
}

WeightView view_weight_head(const uint8_t* data, int64_t size) { return view_bytes(data, size, false); }

WeightView view_header(const uint8_t* data, int64_t size) {
    WeightView view{};
    TMAC_CHECK(size >= static_cast<int64_t>(sizeof(PackedHeader)), "[packed weight] ", size, " bytes are no header");
    std::memcpy(&view.header, data, sizeof(PackedHeader));
    TMAC_CHECK(std::memcmp(view.header.magic, kPackedMagic, sizeof(kPackedMagic)) == 0 &&
                   view.header.checksum == header_checksum(view.header),
               "[packed weight] these bytes are not a weight packed by this version");
    validate(view.header.spec);
    check_group_types(view.header);
    TMAC_CHECK(static_cast<int>(view.header.layout) < kNumLayouts, "[packed weight] unknown layout");
    view.kernels = {kernel_of(view.header, view.header.kernel), kernel_of(view.header, view.header.prompt_kernel)};
    view.parts = packed_parts(view.header);
    return view;
}

void check_perm(const WeightView& view) {
    if (const int32_t* perm = view.perm()) {
        const auto k = static_cast<uint32_t>(view.header.k);
        TMAC_CHECK(std::all_of(perm, perm + k, [k](int32_t column) { return static_cast<uint32_t>(column) < k; }),
                   "[packed weight] perm names a column outside 0..", k - 1);
    }
}

}  // namespace tmac
