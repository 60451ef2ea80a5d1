#include "runtime/page_pool.h"

#include <algorithm>
#include <set>
#include <vector>

#include "catch.h"

using namespace tmac;

TEST_CASE("small pages share a slab, and a large pool has little that is not pages") {
    PagePool small(6144, 0);
    CHECK(small.bytes() == 0);
    small.prepare(1);
    small.take();
    CHECK(small.bytes() <= PagePool::kMinSlab);

    for (const int64_t page_bytes : {6144, 200000, 1474560, 3 << 20, 33 << 20}) {
        PagePool pool(page_bytes, 0);
        const int64_t pages = 300 * (1 << 20) / page_bytes;
        for (int64_t i = 0; i < pages; ++i) {
            pool.prepare(1);
            pool.take();
        }
        INFO(page_bytes);
        CHECK(pool.used() == pages);
        CHECK(pool.bytes() >= pages * page_bytes);
        CHECK(pool.bytes() <= pages * page_bytes + PagePool::kMaxSlab);
    }
}

TEST_CASE("pages do not overlap, start as zeros and are used again") {
    PagePool pool(1000 * 64, 0);
    std::vector<Page*> pages;
    pool.prepare(50);
    for (int i = 0; i < 50; ++i) {
        pages.push_back(pool.take());
        CHECK(pages.back()->references == 1);
        uint8_t* data = pages.back()->data;
        CHECK(std::all_of(data, data + pool.page_bytes(), [](uint8_t byte) { return byte == 0; }));
        std::fill(data, data + pool.page_bytes(), static_cast<uint8_t>(i + 1));
    }
    const int64_t bytes = pool.bytes();
    std::set<Page*> dropped;
    for (int i = 0; i < 50; i += 3) {
        CHECK(pages[static_cast<size_t>(i)]->data[pool.page_bytes() - 1] == i + 1);
        dropped.insert(pages[static_cast<size_t>(i)]);
        pool.drop(pages[static_cast<size_t>(i)]);
    }
    pool.prepare(static_cast<int64_t>(dropped.size()));
    for (size_t i = 0; i < dropped.size(); ++i) {
        CHECK(dropped.count(pool.take()) == 1);
    }
    CHECK(pool.bytes() == bytes);
}

TEST_CASE("a page that is shared is free when its last owner drops it") {
    PagePool pool(64, 0);
    pool.prepare(1);
    Page* page = pool.take();
    PagePool::share(page);
    pool.drop(page);
    CHECK(pool.used() == 1);
    pool.drop(page);
    CHECK(pool.used() == 0);
}

TEST_CASE("a pool's limit is in pages and slabs do not exceed it") {
    PagePool pool(64, 3);
    CHECK(pool.may_take(3));
    CHECK_FALSE(pool.may_take(4));
    pool.prepare(3);
    Page* first = pool.take();
    pool.take();
    CHECK(pool.may_take(1));
    CHECK_FALSE(pool.may_take(2));
    CHECK(pool.bytes() == 3 * 64);
    pool.drop(first);
    CHECK(pool.may_take(2));
}

TEST_CASE("trimming gives back the slabs that nobody uses") {
    PagePool pool(PagePool::kMinSlab, 0);
    std::vector<Page*> pages;
    for (int i = 0; i < 40; ++i) {
        pool.prepare(1);
        pages.push_back(pool.take());
    }
    const int64_t full = pool.bytes();
    pool.trim();
    CHECK(pool.bytes() == full);
    pages[7]->data[5] = 77;
    for (size_t i = 0; i < pages.size(); ++i) {
        if (i != 7) {
            pool.drop(pages[i]);
        }
    }
    pool.trim();
    CHECK(pool.bytes() < full);
    CHECK(pool.bytes() >= PagePool::kMinSlab);
    CHECK(pages[7]->data[5] == 77);
    std::set<uint8_t*> taken = {pages[7]->data};
    for (int i = 0; i < 39; ++i) {  // slabs in the place of those given back
        pool.prepare(1);
        CHECK(taken.insert(pool.take()->data).second);
    }
    CHECK(pool.used() == 40);
    pool.drop(pages[7]);
    CHECK(pool.used() == 39);
}
