#include "app/targets.h"

#include <netdb.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include "absl/cleanup/cleanup.h"
#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "app/context_list.h"
#include "app/up_file.h"

ABSL_DECLARE_FLAG(std::string, data);
ABSL_DECLARE_FLAG(std::string, peers);
ABSL_DECLARE_FLAG(std::string, database);
ABSL_DECLARE_FLAG(std::string, nats);
ABSL_FLAG(std::string, metrics_of, "",
          "where contexts tell their metrics: order=127.0.0.1:9464,…; empty: as `gaekju up` says");

namespace gaekju::app {
namespace {

bool IsSet(const char* flag) {
  const absl::CommandLineFlag* f = absl::FindCommandLineFlag(flag);
  return f->CurrentValue() != f->DefaultValue();
}

}  // namespace

std::string PeersOf(const UpFile& up) {
  return absl::StrJoin(up.contexts, ",", [](std::string* out, const auto& context) {
    absl::StrAppend(out, context.first, "=", context.second.address());
  });
}

absl::StatusOr<Targets> FindTargets() {
  Targets targets;
  const std::string data =
      absl::GetFlag(FLAGS_data).empty() ? DefaultDataDirectory() : absl::GetFlag(FLAGS_data);
  absl::StatusOr<UpFile> up = ReadUpFile(data);
  if (up.ok()) {
    targets.peers = PeersOf(*up);
    targets.nats_url = up->nats.url;
    targets.storefronts = up->storefronts;
    for (const auto& [name, context] : up->contexts) {
      targets.dsns[name] = context.dsn;
      targets.metrics[name] = context.metrics;
    }
  } else if (!IsSet("peers") && !IsSet("database")) {
    return up.status();
  }
  if (IsSet("peers")) targets.peers = absl::GetFlag(FLAGS_peers);
  if (IsSet("nats")) targets.nats_url = absl::GetFlag(FLAGS_nats);
  if (IsSet("database")) {
    for (const std::string& name : ContextNames()) {
      targets.dsns[name] =
          absl::StrReplaceAll(absl::GetFlag(FLAGS_database), {{"{context}", name}});
    }
  }
  for (absl::string_view one :
       absl::StrSplit(absl::GetFlag(FLAGS_metrics_of), ',', absl::SkipWhitespace())) {
    const std::pair<std::string, std::string> parts = absl::StrSplit(one, absl::MaxSplits('=', 1));
    targets.metrics[parts.first] = parts.second;
  }
  return targets;
}

absl::StatusOr<std::string> FindNats() {
  if (IsSet("nats")) return absl::GetFlag(FLAGS_nats);
  absl::StatusOr<Targets> targets = FindTargets();
  if (!targets.ok()) return targets.status();
  return targets->nats_url;
}

std::vector<std::string> TargetFlags() {
  return {"data", "peers", "database", "nats", "metrics_of"};
}

absl::StatusOr<std::string> FetchMetrics(const std::string& address) {
  const std::pair<std::string, std::string> parts =
      absl::StrSplit(address, absl::MaxSplits(':', 1));
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(parts.first.c_str(), parts.second.c_str(), &hints, &found) != 0) {
    return absl::UnavailableError(absl::StrCat("no such address: ", address));
  }
  absl::Cleanup free_found = [found] { freeaddrinfo(found); };
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  absl::Cleanup close_fd = [fd] { close(fd); };
  const timeval timeout{5, 0};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  const std::string request = absl::StrCat("GET /metrics HTTP/1.0\r\nHost: ", address, "\r\n\r\n");
  if (connect(fd, found->ai_addr, found->ai_addrlen) != 0 ||
      write(fd, request.data(), request.size()) != static_cast<ssize_t>(request.size())) {
    return absl::UnavailableError(absl::StrCat("no metrics at ", address));
  }
  std::string page;
  char buffer[16384];
  for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;)
    page.append(buffer, static_cast<size_t>(n));
  return page;
}

double MetricSum(const std::string& page, const std::string& name) {
  double sum = 0;
  for (absl::string_view line : absl::StrSplit(page, '\n')) {
    if (!absl::StartsWith(line, name)) continue;
    const absl::string_view rest = line.substr(name.size());
    double value = 0;
    if ((absl::StartsWith(rest, "{") || absl::StartsWith(rest, " ")) &&
        absl::SimpleAtod(rest.substr(rest.rfind(' ') + 1), &value)) {
      sum += value;
    }
  }
  return sum;
}

}  // namespace gaekju::app
