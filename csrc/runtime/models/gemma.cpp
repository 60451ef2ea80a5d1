#include "runtime/models/families.h"
#include "runtime/pass.h"

// Gemma 2 and 3: a norm before and one after each half of the block. Gemma 2 caps the scores and the logits, Gemma 3
// has norms of queries and keys; both attend to a window in most layers, and Gemma 3 rotates those at another base.

namespace tmac {
namespace {

void run(const Layer& layer, Pass& pass) {
    pass.multiply(Stage::qkv, pass.normed(layer.input_norm), pass.to_qkv(layer));
    pass.attend(layer);
    pass.multiply(Stage::output, pass.attended(), pass.to_branch(layer.o));
    pass.add_normed(layer.post_attention_norm);

    pass.multiply(Stage::gate_up, pass.normed(layer.pre_mlp_norm), pass.to_gate_up(layer.mlp));
    pass.multiply(Stage::down, pass.gated(layer.mlp), pass.to_branch(layer.mlp.down));
    pass.add_normed(layer.post_mlp_norm);
}

void check(const ModelConfig&, const Layer& layer) {
    require(layer, "input_norm", layer.input_norm);
    require_attention(layer);
    require(layer, "post_attention_norm", layer.post_attention_norm);
    require(layer, "pre_mlp_norm", layer.pre_mlp_norm);
    require_mlp(layer, layer.mlp, "");
    require(layer, "post_mlp_norm", layer.post_mlp_norm);
}

void check_gemma3(const ModelConfig& config, const Layer& layer) {
    check(config, layer);
    require(layer, "q_norm", layer.q_norm);
    require(layer, "k_norm", layer.k_norm);
}

}  // namespace

const Family kGemma2{"gemma2", run, check};
const Family kGemma3{"gemma3", run, check_gemma3};

}  // namespace tmac
