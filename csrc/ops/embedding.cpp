#include "ops/embedding.h"

#include <algorithm>
#include <vector>

#include "core/check.h"
#include "core/thread_pool.h"
#include "ops/convert.h"
#include "ops/dequantize.h"

namespace tmac {
namespace {

constexpr int64_t kMinWork = 1 << 16;  ///< weights under which a thread costs more than it saves

}  // namespace

void embedding(const WeightView& weight, const int64_t* ids, const Tensor& y, int num_threads) {
    const PackedHeader& header = weight.header;
    TMAC_CHECK(y.rows >= 0 && y.columns == header.k, "[embedding] ", y.rows, " rows of ", y.columns,
               " columns, but the weight was packed for ", header.k);
    for (int64_t i = 0; i < y.rows; ++i) {
        TMAC_CHECK(ids[i] >= 0 && ids[i] < header.n, "[embedding] id ", ids[i], " at place ", i,
                   " is not one of the weight's ", header.n, " rows");
    }
    const int64_t grain = (kMinWork + header.k - 1) / header.k;
    parallel_for(y.rows, grain, num_threads, [&](Range range) {
        RowDequantizer rows(weight);
        std::vector<float> values(static_cast<size_t>(y.type == DType::f32 ? 0 : y.columns));
        for (int64_t i = range.begin; i < range.end; ++i) {
            if (y.type == DType::f32) {
                rows.run(ids[i], static_cast<float*>(y.data) + i * y.stride);
            } else {
                rows.run(ids[i], values.data());
                store_columns(y, i, 0, y.columns, values.data());
            }
        }
    });
}

}  // namespace tmac
