#include "runtime/model_config.h"

#include <cmath>

#include "core/check.h"

namespace tmac {
namespace {

constexpr int64_t kMaxSize = int64_t{1} << 30;
constexpr int32_t kMaxLayers = 1 << 16;
constexpr int32_t kMaxHeadDim = 1 << 12;

void check_range(const char* name, int64_t value, int64_t low, int64_t high) {
    TMAC_CHECK(value >= low && value <= high, "[ModelConfig] ", name, " must be in ", low, "..", high, ", got ", value);
}

void check_finite(const char* name, float value) {
    TMAC_CHECK(std::isfinite(value), "[ModelConfig] ", name, " must be finite, got ", value);
}

template <class T>
void check_count(const char* name, const std::vector<T>& values, size_t count) {
    TMAC_CHECK(values.size() == count, "[ModelConfig] ", name, " has ", values.size(), " entries, not ", count);
}

void check_rope(const Rope& rope, int32_t head_dim) {
    const auto half = static_cast<size_t>(head_dim / 2);
    TMAC_CHECK(!rope.inv_freq.empty() && rope.inv_freq.size() <= half, "[ModelConfig] inv_freq must have 1 to ", half,
               " entries, got ", rope.inv_freq.size());
    check_finite("rope.scale", rope.scale);
    for (const float value : rope.inv_freq) {
        check_finite("inv_freq", value);
    }
    for (const float value : rope.long_inv_freq) {
        check_finite("long_inv_freq", value);
    }
    if (rope.dynamic == Rope::Dynamic::longrope) {
        check_count("long_inv_freq", rope.long_inv_freq, rope.inv_freq.size());
    }
    if (rope.dynamic != Rope::Dynamic::none) {
        check_range("rope.original", rope.original, 1, kMaxSize);
    }
    if (rope.dynamic == Rope::Dynamic::ntk) {
        TMAC_CHECK(rope.base > 0 && std::isfinite(rope.base), "[ModelConfig] rope.base must be positive, got ",
                   rope.base);
        TMAC_CHECK(rope.factor > 0 && std::isfinite(rope.factor), "[ModelConfig] rope.factor must be positive, got ",
                   rope.factor);
        check_range("entries of inv_freq with dynamic NTK", static_cast<int64_t>(rope.inv_freq.size()), 2, kMaxHeadDim);
    }
}

void check_experts(const ModelConfig& config) {
    check_range("num_experts", config.num_experts, 1, 1 << 16);
    check_range("experts_per_token", config.experts_per_token, 1, config.num_experts);
    check_range("moe_intermediate_size", config.moe_intermediate_size, 1, kMaxSize);
    check_range("shared_intermediate_size", config.shared_intermediate_size, 0, kMaxSize);
}

}  // namespace

void validate(const ModelConfig& config) {
    check_range("vocab_size", config.vocab_size, 1, kMaxSize);
    check_range("hidden_size", config.hidden_size, 1, kMaxSize);
    check_range("num_layers", config.num_layers, 1, kMaxLayers);
    check_range("num_heads", config.num_heads, 1, 1 << 16);
    check_range("num_kv_heads", config.num_kv_heads, 1, config.num_heads);
    TMAC_CHECK(config.num_heads % config.num_kv_heads == 0, "[ModelConfig] num_heads=", config.num_heads,
               " is no multiple of num_kv_heads=", config.num_kv_heads);
    check_range("head_dim", config.head_dim, 1, kMaxHeadDim);
    check_range("context_length", config.context_length, 1, kMaxSize);
    const auto layers = static_cast<size_t>(config.num_layers);
    check_count("windows", config.windows, layers);
    check_count("layer_rope", config.layer_rope, layers);
    check_count("sparse_layers", config.sparse_layers, layers);
    bool dense = false;
    bool sparse = false;
    for (size_t i = 0; i < layers; ++i) {
        check_range("windows", config.windows[i], 0, kMaxSize);
        check_range("layer_rope", config.layer_rope[i], -1, static_cast<int64_t>(config.ropes.size()) - 1);
        (config.sparse_layers[i] ? sparse : dense) = true;
    }
    check_range("intermediate_size", config.intermediate_size, dense ? 1 : 0, kMaxSize);
    if (sparse) {
        check_experts(config);
    }
    for (const Rope& rope : config.ropes) {
        check_rope(rope, config.head_dim);
    }
    TMAC_CHECK(config.norm_eps >= 0, "[ModelConfig] norm_eps must not be negative, got ", config.norm_eps);
    check_finite("norm_eps", config.norm_eps);
    TMAC_CHECK(config.input_norm_eps >= 0, "[ModelConfig] input_norm_eps must not be negative, got ",
               config.input_norm_eps);
    check_finite("input_norm_eps", config.input_norm_eps);
    check_finite("attention_scale", config.attention_scale);
    check_finite("attention_softcap", config.attention_softcap);
    check_finite("logit_softcap", config.logit_softcap);
    check_finite("embedding_scale", config.embedding_scale);
    check_finite("residual_scale", config.residual_scale);
    check_finite("logit_scale", config.logit_scale);
}

}  // namespace tmac
