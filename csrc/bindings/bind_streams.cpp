#include <algorithm>
#include <array>

#include "bindings/bindings.h"
#include "core/thread_pool.h"
#include "layout/code_stream.h"

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

}  // namespace

void bind_streams(py::module_& module) {
    module.def("unpack_stream", &unpack_stream_array, py::arg("stream"), py::arg("bits"), py::arg("count"),
               py::arg("num_threads") = 0);
    module.def("unpack_down", &unpack_down_array, py::arg("words"), py::arg("bits"), py::arg("count"),
               py::arg("num_threads") = 0);
    module.def("unpack_across", &unpack_across_array, py::arg("words"), py::arg("bits"), py::arg("count"),
               py::arg("lanes"), py::arg("num_threads") = 0);
}

}  // namespace tmac
