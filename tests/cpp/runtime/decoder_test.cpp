#include <numeric>
#include <string>
#include <vector>

#include "tiny_model.h"

// Bits: what a sequence gives does not depend on how it was cut, who ran beside it, on threads, on trees.

namespace tmac {
namespace {

using Logits = std::vector<float>;

std::vector<int32_t> some_tokens(uint32_t seed, int64_t count) {
    Random random(seed);
    std::vector<int32_t> tokens(static_cast<size_t>(count));
    for (int32_t& token : tokens) {
        token = static_cast<int32_t>(random.below(TinyModel::kVocab));
    }
    return tokens;
}

std::vector<int32_t> all_rows(size_t count) {
    std::vector<int32_t> rows(count);
    std::iota(rows.begin(), rows.end(), 0);
    return rows;
}

/// Logits of all rows of the chunks.
Logits run(Decoder& decoder, const std::vector<std::pair<int64_t, std::vector<int32_t>>>& parts, Phase phase,
           int threads = 1) {
    std::vector<Chunk> chunks;
    size_t rows = 0;
    for (const auto& [id, tokens] : parts) {
        chunks.push_back({id, tokens, all_rows(tokens.size())});
        rows += tokens.size();
    }
    Logits logits(rows * TinyModel::kVocab);
    decoder.forward(chunks, phase, threads, [] {}, logits.data());
    return logits;
}

Logits part_of(const Logits& logits, size_t first, size_t count) {
    const auto begin = logits.begin() + static_cast<std::ptrdiff_t>(first * TinyModel::kVocab);
    return {begin, begin + static_cast<std::ptrdiff_t>(count * TinyModel::kVocab)};
}

std::vector<int32_t> slice(const std::vector<int32_t>& tokens, size_t first, size_t count) {
    return {tokens.begin() + static_cast<std::ptrdiff_t>(first),
            tokens.begin() + static_cast<std::ptrdiff_t>(first + count)};
}

struct Case {
    std::string family;
    int64_t window = 0;
    int32_t experts = 0;
};

const std::vector<Case> kCases = {{"llama"},         {"llama", 40},       {"qwen3"},           {"phi3"},
                                  {"gemma2", 20},    {"gemma3", 33},      {"gpt_neox"},        {"bitnet"},
                                  {"mixtral", 0, 5}, {"qwen2_moe", 0, 4}, {"qwen3_moe", 30, 6}};

void for_each_model(const std::function<void(const std::shared_ptr<const Model>&)>& body) {
    for (const Case& each : kCases) {
        CAPTURE(each.family, each.window);
        TinyShape shape;
        shape.window = each.window;
        shape.experts = each.experts;
        shape.spec.group_size = 32;
        TinyModel tiny(each.family, shape);
        body(tiny.build());
    }
}

}  // namespace

TEST_CASE("cuts of a prompt, neighbours in the pass and threads change no bit", "[decoder]") {
    const std::vector<int32_t> tokens = some_tokens(1, 150);
    const std::vector<int32_t> other = some_tokens(2, 21);
    for_each_model([&](const std::shared_ptr<const Model>& model) {
        for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::i8}) {
            Decoder decoder(model, type, 0);
            KvCache& cache = decoder.cache();
            const int64_t whole = cache.create();
            const Logits want = run(decoder, {{whole, tokens}}, Phase::prompt);
            const int64_t cut = cache.create();
            const int64_t beside = cache.create();
            size_t first = 0;
            for (const size_t count : {1U, 70U, 16U, 63U}) {
                const Logits got =
                    run(decoder, {{beside, slice(other, first % 17, 4)}, {cut, slice(tokens, first, count)}},
                        Phase::prompt, 3);
                REQUIRE(part_of(got, 4, count) == part_of(want, first, count));
                first += count;
            }
        }
    });
}

TEST_CASE("generated tokens are the same one by one, several at once, and beside other sequences", "[decoder]") {
    const std::vector<int32_t> prompt = some_tokens(3, 70);
    const std::vector<int32_t> tokens = some_tokens(4, 20);
    const std::vector<int32_t> other = some_tokens(5, 20);
    for_each_model([&](const std::shared_ptr<const Model>& model) {
        Decoder decoder(model, CacheType::f16, 0);
        KvCache& cache = decoder.cache();
        const int64_t id = cache.create();
        run(decoder, {{id, prompt}}, Phase::prompt);
        const int64_t at_once = cache.fork(id, 70);
        const int64_t neighbour = cache.fork(id, 33);
        const Logits want = run(decoder, {{at_once, tokens}}, Phase::decode, 2);
        for (size_t i = 0; i < tokens.size(); ++i) {
            const Logits got = run(decoder, {{id, slice(tokens, i, 1)}, {neighbour, slice(other, i, 1)}}, Phase::decode,
                                   1 + static_cast<int>(i % 2));
            REQUIRE(part_of(got, 0, 1) == part_of(want, i, 1));
        }
    });
}

