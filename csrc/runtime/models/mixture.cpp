#include "runtime/experts.h"
#include "runtime/models/families.h"
#include "runtime/pass.h"

// Mixtures of experts: Mixtral, Qwen 2 MoE (an expert that every token passes, beside the chosen ones), Qwen 3 MoE.
// Some layers of a Qwen model may be plain ones.

namespace tmac {
namespace {

void run(const Layer& layer, Pass& pass) {
    pass.multiply(Stage::qkv, pass.normed(layer.input_norm), pass.to_qkv(layer));
    pass.attend(layer);
    pass.multiply(Stage::output, pass.attended(), pass.to_hidden(layer.o));

    if (layer.router.exists()) {
        run_experts(layer, pass);
        return;
    }
    pass.multiply(Stage::gate_up, pass.normed(layer.pre_mlp_norm), pass.to_gate_up(layer.mlp));
    pass.multiply(Stage::down, pass.gated(layer.mlp), pass.to_hidden(layer.mlp.down));
}

void check(const ModelConfig& config, const Layer& layer) {
    require(layer, "input_norm", layer.input_norm);
    require_attention(layer);
    require(layer, "pre_mlp_norm", layer.pre_mlp_norm);
    if (config.sparse_layers[static_cast<size_t>(layer.index)]) {
        require_experts(layer);
        if (config.shared_intermediate_size > 0) {
            require_mlp(layer, layer.shared, "shared.");
            require(layer, "shared_gate", layer.shared_gate);
        }
    } else {
        require_mlp(layer, layer.mlp, "");
    }
}

void check_qwen3(const ModelConfig& config, const Layer& layer) {
    check(config, layer);
    require(layer, "q_norm", layer.q_norm);
    require(layer, "k_norm", layer.k_norm);
}

}  // namespace

const Family kMixtral{"mixtral", run, check};
const Family kQwen2Moe{"qwen2_moe", run, check};
const Family kQwen3Moe{"qwen3_moe", run, check_qwen3};

}  // namespace tmac
