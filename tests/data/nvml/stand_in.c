/* A stand-in for libnvidia-ml.so.1 on machines without an NVIDIA driver, built by the test that loads it. It has three
 * GPUs: one in good order but hot, one in MIG mode (no utilization) that tells XID 48 once, and one that is lost. It
 * leaves out symbols, as an older library would. Layouts and codes follow NVIDIA's nvml.h. */
#include <stddef.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, TIMEOUT = 10, GPU_LOST = 15 };

typedef struct { int index; int events_left; } gpu_t;
static gpu_t gpus[3] = { { 0, 0 }, { 1, 1 }, { 2, 0 } };

int nvmlInit_v2(void) {
#ifdef WITHOUT_DRIVER
    return DRIVER_NOT_LOADED;
#else
    return SUCCESS;
#endif
}

int nvmlShutdown(void) { return SUCCESS; }

int nvmlDeviceGetCount_v2(unsigned int *count) {
#ifdef WITHOUT_GPU
    *count = 0;
#else
    *count = 3;
#endif
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, gpu_t **device) {
    if (index >= 3) return INVALID_ARGUMENT;
    if (index == 2) return GPU_LOST;
    *device = &gpus[index];
    return SUCCESS;
}

typedef struct { unsigned int gpu, memory; } utilization_t;
int nvmlDeviceGetUtilizationRates(gpu_t *device, utilization_t *rates) {
    if (device->index == 1) return NOT_SUPPORTED;
    rates->gpu = 37;
    rates->memory = 11;
    return SUCCESS;
}

typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_t;
int nvmlDeviceGetMemoryInfo_v2(gpu_t *device, memory_t *memory) {
    memory->total = 80ULL << 30;
    memory->reserved = 0;
    memory->used = (device->index == 0 ? 60ULL : 20ULL) << 30;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(gpu_t *device, int sensor, unsigned int *celsius) {
    (void)sensor;
    *celsius = device->index == 0 ? 91 : 40;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(gpu_t *device, unsigned long long *reasons) {
    *reasons = device->index == 0 ? 0x48 : 0x4;
    return SUCCESS;
}

typedef struct {
    unsigned int field, scope;
    long long timestamp, latency;
    unsigned int type, status;
    union { double d; unsigned int u; unsigned long long ull; } value;
} field_t;
int nvmlDeviceGetFieldValues(gpu_t *device, int count, field_t *fields) {
    (void)device;
    for (int i = 0; i < count; i++) {
        fields[i].status = fields[i].field == 145 ? SUCCESS : NOT_SUPPORTED;
        fields[i].type = 1; /* unsigned int */
        fields[i].value.u = 0;
    }
    return SUCCESS;
}

/* A set knows the one GPU that was registered with it. */
static gpu_t *sets[8];
static int sets_made;
int nvmlEventSetCreate(gpu_t ***set) {
    if (sets_made == 8) return INVALID_ARGUMENT;
    *set = &sets[sets_made++];
    return SUCCESS;
}
int nvmlEventSetFree(gpu_t **set) {
    *set = NULL;
    return SUCCESS;
}
int nvmlDeviceRegisterEvents(gpu_t *device, unsigned long long types, gpu_t **set) {
    if (types != 8) return INVALID_ARGUMENT; /* nvmlEventTypeXidCriticalError */
    *set = device;
    return SUCCESS;
}

typedef struct {
    gpu_t *device;
    unsigned long long type, data;
    unsigned int gpu_instance, compute_instance;
} event_t;
int nvmlEventSetWait_v2(gpu_t **set, event_t *event, unsigned int timeout_ms) {
    (void)timeout_ms;
    gpu_t *device = *set;
    if (device == NULL || device->events_left == 0) return TIMEOUT;
    device->events_left--;
    memset(event, 0, sizeof *event);
    event->device = device;
    event->type = 8;
    event->data = 48;
    return SUCCESS;
}
