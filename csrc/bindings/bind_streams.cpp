#include <algorithm>
#include <array>

#include "bindings/bindings.h"
#include "core/thread_pool.h"
#include "layout/code_stream.h"
#include "layout/ggml_blocks.h"

namespace tmac {
namespace {

constexpr int64_t kGrain = 64;  // columns or rows: whole cache lines of words, and blocks of 32 codes

void require_bits(int bits) { TMAC_CHECK(bits >= 1 && bits <= 8, "[unpack] bits must be 1 to 8, got ", bits); }

/// `count` codes fit into `words` 32-bit words.
void require_count(int64_t count, int bits, int64_t words) {
    TMAC_CHECK(count >= 1 && count <= words * 32 / bits, "[unpack] expected 1 to ", words * 32 / bits, " codes of ",
               bits, " bits in ", words, " words, got ", count);
}

WordsView words_of(const py::array& words) {
    const auto* data = require_array<int32_t>(words, "words", 2);
    return {reinterpret_cast<const uint32_t*>(data), words.shape(0), words.shape(1)};
}

py::array_t<uint8_t> unpack_stream_array(const py::array& stream, int bits, int64_t count, int num_threads) {
    const auto* data = require_array<uint8_t>(stream, "stream", 2);
    require_bits(bits);
    const int64_t rows = stream.shape(0);
    const int64_t nbytes = stream.shape(1);
    TMAC_CHECK(count >= 0 && count <= nbytes * 8 / bits, "[unpack] expected at most ", nbytes * 8 / bits, " codes of ",
               bits, " bits in ", nbytes, " bytes, got ", count);
    py::array_t<uint8_t> codes({rows, count});
    uint8_t* out = codes.mutable_data();
    const ReleasedGil release;
    parallel_for(rows, 1, num_threads, [&](Range range) {
        for (int64_t row = range.begin; row < range.end; ++row) {
            unpack_stream(data + row * nbytes, nbytes, bits, count, out + row * count);
        }
    });
    return codes;
}

py::array_t<uint8_t> unpack_down_array(const py::array& words, int bits, int64_t count, int num_threads) {
    const WordsView view = words_of(words);
    require_bits(bits);
    require_count(count, bits, view.height);
    py::array_t<uint8_t> codes({view.width, count});
    uint8_t* out = codes.mutable_data();
    const ReleasedGil release;
    parallel_for(view.width, kGrain, num_threads, [&](Range columns) { unpack_down(view, bits, count, columns, out); });
    return codes;
}

py::array_t<uint8_t> unpack_across_array(const py::array& words, int bits, int64_t count,
                                         const std::array<uint8_t, 8>& lanes, int num_threads) {
    const WordsView view = words_of(words);
    require_bits(bits);
    require_count(count, bits, view.width);
    std::array<uint8_t, 8> sorted = lanes;
    std::sort(sorted.begin(), sorted.end());
    TMAC_CHECK((sorted == std::array<uint8_t, 8>{0, 1, 2, 3, 4, 5, 6, 7}), "[unpack] lanes must hold each of 0 to 7");
    TMAC_CHECK(count % 8 == 0, "[unpack] expected a multiple of 8 codes, got ", count);
    py::array_t<uint8_t> codes({count, view.height});
    uint8_t* out = codes.mutable_data();
    const ReleasedGil release;
    parallel_for(count, kGrain, num_threads,
                 [&](Range columns) { unpack_across(view, bits, count, lanes, columns, out); });
    return codes;
}

/// (codes, scales, zeros, super_scales, super_offsets), a row for each block; None where the type has none.
py::tuple split_blocks_array(const std::string& name, const py::array& blocks, int num_threads) {
    const GgmlBlock* type = find_ggml_block(name);
    TMAC_CHECK(type != nullptr, "[split_blocks] ", name, " has no exact form as codes");
    const auto* data = require_array<uint8_t>(blocks, "blocks", 2);
    const int64_t count = blocks.shape(0);
    TMAC_CHECK(blocks.shape(1) == type->bytes, "[split_blocks] expected blocks of ", type->bytes, " bytes, got ",
               blocks.shape(1));
    const py::dtype half("<f2");
    py::array_t<uint8_t> codes({count, int64_t{type->codes}});
    const auto array_of = [count](bool wanted, const py::dtype& dtype, int64_t columns) -> py::object {
        return wanted ? py::object(py::array(dtype, {count, columns})) : py::object(py::none());
    };
    const auto data_of = [](const py::object& array) {
        return array.is_none() ? nullptr : py::reinterpret_borrow<py::array>(array).mutable_data();
    };
    const bool two_level = type->subs > 0;
    const py::object subs = array_of(two_level, py::dtype::of<int8_t>(), type->subs);
    const py::object sub_offsets = array_of(type->sub_offsets, py::dtype::of<int8_t>(), type->subs);
    const py::object scales = array_of(type->halves > 0, half, 1);
    const py::object offsets = array_of(type->halves > 1, half, 1);
    const GgmlParts parts{codes.mutable_data(), static_cast<int8_t*>(data_of(subs)),
                          static_cast<int8_t*>(data_of(sub_offsets)), static_cast<uint16_t*>(data_of(scales)),
                          static_cast<uint16_t*>(data_of(offsets))};
    {
        const ReleasedGil release;
        parallel_for(count, kGrain, num_threads, [&](Range range) { split_blocks(*type, data, range, parts); });
    }
    if (two_level) {
        return py::make_tuple(codes, subs, sub_offsets, scales, offsets);
    }
    return py::make_tuple(codes, scales, offsets, py::none(), py::none());
}

}  // namespace

void bind_streams(py::module_& module) {
    module.def("unpack_stream", &unpack_stream_array, py::arg("stream"), py::arg("bits"), py::arg("count"),
               py::arg("num_threads") = 0);
    module.def("unpack_down", &unpack_down_array, py::arg("words"), py::arg("bits"), py::arg("count"),
               py::arg("num_threads") = 0);
    module.def("unpack_across", &unpack_across_array, py::arg("words"), py::arg("bits"), py::arg("count"),
               py::arg("lanes"), py::arg("num_threads") = 0);
    module.def("split_blocks", &split_blocks_array, py::arg("type_name"), py::arg("blocks"),
               py::arg("num_threads") = 0);
}

}  // namespace tmac
