#include "runtime/models/families.h"
#include "runtime/pass.h"

// Llama 2 and 3 and what has their block: SmolLM, Mistral, Granite; Qwen 2 (biases of q, k and v come with the
// weights); Qwen 3 (norms of each head too); Phi-3 (q, k, v in one matrix, gate and up in another).

namespace tmac {
namespace {

void run(const Layer& layer, Pass& pass) {
    pass.multiply(Stage::qkv, pass.normed(layer.input_norm), pass.to_qkv(layer));
    pass.attend(layer);
    pass.multiply(Stage::output, pass.attended(), pass.to_hidden(layer.o));

    pass.multiply(Stage::gate_up, pass.normed(layer.pre_mlp_norm), pass.to_gate_up(layer.mlp));
    pass.multiply(Stage::down, pass.gated(layer.mlp), pass.to_hidden(layer.mlp.down));
}

void check(const ModelConfig&, const Layer& layer) {
    require(layer, "input_norm", layer.input_norm);
    require_attention(layer);
    require(layer, "pre_mlp_norm", layer.pre_mlp_norm);
    require_mlp(layer, layer.mlp, "");
}

void check_qwen3(const ModelConfig& config, const Layer& layer) {
    check(config, layer);
    require(layer, "q_norm", layer.q_norm);
    require(layer, "k_norm", layer.k_norm);
}

}  // namespace

const Family kLlama{"llama", run, check};
const Family kQwen2{"qwen2", run, check};
const Family kQwen3{"qwen3", run, check_qwen3};
const Family kPhi3{"phi3", run, check};
const Family kGemma{"gemma", run, check};  // its embeddings are scaled, its gate is a GELU

}  // namespace tmac
