#include <memory>
#include <string_view>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/signal_check.h"
#include "runtime/draft.h"
#include "runtime/model.h"
#include "runtime/streamed_weights.h"

namespace tmac {
namespace {

/// The names of ActivationFn, in the order of the enumerators.
constexpr const char* kActivationFnNames[] = {"silu", "gelu", "gelu_tanh", "relu", "relu2"};

template <class T>
T get(const py::dict& values, const char* key) {
    TMAC_CHECK(values.contains(key), "[ModelConfig] '", key, "' is missing");
    try {
        return values[key].cast<T>();
    } catch (const py::cast_error&) {
        fail("[ModelConfig] '", key, "' cannot be ", py::repr(values[key]).cast<std::string>());
    }
}

template <class T>
T get(const py::dict& values, const char* key, T otherwise) {
    return values.contains(key) ? get<T>(values, key) : otherwise;
}

ActivationFn activation_from_name(const std::string& name) {
    int index = 0;
    std::string known;
    for (const char* each : kActivationFnNames) {
        if (name == each) {
            return static_cast<ActivationFn>(index);
        }
        known += known.empty() ? each : std::string(", ") + each;
        ++index;
    }
    fail("[ModelConfig] activation='", name, "' is not one of ", known);
}

Rope rope_from_python(const py::dict& values) {
    Rope rope;
    rope.inv_freq = get<std::vector<float>>(values, "inv_freq");
    rope.scale = get<float>(values, "scale", 1.0F);
    if (!values.contains("dynamic") || values["dynamic"].is_none()) {
        return rope;
    }
    const auto dynamic = get<py::dict>(values, "dynamic");
    const auto kind = get<std::string>(dynamic, "kind");
    rope.original = get<int64_t>(dynamic, "original");
    if (kind == "ntk") {
        rope.dynamic = Rope::Dynamic::ntk;
        rope.base = get<float>(dynamic, "base");
        rope.factor = get<float>(dynamic, "factor");
    } else if (kind == "longrope") {
        rope.dynamic = Rope::Dynamic::longrope;
        rope.long_inv_freq = get<std::vector<float>>(dynamic, "long_inv_freq");
    } else {
        fail("[ModelConfig] unknown kind of dynamic rope '", kind, "'; known are ntk, longrope");
    }
    return rope;
}

ModelConfig config_from_python(const py::dict& values) {
    ModelConfig config;
    config.family = get<std::string>(values, "family");
    config.vocab_size = get<int64_t>(values, "vocab_size");
    config.hidden_size = get<int64_t>(values, "hidden_size");
    config.intermediate_size = get<int64_t>(values, "intermediate_size", 0);
    config.num_layers = get<int32_t>(values, "num_layers");
    config.num_heads = get<int32_t>(values, "num_heads");
    config.num_kv_heads = get<int32_t>(values, "num_kv_heads");
    config.head_dim = get<int32_t>(values, "head_dim");
    config.context_length = get<int64_t>(values, "context_length");
    config.norm_eps = get<float>(values, "norm_eps");
    config.input_norm_eps = get<float>(values, "input_norm_eps", config.norm_eps);
    config.activation = activation_from_name(get<std::string>(values, "activation"));
    config.attention_scale = get<float>(values, "attention_scale");
    config.attention_softcap = get<float>(values, "attention_softcap", 0.0F);
    config.logit_softcap = get<float>(values, "logit_softcap", 0.0F);
    config.embedding_scale = get<float>(values, "embedding_scale", 1.0F);
    config.residual_scale = get<float>(values, "residual_scale", 1.0F);
    config.logit_scale = get<float>(values, "logit_scale", 1.0F);
    config.parallel_residual = get<bool>(values, "parallel_residual", false);
    const auto layers =
        static_cast<size_t>(config.num_layers > 0 && config.num_layers < (1 << 16) ? config.num_layers : 0);
    config.windows = get(values, "windows", std::vector<int64_t>(layers, 0));
    for (const py::dict& rope : get<std::vector<py::dict>>(values, "rope")) {
        config.ropes.push_back(rope_from_python(rope));
    }
    config.layer_rope = get(values, "layer_rope", std::vector<int32_t>(layers, config.ropes.empty() ? -1 : 0));
    config.sparse_layers = get(values, "sparse_layers", std::vector<bool>(layers, false));
    config.num_experts = get<int32_t>(values, "num_experts", 0);
    config.experts_per_token = get<int32_t>(values, "experts_per_token", 0);
    config.normalize_experts = get<bool>(values, "normalize_experts", false);
    config.moe_intermediate_size = get<int64_t>(values, "moe_intermediate_size", 0);
    config.shared_intermediate_size = get<int64_t>(values, "shared_intermediate_size", 0);
    validate(config);
    return config;
}

/// Keeps a Python object alive from C++, which may let it go on any thread.
std::shared_ptr<const void> keep_alive(const py::object& object) {
    return {object.ptr(), [held = object.inc_ref().ptr()](const void*) {
                const py::gil_scoped_acquire acquire;
                Py_DECREF(held);
            }};
}

std::vector<float> floats_of(const std::optional<py::array>& array, const char* name) {
    if (!array) {
        return {};
    }
    const auto* data = require_array<float>(*array, name, 1);
    return {data, data + array->shape(0)};
}

struct FloatKind {
    const char* name;
    const char* dtype;
    DType type;
};
constexpr FloatKind kFloatKinds[] = {{"F32", "f4", DType::f32}, {"F16", "f2", DType::f16}, {"BF16", "u2", DType::bf16}};

const FloatKind& float_kind(const std::string& dtype, const std::string& name) {
    for (const FloatKind& kind : kFloatKinds) {
        if (dtype == kind.name) {
            return kind;
        }
    }
    fail("[ModelBuilder] ", name, ": unknown dtype '", dtype, "'; known are F32, F16, BF16");
}

const FloatKind& float_kind(const py::array& array, const std::string& dtype, const std::string& name) {
    const FloatKind& kind = float_kind(dtype, name);
    TMAC_CHECK(py::dtype(kind.dtype).equal(array.dtype()), "[ModelBuilder] ", name, ": dtype ", dtype,
               " is not what an array of ", py::str(array.dtype()).cast<std::string>(), " holds");
    return kind;
}

/// Collects weights by name. Arrays are not copied (but vectors are): they must not change as long as the model lives.
class ModelBuilder {
public:
    explicit ModelBuilder(const py::dict& config) : config_(config_from_python(config)) {}

