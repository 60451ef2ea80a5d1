#include <mutex>

#include "bindings/bindings.h"
#include "bindings/signal_check.h"
#include "core/thread_pool.h"
#include "runtime/decoder.h"

namespace tmac {
namespace {

constexpr const char* kCacheTypeNames[] = {"f32", "f16", "int8"};

CacheType cache_type_from_name(const std::string& name) {
    int index = 0;
    for (const char* each : kCacheTypeNames) {
        if (name == each) {
            return static_cast<CacheType>(index);
        }
        ++index;
    }
    fail("[Decoder] unknown cache_type '", name, "'; known are f32, f16, int8");
}

Phase phase_of_pass(const std::string& name) {
    TMAC_CHECK(name == "prompt" || name == "decode", "[Decoder] unknown phase '", name, "'; known are prompt, decode");
    return name == "prompt" ? Phase::prompt : Phase::decode;
}

std::vector<int32_t> ints_of(const py::array& array, const char* name) {
    const auto* data = require_array<int32_t>(array, name, 1);
    return {data, data + array.shape(0)};
}

/// A decoder that one Python thread uses at a time; another one gets an error instead of a crash.
class SharedDecoder {
public:
    SharedDecoder(const std::shared_ptr<Model>& model, const std::string& cache_type, int64_t max_positions)
        : decoder_(model, cache_type_from_name(cache_type), max_positions) {}

