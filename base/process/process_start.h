// Puts into a known state what a process inherits from the one that started it: descriptors, signals, limits, the
// umask. A shell, an init system or a container may leave any of them as the programs do not expect it.
#pragma once

namespace switchyard {

enum class ProgramKind {
  kService,  // runs for long and is told by signals: the front, a worker
  kTool,     // runs for a user, who ends it and pipes its output: the command line
};

// Facts about the state in which a service was started that it needs later.
struct Inherited {
  bool ignores_hangup = false;  // as under nohup
  bool has_terminal = false;    // a controlling terminal

  // Whether a SIGHUP that has come says that the terminal is gone, with which the process should end. Otherwise
  // somebody has sent it.
  bool HangupMeansEnd() const;
};

// Call this first in main, before anything opens a file or starts a thread. For both kinds of program:
//
// - Descriptors 0 to 2 are open, if need be on /dev/null. Otherwise the next file or socket would get such a number,
//   and a line of the log would be written into it. This happens even before main, in every program that calls this,
//   because shared libraries open descriptors when they are loaded.
// - SIGCHLD has its default action and no signal is blocked, so that ended children can be waited for.
// - Threads get stacks of 8 MiB, and as many descriptors may be open as the hard limit allows.
//
// A service ignores SIGPIPE and SIGXFSZ, so that the write that failed returns an error, and SIGHUP, SIGUSR1 and
// SIGUSR2 until it handles them. Files that it makes are for its user alone. In a tool SIGPIPE has its default action,
// and the umask is the user's.
Inherited PrepareProcess(ProgramKind kind);

}  // namespace switchyard
