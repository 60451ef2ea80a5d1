#include "bindings/bindings.h"
#include "bindings/signal_check.h"
#include "kernels/registry.h"
#include "ops/barrier_time.h"
#include "ops/dot_peak.h"
#include "ops/embedding.h"
#include "ops/linear.h"
#include "ops/prefix.h"
#include "ops/prepare_time.h"
#include "ops/read_pass.h"
#include "ops/tuner.h"

namespace tmac {
namespace {

Phase phase_from_name(const std::string& name) {
    static constexpr const char* kNames[kNumPhases] = {"by_tokens", "decode", "prompt"};
    for (int index = 0; index < kNumPhases; ++index) {
        if (name == kNames[index]) {
            return static_cast<Phase>(index);
        }
    }
    fail("[linear] unknown phase '", name, "'; known are by_tokens, decode, prompt");
}

py::array_t<float> linear_array(const py::array& x, const py::array& buffer, const std::optional<py::array>& bias,
                                int num_threads, const std::string& phase_name) {
    const Phase phase = phase_from_name(phase_name);
    const auto* input = require_array<float>(x, "x", 2);
    const WeightView weight = view_weight(require_array<uint8_t>(buffer, "buffer", 1), buffer.shape(0));
    const float* bias_data = nullptr;
    if (bias) {
        bias_data = require_array<float>(*bias, "bias", 1);
        TMAC_CHECK(bias->shape(0) == weight.header.n, "[linear] bias has ", bias->shape(0), " values, the weight ",
                   weight.header.n, " rows");
    }
    py::array_t<float> y({static_cast<int64_t>(x.shape(0)), weight.header.n});
    const Tensor in{const_cast<float*>(input), DType::f32, x.shape(0), x.shape(1), x.shape(1)};
    const Tensor out{y.mutable_data(), DType::f32, x.shape(0), weight.header.n, weight.header.n};
    const ReleasedGil release;
    linear(in, {{weight, bias_data, out}}, phase, num_threads);
    return y;
}

void* address(uintptr_t value) { return reinterpret_cast<void*>(value); }

DType dtype_of_index(int index) {
    TMAC_CHECK(index >= 0 && index < kNumDTypes, "[linear] unknown dtype index ", index);
    return static_cast<DType>(index);
}

void linear_pointers(uintptr_t x, int x_type, int64_t x_stride, int64_t tokens, uintptr_t buffer, int64_t buffer_bytes,
                     uintptr_t bias, uintptr_t y, int y_type, int64_t y_stride, int64_t in_features,
                     int64_t out_features, int num_threads, int planes, float code_scale, float code_base) {
    const ReleasedGil release;
    WeightView weight = view_weight(static_cast<const uint8_t*>(address(buffer)), buffer_bytes);
    if (planes != 0) {
        weight = make_prefix(weight, planes, {code_scale, code_base}, selection());
    }
    const Tensor in{address(x), dtype_of_index(x_type), tokens, in_features, x_stride};
    const Tensor out{address(y), dtype_of_index(y_type), tokens, out_features, y_stride};
    linear(in, {{weight, static_cast<const float*>(address(bias)), out}}, Phase::by_tokens, num_threads);
}

WeightView view_of(const py::array& buffer) {
    return view_weight(require_array<uint8_t>(buffer, "buffer", 1), buffer.shape(0));
}

std::vector<int32_t> prefixes(const py::array& buffer) { return prefixes_of(view_of(buffer), selection()); }

std::pair<float, float> prefix_fit(const py::array& buffer, int planes, int num_threads) {
    const WeightView weight = view_of(buffer);
    TMAC_CHECK(planes >= 1 && planes < weight.header.spec.bits, "[prefix] expected 1 to ",
               int{weight.header.spec.bits} - 1, " planes, got ", planes);
    const ReleasedGil release;
    const PrefixFit fit =
        fit_together({prefix_moments(weight, planes, num_threads)}, middle_fit(weight, planes)).front();
    return {fit.scale, fit.base};
}

py::list linear_shared(const py::array& x, const std::vector<py::array>& buffers, int num_threads,
                       const std::string& phase_name) {
    const Phase phase = phase_from_name(phase_name);
    const auto* input = require_array<float>(x, "x", 2);
    const Tensor in{const_cast<float*>(input), DType::f32, x.shape(0), x.shape(1), x.shape(1)};
    std::vector<WeightView> weights;
    for (const py::array& buffer : buffers) {
        weights.push_back(view_weight(require_array<uint8_t>(buffer, "buffer", 1), buffer.shape(0)));
    }
    std::vector<Projection> projections;
    py::list results;
    for (const WeightView& weight : weights) {
        py::array_t<float> y({static_cast<int64_t>(x.shape(0)), weight.header.n});
        projections.push_back(
            {weight, nullptr, {y.mutable_data(), DType::f32, x.shape(0), weight.header.n, weight.header.n}});
        results.append(std::move(y));
    }
    const ReleasedGil release;
    linear(in, projections, phase, num_threads);
    return results;
}

py::array_t<float> dequantize_rows(const py::array& buffer, const py::array& ids, int num_threads) {
    const WeightView weight = view_weight(require_array<uint8_t>(buffer, "buffer", 1), buffer.shape(0));
    const auto* rows = require_array<int64_t>(ids, "ids", 1);
    py::array_t<float> y({static_cast<int64_t>(ids.shape(0)), weight.header.k});
    const Tensor out{y.mutable_data(), DType::f32, ids.shape(0), weight.header.k, weight.header.k};
    const ReleasedGil release;
    embedding(weight, rows, out, num_threads);
    return y;
}

void embedding_pointers(uintptr_t ids, int64_t count, uintptr_t buffer, int64_t buffer_bytes, uintptr_t y, int y_type,
                        int64_t y_stride, int64_t in_features, int num_threads) {
    const ReleasedGil release;
    const WeightView weight = view_weight(static_cast<const uint8_t*>(address(buffer)), buffer_bytes);
    const Tensor out{address(y), dtype_of_index(y_type), count, in_features, y_stride};
    embedding(weight, static_cast<const int64_t*>(address(ids)), out, num_threads);
}

uint64_t read_pass_array(const py::array& buffer, int num_threads, int streams) {
    const auto* data = require_array<uint8_t>(buffer, "buffer", 1);
    const int64_t bytes = buffer.shape(0);
    const ReleasedGil release;
    return read_pass(data, bytes, streams, num_threads);
}

py::list time_kernels_list(const py::object& spec_object, int64_t out_features, int64_t in_features,
                           std::vector<int64_t> tokens, int num_threads, int runs) {
    const QuantSpec spec = spec_from_python(spec_object);
    select_kernels(spec, selection());  // throws where nothing serves it
    const TimingPlan plan{std::move(tokens), runs, num_threads};
    const std::vector<KernelTimes> times = [&] {
        ReleasedGil release;
        return time_kernels(spec, out_features, in_features, candidates(spec, selection()), plan, SignalCheck(release));
    }();
    py::list rows;
    for (const KernelTimes& each : times) {
        rows.append(py::make_tuple(each.kernels.decode->name, each.kernels.prompt->name, each.seconds));
    }
    return rows;
}

double prepare_seconds_array(const py::array& x, const py::array& buffer, int repeats, int num_threads) {
    const auto* input = require_array<float>(x, "x", 2);
    const WeightView weight = view_weight(require_array<uint8_t>(buffer, "buffer", 1), buffer.shape(0));
    const Tensor in{const_cast<float*>(input), DType::f32, x.shape(0), x.shape(1), x.shape(1)};
    const ReleasedGil release;
    return prepare_seconds(weight, in, repeats, num_threads);
}

}  // namespace

void bind_ops(py::module_& module) {
    module.def("linear", &linear_array, py::arg("x"), py::arg("buffer"), py::arg("bias") = py::none(),
               py::arg("num_threads") = 0, py::arg("phase") = "by_tokens");
    module.def("linear_shared", &linear_shared, py::arg("x"), py::arg("buffers"), py::arg("num_threads") = 0,
               py::arg("phase") = "by_tokens");
    module.def("linear_pointers", &linear_pointers, py::arg("x"), py::arg("x_type"), py::arg("x_stride"),
               py::arg("tokens"), py::arg("buffer"), py::arg("buffer_bytes"), py::arg("bias"), py::arg("y"),
               py::arg("y_type"), py::arg("y_stride"), py::arg("in_features"), py::arg("out_features"),
               py::arg("num_threads"), py::arg("planes") = 0, py::arg("code_scale") = 1.0F,
               py::arg("code_base") = 0.0F);
    module.def("prefixes", &prefixes, py::arg("buffer"));
    module.def("prefix_fit", &prefix_fit, py::arg("buffer"), py::arg("planes"), py::arg("num_threads") = 0);
    module.def("dequantize_rows", &dequantize_rows, py::arg("buffer"), py::arg("ids"), py::arg("num_threads") = 0);
    module.def("embedding_pointers", &embedding_pointers, py::arg("ids"), py::arg("count"), py::arg("buffer"),
               py::arg("buffer_bytes"), py::arg("y"), py::arg("y_type"), py::arg("y_stride"), py::arg("in_features"),
               py::arg("num_threads"));
    module.def("time_kernels", &time_kernels_list, py::arg("spec"), py::arg("out_features"), py::arg("in_features"),
               py::arg("tokens") = std::vector<int64_t>{1, 8, 128}, py::arg("num_threads") = 0, py::arg("runs") = 7);
    module.def("dot_peak", &dot_peak, py::arg("isa"), py::arg("num_threads") = 0, py::call_guard<ReleasedGil>());
    module.def("prepare_seconds", &prepare_seconds_array, py::arg("x"), py::arg("buffer"), py::arg("repeats"),
               py::arg("num_threads") = 0);
    module.def("barrier_seconds", &barrier_seconds, py::arg("repeats"), py::arg("num_threads") = 0,
               py::call_guard<ReleasedGil>());
    module.def("read_pass", &read_pass_array, py::arg("buffer"), py::arg("num_threads") = 0, py::arg("streams") = 1);
}

}  // namespace tmac