    void add_packed(const std::string& name, const py::array& buffer, const std::optional<py::array>& bias) {
        Matrix matrix;
        matrix.packed = view_weight(require_array<uint8_t>(buffer, "buffer", 1), buffer.shape(0));
        matrix.bytes = matrix.packed->parts.bytes;
        matrix.bias = floats_of(bias, "bias");
        matrix.owner = keep_alive(buffer);
        add(name, std::move(matrix));
    }

    void add_floats(const std::string& name, const py::array& array, const std::string& dtype,
                    const std::optional<py::array>& bias) {
        const FloatKind& kind = float_kind(array, dtype, name);
        require_plain(array, name);
        if (array.ndim() == 1) {
            TMAC_CHECK(kind.type == DType::f32, "[ModelBuilder] ", name, ": a vector must be F32");
            const auto* data = static_cast<const float*>(array.data());
            const bool added = weights_.vectors.try_emplace(name, data, data + array.shape(0)).second;
            TMAC_CHECK(added, "[ModelBuilder] weight '", name, "' is given twice");
            return;
        }
        TMAC_CHECK(array.ndim() == 2 && array.shape(0) >= 1 && array.shape(1) >= 1, "[ModelBuilder] ", name,
                   ": expected a matrix or a vector, got ", array.ndim(), " dimensions");
        Matrix matrix;
        matrix.floats = {array.data(), kind.type, array.shape(0), array.shape(1)};
        matrix.bytes = array.nbytes();
        matrix.bias = floats_of(bias, "bias");
        matrix.owner = keep_alive(array);
        add(name, std::move(matrix));
    }

    /// `ranges`: [(begin, end, checksum)] of everything outside of the layers, then of each layer, and how many of them
    /// are resident.
    void open_packed(const std::string& path, int64_t size, int64_t modified_ns,
                     const std::vector<std::pair<std::vector<std::tuple<int64_t, int64_t, uint64_t>>, size_t>>& ranges,
                     int32_t slots, int32_t readers, int64_t block_bytes) {
        TMAC_CHECK(streamed_ == nullptr, "[ModelBuilder] a model has one packed file, and it is open already");
        TMAC_CHECK(ranges.size() >= 2, "[ModelBuilder] ", ranges.size(), " ranges are no layers");
        std::vector<StreamedRange> layers;
        for (const auto& [pieces, resident] : ranges) {
            StreamedRange& range = layers.emplace_back(StreamedRange{{}, resident});
            for (const auto& [begin, end, checksum] : pieces) {
                range.pieces.push_back({begin, end, checksum});
            }
        }
        StreamedRange top = std::move(layers.front());
        layers.erase(layers.begin());
        const StreamOptions options{slots, readers, block_bytes};
        ReleasedGil release;
        streamed_ = std::make_shared<StreamedWeights>(path, DirectFile::State{size, modified_ns}, std::move(top),
                                                      std::move(layers), options, SignalCheck(release));
    }

    void add_placed(const std::string& name, int32_t layer, int64_t offset, const py::bytes& header,
                    const std::vector<int64_t>& regions, const std::optional<py::array>& bias) {
        const std::string_view content(header);
        Matrix matrix = streamed().packed_matrix({content.begin(), content.end()}, {layer, offset, regions});
        matrix.bias = floats_of(bias, "bias");
        add(name, std::move(matrix));
    }

