#pragma once

#include <string>

#include "runtime/model.h"

namespace tmac {

class Pass;

/// What one kind of model does in a layer. The embedding before the layers, the last norm and the head after them are
/// the decoder's.
struct Family {
    const char* name;  ///< as in the config that Python makes
    void (*run)(const Layer& layer, Pass& pass);
    void (*check)(const ModelConfig& config, const Layer& layer);  ///< throws where a weight is missing
    bool layer_norm = false;                                       ///< the last norm is a layer norm
};

// One file each.
extern const Family kLlama, kQwen2, kQwen3, kPhi3, kGemma, kGemma2, kGemma3, kGptNeox, kBitnet, kMixtral, kQwen2Moe,
    kQwen3Moe;

/// Throws std::invalid_argument, listing the known names.
const Family& find_family(const std::string& name);

/// Throws std::invalid_argument where the family misses a weight of the layer.
void check_layer(const Family& family, const ModelConfig& config, const Layer& layer);

// For the families' `check`: throw where the layer lacks what is named.
void require(const Layer& layer, const char* name, const Matrix& matrix);
void require(const Layer& layer, const char* name, const Norm& norm);
void require_attention(const Layer& layer);                                       ///< q, k, v or qkv; o
void require_mlp(const Layer& layer, const Mlp& mlp, const std::string& prefix);  ///< gate and up, or gate_up; down
void require_experts(const Layer& layer);

}  // namespace tmac
