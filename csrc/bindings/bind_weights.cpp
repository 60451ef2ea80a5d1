#include <memory>

#include "bindings/bindings.h"
#include "core/thread_pool.h"
#include "kernels/registry.h"
#include "layout/bitplane.h"
#include "layout/trit.h"
#include "ops/dequantize.h"
#include "ops/pack.h"
#include "ops/round_to_nearest.h"

namespace tmac {
namespace {

struct Dimensions {
    int64_t n;
    int64_t groups;
};

GroupType group_type_of(const py::dtype& dtype, const char* name) {
    for (const GroupType type : {GroupType::u8, GroupType::f16, GroupType::f32, GroupType::i8}) {
        if (dtype_of(type).equal(dtype)) {
            return type;
        }
    }
    fail("[", name, "] expected float16, float32, (integer zeros) uint8 or (two-level) int8, got ",
         py::str(dtype).cast<std::string>());
}

const void* require_groups(const py::array& array, const char* name, const Dimensions& want) {
    TMAC_CHECK(array.ndim() == 2 && array.shape(0) == want.n && array.shape(1) == want.groups, "[", name,
               "] expected shape [", want.n, ", ", want.groups, "]");
    require_plain(array, name);
    return array.data();
}

/// Super values: f16, as their bits.
const uint16_t* require_super(const py::array& array, const char* name, const Dimensions& want) {
    TMAC_CHECK(dtype_of(GroupType::f16).equal(array.dtype()), "[", name, "] expected float16, got ",
               py::str(array.dtype()).cast<std::string>());
    return static_cast<const uint16_t*>(require_groups(array, name, want));
}

const int32_t* require_perm(const py::array& perm, int64_t in_features) {
    const auto* data = require_array<int32_t>(perm, "perm", 1);
    TMAC_CHECK(perm.shape(0) == in_features, "[perm] expected ", in_features, " columns, got ", perm.shape(0));
    check_permutation(data, in_features);
    return data;
}

PlanesView planes_of(const py::array& planes, const QuantSpec& spec, int64_t in_features) {
    const auto* data = require_array<uint8_t>(planes, "planes", 3);
    const PlanesView view{data, static_cast<int32_t>(planes.shape(0)), planes.shape(1), in_features};
    TMAC_CHECK(planes.shape(0) == spec.bits && planes.shape(2) == view.row_bytes(), "[planes] expected shape [",
               int{spec.bits}, ", n, ", view.row_bytes(), "], got [", planes.shape(0), ", ", planes.shape(1), ", ",
               planes.shape(2), "]");
    return view;
}

PackedWeight pack_arrays(const py::object& spec_object, const py::array& planes, int64_t in_features,
                         const py::array& scales, const std::optional<py::array>& zeros,
                         const std::optional<py::array>& perm, const std::string& kernel_names, int num_threads,
                         const std::optional<py::array>& super_scales, const std::optional<py::array>& super_offsets,
                         bool plane_layout) {
    CanonicalWeight weight{};
    weight.spec = spec_from_python(spec_object);
    TMAC_CHECK(in_features >= 1 && in_features <= kMaxColumns, "[pack] in_features must be 1 to ", kMaxColumns,
               ", got ", in_features);
    weight.planes = planes_of(planes, weight.spec, in_features);
    TMAC_CHECK(planes.shape(1) >= 1 && planes.shape(1) <= kMaxRows, "[pack] out_features must be 1 to ", kMaxRows,
               ", got ", planes.shape(1));
    const Dimensions groups{planes.shape(1), num_groups(weight.spec, in_features)};
    weight.scale_type = group_type_of(scales.dtype(), "scales");
    weight.scales = require_groups(scales, "scales", groups);
    if (zeros) {
        weight.zero_type = group_type_of(zeros->dtype(), "zeros");
        weight.zeros = require_groups(*zeros, "zeros", groups);
    }
    const Dimensions super_groups{planes.shape(1), num_super_groups(in_features)};
    if (super_scales) {
        weight.super_scales = require_super(*super_scales, "super_scales", super_groups);
    }
    if (super_offsets) {
        weight.super_offsets = require_super(*super_offsets, "super_offsets", super_groups);
    }
    if (perm) {
        weight.perm = require_perm(*perm, in_features);
    }
    const KernelPair kernels =
        kernel_names.empty() ? select_kernels(weight.spec, selection()) : parse_kernels(kernel_names);
    const ReleasedGil release;
    return pack(weight, kernels, num_threads, plane_layout);
}

/// A weight that takes its rows as arrays.
class ArrayPacker {
public:
    ArrayPacker(const py::object& spec_object, int64_t out_features, int64_t in_features,
                const std::optional<py::dtype>& zeros, const std::optional<py::array>& perm,
                const std::string& kernel_names, bool plane_layout)
        : spec_(spec_from_python(spec_object)), in_features_(in_features) {
        TMAC_CHECK(in_features >= 1 && in_features <= kMaxColumns && out_features >= 1 && out_features <= kMaxRows,
                   "[pack] expected 1 to ", kMaxRows, " rows and 1 to ", kMaxColumns, " columns, got ", out_features,
                   " and ", in_features);
        const KernelPair kernels =
            kernel_names.empty() ? select_kernels(spec_, selection()) : parse_kernels(kernel_names);
        packer_ = std::make_unique<Packer>(
            WeightShape{spec_, out_features, in_features, zeros ? group_type_of(*zeros, "zeros") : GroupType::none,
                        perm ? require_perm(*perm, in_features) : nullptr},
            kernels, plane_layout);
    }

