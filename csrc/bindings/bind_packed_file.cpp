#include "bindings/bindings.h"
#include "core/content_hash.h"
#include "core/packed_regions.h"
#include "ops/weight_view.h"

namespace tmac {
namespace {

/// [(begin, end, first plane)] of a packed weight, from its header.
std::vector<py::tuple> regions_of(const py::array& buffer) {
    const WeightView view = view_header(require_array<uint8_t>(buffer, "buffer", 1), buffer.shape(0));
    std::vector<py::tuple> regions;
    for (const PackedRegion& region : packed_regions(view.header, view.parts)) {
        regions.push_back(py::make_tuple(region.begin, region.end, region.first_plane));
    }
    return regions;
}

}  // namespace

void bind_packed_file(py::module_& module) {
    py::class_<ContentHash>(module, "ContentHash")
        .def(py::init<>())
        .def(
            "update",
            [](ContentHash& hash, const py::buffer& data) {
                const py::buffer_info info = data.request();
                TMAC_CHECK(PyBuffer_IsContiguous(info.view(), 'C') != 0, "[ContentHash] expected bytes in one piece");
                const ReleasedGil release;
                hash.update(static_cast<const uint8_t*>(info.ptr), static_cast<size_t>(info.size * info.itemsize));
            },
            py::arg("data"))
        .def("digest", &ContentHash::digest);
    module.def("packed_regions", &regions_of, py::arg("buffer"));
    module.attr("PACKED_HEADER_BYTES") = sizeof(PackedHeader);
}

}  // namespace tmac
