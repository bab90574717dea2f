/* The threads of this process, from /proc; on systems other than Linux, none are found. */
#ifndef APL_FFI_THREADS_H
#define APL_FFI_THREADS_H

#include <dirent.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Copies the value of `key` in the status of thread `id`; 0 if the thread has ended. */
static inline int thread_status(const char *id, const char *key, char *value, size_t capacity)
{
    char path[300], line[256];
    int found = 0;
    snprintf(path, sizeof path, "/proc/self/task/%s/status", id);
    FILE *file = fopen(path, "r");
    if (!file)
        return 0;
    while (!found && fgets(line, sizeof line, file))
        if (strncmp(line, key, strlen(key)) == 0) {
            const char *text = line + strlen(key) + strspn(line + strlen(key), ": \t");
            snprintf(value, capacity, "%.*s", (int)strcspn(text, "\n"), text);
            found = 1;
        }
    fclose(file);
    return found;
}

/* The number of threads of the library. `every`, if given, gets the blocked signals of each. */
static inline int library_threads(void (*every)(uint64_t blocked))
{
    int count = 0;
    DIR *tasks = opendir("/proc/self/task");
    if (!tasks)
        return 0;
    for (struct dirent *task; (task = readdir(tasks));) {
        char name[64], mask[64];
        if (!thread_status(task->d_name, "Name", name, sizeof name) || strncmp(name, "apl_ffi-", 8) != 0)
            continue;
        count++;
        if (every && thread_status(task->d_name, "SigBlk", mask, sizeof mask))
            every(strtoull(mask, NULL, 16));
    }
    closedir(tasks);
    return count;
}

/* The same once it is `expected`, or after 5 s: a thread sets its name a moment after its start,
 * and disappears from /proc a moment after it is joined. */
static inline int library_threads_settled(int expected)
{
    const struct timespec pause = {0, 1000000};
    int found = library_threads(NULL);
    for (int i = 0; i < 5000 && found != expected; i++) {
        nanosleep(&pause, NULL);
        found = library_threads(NULL);
    }
    return found;
}

#endif
