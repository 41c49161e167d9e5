// Lets one thread wait, with sigtimedwait or a signalfd, for the signals that ask a process to stop.
#pragma once

#include <signal.h>

#include <initializer_list>

namespace switchyard {

// Blocks `signals` in the calling thread, which is main's, and so in all threads that it will start. Threads that
// libraries such as OpenBLAS started before main do not block them. When the system chooses one of those for a signal,
// a handler passes the signal on to the calling thread; without the handler the signal would end the process. Returns
// the set of signals. Call once.
sigset_t KeepSignalsForThisThread(std::initializer_list<int> signals);

}  // namespace switchyard
