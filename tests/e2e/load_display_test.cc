// The server draws a loading bar per model on a terminal, and nothing of the kind anywhere else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "base/unique_fd.h"
#include "tests/e2e/server_process.h"

extern char** environ;

namespace switchyard {
namespace {

using testing::HasSubstr;
using testing::MatchesRegex;
using testing::Not;

std::vector<std::string> Flags() {
  return {"--model=one=synthetic:dim=256,hidden=512,experts=16", "--model=other=synthetic:dim=64,hidden=64,experts=4",
          "--local_workers=2", "--device=cpu", "--compute_dtype=fp32"};
}

// A front on a pseudo-terminal of 200 columns.
class ServerOnTerminal {
 public:
  ServerOnTerminal() {
    int master = -1, slave = -1;
    const winsize size = {.ws_row = 50, .ws_col = 200};
    EXPECT_EQ(openpty(&master, &slave, nullptr, nullptr, &size), 0);
    master_ = UniqueFd(master);
    const UniqueFd terminal(slave);
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    stdout_ = UniqueFd(ends[0]);
    const UniqueFd writer(ends[1]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, terminal.get(), STDERR_FILENO);
    posix_spawn_file_actions_adddup2(&actions, writer.get(), STDOUT_FILENO);
    for (const int fd : {master_.get(), terminal.get(), stdout_.get(), writer.get()}) {
      posix_spawn_file_actions_addclose(&actions, fd);
    }
    setenv("TERM", "xterm", 1);
    std::vector<std::string> arguments = Flags();
    arguments.insert(arguments.begin(), {kServerProgram, "--port=0", "--http_port=0"});
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    EXPECT_EQ(posix_spawn(&pid_, kServerProgram, &actions, nullptr, argv.data(), environ), 0);
    posix_spawn_file_actions_destroy(&actions);
  }
  ~ServerOnTerminal() {
    if (pid_ > 0) Stop(SIGKILL);
  }

  // Everything written to the terminal until the server prints its READY line.
  std::string ReadUntilReady() {
    std::string text, out;
    while (out.find('\n') == std::string::npos) {
      pollfd polled[] = {{master_.get(), POLLIN, 0}, {stdout_.get(), POLLIN, 0}};
      if (poll(polled, 2, 60'000) <= 0) break;
      if (polled[0].revents != 0) Append(master_, &text);
      if (polled[1].revents != 0 && !Append(stdout_, &out)) break;
    }
    EXPECT_TRUE(absl::StartsWith(out, "READY ")) << out << text;
    for (pollfd polled = {master_.get(), POLLIN, 0}; poll(&polled, 1, 0) > 0;) {
      if (!Append(master_, &text)) break;
    }
    return text;
  }

  int Stop(int signal) {
    kill(pid_, signal);
    int status = 0;
    // The terminal's buffer is small, and a process that writes to it waits for a reader.
    std::string ignored;
    while (waitpid(pid_, &status, WNOHANG) == 0) {
      pollfd polled = {master_.get(), POLLIN, 0};
      if (poll(&polled, 1, 10) > 0) Append(master_, &ignored);
    }
    pid_ = -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  }

 private:
  static bool Append(const UniqueFd& fd, std::string* text) {
    char bytes[4096];
    const ssize_t count = read(fd.get(), bytes, sizeof(bytes));
    if (count > 0) text->append(bytes, count);
    return count > 0;
  }

  UniqueFd master_, stdout_;
  pid_t pid_ = -1;
};

// The lines that a terminal shows of `text`. Knows the few things that the server sends: carriage return, newline,
// erase to the end of the line. The terminal itself has made \r\n of each \n.
std::vector<std::string> Screen(const std::string& text) {
  std::vector<std::string> lines = {""};
  size_t column = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    std::string& line = lines.back();
    if (text[i] == '\r') {
      column = 0;
    } else if (text[i] == '\n') {
      lines.emplace_back();
    } else if (text.compare(i, 3, "\033[K") == 0) {
      line.resize(column);
      i += 2;
    } else {
      line.resize(std::max(line.size(), column + 1), ' ');
      line[column++] = text[i];
    }
  }
  return lines;
}

TEST(LoadDisplay, ATerminalShowsOneFullBarPerModelBetweenWholeLogLines) {
  ServerOnTerminal server;
  const std::string text = server.ReadUntilReady();
  std::vector<std::string> bars;
  for (const std::string& line : Screen(text)) {
    if (absl::StartsWith(line, "one ") || absl::StartsWith(line, "other ")) {
      bars.push_back(line);
    } else {
      EXPECT_THAT(line, MatchesRegex(R"(|20..-..-.. .*)")) << "neither a log line nor a bar";
    }
    EXPECT_THAT(line, Not(HasSubstr("%  0 B of"))) << "a bar that was not erased";
  }
  ASSERT_EQ(bars.size(), 2) << text;
  EXPECT_THAT(bars[0], MatchesRegex(R"(one  \[#+\]  100 %  16\.[0-9] MiB in .*, .*/s)"));
  EXPECT_THAT(bars[1], MatchesRegex(R"(other  \[#+\]  100 %  .* in .*)"));
  EXPECT_THAT(text, HasSubstr("\r\033[Kone  [----")) << "the bar was drawn before anything was loaded";
  EXPECT_EQ(server.Stop(SIGTERM), 0);
}

TEST(LoadDisplay, ElsewhereTheLogSaysIt) {
  auto server = ServerProcess::Start(Flags());
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_TRUE((*server)->process().HasLogged("serves with"));
  const std::string log = (*server)->process().Log();
  EXPECT_EQ(log.find_first_of("\r\033"), std::string::npos) << log;
  EXPECT_THAT(log, HasSubstr("model one: loaded 16."));
  EXPECT_THAT(log, HasSubstr("model other: loaded "));
  EXPECT_EQ((*server)->Stop(), 0);
}

}  // namespace
}  // namespace switchyard
