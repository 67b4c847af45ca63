// Registers the handlers of `xla.cpp` with the XLA that TensorFlow has.

#include "xla.cpp"

// Exported by TensorFlow, and declared by none of its C headers.
extern "C" const XLA_FFI_Api* XLA_FFI_GetApi();

namespace {

bool add(const XLA_FFI_Api* api, const char* name, XLA_FFI_Handler* handler) {
  const char* platform = "Host";
  XLA_FFI_Handler_Register_Args args = {};
  args.struct_size = XLA_FFI_Handler_Register_Args_STRUCT_SIZE;
  args.name = {name, strlen(name)};
  args.platform = {platform, strlen(platform)};
  args.bundle.execute = handler;
  return succeeded(api, api->XLA_FFI_Handler_Register(&args));
}

}  // namespace

// Returns whether XLA has taken all of them.
extern "C" __attribute__((visibility("default"))) bool
keras_adamax_register_in_xla() {
  const XLA_FFI_Api* api = XLA_FFI_GetApi();
  return add(api, "keras_adamax_update", keras_adamax_update_in_xla) &&
         add(api, "keras_adamax_count_nonfinite",
             keras_adamax_count_nonfinite_in_xla) &&
         add(api, "keras_adamax_count_above",
             keras_adamax_count_above_in_xla) &&
         add(api, "keras_adamax_add_counts", keras_adamax_add_counts_in_xla);
}
