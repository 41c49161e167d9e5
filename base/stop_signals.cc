#include "base/stop_signals.h"

#include <pthread.h>

namespace switchyard {
namespace {

pthread_t receiver;  // set before any handler can run

void PassOn(int signal) { pthread_kill(receiver, signal); }

}  // namespace

sigset_t KeepSignalsForThisThread(std::initializer_list<int> signals) {
  receiver = pthread_self();
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : signals) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  struct sigaction action = {};
  action.sa_handler = PassOn;
  action.sa_flags = SA_RESTART;
  for (const int signal : signals) sigaction(signal, &action, nullptr);
  return set;
}

}  // namespace switchyard
