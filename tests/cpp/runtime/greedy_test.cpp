#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "tiny_model.h"

// Greedy text of synthetic models. With TMAC_TEST_LIST set the tokens are printed: builds for different CPUs must print
// the same ones (.ci/neon compares).

namespace tmac {
namespace {

std::vector<int32_t> greedy(const std::shared_ptr<const Model>& model, CacheType type, int threads) {
    Decoder decoder(model, type, 0);
    const int64_t id = decoder.cache().create();
    std::vector<int32_t> tokens(70);
    for (size_t i = 0; i < tokens.size(); ++i) {
        tokens[i] = static_cast<int32_t>(i * i % TinyModel::kVocab);
    }
    std::vector<float> logits(TinyModel::kVocab);
    decoder.forward({{id, tokens, {69}}}, Phase::prompt, threads, [] {}, logits.data());
    std::vector<int32_t> text;
    for (int i = 0; i < 40; ++i) {
        REQUIRE(std::none_of(logits.begin(), logits.end(), [](float logit) { return logit != logit; }));
        const auto best = std::max_element(logits.begin(), logits.end());
        text.push_back(static_cast<int32_t>(best - logits.begin()));
        decoder.forward({{id, {text.back()}, {0}}}, Phase::decode, threads, [] {}, logits.data());
    }
    return text;
}

}  // namespace

TEST_CASE("greedy text depends neither on threads nor on the build", "[greedy]") {
    for (const std::string family : {"llama", "gemma3", "gpt_neox", "bitnet", "mixtral"}) {
        for (const uint8_t bits : {uint8_t{2}, uint8_t{4}}) {
            TinyShape shape;
            shape.window = family == "gemma3" ? 48 : 0;
            shape.experts = family == "mixtral" ? 4 : 0;
            shape.spec.bits = bits;
            shape.spec.fixed_zero = static_cast<float>(1 << (bits - 1));
            shape.spec.group_size = 32;
            TinyModel tiny(family, shape);
            const std::shared_ptr<const Model> model = tiny.build();
            const std::vector<int32_t> text = greedy(model, CacheType::f16, 1);
            CAPTURE(family, int{bits});
            CHECK(greedy(model, CacheType::f16, 3) == text);
            if (std::getenv("TMAC_TEST_LIST") != nullptr) {
                std::printf("greedy %s %d:", family.c_str(), int{bits});
                std::for_each(text.begin(), text.end(), [](int32_t token) { std::printf(" %d", token); });
                std::printf("\n");
            }
        }
    }
}

}  // namespace tmac
