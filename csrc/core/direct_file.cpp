#include "core/direct_file.h"

#include <cerrno>
#include <stdexcept>
#include <system_error>
#include <utility>

#include "core/block_buffer.h"

#if defined(_WIN32)
#define NOMINMAX
#include <windows.h>

#include <filesystem>
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace tmac {
namespace {

[[noreturn]] void fail_to(const char* what, const std::string& path, int64_t error) {
    throw std::runtime_error(path + ": cannot be " + what + ": " +
                             std::system_category().message(static_cast<int>(error)));
}

}  // namespace

DirectFile::DirectFile(std::string path) : path_(std::move(path)) {
    open(true);
    if (!direct_) {
        return;
    }
    BlockBuffer probe(kBlock, BlockBuffer::Pages::plain);
    if (read_some(0, kBlock, probe.data()) < 0) {  // some file systems refuse only now
        close();
        open(false);
    }
}

DirectFile::~DirectFile() { close(); }

void DirectFile::read(int64_t offset, int64_t size, uint8_t* to) const {
    while (size > 0) {
        const int64_t count = read_some(offset, size, to);
        if (count < 0) {
            fail_to("read", path_, -count);
        }
        if (count == 0 || (direct_ && count % kBlock != 0)) {
            throw std::runtime_error(path_ + ": ends at byte " + std::to_string(offset + count) + " of a piece up to " +
                                     std::to_string(offset + size) + ": it has become shorter since it was opened");
        }
        offset += count;
        size -= count;
        to += count;
    }
}

#if defined(_WIN32)

void DirectFile::open(bool direct) {
    const std::filesystem::path name = std::filesystem::u8path(path_);
    const DWORD flags = direct ? FILE_FLAG_NO_BUFFERING : FILE_FLAG_SEQUENTIAL_SCAN;
    const HANDLE handle =
        CreateFileW(name.c_str(), GENERIC_READ, FILE_SHARE_READ | FILE_SHARE_WRITE | FILE_SHARE_DELETE, nullptr,
                    OPEN_EXISTING, flags, nullptr);
    if (handle == INVALID_HANDLE_VALUE) {
        fail_to("opened", path_, GetLastError());
    }
    handle_ = reinterpret_cast<intptr_t>(handle);
    direct_ = direct;
}

void DirectFile::close() {
    if (handle_ != -1) {
        CloseHandle(reinterpret_cast<HANDLE>(handle_));
        handle_ = -1;
    }
}

DirectFile::State DirectFile::state() const {
    BY_HANDLE_FILE_INFORMATION about{};
    if (GetFileInformationByHandle(reinterpret_cast<HANDLE>(handle_), &about) == 0) {
        fail_to("asked for its size", path_, GetLastError());
    }
    const auto join = [](DWORD high, DWORD low) {
        return static_cast<int64_t>((static_cast<uint64_t>(high) << 32) | static_cast<uint64_t>(low));
    };
    constexpr int64_t kTo1970 = 116444736000000000;  // of the system's ticks, 100 ns from 1601 on
    return {join(about.nFileSizeHigh, about.nFileSizeLow),
            (join(about.ftLastWriteTime.dwHighDateTime, about.ftLastWriteTime.dwLowDateTime) - kTo1970) * 100};
}

int64_t DirectFile::read_some(int64_t offset, int64_t size, uint8_t* to) const {
    OVERLAPPED place{};
    place.Offset = static_cast<DWORD>(offset & 0xFFFFFFFF);
    place.OffsetHigh = static_cast<DWORD>(offset >> 32);
    DWORD count = 0;
    const auto wanted = static_cast<DWORD>(size < (1 << 30) ? size : (1 << 30));
    if (ReadFile(reinterpret_cast<HANDLE>(handle_), to, wanted, &count, &place) == 0) {
        const DWORD error = GetLastError();
        return error == ERROR_HANDLE_EOF ? 0 : -static_cast<int64_t>(error);
    }
    return count;
}

#else

void DirectFile::open(bool direct) {
    int flags = O_RDONLY | O_CLOEXEC;
#if defined(O_DIRECT)
    flags |= direct ? O_DIRECT : 0;
#else
    direct = false;
#endif
    int file = ::open(path_.c_str(), flags);
    if (file < 0 && errno == EINVAL && direct) {
        direct = false;
        file = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    }
    if (file < 0) {
        fail_to("opened", path_, errno);
    }
#if defined(F_NOCACHE)
    direct = fcntl(file, F_NOCACHE, 1) != -1;
#endif
    handle_ = file;
    direct_ = direct;
}

void DirectFile::close() {
    if (handle_ != -1) {
        ::close(static_cast<int>(handle_));
        handle_ = -1;
    }
}

DirectFile::State DirectFile::state() const {
    struct stat about{};
    if (fstat(static_cast<int>(handle_), &about) != 0) {
        fail_to("asked for its size", path_, errno);
    }
#if defined(__APPLE__)
    const timespec& modified = about.st_mtimespec;
#else
    const timespec& modified = about.st_mtim;
#endif
    return {about.st_size, int64_t{modified.tv_sec} * 1000000000 + modified.tv_nsec};
}

int64_t DirectFile::read_some(int64_t offset, int64_t size, uint8_t* to) const {
    const int file = static_cast<int>(handle_);
    ssize_t count = 0;
#if defined(POSIX_FADV_WILLNEED)
    if (!direct_) {  // what comes next, while this piece is used
        posix_fadvise(file, offset + size, size, POSIX_FADV_WILLNEED);
    }
#endif
    do {
        count = pread(file, to, static_cast<size_t>(size), offset);
    } while (count < 0 && errno == EINTR);
    if (count < 0) {
        return -int64_t{errno};
    }
#if defined(POSIX_FADV_DONTNEED)
    if (!direct_) {  // it will be read again only after everything else: others need the cache more
        posix_fadvise(file, offset, count, POSIX_FADV_DONTNEED);
    }
#endif
    return count;
}

#endif

}  // namespace tmac
