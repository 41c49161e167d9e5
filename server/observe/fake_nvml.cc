// A library with the functions of NVIDIA's management library that GpuMetrics calls. It has two GPUs; the second does
// not tell its power draw.
#include <cstring>

namespace {
int devices[2];
constexpr int kSuccess = 0, kNotSupported = 3;
bool IsFirst(const void* device) { return device == &devices[0]; }
}  // namespace

extern "C" {

int nvmlInit_v2() { return kSuccess; }
int nvmlShutdown() { return kSuccess; }

int nvmlDeviceGetCount_v2(unsigned int* count) {
  *count = 2;
  return kSuccess;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void** device) {
  *device = &devices[index];
  return kSuccess;
}

int nvmlDeviceGetUUID(void* device, char* uuid, unsigned int size) {
  std::strncpy(uuid, IsFirst(device) ? "GPU-one" : "GPU-two", size);
  return kSuccess;
}

int nvmlDeviceGetUtilizationRates(void* device, unsigned int* rates) {
  rates[0] = IsFirst(device) ? 75 : 0;
  rates[1] = 1;
  return kSuccess;
}

// NOLINTNEXTLINE(google-runtime-int): NVML's own type
int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* memory) {
  memory[0] = 1000;
  memory[1] = IsFirst(device) ? 900 : 1000;
  memory[2] = memory[0] - memory[1];
  return kSuccess;
}

int nvmlDeviceGetPowerUsage(void* device, unsigned int* milliwatts) {
  *milliwatts = 123'500;
  return IsFirst(device) ? kSuccess : kNotSupported;
}

int nvmlDeviceGetEnforcedPowerLimit(void*, unsigned int* milliwatts) {
  *milliwatts = 700'000;
  return kSuccess;
}

}  // extern "C"
