// dead.cc: `gaekju dead`: what no context could handle, and a way back for it.

#include <nats/nats.h>

#include <cstdio>
#include <iostream>
#include <memory>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "app/command.h"
#include "app/targets.h"
#include "runtime/bus.h"

ABSL_FLAG(int, limit, 100, "how many dead letters to list or replay at most, the oldest first");

namespace gaekju::app {
namespace {

template <auto Destroy>
struct Destroyer {
  template <class T>
  void operator()(T* pointer) const {
    Destroy(pointer);
  }
};
using Connection = std::unique_ptr<natsConnection, Destroyer<natsConnection_Destroy>>;
using JetStream = std::unique_ptr<jsCtx, Destroyer<jsCtx_Destroy>>;
using NatsMessage = std::unique_ptr<natsMsg, Destroyer<natsMsg_Destroy>>;
using StreamInfo = std::unique_ptr<jsStreamInfo, Destroyer<jsStreamInfo_Destroy>>;

std::string Header(natsMsg* message, const char* name) {
  const char* value = nullptr;
  return natsMsgHeader_Get(message, name, &value) == NATS_OK ? value : "";
}

// Back to where it came from, under an id of its own so that the duplicate window does not swallow
// it; then out of the dead letters.
absl::Status Replay(jsCtx* js, natsMsg* message, uint64_t seq) {
  const std::string subject = Header(message, "gaekju-dead-subject");
  if (subject.empty()) return absl::InvalidArgumentError("does not say where it came from");
  natsMsg* raw = nullptr;
  if (natsMsg_Create(&raw, subject.c_str(), nullptr, natsMsg_GetData(message),
                     natsMsg_GetDataLength(message)) != NATS_OK) {
    return absl::InternalError("cannot be copied");
  }
  NatsMessage copy(raw);
  const char** keys = nullptr;
  int count = 0;
  if (natsMsgHeader_Keys(message, &keys, &count) == NATS_OK) {
    for (int i = 0; i < count; ++i) {
      const std::string key = keys[i];
      if (key.rfind("gaekju-dead-", 0) == 0 || key == "Nats-Msg-Id") continue;
      natsMsgHeader_Set(copy.get(), key.c_str(), Header(message, key.c_str()).c_str());
    }
    free(keys);
  }
  natsMsgHeader_Set(copy.get(), "Nats-Msg-Id", absl::StrCat("dead:", seq).c_str());
  jsPubAck* ack = nullptr;
  const natsStatus published = js_PublishMsg(&ack, js, copy.get(), nullptr, nullptr);
  jsPubAck_Destroy(ack);
  if (published != NATS_OK)
    return absl::UnavailableError(
        absl::StrCat("cannot be published: ", natsStatus_GetText(published)));
  if (js_DeleteMsg(js, runtime::kDeadStream, seq, nullptr, nullptr) != NATS_OK) {
    return absl::UnavailableError("was published, but is still among the dead letters");
  }
  return absl::OkStatus();
}

int RunDead(const std::vector<std::string>& arguments) {
  const std::string what = arguments.empty() ? "" : arguments[0];
  uint64_t only = 0;
  if ((what != "list" && what != "replay") || arguments.size() > 2 ||
      (arguments.size() == 2 && (what != "replay" || !absl::SimpleAtoi(arguments[1], &only)))) {
    return Fail("dead", "needs 'list', 'replay' or 'replay SEQ'; see gaekju dead --help", 2);
  }
  const absl::StatusOr<std::string> url = FindNats();
  if (!url.ok()) return Fail("dead", url.status().message());
  natsConnection* raw_connection = nullptr;
  if (const natsStatus s = natsConnection_ConnectTo(&raw_connection, url->c_str()); s != NATS_OK) {
    return Fail("dead", absl::StrCat("no NATS to be reached: ", natsStatus_GetText(s),
                                     " (--nats, --data)"));
  }
  Connection connection(raw_connection);
  jsCtx* raw_js = nullptr;
  if (natsConnection_JetStream(&raw_js, connection.get(), nullptr) != NATS_OK)
    return Fail("dead", "NATS has no JetStream");
  JetStream js(raw_js);
  jsStreamInfo* raw_info = nullptr;
  jsErrCode error = static_cast<jsErrCode>(0);
  if (const natsStatus s =
          js_GetStreamInfo(&raw_info, js.get(), runtime::kDeadStream, nullptr, &error);
      s != NATS_OK) {
    return Fail("dead",
                absl::StrCat("no stream ", runtime::kDeadStream, ": ", natsStatus_GetText(s)));
  }
  StreamInfo info(raw_info);

  int shown = 0, failed = 0;
  const uint64_t first = only != 0 ? only : info->State.FirstSeq;
  const uint64_t last = only != 0 ? only : info->State.LastSeq;
  for (uint64_t seq = first;
       info->State.Msgs > 0 && seq <= last && shown < absl::GetFlag(FLAGS_limit); ++seq) {
    natsMsg* raw = nullptr;
    if (js_GetMsg(&raw, js.get(), runtime::kDeadStream, seq, nullptr, &error) != NATS_OK)
      continue;  // deleted meanwhile
    NatsMessage message(raw);
    ++shown;
    std::cout << seq << "  "
              << absl::FormatTime(absl::FromUnixNanos(natsMsg_GetTime(message.get())),
                                  absl::UTCTimeZone())
              << "  " << Header(message.get(), "gaekju-dead-subject") << "  "
              << Header(message.get(), "ce-type") << Header(message.get(), "gaekju-dead-type")
              << "  " << natsMsg_GetDataLength(message.get())
              << " bytes: " << Header(message.get(), "gaekju-dead-reason") << "\n";
    if (what != "replay") continue;
    if (absl::Status status = Replay(js.get(), message.get(), seq); !status.ok()) {
      ++failed;
      std::cout << "   " << status.message() << "\n";
    }
  }
  std::cout << shown << (what == "replay" ? " replayed, " : " listed, ") << info->State.Msgs
            << " dead letters in all";
  std::cout << (failed > 0 ? absl::StrCat(", ", failed, " failed") : "") << "\n";
  return failed == 0 ? 0 : 1;
}

}  // namespace

Command DeadCommand() {
  return {.name = "dead",
          .summary = "list the messages that no context could handle, or send them again",
          .usage =
              "Usage: gaekju dead list [--limit=N]     gaekju dead replay [SEQ] [--limit=N]\n"
              "\n"
              "Lists dead letters: number, time, subject, type, size and why. `replay` publishes "
              "them again where they came from and takes\n"
              "them out of the dead letters; a message that still cannot be handled comes back.\n",
          .flags = {"data", "nats", "limit"},
          .run = RunDead};
}

}  // namespace gaekju::app