    /// Calls body(decoder) unless another thread is using it.
    template <class Body>
    auto use(const Body& body) {
        const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
        if (!lock.owns_lock()) {
            throw std::runtime_error("[Decoder] in use by another thread");
        }
        return body(decoder_);
    }

private:
    std::mutex mutex_;
    Decoder decoder_;
};

py::array_t<float> logits_array(const Decoder& decoder, size_t rows) {
    return py::array_t<float>({static_cast<int64_t>(rows), decoder.model().config.vocab_size});
}

py::array_t<float> forward(SharedDecoder& shared, const std::vector<int64_t>& ids, const std::vector<py::array>& tokens,
                           const std::string& phase_name, const std::vector<py::array>& wanted,
                           const std::optional<std::vector<int64_t>>& rope_lengths, int num_threads) {
    const Phase phase = phase_of_pass(phase_name);
    TMAC_CHECK(tokens.size() == ids.size() && wanted.size() == ids.size(), "[Decoder] ", ids.size(), " sequences, ",
               tokens.size(), " chunks of tokens and ", wanted.size(), " lists of wanted rows");
    TMAC_CHECK(!rope_lengths || rope_lengths->size() == ids.size(), "[Decoder] ", ids.size(), " sequences, but ",
               rope_lengths->size(), " rope_lengths");
    std::vector<Chunk> chunks;
    size_t rows = 0;
    for (size_t i = 0; i < ids.size(); ++i) {
        chunks.push_back({ids[i], ints_of(tokens[i], "tokens"), ints_of(wanted[i], "wanted"),
                          rope_lengths ? (*rope_lengths)[i] : 0});
        rows += chunks.back().wanted.size();
    }
    return shared.use([&](Decoder& decoder) {
        py::array_t<float> logits = logits_array(decoder, rows);
        float* data = logits.mutable_data();
        ReleasedGil release;
        decoder.forward(chunks, phase, num_threads, SignalCheck(release), data);
        return logits;
    });
}

py::array_t<float> forward_tree(SharedDecoder& shared, int64_t id, const py::array& tokens, const py::array& parents,
                                int num_threads, int64_t first, bool draft) {
    const TokenTree tree{ints_of(tokens, "tokens"), ints_of(parents, "parents"), first, draft};
    const auto count = static_cast<int64_t>(tree.tokens.size());
    TMAC_CHECK(first >= 0 && first <= count, "[Decoder] first=", first, " of ", count, " nodes");
    return shared.use([&](Decoder& decoder) {
        py::array_t<float> logits = logits_array(decoder, static_cast<size_t>(count - first));
        float* data = logits.mutable_data();
        ReleasedGil release;
        decoder.forward_tree(id, tree, num_threads, SignalCheck(release), data);
        return logits;
    });
}

py::bytes save(SharedDecoder& shared, int64_t id) {
    return shared.use([&](Decoder& decoder) {
        const int64_t size = decoder.cache().saved_bytes(id);
        auto bytes = py::reinterpret_steal<py::bytes>(PyBytes_FromStringAndSize(nullptr, size));
        if (!bytes) {
            throw py::error_already_set();
        }
        char* out = PyBytes_AS_STRING(bytes.ptr());
        decoder.cache().save(id, [&out](const uint8_t* data, int64_t count) {
            std::copy_n(data, count, reinterpret_cast<uint8_t*>(out));
            out += count;
        });
        return bytes;
    });
}

int64_t restore(SharedDecoder& shared, const py::buffer& data) {
    const py::buffer_info info = data.request();
    TMAC_CHECK(info.ndim == 1 && info.itemsize == 1 && (info.size <= 1 || info.strides[0] == 1),
               "[Decoder] expected saved bytes in one piece");
    return shared.use([&](Decoder& decoder) {
        return decoder.cache().restore(static_cast<const uint8_t*>(info.ptr), static_cast<int64_t>(info.size));
    });
}

py::dict take_profile(SharedDecoder& shared) {
    return shared.use([](Decoder& decoder) {
        Profile& profile = decoder.profile();
        py::dict result;
        for (int stage = 0; stage < kNumStages; ++stage) {
            result[kStageNames[stage]] = profile.seconds[static_cast<size_t>(stage)];
        }
        result["total"] = profile.total;
        result["passes"] = profile.passes;
        result["rows"] = profile.rows;
        const bool on = profile.on;
        profile = {};
        profile.on = on;
        return result;
    });
}

}  // namespace

void bind_decoder(py::module_& module) {
    py::register_exception<CacheFull>(module, "CacheFullError", PyExc_RuntimeError);
    py::class_<SharedDecoder>(module, "Decoder")
        .def(py::init<const std::shared_ptr<Model>&, const std::string&, int64_t>(), py::arg("model").none(false),
             py::arg("cache_type") = "f16", py::arg("max_positions") = 0)
        .def("create", [](SharedDecoder& shared) { return shared.use([](Decoder& d) { return d.cache().create(); }); })
        .def(
            "fork",
            [](SharedDecoder& shared, int64_t id, int64_t length) {
                return shared.use([&](Decoder& d) { return d.cache().fork(id, length); });
            },
            py::arg("sequence"), py::arg("length"))
        .def(
            "release",
            [](SharedDecoder& shared, int64_t id) { shared.use([&](Decoder& d) { d.cache().release(id); }); },
            py::arg("sequence"))
        .def(
            "truncate",
            [](SharedDecoder& shared, int64_t id, int64_t length) {
                return shared.use([&](Decoder& d) { return d.cache().truncate(id, length); });
            },
            py::arg("sequence"), py::arg("length"))
        .def(
            "length",
            [](SharedDecoder& shared, int64_t id) {
                return shared.use([&](Decoder& d) { return d.cache().length(id); });
            },
            py::arg("sequence"))
        .def("trim", [](SharedDecoder& shared) { shared.use([](Decoder& d) { d.cache().trim(); }); })
        .def("forward", &forward, py::arg("ids"), py::arg("tokens"), py::arg("phase"), py::arg("wanted"),
             py::arg("rope_lengths") = py::none(), py::arg("num_threads") = 0)
        .def("forward_tree", &forward_tree, py::arg("sequence"), py::arg("tokens"), py::arg("parents"),
             py::arg("num_threads") = 0, py::arg("first") = 0, py::arg("draft") = false)
        .def(
            "keep",
            [](SharedDecoder& shared, int64_t id, const std::vector<int64_t>& nodes) {
                shared.use([&](Decoder& d) { d.keep(id, nodes); });
            },
            py::arg("sequence"), py::arg("nodes"))
        .def("save", &save, py::arg("sequence"))
        .def("restore", &restore, py::arg("data"))
        .def(
            "profile", [](SharedDecoder& shared, bool on) { shared.use([&](Decoder& d) { d.profile().on = on; }); },
            py::arg("on"))
        .def("take_profile", &take_profile)
        .def_property_readonly("cache_bytes", [](SharedDecoder& shared) {
            return shared.use([](Decoder& d) { return d.cache().bytes(); });
        });
}

}  // namespace tmac
