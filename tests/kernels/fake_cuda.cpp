// A CUDA driver that is none: libcuda.so.1 for a machine without a GPU. It answers the calls that the library makes, checks them
// as a driver would or harder, and runs the kernels of kernels/*.cu, built for the processor (kernels/shim), by their names.
//
// What is enqueued happens when somebody waits for it, and not before: whoever reads a result too early, or changes what is still
// to be copied, is found out. Device memory is filled with 0xff and ends at a page that may not be touched.
//
// Settings, each an environment variable FAKE_CUDA_<NAME> read when the library is loaded, and fake_cuda_set(NAME, value) later:
//   VERSION 12040, DEVICES 1, CAPABILITY 90 (10 * major + minor), INIT 0 (what cuInit gives), MEMORY 1073741824 (bytes a device)
//   PROCESSORS 4 (multiprocessors), FORCE_PTX 0 and DISABLE_PTX 0 (as CUDA_FORCE_PTX_JIT and CUDA_DISABLE_PTX_JIT do)
//   FAIL_ALLOC, FAIL_HOST_ALLOC, FAIL_LAUNCH, FAIL_COPY, FAIL_STREAM 0: the n-th such call from now on fails, once
//   LOSE 0: the device is lost at the n-th kernel from now on; every call fails until the context is gone
//   MEMORY_1, MEMORY_2 0: bytes of device 1 and 2; 0: as MEMORY
//   ONLY -1: the device that the failures above are of; -1: whichever meets them
//   THREADS 0: 1 starts threads as drivers do, which sleep
//   SCHEDULE 0: of the shim, 0 to 3
// fake_cuda_at(N, FUNCTION, WITH): the N-th kernel from now on calls FUNCTION(WITH) before it runs, once.
// Each device has its own memory: an address of another device in a copy or among the arguments of a kernel is refused or fails.
// fake_cuda_get(NAME): the settings, and ALLOCATED (of all devices; ALLOCATED_0 to _2 of each), HOST_ALLOCATED, ALLOCATIONS (calls, both kinds), LAUNCHES, CONTEXTS, MODULES,
// STREAMS, EVENTS, GRAPHS (live ones).
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <set>
#include <string>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

enum Status {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX = 222,
    JIT_DISABLED = 223,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    OUT_OF_RESOURCES = 701,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    UNKNOWN = 999,
};

