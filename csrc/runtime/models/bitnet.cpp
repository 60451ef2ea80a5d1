#include "runtime/models/families.h"
#include "runtime/pass.h"

// BitNet b1.58: ternary weights, ReLU squared as the gate, and a norm before the second matrix of each half.

namespace tmac {
namespace {

void run(const Layer& layer, Pass& pass) {
    pass.multiply(Stage::qkv, pass.normed(layer.input_norm), pass.to_qkv(layer));
    pass.attend(layer);
    pass.multiply(Stage::output, pass.attended(&layer.attention_sub_norm), pass.to_hidden(layer.o));

    pass.multiply(Stage::gate_up, pass.normed(layer.pre_mlp_norm), pass.to_gate_up(layer.mlp));
    pass.multiply(Stage::down, pass.gated(layer.mlp, &layer.mlp_sub_norm), pass.to_hidden(layer.mlp.down));
}

void check(const ModelConfig&, const Layer& layer) {
    require(layer, "input_norm", layer.input_norm);
    require_attention(layer);
    require(layer, "attention_sub_norm", layer.attention_sub_norm);
    require(layer, "pre_mlp_norm", layer.pre_mlp_norm);
    require_mlp(layer, layer.mlp, "");
    require(layer, "mlp_sub_norm", layer.mlp_sub_norm);
}

}  // namespace

const Family kBitnet{"bitnet", run, check};

}  // namespace tmac
