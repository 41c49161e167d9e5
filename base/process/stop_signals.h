// Lets one thread wait, with sigtimedwait or a signalfd, for the signals by which a process is told to stop and more.
#pragma once

#include <signal.h>

#include <vector>

namespace switchyard {

// Blocks `signals` in the calling thread, which is main's, and so in all threads that it will start. Threads that
// libraries such as OpenBLAS started before main do not block them. When the system chooses one of those for a signal,
// a handler passes the signal on to the calling thread; without the handler the signal would end the process. Returns
// the set of signals. Call once.
sigset_t KeepSignalsForThisThread(const std::vector<int>& signals);

// Lets `signal` end the process at once, whatever its threads do, with the exit status 128 + signal and without a core.
void EndAtOnceOn(int signal);

}  // namespace switchyard