const std::map<int, const char *> WORDS{
    {SUCCESS, "no error"},
    {INVALID_VALUE, "invalid argument"},
    {OUT_OF_MEMORY, "out of memory"},
    {NOT_INITIALIZED, "initialization error"},
    {NO_DEVICE, "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "invalid device ordinal"},
    {INVALID_IMAGE, "device kernel image is invalid"},
    {INVALID_CONTEXT, "invalid device context"},
    {NO_BINARY, "no kernel image is available for execution on the device"},
    {INVALID_PTX, "a PTX JIT compilation failed"},
    {UNSUPPORTED_PTX, "the provided PTX was compiled with an unsupported toolchain."},
    {JIT_DISABLED, "PTX JIT compilation was disabled"},
    {INVALID_HANDLE, "invalid resource handle"},
    {NOT_FOUND, "named symbol not found"},
    {ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
    {OUT_OF_RESOURCES, "too many resources requested for launch"},
    {LAUNCH_FAILED, "unspecified launch failure"},
    {803, "system has unsupported display driver / cuda driver combination"},
    {CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
    {UNKNOWN, "unknown error"},
};

using Work = std::function<int()>;
using Entry = int (*)(const void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, int);

struct Context {
    int device = 0;
    int retained = 0;
    bool lost = false;
};
struct Module {
    Context *context;
    std::string text; // of the image, to look for names in
    bool ptx;
};
struct Function {
    Module *module;
    std::string name;
    Entry entry;
    unsigned args_bytes;
};
struct Graph {
    std::vector<Work> work;
};
struct Stream {
    Context *context;
    std::vector<Work> work;
    std::unique_ptr<Graph> capture;
    bool spoiled = false;
    size_t done = 0; // work, from the first on
};
struct Event {
    Context *context;
    Stream *stream = nullptr; // null: nowhere yet, or its stream is gone
    size_t before = 0;        // work of the stream before it, from the first on
};
struct Block {
    Context *context; // that it was allocated in
    size_t bytes;
    void *mapping;
    size_t mapped;
};

std::recursive_mutex lock;
using Held = std::lock_guard<std::recursive_mutex>;

std::map<std::string, long> settings{
    {"VERSION", 12040}, {"DEVICES", 1},   {"CAPABILITY", 90}, {"INIT", 0},        {"MEMORY", 1L << 30}, {"PROCESSORS", 4},
    {"FORCE_PTX", 0},   {"DISABLE_PTX", 0}, {"FAIL_ALLOC", 0},  {"FAIL_HOST_ALLOC", 0}, {"FAIL_LAUNCH", 0}, {"FAIL_COPY", 0},
    {"FAIL_STREAM", 0}, {"MEMORY_1", 0},  {"MEMORY_2", 0},    {"ONLY", -1},       {"LOSE", 0},      {"THREADS", 0},     {"SCHEDULE", 0},
};
bool initialised = false;
std::vector<Context> contexts(16);
std::map<uintptr_t, Block> device_memory, host_memory;
std::set<Module *> modules;
std::set<Function *> functions;
std::set<Stream *> streams;
std::set<Event *> events;
std::set<Graph *> graphs;
long launches = 0, allocations = 0;
struct {
    long left = 0;
    void (*function)(void *) = nullptr;
    void *with = nullptr;
} at_kernel;
thread_local Context *current = nullptr;
thread_local Stream *capturing = nullptr; // of this thread, as the mode THREAD_LOCAL has it

struct FromEnvironment {
    FromEnvironment() {
        for (auto &[name, value] : settings)
            if (const char *text = std::getenv(("FAKE_CUDA_" + name).c_str()))
                value = std::atol(text);
    }
} from_environment;

// Whether the call on the device of this context is the one that is to fail.
bool fails(const char *name, const Context *context = current) {
    if (settings["ONLY"] >= 0 && settings["ONLY"] != context->device)
        return false;
    long &left = settings[name];
    return left > 0 && --left == 0;
}

// As drivers do, where they please.
void start_thread() {
    if (settings["THREADS"] == 0)
        return;
    std::thread thread([] {
        for (;;)
            sleep(3600);
    });
    // Here, and not by the thread when it gets to it: who looks for it next finds it.
    pthread_setname_np(thread.native_handle(), "fake_cuda");
    thread.detach();
}

// What every call looks at first.
int usable() {
    if (!initialised)
        return NOT_INITIALIZED;
    if (current == nullptr || current->retained == 0)
        return INVALID_CONTEXT;
    return current->lost ? LAUNCH_FAILED : SUCCESS;
}

// Calls that a capture of this thread does not survive.
int usable_outside_capture() {
    if (const int status = usable())
        return status;
    if (capturing != nullptr) {
        capturing->spoiled = true;
        return CAPTURE_UNSUPPORTED;
    }
    return SUCCESS;
}

#define USABLE                                                                                                                   \
    const Held held(lock);                                                                                                       \
    if (const int status = usable())                                                                                             \
        return status;
#define USABLE_OUTSIDE_CAPTURE                                                                                                   \
    const Held held(lock);                                                                                                       \
    if (const int status = usable_outside_capture())                                                                             \
        return status;

// Bytes of a device.
long memory_of(int device) {
    const long own = device == 1 ? settings["MEMORY_1"] : device == 2 ? settings["MEMORY_2"] : 0;
    return own ? own : settings["MEMORY"];
}

// The block that holds all of a range; null if none does.
const Block *holds(const std::map<uintptr_t, Block> &memory, uintptr_t at, size_t bytes) {
    auto after = memory.upper_bound(at);
    if (after == memory.begin())
        return nullptr;
    const auto &[start, block] = *std::prev(after);
    return at - start <= block.bytes && bytes <= block.bytes - (at - start) ? &block : nullptr;
}

// Whether memory of the current device holds all of a range.
bool here(uintptr_t at, size_t bytes) {
    const Block *block = holds(device_memory, at, bytes);
    return block != nullptr && block->context == current;
}

// Of one device, or of all.
long used(const std::map<uintptr_t, Block> &memory, int device = -1) {
    long sum = 0;
    for (const auto &[at, block] : memory)
        sum += device < 0 || block.context->device == device ? long(block.bytes) : 0;
    return sum;
}

// Bytes whose end, but for the alignment of 256, is the end of what may be touched.
uintptr_t allocate(std::map<uintptr_t, Block> &memory, size_t bytes, int fill) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    const size_t padded = (bytes + 255) / 256 * 256, body = (padded + page - 1) / page * page;
    void *mapping = mmap(nullptr, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapping == MAP_FAILED)
        return 0;
    mprotect(static_cast<char *>(mapping) + body, page, PROT_NONE);
    std::memset(mapping, fill, body);
    const uintptr_t at = reinterpret_cast<uintptr_t>(mapping) + body - padded;
    memory[at] = {current, bytes, mapping, body + page};
    return at;
}

void release(std::map<uintptr_t, Block> &memory, std::map<uintptr_t, Block>::iterator it) {
    munmap(it->second.mapping, it->second.mapped);
    memory.erase(it);
}

// Does what a stream has before it, or the first so many pieces. The first failure is the context's.
int drain(Stream &s, size_t most = size_t(-1)) {
    const auto end = s.work.begin() + std::ptrdiff_t(std::min(most, s.work.size()));
    const std::vector<Work> work(std::make_move_iterator(s.work.begin()), std::make_move_iterator(end));
    s.work.erase(s.work.begin(), end);
    s.done += work.size();
    for (const Work &w : work) {
        if (s.context->lost)
            return LAUNCH_FAILED;
        if (const int status = w()) {
            s.context->lost = true;
            return status;
        }
    }
    return s.context->lost ? LAUNCH_FAILED : SUCCESS;
}

// What runs on the current device.
void drain_device() {
    for (Stream *s : streams)
        if (s->context == current)
            drain(*s);
}

void drain_all() {
    for (Stream *s : streams)
        drain(*s);
}

// Enqueues, or records.
int enqueue(Stream *s, Work work) {
    if (streams.count(s) == 0 || s->context != current)
        return INVALID_HANDLE;
    if (s->capture)
        s->capture->work.push_back(std::move(work));
    else
        s->work.push_back(std::move(work));
    return SUCCESS;
}

template <typename F> F own_symbol(const std::string &name) {
    static void *const self = [] {
        Dl_info info;
        dladdr(reinterpret_cast<void *>(&drain_all), &info);
        return dlopen(info.dli_fname, RTLD_NOW | RTLD_NOLOAD);
    }();
    return reinterpret_cast<F>(dlsym(self, name.c_str()));
}

// The text of an image that this device takes, or why not.
int image_text(const char *image, std::string &text, bool &ptx) {
    const long capability = settings["CAPABILITY"];
    ptx = std::memcmp(image, "\x7f"
                             "ELF",
                      4) != 0;
    if (ptx) {
        text = image; // up to its NUL
        unsigned major, minor, target;
        const char *version = std::strstr(image, ".version "), *arch = std::strstr(image, ".target sm_");
        if (version == nullptr || arch == nullptr || std::sscanf(version, ".version %u.%u", &major, &minor) != 2 ||
            std::sscanf(arch, ".target sm_%u", &target) != 1)
            return INVALID_IMAGE;
        if (settings["DISABLE_PTX"])
            return JIT_DISABLED;
        // CUDA 12.x takes ISA 8.x.
        const long newest = (settings["VERSION"] / 1000 - 4) * 10 + settings["VERSION"] % 1000 / 10;
        if (long(major * 10 + minor) > newest)
            return UNSUPPORTED_PTX;
        return long(target) <= capability ? SUCCESS : NO_BINARY;
    }
    uint16_t machine, header, count;
    uint32_t flags;
    uint64_t sections;
    std::memcpy(&machine, image + 18, 2);
    std::memcpy(&sections, image + 40, 8);
    std::memcpy(&flags, image + 48, 4);
    std::memcpy(&header, image + 58, 2);
    std::memcpy(&count, image + 60, 2);
    const unsigned abi = static_cast<unsigned char>(image[8]);
    if (machine != 190 || (abi != 7 && abi != 8))
        return INVALID_IMAGE;
    const long arch = abi == 7 ? flags & 255 : flags >> 8 & 255;
    if (settings["FORCE_PTX"] || arch / 10 != capability / 10 || arch > capability || (abi == 8 && settings["VERSION"] < 12080))
        return NO_BINARY;
    text.assign(image, sections + size_t(header) * count);
    return SUCCESS;
}

Stream *stream_of(void *handle) { return static_cast<Stream *>(handle); }

} // namespace

#define CALL extern "C" __attribute__((visibility("default"))) int

extern "C" __attribute__((visibility("default"))) void fake_cuda_set(const char *name, long value) {
    const Held held(lock);
    if (settings.count(name) == 0) {
        std::fprintf(stderr, "fake_cuda: no setting %s\n", name);
        std::abort();
    }
    settings[name] = value;
}

extern "C" __attribute__((visibility("default"))) long fake_cuda_get(const char *asked) {
    const Held held(lock);
    const std::string name = asked;
    if (settings.count(name))
        return settings[name];
    const std::map<std::string, long> values{
        {"ALLOCATED", used(device_memory)},
        {"ALLOCATED_0", used(device_memory, 0)},
        {"ALLOCATED_1", used(device_memory, 1)},
        {"ALLOCATED_2", used(device_memory, 2)},
        {"HOST_ALLOCATED", used(host_memory)},
        {"ALLOCATIONS", allocations},
        {"LAUNCHES", launches},
        {"CONTEXTS", std::count_if(contexts.begin(), contexts.end(), [](const Context &c) { return c.retained > 0; })},
        {"MODULES", long(modules.size())},
        {"STREAMS", long(streams.size())},
        {"EVENTS", long(events.size())},
        {"GRAPHS", long(graphs.size())},
    };
    return values.at(name);
}

extern "C" __attribute__((visibility("default"))) void fake_cuda_at(long n, void (*function)(void *), void *with) {
    const Held held(lock);
    at_kernel = {n, function, with};
}

CALL cuInit(unsigned flags) {
    const Held held(lock);
    if (flags != 0)
        return INVALID_VALUE;
    const int status = int(settings["INIT"]);
    if (status == SUCCESS && !initialised) {
        initialised = true;
        start_thread();
    }
    return status;
}

CALL cuDriverGetVersion(int *version) {
    const Held held(lock);
    *version = int(settings["VERSION"]);
    return SUCCESS;
}

CALL cuGetErrorString(int status, const char **text) {
    const auto found = WORDS.find(status);
    *text = found == WORDS.end() ? nullptr : found->second;
    return found == WORDS.end() ? INVALID_VALUE : SUCCESS;
}

CALL cuDeviceGetCount(int *count) {
    const Held held(lock);
    *count = int(settings["DEVICES"]);
    return initialised ? SUCCESS : NOT_INITIALIZED;
}

CALL cuDeviceGet(int *device, int ordinal) {
    const Held held(lock);
    if (!initialised)
        return NOT_INITIALIZED;
    if (ordinal < 0 || ordinal >= settings["DEVICES"])
        return INVALID_DEVICE;
    *device = ordinal;
    return SUCCESS;
}

CALL cuDeviceGetName(char *name, int len, int device) {
    std::snprintf(name, size_t(len), "Fake GPU %d", device);
    return SUCCESS;
}

CALL cuDeviceTotalMem_v2(size_t *bytes, int device) {
    const Held held(lock);
    *bytes = size_t(memory_of(device));
    return SUCCESS;
}

CALL cuDeviceGetAttribute(int *value, int attribute, int) {
    const Held held(lock);
    switch (attribute) {
    case 16: // multiprocessors
        *value = int(settings["PROCESSORS"]);
        return SUCCESS;
    case 75: // compute capability, major
        *value = int(settings["CAPABILITY"] / 10);
        return SUCCESS;
    case 76: // minor
        *value = int(settings["CAPABILITY"] % 10);
        return SUCCESS;
    default:
        return INVALID_VALUE;
    }
}

CALL cuDevicePrimaryCtxRetain(void **context, int device) {
    const Held held(lock);
    if (!initialised)
        return NOT_INITIALIZED;
    if (device < 0 || device >= settings["DEVICES"])
        return INVALID_DEVICE;
    Context &c = contexts[size_t(device)];
    c.device = device;
    if (c.retained++ == 0)
        start_thread();
    *context = &c;
    return SUCCESS;
}

CALL cuDevicePrimaryCtxRelease_v2(int device) {
    const Held held(lock);
    Context &c = contexts[size_t(device)];
    if (c.retained == 0)
        return INVALID_CONTEXT;
    if (--c.retained == 0) {
        // Only what was made by someone who let go of the context without freeing it is still there.
        const auto of = [&](auto *handle) { return handle->context == &c; };
        if (std::any_of(streams.begin(), streams.end(), of) || std::any_of(modules.begin(), modules.end(), of))
            std::fprintf(stderr, "fake_cuda: a context is released with a stream or a module in it\n"), std::abort();
        c.lost = false;
    }
    return SUCCESS;
}

CALL cuCtxGetCurrent(void **context) {
    *context = current;
    return initialised ? SUCCESS : NOT_INITIALIZED;
}

CALL cuCtxSetCurrent(void *context) {
    const Held held(lock);
    auto *c = static_cast<Context *>(context);
    if (c != nullptr && (c < &contexts.front() || c > &contexts.back() || c->retained == 0))
        return INVALID_CONTEXT;
    current = c;
    return SUCCESS;
}

CALL cuMemGetInfo_v2(size_t *free, size_t *total) {
    USABLE
    const long all = memory_of(current->device);
    *total = size_t(all);
    *free = size_t(std::max(0L, all - used(device_memory, current->device)));
    return SUCCESS;
}

CALL cuModuleLoadData(void **module, const void *image) {
    USABLE_OUTSIDE_CAPTURE
    auto m = std::make_unique<Module>();
    m->context = current;
    if (const int status = image_text(static_cast<const char *>(image), m->text, m->ptx))
        return status;
    start_thread();
    *module = *modules.insert(m.release()).first;
    return SUCCESS;
}

CALL cuModuleUnload(void *module) {
    const Held held(lock);
    if (const int status = usable_outside_capture(); status != SUCCESS && status != LAUNCH_FAILED)
        return status;
    auto *m = static_cast<Module *>(module);
    if (modules.erase(m) == 0)
        return INVALID_HANDLE;
    drain_all();
    for (auto it = functions.begin(); it != functions.end();) {
        Function *f = *it;
        const bool of_it = f->module == m;
        it = of_it ? functions.erase(it) : std::next(it);
        if (of_it)
            delete f;
    }
    delete m;
    return current->lost ? LAUNCH_FAILED : SUCCESS;
}

CALL cuModuleGetFunction(void **function, void *module, const char *name) {
    USABLE
    auto *m = static_cast<Module *>(module);
    if (modules.count(m) == 0)
        return INVALID_HANDLE;
    // A section of its own in a cubin, an entry in PTX.
    const std::string looked = m->ptx ? std::string(".entry ") + name + "(" : std::string(".text.") + name + std::string(1, '\0');
    if (m->text.find(looked) == std::string::npos)
        return NOT_FOUND;
    const auto entry = own_symbol<Entry>(std::string(name) + "_host");
    const auto bytes = own_symbol<unsigned (*)()>(std::string(name) + "_args_bytes");
    if (entry == nullptr || bytes == nullptr)
        return NOT_FOUND;
    *function = *functions.insert(new Function{m, name, entry, bytes()}).first;
    return SUCCESS;
}

CALL cuMemAlloc_v2(uint64_t *address, size_t bytes) {
    USABLE_OUTSIDE_CAPTURE
    if (bytes == 0)
        return INVALID_VALUE;
    allocations++;
    if (fails("FAIL_ALLOC") || long(bytes) < 0 || long(bytes) > memory_of(current->device) - used(device_memory, current->device))
        return OUT_OF_MEMORY;
    *address = allocate(device_memory, bytes, 0xff);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

CALL cuMemFree_v2(uint64_t address) {
    const Held held(lock);
    if (const int status = usable_outside_capture(); status != SUCCESS && status != LAUNCH_FAILED)
        return status;
    const auto found = device_memory.find(address);
    if (found == device_memory.end())
        return INVALID_VALUE;
    if (found->second.context != current)
        return INVALID_VALUE;
    drain_device(); // freeing waits for the device
    release(device_memory, found);
    return current->lost ? LAUNCH_FAILED : SUCCESS;
}

CALL cuMemHostAlloc(void **at, size_t bytes, unsigned flags) {
    USABLE_OUTSIDE_CAPTURE
    if (bytes == 0 || flags != 0)
        return INVALID_VALUE;
    allocations++;
    if (fails("FAIL_HOST_ALLOC"))
        return OUT_OF_MEMORY;
    const uintptr_t got = allocate(host_memory, bytes, 0xee);
    *at = reinterpret_cast<void *>(got);
    return got ? SUCCESS : OUT_OF_MEMORY;
}

CALL cuMemFreeHost(void *at) {
    const Held held(lock);
    if (const int status = usable_outside_capture(); status != SUCCESS && status != LAUNCH_FAILED)
        return status;
    const auto found = host_memory.find(reinterpret_cast<uintptr_t>(at));
    if (found == host_memory.end())
        return INVALID_VALUE;
    drain_all();
    release(host_memory, found);
    return current->lost ? LAUNCH_FAILED : SUCCESS;
}

CALL cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
    USABLE
    if (fails("FAIL_COPY"))
        return UNKNOWN;
    if (!here(to, bytes))
        return INVALID_VALUE;
    auto *target = reinterpret_cast<void *>(to);
    if (holds(host_memory, reinterpret_cast<uintptr_t>(from), bytes) || capturing != nullptr)
        return enqueue(stream_of(stream), [=] {
            std::memcpy(target, from, bytes);
            return SUCCESS;
        });
    // Pageable memory is taken before the call returns.
    const auto *start = static_cast<const char *>(from);
    return enqueue(stream_of(stream), [target, copy = std::vector<char>(start, start + bytes)] {
        std::memcpy(target, copy.data(), copy.size());
        return SUCCESS;
    });
}

CALL cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
    USABLE
    if (fails("FAIL_COPY"))
        return UNKNOWN;
    if (!here(from, bytes))
        return INVALID_VALUE;
    const auto *source = reinterpret_cast<const void *>(from);
    const int status = enqueue(stream_of(stream), [=] {
        std::memcpy(to, source, bytes);
        return SUCCESS;
    });
    if (status != SUCCESS || capturing != nullptr || holds(host_memory, reinterpret_cast<uintptr_t>(to), bytes))
        return status;
    return drain(*stream_of(stream)); // pageable memory is written before the call returns
}

