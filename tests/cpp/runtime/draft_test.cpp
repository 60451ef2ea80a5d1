#include "runtime/draft.h"

#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops/prefix.h"
#include "tiny_model.h"

// Drafts of a model's own leading planes: what they compute, and that none of it stays.

namespace tmac {
namespace {

using Logits = std::vector<float>;

const std::function<void()> kNothing = [] {};

std::vector<int32_t> some_tokens(uint32_t seed, int64_t count) {
    Random random(seed);
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    for (int32_t& token : tokens) {
        token = static_cast<int32_t>(random.below(TinyModel::kVocab));
    }
    return tokens;
}

Logits run(Decoder& decoder, int64_t id, const std::vector<int32_t>& tokens, Phase phase) {
    std::vector<int32_t> wanted(tokens.size());
    std::iota(wanted.begin(), wanted.end(), 0);
    Logits logits(tokens.size() * TinyModel::kVocab);
    decoder.forward({{id, tokens, wanted}}, phase, 1, [] {}, logits.data());
    return logits;
}

Logits run_tree(Decoder& decoder, int64_t id, const TokenTree& tree) {
    Logits logits((tree.tokens.size() - static_cast<size_t>(tree.first)) * TinyModel::kVocab);
    decoder.forward_tree(id, tree, 1, [] {}, logits.data());
    return logits;
}

/// Logits of some nodes, one after the other.
Logits rows_of(const Logits& logits, const std::vector<int64_t>& nodes) {
    Logits rows;
    for (const int64_t node : nodes) {
        const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(node * TinyModel::kVocab);
        rows.insert(rows.end(), begin, begin + TinyModel::kVocab);
    }
    return rows;
}

struct Case {
    std::string family;
    int64_t window = 0;
    int32_t experts = 0;
    uint8_t bits = 8;
    int32_t planes = 4;
};

const std::vector<Case> kCases = {{"llama"},
                                  {"llama", 40},
                                  {"llama", 0, 0, 4, 3},
                                  {"llama", 0, 0, 6, 4},
                                  {"qwen3", 0, 0, 4, 2},
                                  {"phi3"},
                                  {"gemma3", 33},
                                  {"gpt_neox"},
                                  {"bitnet"},
                                  {"mixtral", 0, 5},
                                  {"qwen2_moe", 0, 4},
                                  {"qwen3_moe", 30, 6, 4, 3}};

TinyShape shape_of(const Case& each) {
    TinyShape shape;
    shape.window = each.window;
    shape.experts = each.experts;
    shape.spec.bits = each.bits;
    shape.spec.fixed_zero = static_cast<float>(1 << (each.bits - 1));
    shape.spec.group_size = 32;
    shape.for_prefixes = true;
    return shape;
}

}  // namespace

TEST_CASE("drafted nodes are those of the leading planes over the model's cache, and leave nothing behind", "[draft]") {
    const TokenTree tree{some_tokens(31, 6), {-1, 0, 1, 0, 3, -1}};
    const std::vector<std::vector<int64_t>> paths = {{0, 1, 2}, {0, 3, 4}, {5}};
    for (const Case& each : kCases) {
        CAPTURE(each.family, each.window, int{each.bits}, each.planes);
        TinyModel tiny(each.family, shape_of(each));
        const auto model = std::const_pointer_cast<Model>(tiny.build());
        model->draft.set(make_draft(*model, each.planes, 1, kNothing));
        REQUIRE(model->draft.get()->bytes_per_token() < model->bytes_per_token());
        for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::i8}) {
            Decoder decoder(model, type, 0);
            Decoder draft(model->draft.get(), type, 0);
            KvCache& cache = decoder.cache();
            const int64_t base = cache.create();
            run(decoder, base, some_tokens(32, 70), Phase::prompt);
            const std::vector<uint8_t> before = cache.save(base);
            const Logits wanted = run_tree(decoder, base, tree);

            TokenTree drafted = tree;
            drafted.draft = true;
            const Logits got = run_tree(decoder, base, drafted);
            REQUIRE(got != wanted);
            for (const std::vector<int64_t>& path : paths) {
                std::vector<int32_t> line;
                for (const int64_t node : path) {
                    line.push_back(tree.tokens[static_cast<size_t>(node)]);
                }
                const int64_t alone = draft.cache().restore(before.data(), static_cast<int64_t>(before.size()));
                REQUIRE(rows_of(got, path) == run(draft, alone, line, Phase::decode));
            }
            REQUIRE(cache.save(base) == before);
            REQUIRE(run_tree(decoder, base, tree) == wanted);
            const int64_t plain = cache.fork(base, 70);
            decoder.keep(base, paths[1]);
            run(decoder, plain, {tree.tokens[0], tree.tokens[3], tree.tokens[4]}, Phase::decode);
            REQUIRE(cache.save(base) == cache.save(plain));
        }
    }
}