    void add(int64_t first, const py::array& weight, const py::array& scales, const std::optional<py::array>& zeros,
             const std::optional<py::array>& super_scales, const std::optional<py::array>& super_offsets,
             int num_threads) {
        WeightRows rows{};
        if (weight.ndim() == 2) {
            rows.codes = {require_array<uint8_t>(weight, "codes", 2), spec_.bits, weight.shape(0), weight.shape(1)};
        } else {
            rows.planes = planes_of(weight, spec_, in_features_);
        }
        const Dimensions groups{rows.n(), num_groups(spec_, in_features_)};
        rows.scale_type = group_type_of(scales.dtype(), "scales");
        rows.scales = require_groups(scales, "scales", groups);
        if (zeros) {
            rows.zero_type = group_type_of(zeros->dtype(), "zeros");
            rows.zeros = require_groups(*zeros, "zeros", groups);
        }
        const Dimensions super_groups{rows.n(), num_super_groups(in_features_)};
        if (super_scales) {
            rows.super_scales = require_super(*super_scales, "super_scales", super_groups);
        }
        if (super_offsets) {
            rows.super_offsets = require_super(*super_offsets, "super_offsets", super_groups);
        }
        const ReleasedGil release;
        packer_->add(rows, first, num_threads);
    }

    void add_blocks(int64_t first, const std::string& type_name, const py::array& blocks, int num_threads) {
        const GgmlBlock* type = find_ggml_block(type_name);
        TMAC_CHECK(type != nullptr, "[pack] ", type_name, " has no exact form as codes");
        const auto* data = require_array<uint8_t>(blocks, "blocks", 2);
        TMAC_CHECK(in_features_ % type->codes == 0 && blocks.shape(1) == in_features_ / type->codes * type->bytes,
                   "[pack] rows of ", blocks.shape(1), " bytes are not ", in_features_, " columns of ", type_name);
        const ReleasedGil release;
        packer_->add_blocks(*type, data, blocks.shape(0), first, num_threads);
    }

