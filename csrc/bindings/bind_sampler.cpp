#include "bindings/bindings.h"
#include "runtime/log_probabilities.h"
#include "runtime/sampler.h"

namespace tmac {
namespace {

int32_t sample(Sampler& sampler, const py::array& logits, const py::array& history,
               const std::optional<py::array>& mask, int64_t prompt_size) {
    const auto* row = require_array<float>(logits, "logits", 1);
    const auto* tokens = require_array<int32_t>(history, "history", 1);
    const int64_t vocab = logits.shape(0);
    const uint32_t* words = nullptr;
    if (mask) {
        words = require_array<uint32_t>(*mask, "mask", 1);
        TMAC_CHECK(mask->shape(0) >= (vocab + 31) / 32, "[Sampler] a mask of ", mask->shape(0), " words for ", vocab,
                   " tokens");
    }
    TMAC_CHECK(prompt_size >= 0 && prompt_size <= history.shape(0), "[Sampler] prompt_size=", prompt_size,
               ", but the history has ", history.shape(0), " tokens");
    std::vector<float> changed(row, row + vocab);  // the caller's logits stay as they are
    return sampler.sample(changed.data(), vocab, tokens, history.shape(0), words, prompt_size);
}

py::array_t<float> log_probabilities_array(const py::array& logits, const py::array& ids, int num_threads) {
    const auto* rows = require_array<float>(logits, "logits", 2);
    const auto* tokens = require_array<int32_t>(ids, "ids", 1);
    TMAC_CHECK(ids.shape(0) == logits.shape(0), "[log_probabilities] ", logits.shape(0), " rows, but ", ids.shape(0),
               " ids");
    py::array_t<float> result({static_cast<int64_t>(ids.shape(0))});
    float* out = result.mutable_data();
    const int64_t count = logits.shape(0);
    const int64_t vocab = logits.shape(1);
    const ReleasedGil release;
    log_probabilities(rows, count, vocab, tokens, out, num_threads);
    return result;
}

py::tuple top_log_probabilities_array(const py::array& logits, int64_t count) {
    const auto* row = require_array<float>(logits, "logits", 1);
    const std::vector<TokenLogProbability> top = top_log_probabilities(row, logits.shape(0), count);
    py::array_t<int32_t> ids({static_cast<int64_t>(top.size())});
    py::array_t<float> values({static_cast<int64_t>(top.size())});
    for (size_t i = 0; i < top.size(); ++i) {
        ids.mutable_data()[i] = top[i].id;
        values.mutable_data()[i] = top[i].value;
    }
    return py::make_tuple(ids, values);
}

}  // namespace

void bind_sampler(py::module_& module) {
    py::class_<Sampler>(module, "Sampler")
        .def(py::init([](float temperature, int32_t top_k, float top_p, float min_p, float repetition_penalty,
                         float presence_penalty, float frequency_penalty, uint64_t seed,
                         std::vector<std::pair<int32_t, float>> logit_bias) {
                 return Sampler({temperature, top_k, top_p, min_p, repetition_penalty, presence_penalty,
                                 frequency_penalty, seed, std::move(logit_bias)});
             }),
             py::kw_only(), py::arg("temperature") = 1.0F, py::arg("top_k") = 0, py::arg("top_p") = 1.0F,
             py::arg("min_p") = 0.0F, py::arg("repetition_penalty") = 1.0F, py::arg("presence_penalty") = 0.0F,
             py::arg("frequency_penalty") = 0.0F, py::arg("seed") = 0,
             py::arg("logit_bias") = std::vector<std::pair<int32_t, float>>{})
        .def("sample", &sample, py::arg("logits"), py::arg("history"), py::arg("mask") = py::none(),
             py::arg("prompt_size") = 0)
        .def_property("draws", &Sampler::draws, &Sampler::set_draws);
    module.def("log_probabilities", &log_probabilities_array, py::arg("logits"), py::arg("ids"),
               py::arg("num_threads") = 0);
    module.def("top_log_probabilities", &top_log_probabilities_array, py::arg("logits"), py::arg("count"));
}

}  // namespace tmac