CALL cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
    USABLE
    if (fails("FAIL_COPY"))
        return UNKNOWN;
    if (!here(to, bytes) || !here(from, bytes) || (from < to + bytes && to < from + bytes))
        return INVALID_VALUE;
    return enqueue(stream_of(stream), [=] {
        std::memcpy(reinterpret_cast<void *>(to), reinterpret_cast<const void *>(from), bytes);
        return SUCCESS;
    });
}

CALL cuMemsetD8Async(uint64_t to, unsigned char value, size_t bytes, void *stream) {
    USABLE
    if (!here(to, bytes))
        return INVALID_VALUE;
    return enqueue(stream_of(stream), [=] {
        std::memset(reinterpret_cast<void *>(to), value, bytes);
        return SUCCESS;
    });
}

CALL cuStreamCreate(void **stream, unsigned flags) {
    USABLE_OUTSIDE_CAPTURE
    if (flags != 1) // a stream that waits for the default one is not what the library wants
        return INVALID_VALUE;
    if (fails("FAIL_STREAM"))
        return OUT_OF_MEMORY;
    auto *s = new Stream;
    s->context = current;
    if (streams.empty())
        start_thread();
    streams.insert(s);
    *stream = s;
    return SUCCESS;
}

CALL cuStreamDestroy_v2(void *stream) {
    const Held held(lock);
    Stream *s = stream_of(stream);
    if (streams.count(s) == 0 || s->context != current)
        return INVALID_HANDLE;
    const int status = drain(*s);
    for (Event *e : events)
        if (e->stream == s)
            e->stream = nullptr;
    streams.erase(s);
    delete s;
    return status;
}

