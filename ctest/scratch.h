/* A folder for the files of a test. Define _XOPEN_SOURCE 700 before including this. */
#ifndef APL_FFI_SCRATCH_H
#define APL_FFI_SCRATCH_H

#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "check.h"

enum { SCRATCH = 512 }; /* bytes of a path */

/* Makes a new folder. */
static inline void scratch_make(char folder[SCRATCH])
{
    const char *parent = getenv("TMPDIR");
    snprintf(folder, SCRATCH, "%s/apl_ffi-XXXXXX", parent && *parent ? parent : P_tmpdir);
    if (!mkdtemp(folder)) {
        perror(folder);
        exit(2);
    }
}

static inline void scratch_path(char path[SCRATCH], const char *folder, const char *name)
{
    if (snprintf(path, SCRATCH, "%s/%s", folder, name) >= SCRATCH) {
        fprintf(stderr, "%s is too long\n", folder);
        exit(2);
    }
}

static inline void scratch_write(const char *path, const void *bytes, size_t size)
{
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, size, file) == size && fclose(file) == 0);
}

/* Removes the folder and the files in it. */
static inline void scratch_remove(const char *folder)
{
    DIR *entries = opendir(folder);
    for (struct dirent *entry; entries && (entry = readdir(entries));) {
        char path[SCRATCH];
        scratch_path(path, folder, entry->d_name);
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            unlink(path);
    }
    if (entries)
        closedir(entries);
    CHECK(rmdir(folder) == 0);
}

#endif
