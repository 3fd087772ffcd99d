// An Apple GPU for a PyTorch that was built for CPUs: autograd asks for its guard and its hooks, and
// both answer that there is one device, on which nothing has to be done.

#include <ATen/detail/MPSHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

const c10::Device DEVICE(c10::DeviceType::MPS, 0);

struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::MPS> {
  c10::Device exchangeDevice(c10::Device) const override { return DEVICE; }
  c10::Device getDevice() const override { return DEVICE; }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream getNewStream(c10::Device, int) const override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, DEVICE); }
};

Guard guard;
c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::MPS, &guard);

}  // namespace

namespace at {

// the registry looks the hooks up under this name
struct MPSHooks : MPSHooksInterface {
  MPSHooks() = default;
  explicit MPSHooks(MPSHooksArgs) {}
  void init() const override {}
  bool hasMPS() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void deviceSynchronize() const override {}
};

REGISTER_MPS_HOOKS(MPSHooks)

}  // namespace at
