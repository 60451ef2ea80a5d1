#include "bindings/bindings.h"
#include "core/cpu_features.h"
#include "core/release_memory.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"

namespace tmac {
namespace {

/// The enumerator that the attribute names.
template <class Enum, size_t Count>
Enum parse(const py::handle& object, const char* field, const char* const (&names)[Count]) {
    const py::object value = object.attr(field);
    int index = 0;
    for (const char* name : names) {
        if (py::isinstance<py::str>(value) && value.cast<std::string>() == name) {
            return static_cast<Enum>(index);
        }
        ++index;
    }
    std::string known;
    for (const char* name : names) {
        known += known.empty() ? name : std::string(", ") + name;
    }
    fail("[QuantSpec] ", field, "=", py::repr(value).cast<std::string>(), " is not one of ", known);
}

/// A Python int (not a bool, not a float) in [low, high].
int64_t parse_int(const py::handle& object, const char* field, int64_t low, int64_t high) {
    const py::object value = object.attr(field);
    TMAC_CHECK(py::isinstance<py::int_>(value) && !py::isinstance<py::bool_>(value), "[QuantSpec] ", field,
               " must be an integer, got ", py::repr(value).cast<std::string>());
    int overflow = 0;
    const long long number = PyLong_AsLongLongAndOverflow(value.ptr(), &overflow);
    TMAC_CHECK(overflow == 0 && number >= low && number <= high, "[QuantSpec] ", field, " must be in ", low, "..", high,
               ", got ", py::repr(value).cast<std::string>());
    return number;
}

/// A Python bool.
bool parse_bool(const py::handle& object, const char* field) {
    const py::object value = object.attr(field);
    TMAC_CHECK(py::isinstance<py::bool_>(value), "[QuantSpec] ", field, " must be True or False, got ",
               py::repr(value).cast<std::string>());
    return value.cast<bool>();
}

float parse_float(const py::handle& object, const char* field) {
    const py::object value = object.attr(field);
    TMAC_CHECK(py::isinstance<py::float_>(value) || py::isinstance<py::int_>(value), "[QuantSpec] ", field,
               " must be a number, got ", py::repr(value).cast<std::string>());
    return value.cast<float>();
}

py::list activations_of(const Kernel& kernel) {
    py::list names;
    for (const Activation activation : {Activation::group, Activation::token, Activation::float_exact}) {
        if (((kernel.activations >> static_cast<int>(activation)) & 1) != 0) {
            names.append(name_of(activation));
        }
    }
    return names;
}

py::list features_of(const Kernel& kernel) {
    py::list names;
    for (const FeatureName& feature : feature_names()) {
        if ((kernel.features & feature.bit) != 0) {
            names.append(feature.name);
        }
    }
    return names;
}

py::list layouts_of(const Kernel& kernel) {
    py::list names;
    for (int layout = 0; layout < kNumLayouts; ++layout) {
        if (reads(kernel, static_cast<Layout>(layout))) {
            names.append(name_of(static_cast<Layout>(layout)));
        }
    }
    return names;
}

py::list kernels() {
    const Selection& chosen = selection();
    py::list rows;
    for (const RegistryRow& row : registry()) {
        py::dict fields;
        fields["name"] = row.kernel->name;
        fields["isa"] = name_of(row.isa);
        fields["method"] = name_of(row.kernel->method);
        fields["bits"] = int{row.kernel->bits};
        fields["codebook"] = name_of(row.kernel->codebook);
        fields["activations"] = activations_of(*row.kernel);
        fields["layout"] = name_of(row.kernel->layout);
        fields["layouts"] = layouts_of(*row.kernel);
        fields["features"] = features_of(*row.kernel);
        fields["runnable"] = chosen.runnable(*row.kernel);
        fields["selectable"] = chosen.selectable(row);
        rows.append(fields);
    }
    return rows;
}

py::dict features() {
    const uint32_t visible = cpu_features();
    py::dict result;
    for (const FeatureName& feature : feature_names()) {
        result[feature.name] = (visible & feature.bit) != 0;
    }
    return result;
}

}  // namespace

void require_plain(const py::array& array, const std::string& name) {
    TMAC_CHECK((array.flags() & py::array::c_style) != 0, "[", name, "] must be C-contiguous");
    TMAC_CHECK((array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0, "[", name, "] must be aligned");
}

QuantSpec spec_from_python(const py::handle& object) {
    QuantSpec spec;
    spec.bits = static_cast<uint8_t>(parse_int(object, "bits", 1, 8));
    spec.group_size = static_cast<int32_t>(parse_int(object, "group_size", -1, INT32_MAX));
    spec.codebook = parse<Codebook>(object, "codebook", kCodebookNames);
    spec.zero_point = parse<ZeroPoint>(object, "zero_point", kZeroPointNames);
    spec.activation = parse<Activation>(object, "activation", kActivationNames);
    spec.scale_format = parse<ScaleFormat>(object, "scale_format", kScaleFormatNames);
    spec.fixed_zero = parse_float(object, "fixed_zero");
    spec.fast_aggregation = parse_bool(object, "fast_aggregation") ? 1 : 0;
    validate(spec);
    return spec;
}

py::dict spec_to_python(const QuantSpec& spec) {
    py::dict fields;
    fields["bits"] = int{spec.bits};
    fields["group_size"] = spec.group_size;
    fields["codebook"] = name_of(spec.codebook);
    fields["zero_point"] = name_of(spec.zero_point);
    fields["fixed_zero"] = spec.fixed_zero;
    fields["activation"] = name_of(spec.activation);
    fields["scale_format"] = name_of(spec.scale_format);
    fields["fast_aggregation"] = spec.fast_aggregation != 0;
    return fields;
}

py::array adopt(std::vector<uint8_t>&& values, const py::dtype& dtype, std::vector<py::ssize_t> shape) {
    auto owner = std::make_unique<std::vector<uint8_t>>(std::move(values));
    const uint8_t* data = owner->data();
    const py::capsule free_owner(owner.get(), [](void* p) { delete static_cast<std::vector<uint8_t>*>(p); });
    owner.release();
    return py::array(dtype, std::move(shape), data, free_owner);
}

py::dtype dtype_of(GroupType type) {
    switch (type) {
        case GroupType::u8:
            return py::dtype("u1");
        case GroupType::i8:
            return py::dtype("i1");
        case GroupType::f16:
            return py::dtype("f2");
        default:
            return py::dtype("f4");
    }
}

void bind_core(py::module_& module) {
    watch_forks();
    py::register_exception<UnsupportedSpec>(module, "UnsupportedSpecError", PyExc_RuntimeError);
    module.def("check_spec", [](const py::object& spec) { spec_from_python(spec); }, py::arg("spec"));
    module.def(
        "select_kernel",
        [](const py::object& spec) { return select_kernels(spec_from_python(spec), selection()).decode->name; },
        py::arg("spec"));
    module.def(
        "candidate_kernels",
        [](const py::object& spec) {
            std::vector<std::pair<std::string, std::string>> names;
            for (const KernelPair& pair : candidates(spec_from_python(spec), selection())) {
                names.emplace_back(pair.decode->name, pair.prompt->name);
            }
            return names;
        },
        py::arg("spec"));
    module.def("kernels", &kernels);
    module.def("cpu_features", &features);
    module.def("cpu_model", &cpu_model);
    module.def("release_memory", [] {
        const ReleasedGil release;
        release_memory();
    });
    module.def("set_num_threads", &set_num_threads, py::arg("num_threads"));
    module.def("get_num_threads", &get_num_threads);
    module.def("thread_backend", [] { return thread_backend() == ThreadBackend::own ? "own" : "openmp"; });
}

}  // namespace tmac
