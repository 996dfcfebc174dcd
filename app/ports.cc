#include "app/ports.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <random>
#include <sstream>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "app/files.h"

namespace gaekju::app {
namespace {

// Below net.ipv4.ip_local_port_range (32768…) and above what services are known by.
constexpr int kPrivatePortMin = 20000;
constexpr int kPrivatePortMax = 32000;

sockaddr_in Loopback(int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  return address;
}

// The inode of the listening socket on `port`, from the kernel's table; 0 when there is none.
std::string ListeningInode(const std::string& table, int port) {
  std::ifstream in(table);
  std::string line;
  std::getline(in, line);
  const std::string suffix = absl::StrCat(":", absl::Hex(port, absl::kZeroPad4));
  while (std::getline(in, line)) {
    std::istringstream fields(line);
    std::string slot, local, remote, state, skip, inode;
    fields >> slot >> local >> remote >> state;
    for (int i = 0; i < 5; ++i) fields >> skip;
    fields >> inode;
    if (state == "0A" && absl::EndsWithIgnoreCase(local, suffix)) return inode;
  }
  return "";
}

}  // namespace

bool PortIsFree(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  absl::Cleanup close_fd = [fd] { close(fd); };
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  const sockaddr_in address = Loopback(port);
  return bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
         listen(fd, 1) == 0;
}

bool PortAnswers(int port) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  absl::Cleanup close_fd = [fd] { close(fd); };
  const sockaddr_in address = Loopback(port);
  return connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0;
}

std::string PortOwner(int port) {
  std::string inode = ListeningInode("/proc/net/tcp", port);
  if (inode.empty()) inode = ListeningInode("/proc/net/tcp6", port);
  const std::string wanted = absl::StrCat("socket:[", inode, "]");
  DIR* processes = inode.empty() ? nullptr : opendir("/proc");
  if (processes == nullptr) return "another process";
  absl::Cleanup close_processes = [processes] { closedir(processes); };
  while (const dirent* process = readdir(processes)) {
    if (!isdigit(process->d_name[0])) continue;
    const std::string directory = absl::StrCat("/proc/", process->d_name, "/fd");
    DIR* descriptors = opendir(directory.c_str());
    if (descriptors == nullptr) continue;
    absl::Cleanup close_descriptors = [descriptors] { closedir(descriptors); };
    while (const dirent* descriptor = readdir(descriptors)) {
      if (ReadLink(absl::StrCat(directory, "/", descriptor->d_name)) != wanted) continue;
      std::string name = ReadFile(absl::StrCat("/proc/", process->d_name, "/comm")).value_or("?");
      return absl::StrCat("pid ", process->d_name, " (", absl::StripSuffix(name, "\n"), ")");
    }
  }
  return "another process";
}

PortBook::PortBook(std::string path) : path_(std::move(path)) {
  std::ifstream in(path_);
  std::string name;
  int port = 0;
  while (in >> name >> port) ports_[name] = port;
}

absl::StatusOr<int> PortBook::Private(const std::string& name) {
  auto usable = [&](int port) {
    return port > 0 && port < 65536 && !handed_out_.contains(port) && PortIsFree(port);
  };
  if (auto it = ports_.find(name); it != ports_.end() && usable(it->second)) {
    handed_out_.insert(it->second);
    return it->second;
  }
  std::mt19937 random{std::random_device{}()};
  std::uniform_int_distribution<int> any(kPrivatePortMin, kPrivatePortMax);
  for (int attempt = 0; attempt < 1000; ++attempt) {
    const int port = any(random);
    if (!usable(port)) continue;
    handed_out_.insert(port);
    ports_[name] = port;
    return port;
  }
  return absl::ResourceExhaustedError(absl::StrCat("no free port on 127.0.0.1 between ",
                                                   kPrivatePortMin, " and ", kPrivatePortMax));
}

absl::StatusOr<int> PortBook::Fixed(const std::string& name, int port, const std::string& flag) {
  if (handed_out_.contains(port) || !PortIsFree(port)) {
    return absl::AlreadyExistsError(absl::StrCat("port ", port, " of ", name, " is taken by ",
                                                 PortOwner(port), ". Choose others with ", flag,
                                                 "=N, or ", flag, "=0 for any free ones"));
  }
  handed_out_.insert(port);
  return port;
}

absl::Status PortBook::Save() const {
  std::string text;
  for (const auto& [name, port] : ports_) absl::StrAppend(&text, name, " ", port, "\n");
  return WriteFile(path_, text, 0644);
}

}  // namespace gaekju::app