CALL cuStreamSynchronize(void *stream) {
    USABLE_OUTSIDE_CAPTURE
    Stream *s = stream_of(stream);
    return streams.count(s) && s->context == current ? drain(*s) : INVALID_HANDLE;
}

CALL cuEventCreate(void **event, unsigned flags) {
    USABLE_OUTSIDE_CAPTURE
    if (flags != 2) // times are not what the library wants
        return INVALID_VALUE;
    *event = *events.insert(new Event{current}).first;
    return SUCCESS;
}

CALL cuEventRecord(void *event, void *stream) {
    USABLE_OUTSIDE_CAPTURE // a capture would record it
    auto *e = static_cast<Event *>(event);
    Stream *s = stream_of(stream);
    if (events.count(e) == 0 || streams.count(s) == 0 || s->context != e->context)
        return INVALID_HANDLE;
    e->stream = s;
    e->before = s->done + s->work.size();
    return SUCCESS;
}

CALL cuEventSynchronize(void *event) {
    USABLE_OUTSIDE_CAPTURE
    auto *e = static_cast<Event *>(event);
    if (events.count(e) == 0 || e->context != current)
        return INVALID_HANDLE;
    return e->stream == nullptr || e->before <= e->stream->done ? int(SUCCESS) : drain(*e->stream, e->before - e->stream->done);
}

