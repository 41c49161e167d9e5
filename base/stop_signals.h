// The signals that ask a process to stop, for one thread that waits for them, with sigtimedwait or a signalfd.
#pragma once

#include <signal.h>

#include <initializer_list>

namespace switchyard {

// Blocks the signals in the calling thread, main's, and so in those that it will start. Threads that libraries started
// before main, as OpenBLAS does, do not block them; one that is chosen for such a signal passes it on, where without
// this it would end the process. Returns the set of them. Call once.
sigset_t KeepSignalsForThisThread(std::initializer_list<int> signals);

}  // namespace switchyard