TEST_CASE("a token tree gives every path the bits of plain decoding, and a kept path goes on so", "[decoder]") {
    // Two roots; 0 -> {2, 3}, 2 -> {4}, 1 -> {5}, 4 -> {6}
    const std::vector<int32_t> parents = {-1, -1, 0, 0, 2, 1, 4};
    const std::vector<int32_t> nodes = some_tokens(6, 7);
    const std::vector<std::vector<int64_t>> paths = {{0, 2, 4, 6}, {0, 3}, {1, 5}};
    const std::vector<int32_t> next = some_tokens(7, 3);
    for_each_model([&](const std::shared_ptr<const Model>& model) {
        for (const int64_t length : {63, 70, 80}) {
            for (const CacheType type : {CacheType::f16, CacheType::i8}) {
                Decoder decoder(model, type, 0);
                KvCache& cache = decoder.cache();
                const int64_t base = cache.create();
                run(decoder, {{base, some_tokens(8, length)}}, Phase::prompt);
                for (const std::vector<int64_t>& path : paths) {
                    std::vector<int32_t> line;
                    for (const int64_t node : path) {
                        line.push_back(nodes[static_cast<size_t>(node)]);
                    }
                    const int64_t plain = cache.fork(base, length);
                    const Logits want = run(decoder, {{plain, line}}, Phase::decode);
                    const int64_t tree = cache.fork(base, length);
                    Logits got(nodes.size() * TinyModel::kVocab);
                    decoder.forward_tree(tree, {nodes, parents}, 2, [] {}, got.data());
                    for (size_t i = 0; i < path.size(); ++i) {
                        REQUIRE(part_of(got, static_cast<size_t>(path[i]), 1) == part_of(want, i, 1));
                    }
                    decoder.keep(tree, path);
                    REQUIRE(cache.length(tree) == cache.length(plain));
                    REQUIRE(run(decoder, {{tree, next}}, Phase::decode) ==
                            run(decoder, {{plain, next}}, Phase::decode));
                }
            }
        }
    });
}

TEST_CASE("a token tree that grows over several calls has the bits of one call, and a path of it is kept",
          "[decoder]") {
    // Three roots, paths that part and a line of its own; nodes that follow nodes of every earlier call.
    const std::vector<int32_t> parents = {-1, 0, 1, -1, 2, 0, 3, 4, -1, 7, 5};
    const std::vector<int32_t> tokens = some_tokens(21, 11);
    const std::vector<std::vector<int64_t>> cuts = {{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11}, {3, 8, 11}, {6, 6, 10, 11}};
    const std::vector<int64_t> path = {0, 1, 2, 4, 7, 9};
    for_each_model([&](const std::shared_ptr<const Model>& model) {
        for (const int64_t length : {0, 59, 70}) {
            for (const CacheType type : {CacheType::f32, CacheType::f16, CacheType::i8}) {
                CAPTURE(length, static_cast<int>(type));
                Decoder decoder(model, type, 0);
                KvCache& cache = decoder.cache();
                const int64_t base = cache.create();
                run(decoder, {{base, some_tokens(22, length)}}, Phase::prompt);
                const int64_t at_once = cache.fork(base, length);
                Logits want(tokens.size() * TinyModel::kVocab);
                decoder.forward_tree(at_once, {tokens, parents}, 1, [] {}, want.data());
                decoder.keep(at_once, path);
                const std::vector<uint8_t> kept = cache.save(at_once);
                for (const std::vector<int64_t>& calls : cuts) {
                    const int64_t grown = cache.fork(base, length);
                    int64_t first = 0;
                    for (const int64_t end : calls) {
                        const auto count = static_cast<size_t>(end);
                        Logits got(static_cast<size_t>(end - first) * TinyModel::kVocab);
                        decoder.forward_tree(
                            grown, {slice(tokens, 0, count), slice(parents, 0, count), first},
                            1 + static_cast<int>(end % 2), [] {}, got.data());
                        REQUIRE(got == part_of(want, static_cast<size_t>(first), static_cast<size_t>(end - first)));
                        first = end;
                    }
                    decoder.keep(grown, path);
                    REQUIRE(cache.save(grown) == kept);
                }
            }
        }
    });
}

