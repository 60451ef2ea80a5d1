#include "core/check.h"
#include "runtime/models/families.h"
#include "runtime/pass.h"

// GPT-NeoX and Pythia: layer norms, one matrix with query, key and value of a head side by side, and an MLP without a
// gate that reads the same hidden state as attention does (use_parallel_residual), or the one after it.

namespace tmac {
namespace {

void run_parallel(const Layer& layer, Pass& pass) {
    const NormRows attention_input = pass.normed(layer.input_norm, NormKind::layer);
    const NormRows mlp_input = pass.normed(layer.pre_mlp_norm, NormKind::layer);
    const int64_t hidden = pass.config().hidden_size;
    pass.multiply(Stage::qkv, {pass.job(attention_input, hidden, pass.to_qkv(layer)),
                               pass.job(mlp_input, hidden, pass.to_gate_up(layer.mlp))});
    pass.attend(layer, /*interleaved=*/true);
    const AttentionRows attended = pass.attended();
    const GatedRows gated = pass.gated(layer.mlp);
    pass.multiply(Stage::output, {pass.job(attended, layer.o.k(), pass.to_branch(layer.o)),
                                  pass.job(gated, layer.mlp.down.k(), pass.to_hidden(layer.mlp.down))});
    pass.add_branch();
}

void run(const Layer& layer, Pass& pass) {
    if (pass.config().parallel_residual) {
        run_parallel(layer, pass);
        return;
    }
    pass.multiply(Stage::qkv, pass.normed(layer.input_norm, NormKind::layer), pass.to_qkv(layer));
    pass.attend(layer, /*interleaved=*/true);
    pass.multiply(Stage::output, pass.attended(), pass.to_hidden(layer.o));

    pass.multiply(Stage::gate_up, pass.normed(layer.pre_mlp_norm, NormKind::layer), pass.to_gate_up(layer.mlp));
    pass.multiply(Stage::down, pass.gated(layer.mlp), pass.to_hidden(layer.mlp.down));
}

void check(const ModelConfig& config, const Layer& layer) {
    TMAC_CHECK(config.num_heads == config.num_kv_heads, "[Model] gpt_neox has as many key heads as heads");
    require(layer, "input_norm", layer.input_norm);
    require(layer, "qkv", layer.qkv);
    require(layer, "o", layer.o);
    require(layer, "pre_mlp_norm", layer.pre_mlp_norm);
    require(layer, "up", layer.mlp.up);
    require(layer, "down", layer.mlp.down);
}

}  // namespace

const Family kGptNeox{"gpt_neox", run, check, /*layer_norm=*/true};

}  // namespace tmac
