#include "server/observe/gpu_metrics.h"

#include <dlfcn.h>
#include <prometheus/metric_family.h>

#include <optional>
#include <string>

#include "base/logging/logging.h"

namespace switchyard {
namespace {

using prometheus::MetricFamily;

// The part of NVML's interface that this file uses, as NVML's documentation gives it. A result of 0 is success.
struct NvmlDevice;
struct NvmlUtilization {
  unsigned int gpu = 0;  // percent
  unsigned int memory = 0;
};
struct NvmlMemory {
  unsigned long long total = 0, free = 0, used = 0;  // NOLINT(google-runtime-int): NVML's own type
};
constexpr int kSuccess = 0;

struct CloseLibrary {
  void operator()(void* library) const { dlclose(library); }
};

}  // namespace

class GpuMetrics::Nvml {
 public:
  // Null when the library is not there or does not work.
  static std::unique_ptr<const Nvml> Load(const char* library);
  ~Nvml() { shutdown_(); }

  struct Gpu {
    std::string uuid;
    std::optional<double> utilization, power, power_limit, total_bytes, used_bytes;
  };
  std::vector<Gpu> Read() const;

 private:
  Nvml() = default;

  // Sets `*function`; false when the library does not have it.
  template <typename Function>
  bool Find(const char* name, Function** function) {
    *function = reinterpret_cast<Function*>(dlsym(library_.get(), name));
    return *function != nullptr;
  }
  bool FindAll();
  std::optional<Gpu> ReadOne(unsigned int index) const;

  std::unique_ptr<void, CloseLibrary> library_;
  int (*init_)() = nullptr;
  int (*shutdown_)() = nullptr;
  int (*count_)(unsigned int*) = nullptr;
  int (*device_)(unsigned int, NvmlDevice**) = nullptr;
  int (*uuid_)(NvmlDevice*, char*, unsigned int) = nullptr;
  int (*utilization_)(NvmlDevice*, NvmlUtilization*) = nullptr;
  int (*memory_)(NvmlDevice*, NvmlMemory*) = nullptr;
  int (*power_)(NvmlDevice*, unsigned int*) = nullptr;        // milliwatts
  int (*power_limit_)(NvmlDevice*, unsigned int*) = nullptr;  // milliwatts
};

bool GpuMetrics::Nvml::FindAll() {
  return Find("nvmlInit_v2", &init_) && Find("nvmlShutdown", &shutdown_) && Find("nvmlDeviceGetCount_v2", &count_) &&
         Find("nvmlDeviceGetHandleByIndex_v2", &device_) && Find("nvmlDeviceGetUUID", &uuid_) &&
         Find("nvmlDeviceGetUtilizationRates", &utilization_) && Find("nvmlDeviceGetMemoryInfo", &memory_) &&
         Find("nvmlDeviceGetPowerUsage", &power_) && Find("nvmlDeviceGetEnforcedPowerLimit", &power_limit_);
}

std::unique_ptr<const GpuMetrics::Nvml> GpuMetrics::Nvml::Load(const char* library) {
  std::unique_ptr<void, CloseLibrary> opened(dlopen(library, RTLD_NOW | RTLD_LOCAL));
  if (opened == nullptr) return nullptr;
  std::unique_ptr<Nvml> nvml(new Nvml);
  nvml->library_ = std::move(opened);
  if (nvml->FindAll() && nvml->init_() == kSuccess) return nvml;
  spdlog::info("{} does not work: no metrics of GPUs", library);
  nvml->shutdown_ = [] { return kSuccess; };
  return nullptr;
}

std::optional<GpuMetrics::Nvml::Gpu> GpuMetrics::Nvml::ReadOne(unsigned int index) const {
  NvmlDevice* device = nullptr;
  char uuid[96] = {};
  if (device_(index, &device) != kSuccess || uuid_(device, uuid, sizeof(uuid) - 1) != kSuccess) return std::nullopt;
  Gpu gpu;
  gpu.uuid = uuid;
  NvmlUtilization utilization;
  if (utilization_(device, &utilization) == kSuccess) gpu.utilization = utilization.gpu / 100.0;
  NvmlMemory memory;
  if (memory_(device, &memory) == kSuccess) {
    gpu.total_bytes = static_cast<double>(memory.total);
    gpu.used_bytes = static_cast<double>(memory.used);
  }
  unsigned int milliwatts = 0;
  if (power_(device, &milliwatts) == kSuccess) gpu.power = milliwatts / 1000.0;
  if (power_limit_(device, &milliwatts) == kSuccess) gpu.power_limit = milliwatts / 1000.0;
  return gpu;
}

std::vector<GpuMetrics::Nvml::Gpu> GpuMetrics::Nvml::Read() const {
  std::vector<Gpu> gpus;
  unsigned int count = 0;
  if (count_(&count) != kSuccess) return gpus;
  for (unsigned int index = 0; index < count; ++index) {
    if (auto gpu = ReadOne(index); gpu.has_value()) gpus.push_back(*std::move(gpu));
  }
  return gpus;
}

GpuMetrics::GpuMetrics(const char* library) : nvml_(Nvml::Load(library)) {}

GpuMetrics::~GpuMetrics() = default;

std::vector<MetricFamily> GpuMetrics::Collect() const {
  std::vector<MetricFamily> families;
  if (nvml_ == nullptr) return families;
  const std::vector<Nvml::Gpu> gpus = nvml_->Read();
  const auto add = [&](const char* name, const char* help, std::optional<double> Nvml::Gpu::*value) {
    MetricFamily family;
    family.name = name;
    family.help = help;
    family.type = prometheus::MetricType::Gauge;
    for (const Nvml::Gpu& gpu : gpus) {
      if (!(gpu.*value).has_value()) continue;
      prometheus::ClientMetric& metric = family.metric.emplace_back();
      metric.label = {{"gpu_uuid", gpu.uuid}};
      metric.gauge.value = *(gpu.*value);
    }
    if (!family.metric.empty()) families.push_back(std::move(family));
  };
  add("nv_gpu_utilization", "Part of the time that the GPU was busy, 0 to 1.", &Nvml::Gpu::utilization);
  add("nv_gpu_power_usage", "Power that the GPU draws, in watts.", &Nvml::Gpu::power);
  add("nv_gpu_power_limit", "Power that the GPU may draw, in watts.", &Nvml::Gpu::power_limit);
  add("nv_gpu_memory_total_bytes", "Memory of the GPU.", &Nvml::Gpu::total_bytes);
  add("nv_gpu_memory_used_bytes", "Memory of the GPU that is in use.", &Nvml::Gpu::used_bytes);
  return families;
}

}  // namespace switchyard
