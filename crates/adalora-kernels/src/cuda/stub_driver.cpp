// Stands in for the CUDA driver and for libtorch_cuda: two devices of compute capability 8.0 and 9.0, on which nothing
// runs; it writes down what is loaded and launched.

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

static std::string text;
static void* current;

// A device's context and libtorch's stream on it.
static void* context_of(int device) { return reinterpret_cast<void*>(uintptr_t(0x100 + device)); }
static void* stream_of(int device) { return reinterpret_cast<void*>(uintptr_t(0x200 + device)); }
static int device_of(void* context) { return int(reinterpret_cast<uintptr_t>(context)) - 0x100; }

extern "C" {

const char* stub_log() { return text.c_str(); }

int aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
    *stream = stream_of(device);
    return 0;
}

int cuInit(unsigned) { return 0; }
int cuDeviceGet(int* device, int index) {
    *device = index;
    return 0;
}
int cuDeviceGetAttribute(int* value, int attribute, int device) {
    // 75 is the major number of the capability, 76 the minor one.
    *value = attribute == 75 ? 8 + device : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = context_of(device);
    return 0;
}
int cuCtxGetCurrent(void** context) {
    *context = current;
    return 0;
}
int cuCtxSetCurrent(void* context) {
    current = context;
    return 0;
}
int cuModuleLoadData(void** module, const void* image) {
    if (memcmp(image, "\x7f" "ELF", 4)) return 200;
    text += "load " + std::to_string(device_of(current)) + "\n";
    *module = current;
    return 0;
}
int cuModuleGetFunction(void** function, void*, const char* name) {
    *function = strdup(name);
    return 0;
}
// Of the arguments of `clip`: two pointers, a number and a float, a pointer.
int cuLaunchKernel(
    const char* kernel, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned, unsigned, unsigned, void* stream,
    void** arguments, void**) {
    char line[300];
    snprintf(
        line, sizeof line, "%s<<<%u, %u>>> on stream %p of device %d: %p %lld %p %g %p\n", kernel, blocks, threads, stream,
        device_of(current), *static_cast<void**>(arguments[0]), *static_cast<long long*>(arguments[1]),
        *static_cast<void**>(arguments[2]), *static_cast<float*>(arguments[3]), *static_cast<void**>(arguments[4]));
    text += line;
    return 0;
}

} // extern "C"