TEST_CASE("nodes that an earlier call has not computed, or for another tree, are refused", "[decoder]") {
    TinyModel tiny("llama", {});
    Decoder decoder(tiny.build(), CacheType::f16, 4 * kPagePositions);
    KvCache& cache = decoder.cache();
    const int64_t id = cache.create();
    run(decoder, {{id, some_tokens(23, 60)}}, Phase::prompt);
    Logits logits(10 * TinyModel::kVocab);
    const auto grow = [&](int64_t sequence, const TokenTree& tree) {
        decoder.forward_tree(sequence, tree, 1, [] {}, logits.data());
    };
    const TokenTree begun{{1, 2, 3}, {-1, 0, -1}};
    const TokenTree more{{1, 2, 3, 4}, {-1, 0, -1, 1}, 3};
    CHECK_THROWS_WITH(grow(id, more), TMAC_CONTAINS("first=3"));
    grow(id, begun);
    CHECK_THROWS_WITH(grow(id, {{1, 2, 3, 4}, {-1, 0, 1, 1}, 3}), TMAC_CONTAINS("not those that were computed"));
    CHECK_THROWS_WITH(grow(id, {{1, 9, 3, 4}, {-1, 0, -1, 1}, 3}), TMAC_CONTAINS("not those that were computed"));
    CHECK_THROWS_WITH(grow(id, {{1, 2}, {-1, 0}, 3}), TMAC_CONTAINS("first=3 of 2 nodes"));
    CHECK_THROWS_WITH(grow(id, {{1, 2}, {-1, 0}, -1}), TMAC_CONTAINS("first=-1"));
    const int64_t other = cache.fork(id, 60);
    CHECK_THROWS_WITH(grow(other, more), TMAC_CONTAINS("0 nodes have been computed"));
    grow(id, more);  // what was refused has changed nothing, nor has the fork
    CHECK_THROWS_AS(grow(id, {std::vector<int32_t>(300, 1), std::vector<int32_t>(300, -1)}), CacheFull);
    grow(id, {{1, 2, 3, 4, 5}, {-1, 0, -1, 1, 2}, 4});  // nor has a call that found no page

    const auto forgets = [&](const std::function<void()>& change) {
        grow(id, begun);
        change();
        CHECK_THROWS_WITH(grow(id, more), TMAC_CONTAINS("have been computed since it last changed"));
    };
    forgets([&] { cache.truncate(id, cache.length(id)); });
    forgets([&] { cache.truncate(id, 58); });
    forgets([&] { run(decoder, {{other, {7}}}, Phase::decode); });
    forgets([&] { grow(other, {{1}, {-1}}); });
    forgets([&] { decoder.keep(id, {0}); });
    forgets([&] {
        const auto interrupt = [] { throw std::runtime_error("interrupted"); };
        CHECK_THROWS_AS(decoder.forward_tree(id, more, 1, interrupt, logits.data()), std::runtime_error);
    });
}

TEST_CASE("a sequence that was cut back or restored goes on with the same bits", "[decoder]") {
    const std::vector<int32_t> tokens = some_tokens(9, 90);
    const std::vector<int32_t> next = some_tokens(10, 4);
    for_each_model([&](const std::shared_ptr<const Model>& model) {
        Decoder decoder(model, CacheType::f16, 0);
        KvCache& cache = decoder.cache();
        const int64_t id = cache.create();
        run(decoder, {{id, slice(tokens, 0, 61)}}, Phase::prompt);
        const std::vector<uint8_t> saved = cache.save(id);
        const Logits want = run(decoder, {{id, next}}, Phase::decode);
        run(decoder, {{id, slice(tokens, 61, 29)}}, Phase::prompt);
        REQUIRE(cache.truncate(id, 61));
        CHECK(run(decoder, {{id, next}}, Phase::decode) == want);
        const int64_t restored = cache.restore(saved.data(), static_cast<int64_t>(saved.size()));
        CHECK(run(decoder, {{restored, next}}, Phase::decode) == want);
    });
}

