#include "runtime/file_piece.h"

#include "core/check.h"
#include "core/direct_file.h"

namespace tmac {

void check_pieces(const FilePart& part, int64_t file_size) {
    int64_t at = part.empty() ? 0 : part.front().begin;
    for (const FilePiece& piece : part) {
        TMAC_CHECK(piece.begin == at && piece.begin >= 0 && piece.end >= piece.begin && piece.end <= file_size &&
                       piece.begin % DirectFile::kBlock == 0 && piece.end % DirectFile::kBlock == 0,
                   "[FilePiece] bytes ", piece.begin, " to ", piece.end, " of a file of ", file_size,
                   " do not follow those before in whole blocks");
        at = piece.end;
    }
}

void check_hash(const ContentHash& hash, const FilePiece& piece, const std::string& path) {
    if (hash.digest() != piece.checksum) {
        throw DamagedFile(path + ": bytes " + std::to_string(piece.begin) + " to " + std::to_string(piece.end) +
                          " are damaged: delete the file, it is made again when the model is loaded");
    }
}

void check_bytes(const uint8_t* bytes, const FilePiece& piece, const std::string& path) {
    ContentHash hash;
    hash.update(bytes, static_cast<size_t>(piece.bytes()));
    check_hash(hash, piece, path);
}

}  // namespace tmac