TEST_CASE("what the draft has computed is neither kept nor built upon by the model", "[draft]") {
    TinyModel tiny("llama", shape_of({"llama"}));
    const auto model = std::const_pointer_cast<Model>(tiny.build());
    Decoder decoder(model, CacheType::f16, 0);
    const int64_t id = decoder.cache().create();
    run(decoder, id, some_tokens(33, 20), Phase::prompt);
    CHECK_THROWS_WITH(run_tree(decoder, id, {{1}, {-1}, 0, true}), TMAC_CONTAINS("make_draft() makes one"));
    model->draft.set(make_draft(*model, 4, 2, kNothing));
    run_tree(decoder, id, {{1, 2}, {-1, 0}, 0, true});
    CHECK_THROWS_WITH(decoder.keep(id, {0}), TMAC_CONTAINS("computed with the draft"));
    CHECK_THROWS_WITH(run_tree(decoder, id, {{1, 2, 3}, {-1, 0, 1}, 2, false}), TMAC_CONTAINS("begins at first=0"));

    // The draft may go on where the model has been: its nodes alone are temporary.
    const TokenTree known{{1, 2, 3}, {-1, 0, 1}};
    const Logits wanted = run_tree(decoder, id, known);
    run_tree(decoder, id, {{1, 2, 3, 4, 5}, {-1, 0, 1, 2, 3}, 3, true});
    CHECK_THROWS_WITH(run_tree(decoder, id, {{1, 2, 3, 4, 5, 6}, {-1, 0, 1, 2, 3, 4}, 5, false}),
                      TMAC_CONTAINS("node 3 was computed with the draft"));
    CHECK_THROWS_WITH(decoder.keep(id, {0, 1, 2, 3}), TMAC_CONTAINS("node 3 was computed with the draft"));
    decoder.keep(id, {0, 1, 2});
    CHECK(decoder.cache().length(id) == 23);
    Decoder other(model, CacheType::f16, 0);
    const int64_t plain = other.cache().create();
    run(other, plain, some_tokens(33, 20), Phase::prompt);
    CHECK(run(other, plain, known.tokens, Phase::decode) == wanted);
    CHECK(other.cache().save(plain) == decoder.cache().save(id));
}

TEST_CASE("matrices that share an input share the scale of their planes, and are encoded alike", "[draft]") {
    TinyModel tiny("llama", shape_of({"llama"}));
    const std::shared_ptr<const Model> model = tiny.build();
    const std::shared_ptr<const Model> draft = make_draft(*model, 4, 1, kNothing);
    const Layer& layer = draft->layers.front();
    CHECK(layer.q.packed->header.spec.bits == 4);
    CHECK(layer.q.packed->code_scale == layer.v.packed->code_scale);
    CHECK(layer.mlp.gate.packed->code_scale == layer.mlp.up.packed->code_scale);
    CHECK(layer.q.packed->code_base != layer.v.packed->code_base);
    CHECK(draft->embedding.packed->header.spec.bits == 8);
    CHECK(draft->head.packed->header.spec.bits == 4);
    const int64_t whole = view_weight(model->embedding.packed->data, model->embedding.packed->parts.bytes).parts.bytes;
    CHECK(draft->head.bytes < whole * 6 / 10);
}

TEST_CASE("models without such a prefix are refused, with what there is", "[draft]") {
    Case ternary{"bitnet"};
    TinyShape shape = shape_of(ternary);
    shape.spec.bits = 2;
    shape.spec.codebook = Codebook::ternary;
    shape.spec.fixed_zero = 1.0F;
    CHECK_THROWS_WITH(make_draft(*TinyModel("bitnet", shape).build(), 1, 1, kNothing),
                      TMAC_CONTAINS("no matrix has more than 1"));
    TinyModel narrow("llama", shape_of({"llama", 0, 0, 4, 3}));
    const std::shared_ptr<const Model> model = narrow.build();
    CHECK_THROWS_WITH(make_draft(*model, 4, 1, kNothing), TMAC_CONTAINS("no matrix has more than 4 planes"));
    CHECK_THROWS_WITH(make_draft(*model, 0, 1, kNothing), TMAC_CONTAINS("1 to 7 planes, not 0"));
    CHECK_THROWS_WITH(make_draft(*model, 8, 1, kNothing), TMAC_CONTAINS("1 to 7 planes, not 8"));
}

TEST_CASE("a draft is made of the model itself, not of another draft", "[draft]") {
    TinyModel tiny("llama", shape_of({"llama"}));
    const std::shared_ptr<const Model> draft = make_draft(*tiny.build(), 4, 1, kNothing);
    CHECK_THROWS_WITH(make_draft(*draft, 2, 1, kNothing), TMAC_CONTAINS("head is that of a draft"));
    CHECK_THROWS_WITH(make_draft(*draft, 4, 1, kNothing), TMAC_CONTAINS("no matrix has more than 4 planes"));
}

TEST_CASE("making a draft asks before every layer whether to go on", "[draft]") {
    TinyModel tiny("llama", shape_of({"llama"}));
    const std::shared_ptr<const Model> model = tiny.build();
    int calls = 0;
    make_draft(*model, 4, 1, [&] { ++calls; });
    CHECK(calls == 2);
    const auto stop = [] { throw std::runtime_error("stop"); };
    CHECK_THROWS_WITH(make_draft(*model, 4, 1, stop), TMAC_CONTAINS("stop"));
}

}  // namespace tmac
