#include "ops/prefix.h"

#include <algorithm>
#include <sstream>

#include "core/check.h"
#include "core/thread_pool.h"
#include "ops/dequantize.h"

namespace tmac {
namespace {

constexpr int64_t kSampleRows = 64;

QuantSpec prefix_spec(const WeightView& weight, int32_t planes) {
    QuantSpec spec = weight.header.spec;
    spec.bits = static_cast<uint8_t>(planes);
    return spec;
}

KernelPair prefix_kernels(const WeightView& weight, int32_t planes, const Selection& selection) {
    const PackedHeader& header = weight.header;
    const bool possible = header.spec.codebook == Codebook::uniform && planes >= 1 && planes < header.spec.bits &&
                          leading_regions(header.layout, planes, header.spec.bits) > 0;
    return possible ? kernels_reading(header.layout, prefix_spec(weight, planes), selection) : KernelPair{};
}

void add_row(const RowReader& row, const WeightView& weight, int32_t planes, PrefixMoments& moments) {
    const int32_t shift = weight.header.spec.bits - planes;
    const int64_t k = weight.header.k;
    const int64_t size = weight.header.spec.group_size == -1 ? k : weight.header.spec.group_size;
    for (int64_t group = 0; group < weight.parts.num_groups; ++group) {
        int64_t sums[4] = {};  // of top, code and their products: exact
        const int64_t begin = group * size;
        const int64_t end = std::min(k, begin + size);
        for (int64_t column = begin; column < end; ++column) {
            const int64_t code = row.codes()[column];
            const int64_t top = code >> shift;
            sums[0] += top;
            sums[1] += code;
            sums[2] += top * top;
            sums[3] += top * code;
        }
        const double square = double{row.scale(group)} * double{row.scale(group)};
        moments.weight += square * static_cast<double>(end - begin);
        moments.top += square * static_cast<double>(sums[0]);
        moments.code += square * static_cast<double>(sums[1]);
        moments.top_top += square * static_cast<double>(sums[2]);
        moments.top_code += square * static_cast<double>(sums[3]);
    }
}

}  // namespace

PrefixFit middle_fit(const WeightView& weight, int32_t planes) {
    const auto step = static_cast<float>(1 << (weight.header.spec.bits - planes));
    return {step, (step - 1.0F) * 0.5F};
}

PrefixMoments prefix_moments(const WeightView& weight, int32_t planes, int num_threads) {
    const int64_t n = weight.header.n;
    const int64_t count = std::min(n, kSampleRows);
    std::vector<PrefixMoments> rows(static_cast<size_t>(count));
    parallel_for(count, 8, num_threads, [&](Range range) {
        RowReader reader(weight);
        for (int64_t i = range.begin; i < range.end; ++i) {
            reader.read(i * n / count);
            add_row(reader, weight, planes, rows[static_cast<size_t>(i)]);
        }
    });
    PrefixMoments sum;
    for (const PrefixMoments& row : rows) {
        sum.weight += row.weight;
        sum.top += row.top;
        sum.code += row.code;
        sum.top_top += row.top_top;
        sum.top_code += row.top_code;
    }
    return sum;
}

std::vector<PrefixFit> fit_together(const std::vector<PrefixMoments>& moments, const PrefixFit& middle) {
    double variance = 0;
    double covariance = 0;
    for (const PrefixMoments& each : moments) {
        if (each.weight > 0) {
            variance += each.top_top - each.top * each.top / each.weight;
            covariance += each.top_code - each.top * each.code / each.weight;
        }
    }
    const double slope = covariance / variance;
    const bool usable = slope > 0.5 * double{middle.scale} && slope < 2.0 * double{middle.scale};  // false of NaN
    const float scale = usable ? static_cast<float>(slope) : middle.scale;
    std::vector<PrefixFit> fits;
    for (const PrefixMoments& each : moments) {
        const double base = (each.code - double{scale} * each.top) / each.weight;
        fits.push_back({scale, each.weight > 0 ? static_cast<float>(base) : middle.base});
    }
    return fits;
}

std::vector<int32_t> prefixes_of(const WeightView& weight, const Selection& selection) {
    std::vector<int32_t> found;
    for (int32_t planes = 1; planes < weight.header.spec.bits; ++planes) {
        if (prefix_kernels(weight, planes, selection).decode != nullptr) {
            found.push_back(planes);
        }
    }
    return found;
}

bool is_prefix(const WeightView& weight) { return weight.code_scale != 1.0F || weight.code_base != 0.0F; }

WeightView make_prefix(const WeightView& weight, int32_t planes, const PrefixFit& fit, const Selection& selection) {
    TMAC_CHECK(!is_prefix(weight), "[prefix] the weight is the leading planes of another one, whose prefixes alone ",
               "can be made");
    const KernelPair kernels = prefix_kernels(weight, planes, selection);
    if (kernels.decode == nullptr) {
        std::ostringstream possible;
        for (const int32_t each : prefixes_of(weight, selection)) {
            possible << (possible.tellp() > 0 ? ", " : "") << each;
        }
        fail("[prefix] the first ", planes, " planes of a weight of ", int{weight.header.spec.bits},
             " bits, packed as ", name_of(weight.header.layout),
             ", are no weight here; possible are: ", possible.tellp() > 0 ? possible.str() : std::string("none"));
    }
    WeightView prefix = weight;
    prefix.header.spec = prefix_spec(weight, planes);
    prefix.kernels = kernels;
    const int32_t kept = leading_regions(weight.header.layout, planes, weight.header.spec.bits);
    if (kept < prefix.parts.num_regions) {
        prefix.parts.last_region = prefix.parts.region_stride;
        prefix.parts.num_regions = kept;
        std::fill(prefix.regions + kept, std::end(prefix.regions), nullptr);
    }
    prefix.code_scale = fit.scale;
    prefix.code_base = fit.base;
    return prefix;
}

int64_t bytes_read(const WeightView& weight) {
    const PackedParts& parts = weight.parts;
    return parts.codes + parts.region_stride * (parts.num_regions - 1) + parts.last_region;
}

}  // namespace tmac