TEST_CASE("an interrupted pass leaves the sequences as they were", "[decoder]") {
    TinyModel tiny("llama", {});
    Decoder decoder(tiny.build(), CacheType::f16, 0);
    const int64_t id = decoder.cache().create();
    const std::vector<int32_t> tokens = some_tokens(11, 30);
    run(decoder, {{id, slice(tokens, 0, 10)}}, Phase::prompt);
    const int64_t copy = decoder.cache().fork(id, 10);
    const std::vector<Chunk> chunks = {{id, slice(tokens, 10, 20), {}}};
    int layers = 0;
    const auto interrupt = [&layers] {
        if (++layers == 2) {
            throw std::runtime_error("interrupted");
        }
    };
    CHECK_THROWS_AS(decoder.forward(chunks, Phase::prompt, 1, interrupt, nullptr), std::runtime_error);
    CHECK(decoder.cache().length(id) == 10);
    CHECK(run(decoder, {{id, slice(tokens, 10, 20)}}, Phase::prompt) ==
          run(decoder, {{copy, slice(tokens, 10, 20)}}, Phase::prompt));
}

TEST_CASE("a pass that fails holds no page for any of its sequences", "[decoder]") {
    TinyModel tiny("llama", {});
    Decoder decoder(tiny.build(), CacheType::f16, 4 * kPagePositions);
    KvCache& cache = decoder.cache();
    std::vector<Chunk> chunks;
    for (int i = 0; i < 3; ++i) {
        chunks.push_back({cache.create(), {5}, {}});
        run(decoder, {{chunks.back().sequence, some_tokens(12, kPagePositions)}}, Phase::prompt);
    }
    const auto interrupt = [] { throw std::runtime_error("interrupted"); };
    Logits logits(TinyModel::kVocab);
    CHECK_THROWS_AS(decoder.forward(chunks, Phase::decode, 1, [] {}, nullptr), CacheFull);  // the second finds no page
    CHECK(cache.held_positions() == 3 * kPagePositions);
    CHECK_THROWS_AS(decoder.forward({chunks[0]}, Phase::decode, 1, interrupt, nullptr), std::runtime_error);
    CHECK(cache.held_positions() == 3 * kPagePositions);
    CHECK_THROWS_AS(decoder.forward_tree(chunks[1].sequence, {{5}, {-1}}, 1, interrupt, logits.data()),
                    std::runtime_error);
    CHECK(cache.held_positions() == 3 * kPagePositions);
    run(decoder, {{chunks[2].sequence, {5}}}, Phase::decode);
    CHECK(cache.length(chunks[2].sequence) == kPagePositions + 1);
}

TEST_CASE("tokens, rows, nodes and weights that do not fit are refused by name", "[decoder]") {
    TinyModel tiny("llama", {});
    Decoder decoder(tiny.build(), CacheType::f16, 128);
    const int64_t id = decoder.cache().create();
    const auto forward = [&](const std::vector<Chunk>& chunks) {
        Logits logits(10 * TinyModel::kVocab);
        decoder.forward(chunks, Phase::prompt, 1, [] {}, logits.data());
    };
    CHECK_THROWS_WITH(forward({{id, {1, 97}, {}}}), TMAC_CONTAINS("token 97"));
    CHECK_THROWS_WITH(forward({{id, {-1}, {}}}), TMAC_CONTAINS("token -1"));
    CHECK_THROWS_WITH(forward({{id, {1}, {1}}}), TMAC_CONTAINS("wanted row 1"));
    CHECK_THROWS_WITH(forward({{id, {1}, {}}, {id, {2}, {}}}), TMAC_CONTAINS("given twice"));
    CHECK_THROWS_AS(forward({{id + 1, {1}, {}}}), std::invalid_argument);
    CHECK_THROWS_AS(forward({{id, std::vector<int32_t>(129, 1), {}}}), CacheFull);
    CHECK(decoder.cache().length(id) == 0);
    CHECK_THROWS_WITH(
        decoder.forward_tree(id, {{1, 2}, {-1, 1}}, 1, [] {}, nullptr), TMAC_CONTAINS("parent of node 1"));
    CHECK_THROWS_AS(decoder.keep(id, {0}), std::invalid_argument);

    TinyShape sparse;
    sparse.experts = 3;
    TinyModel negative("mixtral", sparse);
    negative.config().intermediate_size = -1;  // of layers that it does not have
    CHECK_THROWS_WITH(negative.build(), TMAC_CONTAINS("intermediate_size"));
    TinyModel wrong("llama", {});
    wrong.config().family = "nonsense";
    CHECK_THROWS_WITH(wrong.build(), TMAC_CONTAINS("known are llama, qwen2"));
}

}  // namespace tmac
