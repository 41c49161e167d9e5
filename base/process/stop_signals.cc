#include "base/process/stop_signals.h"

#include <pthread.h>
#include <unistd.h>

namespace switchyard {
namespace {

pthread_t receiver;  // set before any handler can run

void PassOn(int signal) { pthread_kill(receiver, signal); }

void End(int signal) { _exit(128 + signal); }

}  // namespace

sigset_t KeepSignalsForThisThread(const std::vector<int>& signals) {
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

void EndAtOnceOn(int signal) {
  struct sigaction action = {};
  action.sa_handler = End;
  sigaction(signal, &action, nullptr);
}

}  // namespace switchyard
