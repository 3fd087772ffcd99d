// A GPU for a PyTorch that was built for CPUs, of CUDA or with -DFAKE_MPS of Apple: autograd asks for its
// guard and its hooks, and both answer that there is one device, on which nothing has to be done.

#ifdef FAKE_MPS
#include <ATen/detail/MPSHooksInterface.h>
#define BACKEND(before, after) before##MPS##after
#else
#include <ATen/detail/CUDAHooksInterface.h>
#define BACKEND(before, after) before##CUDA##after
#endif
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto TYPE = c10::DeviceType::BACKEND(, );
const c10::Device DEVICE(TYPE, 0);

struct Guard : c10::impl::NoOpDeviceGuardImpl<TYPE> {
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
};

Guard guard;
c10::impl::DeviceGuardImplRegistrar registrar(TYPE, &guard);

}  // namespace

namespace at {

// the registry looks the hooks up under this name
struct BACKEND(, Hooks) : BACKEND(, HooksInterface) {
  explicit BACKEND(, Hooks)(BACKEND(, HooksArgs)) {}
  void init() const override {}
  bool BACKEND(has, )() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
#ifdef FAKE_MPS
  MPSHooks() = default;
  void deviceSynchronize() const override {}
#else
  bool hasCUDART() const override { return false; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  void deviceSynchronize(DeviceIndex) const override {}
#endif
};

#ifdef FAKE_MPS
REGISTER_MPS_HOOKS(MPSHooks)
#else
REGISTER_CUDA_HOOKS(CUDAHooks)
#endif

}  // namespace at
