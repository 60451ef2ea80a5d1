#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/vector_ops.h"

namespace tmac {

/// Rotary position embeddings of some layers: pair i of a head at position p turns by p * inv_freq[i].
struct Rope {
    /// Frequencies that depend on the length of the sequence, above `original` positions.
    enum class Dynamic : uint8_t {
        none,
        ntk,       ///< the base grows with the length (transformers' "dynamic")
        longrope,  ///< other frequencies for long sequences
    };

    std::vector<float> inv_freq;  ///< half as many as columns that are rotated
    float scale = 1.0F;           ///< of cosines and sines (YaRN's and LongRoPE's attention factor)
    Dynamic dynamic = Dynamic::none;
    int64_t original = 0;
    float base = 0.0F;    ///< ntk
    float factor = 1.0F;  ///< ntk
    std::vector<float> long_inv_freq;
};

/// What a family's file needs to know beside the weights; Python makes it of the Hugging Face configuration.
struct ModelConfig {
    std::string family;
    int64_t vocab_size = 0;
    int64_t hidden_size = 0;
    int64_t intermediate_size = 0;
    int32_t num_layers = 0;
    int32_t num_heads = 0;
    int32_t num_kv_heads = 0;
    int32_t head_dim = 0;
    int64_t context_length = 0;
    float norm_eps = 1e-6F;
    float input_norm_eps = 1e-6F;  ///< of norms that belong to one matrix
    ActivationFn activation = ActivationFn::silu;
    float attention_scale = 1.0F;
    float attention_softcap = 0.0F;  ///< 0: none
    float logit_softcap = 0.0F;      ///< 0: none
    float embedding_scale = 1.0F;
    float residual_scale = 1.0F;
    float logit_scale = 1.0F;
    bool parallel_residual = false;
    std::vector<int64_t> windows;  ///< [num_layers]; 0: attends to all positions
    std::vector<Rope> ropes;
    std::vector<int32_t> layer_rope;  ///< [num_layers], index in `ropes`; -1: no rotation
    std::vector<bool> sparse_layers;  ///< [num_layers]: a mixture of experts
    int32_t num_experts = 0;
    int32_t experts_per_token = 0;
    bool normalize_experts = false;
    int64_t moe_intermediate_size = 0;
    int64_t shared_intermediate_size = 0;  ///< 0: no shared expert

    int64_t query_columns() const { return int64_t{num_heads} * head_dim; }
    int64_t key_columns() const { return int64_t{num_kv_heads} * head_dim; }
};

/// Throws std::invalid_argument that names the field where a number is out of range or a list has the wrong length.
void validate(const ModelConfig& config);

}  // namespace tmac
