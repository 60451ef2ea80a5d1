#include "runtime/streamed_weights.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <stdexcept>

#include "catch.h"
#include "core/packed_regions.h"
#include "ops/dequantize.h"
#include "ops/pack.h"
#include "runtime/disk_rows.h"
#include "stream_file.h"
#include "weights.h"

using namespace tmac;

namespace {

constexpr int64_t kBlock = DirectFile::kBlock;
constexpr int64_t kRows = 80;  // planes of which begin aligned
constexpr int64_t kColumns = 96;
const std::function<void()> kNothing = [] {};

/// A file of one matrix outside of the layers, packed at block 0 and as floats at block 10, and of one layer with the
/// packed matrix at block 20.
class WeightFile {
public:
    WeightFile() {
        REQUIRE(packed_.size() <= 10 * kBlock);
        for (const int64_t block : {0, 20}) {
            std::copy_n(packed_.data(), packed_.size(), file_.bytes.begin() + block * kBlock);
        }
        std::copy_n(reinterpret_cast<const uint8_t*>(floats_.data()), floats_.size() * sizeof(float),
                    file_.bytes.begin() + 10 * kBlock);
        file_.write();
    }

    const std::string& path() const { return file_.path(); }
    WeightView view() const { return view_weight(packed_.data(), packed_.size()); }
    const std::vector<float>& floats() const { return floats_; }

    std::shared_ptr<StreamedWeights> open() const {
        const DirectFile::State state = DirectFile(path()).state();
        return std::make_shared<StreamedWeights>(path(), state, range(0, 20), std::vector{range(20, 30)},
                                                 StreamOptions{2, 2, kBlock}, kNothing);
    }

    Matrix packed_in(StreamedWeights& weights, int32_t layer) const {
        const int64_t offset = layer == kOutside ? 0 : 20 * kBlock;
        StreamedPlace place{layer, offset, {}};
        for (const PackedRegion& region : packed_regions(view().header, view().parts)) {
            place.regions.push_back(offset + region.begin);
        }
        return weights.packed_matrix({packed_.data(), packed_.data() + packed_.size()}, std::move(place));
    }

    static Matrix floats_in(StreamedWeights& weights) {
        return weights.float_matrix({nullptr, DType::f32, kRows, kColumns}, {kOutside, 10 * kBlock, {}});
    }

private:
    StreamedRange range(int64_t first, int64_t end) const {
        return {{{first * kBlock, end * kBlock, file_.checksum(first, end)}}, 0};
    }

    static PackedWeight made(Random& random) {
        QuantSpec spec;
        spec.bits = 8;
        spec.group_size = 32;
        return pack(make_weight(random, spec, kRows, kColumns).canonical(), select_kernels(spec, selection()), 1);
    }

    Random random_{9};
    StreamFile file_{30, "tmac_weight_file"};
    PackedWeight packed_ = made(random_);
    std::vector<float> floats_ = random_.floats(kRows * kColumns);
};

std::vector<float> rows_of(const RowSource& source, const std::vector<int64_t>& ids, int num_threads) {
    std::vector<float> rows(ids.size() * kColumns);
    const auto count = static_cast<int64_t>(ids.size());
    source.read(ids.data(), {rows.data(), DType::f32, count, kColumns, kColumns}, num_threads);
    return rows;
}

}  // namespace

TEST_CASE("DiskRows gives the rows of the matrix in memory") {
    const WeightFile file;
    const std::shared_ptr<StreamedWeights> weights = file.open();
    const Matrix packed = file.packed_in(*weights, kOutside);
    const Matrix floats = WeightFile::floats_in(*weights);
    REQUIRE(packed.rows);
    REQUIRE(floats.rows);
    CHECK(packed.packed->data == nullptr);
    const std::vector<int64_t> ids = {3, 69, 0, 3, 41, 17, 40, 68};
    std::vector<float> wanted_packed;
    std::vector<float> wanted_floats;
    const WeightView view = file.view();
    RowDequantizer dequantizer(view);
    for (const int64_t id : ids) {
        std::vector<float> row(kColumns);
        dequantizer.run(id, row.data());
        wanted_packed.insert(wanted_packed.end(), row.begin(), row.end());
        const auto begin = file.floats().begin() + id * kColumns;
        wanted_floats.insert(wanted_floats.end(), begin, begin + kColumns);
    }
    for (const int threads : {1, 4}) {
        CHECK(rows_of(*packed.rows, ids, threads) == wanted_packed);
        CHECK(rows_of(*floats.rows, ids, threads) == wanted_floats);
    }
    CHECK_THROWS_AS(rows_of(*packed.rows, {kRows}, 1), std::invalid_argument);
    std::filesystem::last_write_time(file.path(),
                                     std::filesystem::file_time_type::clock::now() - std::chrono::hours(1));
    CHECK_THROWS_WITH(rows_of(*packed.rows, ids, 1), TMAC_CONTAINS("was changed"));
    CHECK_THROWS_WITH(rows_of(*floats.rows, ids, 1), TMAC_CONTAINS(file.path()));
}

