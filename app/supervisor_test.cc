// Real child processes: /bin/sh, in a temporary directory.
#include "app/supervisor.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "app/files.h"
#include "app/ports.h"
#include "app/process.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/testing/eventually.h"

namespace gaekju::app {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kPatience = absl::Seconds(20);

class SupervisorTest : public ::testing::Test {
 protected:
  SupervisorTest()
      : directory_(
            absl::StrCat(::testing::TempDir(), "/supervisor-", getpid(), "-", RandomHex(4))) {
    EXPECT_TRUE(MakeDirectory(directory_, 0755).ok());
  }
  ~SupervisorTest() override { RemoveTree(directory_); }

  ChildSpec Shell(const std::string& name, const std::string& script) const {
    ChildSpec spec{.name = name};
    spec.process.argv = {"/bin/sh", "-c", script};
    spec.process.output_path = absl::StrCat(directory_, "/", name, ".log");
    return spec;
  }

  std::string Path(const std::string& name) const { return absl::StrCat(directory_, "/", name); }

  const std::string directory_;
};

bool Alive(pid_t pid) { return kill(pid, 0) == 0; }

TEST_F(SupervisorTest, ChildThatEndsIsStartedAgainAfterAPauseThatGrows) {
  Supervisor supervisor;
  Child* child = supervisor.Add(Shell("short", "exit 3"));
  std::vector<absl::Duration> pauses;
  supervisor.on_line = [&](const std::string& line) {
    EXPECT_THAT(line, HasSubstr("exit code 3"));
    pauses.push_back(child->pause);
  };
  ASSERT_TRUE(supervisor.Start(child).ok());
  ASSERT_TRUE(supervisor.WaitFor([&] { return pauses.size() == 3; }, kPatience, "three ends").ok());
  EXPECT_EQ(pauses, (std::vector<absl::Duration>{absl::Milliseconds(100), absl::Milliseconds(200),
                                                 absl::Milliseconds(400)}));
  EXPECT_TRUE(supervisor.Stop({child}, SIGTERM, kPatience));
  EXPECT_EQ(child->pid, 0);
}

TEST_F(SupervisorTest, StoppedChildStaysDown) {
  Supervisor supervisor;
  Child* child = supervisor.Add(Shell("long", "exec sleep 1000"));
  ASSERT_TRUE(supervisor.Start(child).ok());
  EXPECT_TRUE(supervisor.Stop({child}, SIGTERM, kPatience));
  EXPECT_TRUE(absl::IsDeadlineExceeded(supervisor.WaitFor(
      [&] { return child->pid != 0; }, absl::Milliseconds(400), "another start")));
  EXPECT_EQ(child->start_count, 1);
}

TEST_F(SupervisorTest, ChildThatIgnoresTheSignalIsKilled) {
  Supervisor supervisor;
  Child* child = supervisor.Add(Shell("stubborn", absl::StrCat("trap '' TERM; touch ", Path("deaf"),
                                                               "; while :; do sleep 0.05; done")));
  ASSERT_TRUE(supervisor.Start(child).ok());
  ASSERT_TRUE(
      supervisor.WaitFor([&] { return FileExists(Path("deaf")); }, kPatience, "the trap").ok());
  EXPECT_FALSE(supervisor.Stop({child}, SIGTERM, absl::Milliseconds(200)));
  EXPECT_EQ(child->pid, 0);
}

TEST_F(SupervisorTest, ChildTellsThatItIsReady) {
  Supervisor supervisor;
  ChildSpec spec = Shell("ready", "echo ready >&$GAEKJU_READY_FD; exec sleep 1000");
  // dash knows only one digit in ">&N".
  spec.process.argv = {"/bin/bash", "-c", "echo ready >&$GAEKJU_READY_FD; exec sleep 1000"};
  spec.tells_ready = true;
  Child* child = supervisor.Add(std::move(spec));
  ASSERT_TRUE(supervisor.Start(child).ok());
  EXPECT_FALSE(child->ready);
  EXPECT_TRUE(supervisor.WaitFor([&] { return child->ready; }, kPatience, "ready").ok());
  EXPECT_TRUE(supervisor.Stop({child}, SIGTERM, kPatience));
}

TEST_F(SupervisorTest, WrongConfigurationIsNotTriedAgain) {
  Supervisor supervisor;
  ChildSpec spec = Shell("wrong", absl::StrCat("echo the flag is wrong; exit ", kConfigExitCode));
  spec.tells_ready = true;
  Child* child = supervisor.Add(std::move(spec));
  ASSERT_TRUE(supervisor.Start(child).ok());
  absl::Status status = supervisor.WaitFor([&] { return child->ready; }, kPatience, "ready");
  EXPECT_TRUE(absl::IsAborted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("the flag is wrong"));
  EXPECT_EQ(child->start_count, 1);
}

TEST_F(SupervisorTest, SignalEndsAWait) {
  Supervisor supervisor;
  kill(getpid(), SIGTERM);
  EXPECT_TRUE(absl::IsCancelled(supervisor.WaitFor([] { return false; }, kPatience, "nothing")));
  EXPECT_TRUE(supervisor.stop_requested());
}

TEST_F(SupervisorTest, OldLogIsKeptAside) {
  ASSERT_TRUE(WriteFile(Path("talks.log"), "yesterday\n", 0644).ok());
  Supervisor supervisor;
  Child* child = supervisor.Add(Shell("talks", "echo today; exec sleep 1000"));
  ASSERT_TRUE(supervisor.Start(child).ok());
  ASSERT_TRUE(
      supervisor
          .WaitFor([&] { return LastLines(Path("talks.log"), 1) == "today"; }, kPatience, "a line")
          .ok());
  EXPECT_EQ(*ReadFile(Path("talks.log.1")), "yesterday\n");
  EXPECT_TRUE(supervisor.Stop({child}, SIGTERM, kPatience));
}

TEST_F(SupervisorTest, ChildDoesNotOutliveItsParent) {
  const std::string pid_file = Path("pid");
  const pid_t parent = fork();
  if (parent == 0) {
    auto pid = StartProcess({.argv = {"/bin/sleep", "1000"}});
    WriteFile(pid_file, absl::StrCat(pid.value_or(0)), 0644).IgnoreError();
    for (;;) pause();
  }
  ASSERT_TRUE(runtime::Eventually([&] { return FileExists(pid_file); }));
  const pid_t child = atoi(ReadFile(pid_file)->c_str());
  ASSERT_GT(child, 0);
  EXPECT_TRUE(Alive(child));
  EXPECT_NE(getpgid(child), getpgid(parent));  // Ctrl-C goes to the parent's group only
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  // An orphan whose end nobody has collected yet is as good as gone.
  EXPECT_TRUE(runtime::Eventually([&] {
    return !Alive(child) ||
           ReadFile(absl::StrCat("/proc/", child, "/stat")).value_or(" Z ").find(") Z ") !=
               std::string::npos;
  }));
  kill(child, SIGKILL);
}

TEST(Process, WhatCannotBeExecutedIsSaid) {
  auto pid = StartProcess({.argv = {"/nonexistent/program"}});
  EXPECT_TRUE(absl::IsNotFound(pid.status())) << pid.status();
  EXPECT_THAT(std::string(pid.status().message()),
              HasSubstr("/nonexistent/program cannot be executed"));
}

TEST(Process, EndOfItsOutputTellsWhyItFailed) {
  const std::string log = absl::StrCat(::testing::TempDir(), "/process-", getpid(), ".log");
  absl::Status status = RunProcess(
      {.argv = {"/bin/sh", "-c", "echo no such thing; exit 4"}, .output_path = log}, kPatience);
  EXPECT_TRUE(absl::IsAborted(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("exit code 4"));
  EXPECT_THAT(std::string(status.message()), HasSubstr("no such thing"));
  unlink(log.c_str());
  EXPECT_TRUE(absl::IsDeadlineExceeded(
      RunProcess({.argv = {"/bin/sleep", "1000"}}, absl::Milliseconds(50))));
}

TEST(PortBook, RemembersPortsAndAvoidsTakenOnes) {
  const std::string path = absl::StrCat(::testing::TempDir(), "/ports-", getpid());
  unlink(path.c_str());
  PortBook first(path);
  auto a = first.Private("a"), b = first.Private("b");
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NE(*a, *b);
  ASSERT_TRUE(first.Save().ok());
  PortBook second(path);
  EXPECT_EQ(*second.Private("b"), *b);
  EXPECT_EQ(*second.Private("a"), *a);

  // Somebody else's listener.
  Supervisor supervisor;
  Child* child = supervisor.Add(
      {.name = "taker",
       .process = {
           .argv = {"/usr/bin/env", "python3", "-c",
                    absl::StrCat("import socket,time; s=socket.socket(); s.bind(('127.0.0.1',", *a,
                                 ")); s.listen(); time.sleep(1000)")}}});
  ASSERT_TRUE(supervisor.Start(child).ok());
  ASSERT_TRUE(supervisor.WaitFor([&] { return PortAnswers(*a); }, kPatience, "the listener").ok());
  PortBook third(path);
  EXPECT_NE(*third.Private("a"), *a);
  absl::Status taken = third.Fixed("order", *a, "--port_base").status();
  EXPECT_THAT(std::string(taken.message()),
              HasSubstr(absl::StrCat("port ", *a, " of order is taken by pid ", child->pid)));
  EXPECT_TRUE(supervisor.Stop({child}, SIGKILL, kPatience));
  unlink(path.c_str());
}

}  // namespace
}  // namespace gaekju::app
