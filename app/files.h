// files.h: small files, read and written whole.
#ifndef GAEKJU_APP_FILES_H_
#define GAEKJU_APP_FILES_H_

#include <sys/types.h>

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace gaekju::app {

// Errors: NOT_FOUND, INTERNAL.
absl::StatusOr<std::string> ReadFile(const std::string& path);
// Atomically: a reader sees the old text or the new one. `mode` as in open(2). Errors: INTERNAL,
// with the system's words.
absl::Status WriteFile(const std::string& path, const std::string& text, mode_t mode);
// mkdir -p; the last directory gets `mode`, also when it was there. Errors: INTERNAL.
absl::Status MakeDirectory(const std::string& path, mode_t mode);
bool FileExists(const std::string& path);
// Where a symbolic link points; empty when it is none or cannot be read.
std::string ReadLink(const std::string& path);
// Without "." and "..", absolute; the path itself when it does not exist.
std::string AbsolutePath(const std::string& path);
// rm -rf.
void RemoveTree(const std::string& path);
// `bytes` random bytes from the kernel, as hex.
std::string RandomHex(int bytes);

}  // namespace gaekju::app

#endif  // GAEKJU_APP_FILES_H_