CALL cuEventDestroy_v2(void *event) {
    const Held held(lock);
    auto *e = static_cast<Event *>(event);
    if (events.erase(e) == 0)
        return INVALID_HANDLE;
    delete e;
    return SUCCESS;
}

CALL cuStreamBeginCapture_v2(void *stream, int mode) {
    USABLE_OUTSIDE_CAPTURE
    Stream *s = stream_of(stream);
    if (streams.count(s) == 0 || s->capture || mode != 1)
        return INVALID_VALUE;
    s->capture = std::make_unique<Graph>();
    s->spoiled = false;
    capturing = s;
    return SUCCESS;
}

CALL cuStreamEndCapture(void *stream, void **graph) {
    USABLE
    Stream *s = stream_of(stream);
    *graph = nullptr;
    if (s != capturing || !s->capture)
        return INVALID_VALUE;
    capturing = nullptr;
    std::unique_ptr<Graph> captured = std::move(s->capture);
    if (s->spoiled)
        return CAPTURE_INVALIDATED;
    *graph = *graphs.insert(captured.release()).first;
    return SUCCESS;
}

CALL cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    USABLE
    auto *g = static_cast<Graph *>(graph);
    if (graphs.count(g) == 0 || flags != 0)
        return INVALID_VALUE;
    *executable = *graphs.insert(new Graph(*g)).first;
    return SUCCESS;
}

