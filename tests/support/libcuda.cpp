// A CUDA driver library on the processor for NVIDIA's own bindings: `libcuda.so.1` with the calls that
// runtime/cuda/bindings.py makes, each done at once. Kernels are those of kernels_on_host.cpp; a kernel's
// argument sizes are read from the PTX that is loaded, as the real driver does. It refuses what the real one
// refuses: no current context, memory that is not its own, a device that is full.
#include <cstdlib>
#include <cstdint>
#include <cstring>
#include <dlfcn.h>
#include <map>
#include <regex>
#include <string>
#include <vector>

extern "C" int launch(const char* name, const unsigned* grid, const unsigned* block, const char* arguments);

enum { SUCCESS = 0, INVALID = 1, FULL = 2, NO_CONTEXT = 201, NOT_FOUND = 500 };
static thread_local int depth = 0;
static int retained = 0;
static std::map<void*, size_t> rooms;
static size_t used = 0;
static std::string ptx;
struct Parameter { size_t align, size; };
struct Function { std::string name; std::vector<Parameter> parameters; };
static std::map<std::string, Function> functions;
#define NEEDS if (depth == 0) return NO_CONTEXT
#define API extern "C" __attribute__((visibility("default"))) int
typedef unsigned long long address;

API cuInit(unsigned) { return SUCCESS; }
API cuDriverGetVersion(int* version) { *version = 12000; return SUCCESS; }
API cuDeviceGetCount(int* count) { *count = 1; return SUCCESS; }
API cuDeviceGet(int* device, int index) { *device = index; return index ? INVALID : SUCCESS; }
API cuDeviceGetName(char* name, int size, int) { strncpy(name, "Processor", size); return SUCCESS; }
API cuDeviceGetPCIBusId(char* id, int size, int) { strncpy(id, "0000:01:00.0", size); return SUCCESS; }
API cuDeviceGetAttribute(int* value, int kind, int) { *value = kind == 75 ? 9 : 0; return SUCCESS; }
API cuDevicePrimaryCtxRetain(void** context, int) { retained++; *context = &retained; return SUCCESS; }
API cuDevicePrimaryCtxRelease_v2(int) { retained--; return SUCCESS; }
API cuCtxPushCurrent_v2(void*) { if (!retained) return NO_CONTEXT; depth++; return SUCCESS; }
API cuCtxPopCurrent_v2(void** context) { NEEDS; depth--; *context = &retained; return SUCCESS; }
API cuMemGetInfo_v2(size_t* free, size_t* whole) { *whole = 1 << 30; *free = *whole - used; return SUCCESS; }
API cuMemAlloc_v2(address* room, size_t size) {
    NEEDS;
    if (size == 0) return INVALID;
    if (used + size > 1 << 30) return FULL;
    void* p = aligned_alloc(256, (size + 255) / 256 * 256);
    memset(p, 0xA5, size);
    rooms[p] = size;
    used += size;
    *room = (address)p;
    return SUCCESS;
}
API cuMemFree_v2(address room) {
    NEEDS;
    auto found = rooms.find((void*)room);
    if (found == rooms.end()) return INVALID;
    used -= found->second;
    rooms.erase(found);
    free((void*)room);
    return SUCCESS;
}
API cuMemAllocHost_v2(void** p, size_t size) { NEEDS; *p = malloc(size); return SUCCESS; }
API cuMemFreeHost(void* p) { free(p); return SUCCESS; }
API cuMemcpyHtoD_v2(address to, const void* from, size_t n) { NEEDS; memcpy((void*)to, from, n); return SUCCESS; }
API cuMemcpyDtoH_v2(void* to, address from, size_t n) { NEEDS; memcpy(to, (void*)from, n); return SUCCESS; }
API cuMemcpyHtoDAsync_v2(address to, const void* from, size_t n, void*) { return cuMemcpyHtoD_v2(to, from, n); }
API cuMemcpyDtoHAsync_v2(void* to, address from, size_t n, void*) { return cuMemcpyDtoH_v2(to, from, n); }
API cuMemcpyDtoDAsync_v2(address to, address from, size_t n, void*) {
    NEEDS;
    memmove((void*)to, (void*)from, n);
    return SUCCESS;
}
API cuMemsetD8_v2(address to, unsigned char value, size_t n) { NEEDS; memset((void*)to, value, n); return SUCCESS; }
API cuMemsetD8Async(address to, unsigned char value, size_t n, void*) { return cuMemsetD8_v2(to, value, n); }
API cuStreamCreate(void** stream, unsigned) { NEEDS; *stream = malloc(1); return SUCCESS; }
API cuStreamSynchronize(void*) { NEEDS; return SUCCESS; }
API cuStreamWaitEvent(void*, void* event, unsigned) { return event ? SUCCESS : INVALID; }
API cuEventCreate(void** event, unsigned) { NEEDS; *event = malloc(1); return SUCCESS; }
API cuEventRecord(void* event, void*) { NEEDS; return event ? SUCCESS : INVALID; }
API cuEventSynchronize(void*) { NEEDS; return SUCCESS; }
API cuEventElapsedTime_v2(float* ms, void*, void*) { *ms = 1; return SUCCESS; }
API cuEventElapsedTime(float* ms, void*, void*) { *ms = 1; return SUCCESS; }
API cuEventDestroy_v2(void* event) { free(event); return SUCCESS; }
API cuGetErrorString(int code, const char** text) {
    *text = code == FULL ? "out of memory" : code == NO_CONTEXT ? "invalid device context" : "invalid argument";
    return SUCCESS;
}
API cuModuleLoadData(void** module, const void* image) {
    NEEDS;
    ptx = (const char*)image;
    *module = &ptx;
    return SUCCESS;
}
API cuModuleGetFunction(void** function, void*, const char* name) {
    size_t at = ptx.find(std::string(".entry ") + name + "(");
    if (at == std::string::npos) return NOT_FOUND;
    Function& f = functions[name];
    f = {name, {}};
    std::string head = ptx.substr(at, ptx.find(')', at) - at);
    std::regex line(R"(\.param (?:\.align (\d+) )?\.[a-z](\d+) [^\[,\n]*(?:\[(\d+)\])?)");
    for (auto m = std::sregex_iterator(head.begin(), head.end(), line); m != std::sregex_iterator(); ++m) {
        size_t size = (*m)[3].matched ? stoul((*m)[3]) : stoul((*m)[2]) / 8;
        f.parameters.push_back({(*m)[1].matched ? stoul((*m)[1]) : size, size});
    }
    *function = &f;
    return SUCCESS;
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned, void*, void** values, void**) {
    NEEDS;
    Function& f = *(Function*)function;
    std::string buffer;
    for (size_t n = 0; n < f.parameters.size(); n++) {
        auto [align, size] = f.parameters[n];
        buffer.resize((buffer.size() + align - 1) / align * align);
        buffer.append((const char*)values[n], size);
    }
    unsigned grid[] = {gx, gy, gz}, block[] = {bx, by, bz};
    if (gy > 65535 || gz > 65535) return INVALID;
    return launch(f.name.c_str(), grid, block, buffer.data()) == (int)buffer.size() ? SUCCESS : INVALID;
}
API cuGetProcAddress_v2(const char* name, void** found, int, uint64_t, int* status) {
    *found = nullptr;
    for (const char* version : {"_v2", ""})
        if (!*found) *found = dlsym(RTLD_DEFAULT, (std::string(name) + version).c_str());
    if (status) *status = *found ? 0 : 1;
    return *found ? SUCCESS : NOT_FOUND;
}
API cuGetProcAddress(const char* name, void** found, int version, uint64_t flags) {
    return cuGetProcAddress_v2(name, found, version, flags, nullptr);
}
