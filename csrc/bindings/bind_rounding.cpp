#include <algorithm>

#include "bindings/bindings.h"
#include "core/packed_weight.h"
#include "kernels/vector_ops.h"
#include "ops/feedback_rounding.h"
#include "ops/hessian_factor.h"

namespace tmac {
namespace {

/// The columns of an order, which has each once.
const int64_t* require_order(const py::array& order, int64_t k) {
    const auto* columns = require_array<int64_t>(order, "order", 1);
    TMAC_CHECK(order.shape(0) == k, "[order] expected ", k, " columns, got ", order.shape(0));
    std::vector<bool> seen(static_cast<size_t>(k));
    for (int64_t i = 0; i < k; ++i) {
        TMAC_CHECK(columns[i] >= 0 && columns[i] < k && !seen[static_cast<size_t>(columns[i])],
                   "[order] expected each of 0 to ", k - 1, " once");
        seen[static_cast<size_t>(columns[i])] = true;
    }
    return columns;
}

py::tuple round_with_feedback_array(const py::array& weight, const py::array& order, const py::array& strips,
                                    const py::array& pivots, const py::object& spec_object, int num_threads) {
    const QuantSpec spec = spec_from_python(spec_object);
    const auto* data = require_array<float>(weight, "weight", 2);
    const int64_t n = weight.shape(0);
    const int64_t k = weight.shape(1);
    const int64_t count = (k + kFeedbackColumns - 1) / kFeedbackColumns;
    TMAC_CHECK(n >= 1 && k >= 1 && k <= kMaxColumns, "[round_with_feedback] a weight of shape [", n, ", ", k,
               "] cannot be quantized");
    const FeedbackView feedback{require_order(order, k), require_array<float>(strips, "strips", 3),
                                require_array<float>(pivots, "pivots", 1), k};
    const int64_t group = spec.group_size == -1 ? k : std::min<int64_t>(spec.group_size, k);
    for (int64_t i = 0; i < k; ++i) {
        TMAC_CHECK(feedback.order[i] / group == i / group, "[order] expected the groups of ", group,
                   " columns one after the other, found column ", feedback.order[i], " at place ", i);
    }
    TMAC_CHECK(pivots.shape(0) == k, "[pivots] expected ", k, " columns, got ", pivots.shape(0));
    TMAC_CHECK(strips.shape(0) == count && strips.shape(1) == k && strips.shape(2) == kFeedbackColumns,
               "[strips] expected shape [", count, ", ", k, ", ", kFeedbackColumns, "], got [", strips.shape(0), ", ",
               strips.shape(1), ", ", strips.shape(2), "]");
    QuantizedRows rows = [&] {
        const ReleasedGil release;
        return round_with_feedback(data, n, feedback, spec, num_threads);
    }();
    const std::vector<py::ssize_t> group_shape = {n, num_groups(spec, k)};
    py::object zeros = py::none();
    if (rows.zero_type != GroupType::none) {
        zeros = adopt(std::move(rows.zeros), dtype_of(rows.zero_type), group_shape);
    }
    return py::make_tuple(adopt(std::move(rows.codes), py::dtype("u1"), {n, k}),
                          adopt(std::move(rows.scales), dtype_of(rows.scale_type), group_shape), zeros);
}

py::object factor_hessian_array(const py::array& hessian, const py::array& order, const py::array& extra, double least,
                                int num_threads) {
    const auto* data = require_array<float>(hessian, "hessian", 2);
    const auto* added = require_array<double>(extra, "extra", 1);
    const int64_t k = hessian.shape(0);
    TMAC_CHECK(k >= 1 && k <= kMaxColumns && hessian.shape(1) == k, "[hessian] expected a square matrix, got [",
               hessian.shape(0), ", ", hessian.shape(1), "]");
    TMAC_CHECK(extra.shape(0) == k, "[factor_hessian] expected ", k, " columns in extra, got ", extra.shape(0));
    const int64_t* columns = require_order(order, k);
    py::array_t<float> strips({(k + kFeedbackColumns - 1) / kFeedbackColumns, k, int64_t{kFeedbackColumns}});
    py::array_t<float> pivots(k);
    float* strips_data = strips.mutable_data();
    float* pivots_data = pivots.mutable_data();
    const bool done = [&] {
        const ReleasedGil release;
        return factor_hessian(data, columns, added, k, least, strips_data, pivots_data, num_threads);
    }();
    return done ? py::object(py::make_tuple(strips, pivots)) : py::object(py::none());
}

}  // namespace

void bind_rounding(py::module_& module) {
    module.def("round_with_feedback", &round_with_feedback_array, py::arg("weight"), py::arg("order"),
               py::arg("strips"), py::arg("pivots"), py::arg("spec"), py::arg("num_threads") = 0);
    module.def("factor_hessian", &factor_hessian_array, py::arg("hessian"), py::arg("order"), py::arg("extra"),
               py::arg("least"), py::arg("num_threads") = 0);
}

}  // namespace tmac