    void add_placed_floats(const std::string& name, int32_t layer, int64_t offset, const std::string& dtype,
                           const std::pair<int64_t, int64_t>& shape, const std::optional<py::array>& bias) {
        const DType type = float_kind(dtype, name).type;
        Matrix matrix = streamed().float_matrix({nullptr, type, shape.first, shape.second}, {layer, offset, {}});
        matrix.bias = floats_of(bias, "bias");
        add(name, std::move(matrix));
    }

    std::shared_ptr<const Model> build() {
        NamedWeights weights;
        std::swap(weights, weights_);
        return build_model(config_, std::move(weights), std::exchange(streamed_, nullptr));
    }

private:
    StreamedWeights& streamed() const {
        TMAC_CHECK(streamed_ != nullptr, "[ModelBuilder] there is no packed file: open_packed comes first");
        return *streamed_;
    }

    void add(const std::string& name, Matrix&& matrix) {
        const bool added = weights_.matrices.try_emplace(name, std::move(matrix)).second;
        TMAC_CHECK(added, "[ModelBuilder] weight '", name, "' is given twice");
    }

    ModelConfig config_;
    NamedWeights weights_;
    std::shared_ptr<StreamedWeights> streamed_;
};

/// None where everything is in memory.
py::object stream_statistics(const Model& model) {
    const WeightStream* stream = model.streamed ? model.streamed->stream() : nullptr;
    if (stream == nullptr) {
        return py::none();
    }
    const StreamStatistics found = stream->statistics();
    py::dict values;
    values["bytes_read"] = found.bytes;
    values["passes"] = found.passes;
    values["seconds_reading"] = found.reading;
    values["seconds_waiting"] = found.waiting;
    values["bytes_per_pass"] = model.streamed->bytes_per_pass();
    values["resident_bytes"] = model.streamed->resident_bytes();
    values["ring_bytes"] = model.streamed->ring_bytes();
    values["direct"] = model.streamed->is_direct();
    return values;
}

void limit_stream(const Model& model, double bytes_per_second) {
    TMAC_CHECK(bytes_per_second >= 0.0, "[Model] a limit of ", bytes_per_second, " bytes per second cannot be");
    if (WeightStream* stream = model.streamed ? model.streamed->stream() : nullptr) {
        stream->set_limit(bytes_per_second);
    }
}

}  // namespace

void bind_model(py::module_& module) {
    py::register_exception<DamagedFile>(module, "DamagedFileError", PyExc_RuntimeError);
    py::class_<Model, std::shared_ptr<Model>>(module, "Model")
        .def_property_readonly("family", [](const Model& model) { return model.config.family; })
        .def_property_readonly("vocab_size", [](const Model& model) { return model.config.vocab_size; })
        .def_property_readonly("context_length", [](const Model& model) { return model.config.context_length; })
        .def_property_readonly("weight_bytes", &Model::weight_bytes)
        .def_property_readonly("bytes_per_token", &Model::bytes_per_token)
        .def("stream_statistics", &stream_statistics)
        .def("limit_stream", &limit_stream, py::arg("bytes_per_second"))
        .def(
            "make_draft",
            [](Model& model, int bits, int num_threads) {
                ReleasedGil release;
                model.draft.set(make_draft(model, bits, num_threads, SignalCheck(release)));
            },
            py::arg("bits"), py::arg("num_threads") = 0)
        .def_property_readonly("draft",
                               [](const Model& model) { return std::const_pointer_cast<Model>(model.draft.get()); });
    py::class_<ModelBuilder>(module, "ModelBuilder")
        .def(py::init<const py::dict&>(), py::arg("config"))
        .def("add_packed", &ModelBuilder::add_packed, py::arg("name"), py::arg("buffer"), py::arg("bias") = py::none())
        .def("add_floats", &ModelBuilder::add_floats, py::arg("name"), py::arg("array"), py::arg("dtype"),
             py::arg("bias") = py::none())
        .def("open_packed", &ModelBuilder::open_packed, py::arg("path"), py::arg("size"), py::arg("modified_ns"),
             py::arg("ranges"), py::arg("slots") = 2, py::arg("readers") = 4, py::arg("block_bytes") = 1 << 20)
        .def("add_placed", &ModelBuilder::add_placed, py::arg("name"), py::arg("layer"), py::arg("offset"),
             py::arg("header"), py::arg("regions"), py::arg("bias") = py::none())
        .def("add_placed_floats", &ModelBuilder::add_placed_floats, py::arg("name"), py::arg("layer"),
             py::arg("offset"), py::arg("dtype"), py::arg("shape"), py::arg("bias") = py::none())
        .def("build", [](ModelBuilder& builder) { return std::const_pointer_cast<Model>(builder.build()); });
}

}  // namespace tmac