CALL cuGraphLaunch(void *executable, void *stream) {
    USABLE
    auto *g = static_cast<Graph *>(executable);
    if (graphs.count(g) == 0)
        return INVALID_VALUE;
    for (const Work &w : g->work)
        if (const int status = enqueue(stream_of(stream), w))
            return status;
    return SUCCESS;
}

CALL cuGraphDestroy(void *graph) {
    const Held held(lock);
    auto *g = static_cast<Graph *>(graph);
    if (graphs.erase(g) == 0)
        return INVALID_VALUE;
    delete g;
    return SUCCESS;
}

CALL cuGraphExecDestroy(void *executable) { return cuGraphDestroy(executable); }

CALL cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                    void *stream, void **parameters, void **extra) {
    USABLE
    auto *f = static_cast<Function *>(function);
    if (functions.count(f) == 0 || f->module->context != current)
        return INVALID_HANDLE;
    if (parameters == nullptr || extra != nullptr || gx == 0 || gy == 0 || gz == 0 || gx > 0x7fffffffu || gy > 65535 || gz > 65535 ||
        bx == 0 || by == 0 || bz == 0 || shared > 48 * 1024)
        return INVALID_VALUE;
    if (uint64_t(bx) * by * bz > 1024 || fails("FAIL_LAUNCH"))
        return OUT_OF_RESOURCES;
    const auto *args = static_cast<const char *>(parameters[0]);
    // Aligned for the pointers in it.
    std::vector<uint64_t> copy((f->args_bytes + 7) / 8);
    std::memcpy(copy.data(), args, f->args_bytes);
    const Context *context = current;
    const bool stray = std::any_of(copy.begin(), copy.end(), [&](uint64_t word) {
        const Block *block = holds(device_memory, word, 1);
        return block != nullptr && block->context != context;
    });
    return enqueue(stream_of(stream), [entry = f->entry, copy = std::move(copy), name = f->name, context, stray, gx, gy, gz, bx, by, bz, shared] {
        launches++;
        if (at_kernel.left > 0 && --at_kernel.left == 0)
            at_kernel.function(at_kernel.with);
        if (fails("LOSE", context))
            return int(LAUNCH_FAILED);
        if (stray) {
            std::fprintf(stderr, "fake_cuda: %s was given memory of another device\n", name.c_str());
            return int(ILLEGAL_ADDRESS);
        }
        const int failed = entry(copy.data(), gx, gy, gz, bx, by, bz, shared, int(settings["SCHEDULE"]));
        if (failed)
            std::fprintf(stderr, "fake_cuda: %s fails with %d\n", name.c_str(), failed);
        return failed ? int(LAUNCH_FAILED) : int(SUCCESS);
    });
}
