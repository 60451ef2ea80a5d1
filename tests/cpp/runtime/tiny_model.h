#pragma once

// A small model with random weights of a family, packed.

#include <memory>
#include <string>
#include <vector>

#include "runtime/decoder.h"
#include "weights.h"

namespace tmac {

/// What a TinyModel is made of, beside the family.
struct TinyShape {
    int32_t layers = 2;
    int64_t window = 0;  ///< of every other layer
    int32_t experts = 0;
    QuantSpec spec{};
    bool for_prefixes = false;  ///< packed so
};

class TinyModel {
public:
    static constexpr int64_t kVocab = 97;

    TinyModel(const std::string& family, const TinyShape& shape) : shape_(shape) {
        config_.family = family;
        config_.vocab_size = kVocab;
        config_.hidden_size = 96;
        config_.intermediate_size = 160;
        config_.num_layers = shape.layers;
        config_.num_heads = 4;
        config_.num_kv_heads = family == "gpt_neox" ? 4 : 2;
        config_.head_dim = 24;
        config_.context_length = 4096;
        config_.attention_scale = 0.2F;
        config_.parallel_residual = true;
        Rope rope;
        for (int i = 0; i < 8; ++i) {  // a part of the head only
            rope.inv_freq.push_back(1.0F / static_cast<float>(1 << i));
        }
        config_.ropes = {rope};
        for (int32_t i = 0; i < shape.layers; ++i) {
            config_.windows.push_back(i % 2 == 0 ? shape.window : 0);
            config_.layer_rope.push_back(0);
            config_.sparse_layers.push_back(shape.experts > 0);
        }
        config_.num_experts = shape.experts;
        config_.experts_per_token = shape.experts > 0 ? 2 : 0;
        config_.normalize_experts = true;
        config_.moe_intermediate_size = 64;
        config_.shared_intermediate_size = family == "qwen2_moe" ? 80 : 0;
    }

    ModelConfig& config() { return config_; }

    std::shared_ptr<const Model> build() {
        const int64_t hidden = config_.hidden_size;
        matrix("embedding", kVocab, hidden);
        norm("final_norm", hidden);
        for (int32_t i = 0; i < config_.num_layers; ++i) {
            layer("layers." + std::to_string(i) + ".");
        }
        return build_model(config_, std::move(weights_));
    }

private:
    void layer(const std::string& prefix) {
        const int64_t hidden = config_.hidden_size;
        const int64_t q = config_.query_columns();
        const int64_t kv = config_.key_columns();
        const std::string& family = config_.family;
        const bool gemma = family == "gemma2" || family == "gemma3";
        norm(prefix + "input_norm", hidden);
        norm(prefix + "pre_mlp_norm", hidden);
        if (gemma) {
            norm(prefix + "post_attention_norm", hidden);
            norm(prefix + "post_mlp_norm", hidden);
        }
        if (family == "gemma3" || family == "qwen3" || family == "qwen3_moe") {
            norm(prefix + "q_norm", config_.head_dim);
            norm(prefix + "k_norm", config_.head_dim);
        }
        if (family == "bitnet") {
            norm(prefix + "attention_sub_norm", q);
            norm(prefix + "mlp_sub_norm", config_.intermediate_size);
        }
        if (family == "gpt_neox" || family == "phi3") {
            matrix(prefix + "qkv", q + 2 * kv, hidden);
        } else {
            matrix(prefix + "q", q, hidden);
            matrix(prefix + "k", kv, hidden);
            matrix(prefix + "v", kv, hidden);
        }
        matrix(prefix + "o", hidden, q);
        if (config_.num_experts > 0) {
            experts(prefix);
        } else {
            mlp(prefix, config_.intermediate_size, family != "gpt_neox");
        }
    }

    void experts(const std::string& prefix) {
        matrix(prefix + "router", config_.num_experts, config_.hidden_size);
        for (int32_t i = 0; i < config_.num_experts; ++i) {
            mlp(prefix + "experts." + std::to_string(i) + ".", config_.moe_intermediate_size, true);
        }
        if (config_.shared_intermediate_size > 0) {
            mlp(prefix + "shared.", config_.shared_intermediate_size, true);
            matrix(prefix + "shared_gate", 1, config_.hidden_size);
        }
    }

    void mlp(const std::string& prefix, int64_t inner, bool gate) {
        if (gate && config_.family == "phi3") {
            matrix(prefix + "gate_up", 2 * inner, config_.hidden_size);
        } else {
            matrix(prefix + "up", inner, config_.hidden_size);
            if (gate) {
                matrix(prefix + "gate", inner, config_.hidden_size);
            }
        }
        matrix(prefix + "down", config_.hidden_size, inner);
    }

    void matrix(const std::string& name, int64_t n, int64_t k) {
        auto packed =
            std::make_shared<PackedWeight>(pack(make_weight(random_, shape_.spec, n, k).canonical(),
                                                select_kernels(shape_.spec, selection()), 1, shape_.for_prefixes));
        Matrix matrix;
        matrix.packed = view_weight(packed->data(), packed->size());
        matrix.bytes = packed->size();
        matrix.owner = packed;
        weights_.matrices.emplace(name, std::move(matrix));
    }

    void norm(const std::string& name, int64_t size) { weights_.vectors.emplace(name, random_.floats(size)); }

    TinyShape shape_;
    ModelConfig config_;
    NamedWeights weights_;
    Random random_{7};
};

}  // namespace tmac
