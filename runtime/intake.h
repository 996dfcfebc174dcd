// intake.h: turns what comes from the bus (commands, answers, events) into items of the turn loop,
// and settles it afterwards.
//
//   Intake intake(options, context, &loop, &bus);
//   spec.handler = [&](BusDelivery delivery) { intake.Take(std::move(delivery)); };
//
// A message may carry many envelopes; it is acked when each has been committed. What can never work
// (unreadable, an unknown command, refused by its decider as an event) goes to the subject
// gaekju.dead.<context> with the reason, by itself: its neighbours are taken. The message is acked
// once the dead letters are stored. An event of a type that the context does not take is nobody's
// dead letter, whatever else is wrong with it. docs/adr/0073 says why.
//
// The bus outlives the loop. Thread-safe. Take returns at once.
#ifndef GAEKJU_RUNTIME_INTAKE_H_
#define GAEKJU_RUNTIME_INTAKE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "flow/turn.h"
#include "runtime/bus.h"
#include "runtime/cloudevents.h"
#include "runtime/turn_loop.h"

namespace gaekju::runtime {

class Intake {
 public:
  struct Options {
    std::string context;
    absl::Duration nak_delay = absl::Milliseconds(500);
    std::function<std::string()> make_uuid;  // for Caller::request_uuid
    // A dead letter; `what` names the message.
    std::function<void(const std::string& what, const std::string& reason)> dead;
  };
  Intake(Options options, TurnLoop* loop, Bus* bus);

  void Take(BusDelivery delivery);

  int64_t dead_count() const;

 private:
  struct Shared;
  struct Settlement;
  void Submit(ReadEnvelope read, std::function<void(absl::Status)> settled);

  const std::shared_ptr<Shared> shared_;  // with the items on their way, which may outlive this
  TurnLoop* const loop_;
};

}  // namespace gaekju::runtime

#endif  // GAEKJU_RUNTIME_INTAKE_H_