TEST_CASE("DiskRows reads rows that are longer than a read") {
    constexpr int64_t kLong = 40'000;
    const StreamFile file(100);
    const auto direct = std::make_shared<const DirectFile>(file.path());
    const DiskRows rows(direct, direct->state(), {nullptr, DType::bf16, 5, kLong}, 64);
    std::vector<float> row(kLong);
    const int64_t id = 4;
    rows.read(&id, {row.data(), DType::f32, 1, kLong, kLong}, 1);
    const uint8_t* stored = file.bytes.data() + 64 + id * kLong * 2;
    bool same = true;
    for (size_t i = 0; i < row.size(); ++i) {
        const uint32_t bits = static_cast<uint32_t>(stored[2 * i]) << 16 | static_cast<uint32_t>(stored[2 * i + 1])
                                                                               << 24;
        uint32_t found = 0;
        std::memcpy(&found, &row[i], sizeof(found));
        same = same && found == bits;
    }
    CHECK(same);
}

TEST_CASE("a Pass has the weights of a layer in memory while it is in the layer") {
    const WeightFile file;
    const std::shared_ptr<StreamedWeights> weights = file.open();
    Model model;
    model.layers.emplace_back().o = file.packed_in(*weights, 0);
    weights->attach(model);
    const WeightView wanted = file.view();
    WeightView& found = *model.layers[0].o.packed;
    for (int i = 0; i < 3; ++i) {
        StreamedWeights::Pass pass(weights.get(), kNothing);
        CHECK(found.data == nullptr);
        pass.enter(0);
        CHECK(std::equal(wanted.data, wanted.data + wanted.parts.codes, found.data));
        for (int32_t region = 0; region < wanted.parts.num_regions; ++region) {
            const int64_t bytes =
                region + 1 < wanted.parts.num_regions ? wanted.parts.region_stride : wanted.parts.last_region;
            CHECK(std::equal(wanted.regions[region], wanted.regions[region] + bytes, found.regions[region]));
        }
        if (i != 1) {  // left in mid-layer, the next one begins anew all the same
            pass.leave(0);
            CHECK(found.data == nullptr);
        }
    }
    CHECK(found.data == nullptr);
    CHECK_THROWS_WITH(weights->require_resident(model.layers[0].o), TMAC_CONTAINS("not in memory"));
}

TEST_CASE("StreamedWeights attaches only matrices of its own, of the right layer") {
    const WeightFile file;
    const std::shared_ptr<StreamedWeights> first = file.open();
    const std::shared_ptr<StreamedWeights> second = file.open();
    Model model;
    model.layers.emplace_back().o = file.packed_in(*first, 0);
    CHECK_THROWS_WITH(second->attach(model), TMAC_CONTAINS("lies in another file"));
    file.packed_in(*second, 0);  // now there is such a place
    CHECK_THROWS_WITH(second->attach(model), TMAC_CONTAINS("lies in another file"));
    model.layers[0].o = file.packed_in(*first, kOutside);
    CHECK_THROWS_WITH(first->attach(model), TMAC_CONTAINS("lies in that of another one"));
    model.layers[0].o = {};
    model.head = file.packed_in(*first, kOutside);
    CHECK_THROWS_WITH(first->attach(model), TMAC_CONTAINS("head must be resident"));
    model.layers.emplace_back();
    CHECK_THROWS_WITH(first->attach(model), TMAC_CONTAINS("the model has 2 layers, the file 1"));
}

TEST_CASE("StreamedWeights waits for its turn no longer than a checkpoint lets it") {
    const WeightFile file;
    const std::shared_ptr<StreamedWeights> weights = file.open();
    const StreamedWeights::Pass pass(weights.get(), kNothing);
    const std::function<void()> stop = [] { throw std::domain_error("enough"); };
    CHECK_THROWS_AS(StreamedWeights::Pass(weights.get(), stop), std::domain_error);
}