    PackedWeight finish() { return packer_->finish(); }

private:
    QuantSpec spec_;
    int64_t in_features_;
    std::unique_ptr<Packer> packer_;
};

WeightView view_of(const py::array& buffer) {
    const auto* data = require_array<uint8_t>(buffer, "buffer", 1);
    return view_weight(data, buffer.shape(0));
}

py::dict describe(const WeightView& view) {
    py::dict fields;
    fields["spec"] = spec_to_python(view.header.spec);
    fields["in_features"] = view.header.k;
    fields["out_features"] = view.header.n;
    fields["kernel"] = view.kernels.decode->name;
    fields["prompt_kernel"] = view.kernels.prompt->name;
    fields["layout"] = name_of(view.header.layout);
    fields["nbytes"] = view.parts.bytes;
    return fields;
}

py::dict unpack_arrays(const py::array& buffer, int num_threads) {
    const WeightView view = view_of(buffer);
    const auto n = static_cast<size_t>(view.header.n);
    const auto values = n * static_cast<size_t>(view.parts.num_groups);
    const auto super_values = n * static_cast<size_t>(view.parts.num_super_groups) * sizeof(uint16_t);
    const PlanesView shape{nullptr, view.header.spec.bits, view.header.n, view.header.k};
    std::vector<uint8_t> planes(view.header.spec.bits * n * static_cast<size_t>(shape.row_bytes()));
    std::vector<uint8_t> scales(values * static_cast<size_t>(element_bytes(view.header.scale_type)));
    std::vector<uint8_t> zeros(values * static_cast<size_t>(element_bytes(view.header.zero_type)));
    std::vector<uint8_t> super_scales(super_values);
    std::vector<uint8_t> super_offsets(view.header.zero_type == GroupType::none ? 0 : super_values);
    std::vector<uint8_t> perm(view.perm() == nullptr ? 0 : static_cast<size_t>(view.header.k) * sizeof(int32_t));
    {
        const ReleasedGil release;
        unpack(view, planes.data(),
               {scales.data(), zeros.data(), reinterpret_cast<uint16_t*>(super_scales.data()),
                reinterpret_cast<uint16_t*>(super_offsets.data())},
               reinterpret_cast<int32_t*>(perm.data()), num_threads);
    }
    const std::vector<py::ssize_t> group_shape = {view.header.n, view.parts.num_groups};
    py::dict fields = describe(view);
    fields["planes"] = adopt(std::move(planes), py::dtype("u1"), {shape.bits, view.header.n, shape.row_bytes()});
    fields["scales"] = adopt(std::move(scales), dtype_of(view.header.scale_type), group_shape);
    const auto set_if_any = [&](const char* name, std::vector<uint8_t>& array, const py::dtype& dtype,
                                const std::vector<py::ssize_t>& array_shape) {
        fields[name] = array.empty() ? py::object(py::none()) : adopt(std::move(array), dtype, array_shape);
    };
    const std::vector<py::ssize_t> super_shape = {view.header.n, view.parts.num_super_groups};
    set_if_any("zeros", zeros, dtype_of(view.header.zero_type), group_shape);
    set_if_any("perm", perm, py::dtype("i4"), {view.header.k});
    set_if_any("super_scales", super_scales, dtype_of(GroupType::f16), super_shape);
    set_if_any("super_offsets", super_offsets, dtype_of(GroupType::f16), super_shape);
    return fields;
}

py::array_t<float> dequantize_array(const py::array& buffer, int num_threads) {
    const WeightView view = view_of(buffer);
    py::array_t<float> out({view.header.n, view.header.k});
    float* data = out.mutable_data();
    const ReleasedGil release;
    dequantize(view, data, num_threads);
    return out;
}

/// `row(i)` for every row, by several threads, without the GIL.
template <class Row>
void for_each_row(int64_t n, int num_threads, const Row& row) {
    constexpr int64_t kRowsPerThread = 16;
    const ReleasedGil release;
    parallel_for(n, kRowsPerThread, num_threads, [&](Range range) {
        for (int64_t i = range.begin; i < range.end; ++i) {
            row(i);
        }
    });
}

py::array_t<uint8_t> codes_to_planes_array(const py::array& codes, int bits, int num_threads) {
    const auto* data = require_array<uint8_t>(codes, "codes", 2);
    TMAC_CHECK(bits >= 1 && bits <= 8, "[codes_to_planes] bits must be 1 to 8, got ", bits);
    const int64_t n = codes.shape(0);
    const int64_t k = codes.shape(1);
    const int64_t row_bytes = (k + 7) / 8;
    py::array_t<uint8_t> planes({static_cast<int64_t>(bits), n, row_bytes});
    uint8_t* out = planes.mutable_data();
    for_each_row(n, num_threads,
                 [&](int64_t row) { codes_to_planes(data + row * k, k, bits, out + row * row_bytes, n * row_bytes); });
    return planes;
}

py::array_t<uint8_t> planes_to_codes_array(const py::array& planes, int64_t in_features, int num_threads) {
    const auto* data = require_array<uint8_t>(planes, "planes", 3);
    const auto bits = static_cast<int32_t>(planes.shape(0));
    const int64_t n = planes.shape(1);
    const int64_t row_bytes = planes.shape(2);
    TMAC_CHECK(bits >= 1 && bits <= 8 && in_features >= 1 && row_bytes == (in_features + 7) / 8, "[planes] shape [",
               bits, ", ", n, ", ", row_bytes, "] does not fit in_features=", in_features);
    py::array_t<uint8_t> codes({n, in_features});
    uint8_t* out = codes.mutable_data();
    for_each_row(n, num_threads, [&](int64_t row) {
        planes_to_codes(data + row * row_bytes, n * row_bytes, in_features, bits, out + row * in_features);
    });
    return codes;
}

py::array_t<uint8_t> codes_to_trits_array(const py::array& codes, int num_threads) {
    const auto* data = require_array<uint8_t>(codes, "codes", 2);
    const int64_t n = codes.shape(0);
    const int64_t k = codes.shape(1);
    const int64_t row_bytes = (k + 4) / 5;
    py::array_t<uint8_t> trits({n, row_bytes});
    uint8_t* out = trits.mutable_data();
    for_each_row(n, num_threads, [&](int64_t row) { codes_to_trits(data + row * k, k, out + row * row_bytes); });
    return trits;
}

py::array_t<uint8_t> trits_to_codes_array(const py::array& trits, int64_t in_features, int num_threads) {
    const auto* data = require_array<uint8_t>(trits, "trits", 2);
    const int64_t n = trits.shape(0);
    const int64_t row_bytes = trits.shape(1);
    TMAC_CHECK(in_features >= 1 && row_bytes == (in_features + 4) / 5, "[trits] shape [", n, ", ", row_bytes,
               "] does not fit in_features=", in_features);
    py::array_t<uint8_t> codes({n, in_features});
    uint8_t* out = codes.mutable_data();
    for_each_row(n, num_threads, [&](int64_t row) {
        TMAC_CHECK(trits_to_codes(data + row * row_bytes, in_features, out + row * in_features), "[trits] row ", row,
                   " holds a byte above 242");
    });
    return codes;
}

/// Trits to the two planes of their codes.
py::array_t<uint8_t> trits_to_planes_array(const py::array& trits, int64_t in_features, int num_threads) {
    const auto* data = require_array<uint8_t>(trits, "trits", 2);
    const int64_t n = trits.shape(0);
    const int64_t row_bytes = trits.shape(1);
    TMAC_CHECK(in_features >= 1 && row_bytes == (in_features + 4) / 5, "[trits] ", row_bytes,
               " bytes do not hold rows of ", in_features, " columns");
    const int64_t plane_bytes = (in_features + 7) / 8;
    py::array_t<uint8_t> planes({int64_t{2}, n, plane_bytes});
    uint8_t* out = planes.mutable_data();
    for_each_row(n, num_threads, [&](int64_t row) {
        uint8_t* high = out + row * plane_bytes;
        TMAC_CHECK(trits_to_planes(data + row * row_bytes, in_features, high, high + n * plane_bytes), "[trits] row ",
                   row, " holds a byte above 242");
    });
    return planes;
}

/// f16 [n, super groups], or None where there are none.
py::object super_array(const std::vector<uint16_t>& values, int64_t n) {
    if (values.empty()) {
        return py::none();
    }
    return py::array(dtype_of(GroupType::f16), {n, static_cast<int64_t>(values.size()) / n}, values.data());
}

py::tuple quantize_array(const py::array& weight, const py::object& spec_object, int num_threads,
                         const std::optional<py::array>& importance) {
    const QuantSpec spec = spec_from_python(spec_object);
    const auto* data = require_array<float>(weight, "weight", 2);
    const int64_t n = weight.shape(0);
    const int64_t k = weight.shape(1);
    TMAC_CHECK(n >= 1 && k >= 1 && k <= kMaxColumns, "[round_to_nearest] a weight of shape [", n, ", ", k,
               "] cannot be quantized");
    const float* important = nullptr;
    if (importance) {
        important = require_array<float>(*importance, "importance", 1);
        TMAC_CHECK(importance->shape(0) == k, "[round_to_nearest] importance must have shape [", k, "], got [",
                   importance->shape(0), "]");
    }
    QuantizedRows rows = [&] {
        const ReleasedGil release;
        return round_to_nearest(data, n, k, spec, num_threads, important);
    }();
    const std::vector<py::ssize_t> group_shape = {n, num_groups(spec, k)};
    py::object zeros = py::none();
    if (rows.zero_type != GroupType::none) {
        zeros = adopt(std::move(rows.zeros), dtype_of(rows.zero_type), group_shape);
    }
    return py::make_tuple(adopt(std::move(rows.codes), py::dtype("u1"), {n, k}),
                          adopt(std::move(rows.scales), dtype_of(rows.scale_type), group_shape), zeros,
                          super_array(rows.super_scales, n), super_array(rows.super_offsets, n));
}

}  // namespace

void bind_weights(py::module_& module) {
    py::class_<PackedWeight>(module, "PackedWeight")
        .def_property_readonly("in_features", [](const PackedWeight& w) { return w.header().k; })
        .def_property_readonly("out_features", [](const PackedWeight& w) { return w.header().n; })
        .def_property_readonly("kernel", [](const PackedWeight& w) { return std::string(w.header().kernel); })
        .def_property_readonly("prompt_kernel",
                               [](const PackedWeight& w) { return std::string(w.header().prompt_kernel); })
        .def_property_readonly("layout", [](const PackedWeight& w) { return name_of(w.header().layout); })
        .def_property_readonly("nbytes", &PackedWeight::size)
        .def_property_readonly("spec", [](const PackedWeight& w) { return spec_to_python(w.header().spec); })
        .def("buffer", [](const py::object& self) {
            auto& weight = self.cast<PackedWeight&>();
            return py::array_t<uint8_t>({weight.size()}, {1}, weight.data(), self);
        });
    module.def("pack", &pack_arrays, py::arg("spec"), py::arg("planes"), py::arg("in_features"), py::arg("scales"),
               py::arg("zeros") = py::none(), py::arg("perm") = py::none(), py::arg("kernel") = "",
               py::arg("num_threads") = 0, py::arg("super_scales") = py::none(), py::arg("super_offsets") = py::none(),
               py::arg("plane_layout") = false);
    py::class_<ArrayPacker>(module, "Packer")
        .def(py::init<const py::object&, int64_t, int64_t, const std::optional<py::dtype>&,
                      const std::optional<py::array>&, const std::string&, bool>(),
             py::arg("spec"), py::arg("out_features"), py::arg("in_features"), py::arg("zeros") = py::none(),
             py::arg("perm") = py::none(), py::arg("kernel") = "", py::arg("plane_layout") = false)
        .def("add", &ArrayPacker::add, py::arg("first"), py::arg("weight"), py::arg("scales"),
             py::arg("zeros") = py::none(), py::arg("super_scales") = py::none(), py::arg("super_offsets") = py::none(),
             py::arg("num_threads") = 0)
        .def("add_blocks", &ArrayPacker::add_blocks, py::arg("first"), py::arg("type_name"), py::arg("blocks"),
             py::arg("num_threads") = 0)
        .def("finish", &ArrayPacker::finish);
    module.def("all_finite", [](const py::array& array) {
        TMAC_CHECK((array.flags() & py::array::c_style) != 0, "[all_finite] expected a C-contiguous array");
        return all_finite(array.data(), group_type_of(array.dtype(), "all_finite"), array.size());
    });
    module.def("unpack", &unpack_arrays, py::arg("buffer"), py::arg("num_threads") = 0);
    module.def("describe", [](const py::array& buffer) { return describe(view_of(buffer)); }, py::arg("buffer"));
    module.def("dequantize", &dequantize_array, py::arg("buffer"), py::arg("num_threads") = 0);
    module.def("codes_to_planes", &codes_to_planes_array, py::arg("codes"), py::arg("bits"),
               py::arg("num_threads") = 0);
    module.def("planes_to_codes", &planes_to_codes_array, py::arg("planes"), py::arg("in_features"),
               py::arg("num_threads") = 0);
    module.def("codes_to_trits", &codes_to_trits_array, py::arg("codes"), py::arg("num_threads") = 0);
    module.def("trits_to_codes", &trits_to_codes_array, py::arg("trits"), py::arg("in_features"),
               py::arg("num_threads") = 0);
    module.def("trits_to_planes", &trits_to_planes_array, py::arg("trits"), py::arg("in_features"),
               py::arg("num_threads") = 0);
    module.def("round_to_nearest", &quantize_array, py::arg("weight"), py::arg("spec"), py::arg("num_threads") = 0,
               py::arg("importance") = py::none());
}

}  // namespace tmac
